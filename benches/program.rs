//! The real program, started for a benchmark, and connections to it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The platform's key.
pub(crate) const KEY: &str = "a-service-key-for-the-benchmark";

/// A started program, killed when dropped.
pub(crate) struct Service {
    pub(crate) child: Child,
    pub(crate) public: String,
    pub(crate) platform: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Service {
    pub(crate) fn start(arguments: &[String]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_callback-ingress"))
            .args(["serve", "--public-addr", "127.0.0.1:0", "--platform-addr", "127.0.0.1:0"])
            .arg("--set")
            .arg(format!("platform.service_keys=[{KEY:?}]"))
            .args(["--set", "telemetry.log_format=json"])
            .args(arguments)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = log.by_ref().map_while(Result::ok).find(|line| line.contains("\"serving\"")).unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        // A log that nobody reads would stop the program.
        std::thread::spawn(move || log.for_each(drop));
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        Self { public: text("public"), platform: text("platform"), child }
    }
}

/// A connection that sends one request after the other.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::with_capacity(4096) }
    }

    /// Sends a request, and gives the status and the body of the reply.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> (u16, String) {
        self.stream.write_all(request).await.unwrap();
        self.buffer.clear();
        let head_end = loop {
            assert_ne!(self.stream.read_buf(&mut self.buffer).await.unwrap(), 0, "the connection was closed");
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..head_end]).to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
        let length: usize = length.trim().parse().unwrap();
        while self.buffer.len() < head_end + length {
            assert_ne!(self.stream.read_buf(&mut self.buffer).await.unwrap(), 0, "the connection was closed");
        }
        let body = String::from_utf8_lossy(&self.buffer[head_end..]).into_owned();
        (head[9..12].parse().unwrap(), body)
    }
}

pub(crate) fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}
