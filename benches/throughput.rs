//! How many callbacks a second the real program takes, in variants compared within one run:
//! `cargo bench --bench throughput`. Figures are ratios to the first variant; loopback only, bounded in count.
//!
//! Each round starts the program anew, issues work items, and posts a 512-byte result for each over 64 connections.
//! Rounds of all variants alternate, and a variant's median round counts.
#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

const CONNECTIONS: usize = 64;
/// Of each round.
const CALLBACKS: usize = 20_000;
const ROUNDS: usize = 5;
const ITEMS_PER_CONVERSATION: usize = 8;
const KEY: &str = "a-service-key-for-the-benchmark";

struct Variant {
    name: &'static str,
    arguments: Vec<String>,
}

/// A started program, killed when dropped.
struct Service {
    child: Child,
    public: String,
    platform: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Service {
    fn start(variant: &Variant) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_callback-ingress"))
            .args(["serve", "--public-addr", "127.0.0.1:0", "--platform-addr", "127.0.0.1:0"])
            .arg("--set")
            .arg(format!("platform.service_keys=[{KEY:?}]"))
            .args(["--set", "telemetry.log_format=json"])
            .args(&variant.arguments)
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
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::with_capacity(4096) }
    }

    /// Sends a request, and gives the status and the body of the reply.
    async fn ask(&mut self, request: &[u8]) -> (u16, String) {
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

fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Opens a conversation and issues its work items; their tokens, in order.
async fn conversation(connection: &mut Connection, name: String) -> Vec<String> {
    let authorization = format!("Authorization: Bearer {KEY}\r\n");
    let path = format!("/platform/v1/conversations/{name}");
    let (status, body) = connection.ask(&request("PUT", &path, &authorization, "{}")).await;
    assert_eq!(status, 201, "{body}");
    let issue = request(
        "POST",
        &format!("{path}/work-items"),
        &authorization,
        r#"{"kind":"tool","timeoutMs":600000}"#,
    );
    let mut tokens = Vec::new();
    for _ in 0..ITEMS_PER_CONVERSATION {
        let (status, body) = connection.ask(&issue).await;
        assert_eq!(status, 201, "{body}");
        let issued: serde_json::Value = serde_json::from_str(&body).unwrap();
        tokens.push(issued["callback"]["token"].as_str().unwrap().to_owned());
    }
    tokens
}

/// Callbacks a second, and the 50th and 99th percentile of their duration.
async fn round(variant: &Variant, number: usize) -> (f64, Duration, Duration) {
    let service = Service::start(variant);
    let body = format!(r#"{{"result":"{}"}}"#, "x".repeat(499));
    let life = format!("bench-{}-{}-{number}", std::process::id(), variant.name.replace([' ', ','], "-"));
    let mut issuing = JoinSet::new();
    for worker in 0..CONNECTIONS {
        let (platform, life) = (service.platform.clone(), life.clone());
        issuing.spawn(async move {
            let mut connection = Connection::open(&platform).await;
            let mut tokens = Vec::new();
            while tokens.len() < CALLBACKS / CONNECTIONS {
                let name = format!("{life}-{worker}-{}", tokens.len());
                tokens.extend(conversation(&mut connection, name).await);
            }
            tokens
        });
    }
    let tokens = issuing.join_all().await;
    let total: usize = tokens.iter().map(Vec::len).sum();
    let begin = Instant::now();
    let mut posting = JoinSet::new();
    for tokens in tokens {
        let (public, body) = (service.public.clone(), body.clone());
        posting.spawn(async move {
            let mut connection = Connection::open(&public).await;
            let mut durations = Vec::with_capacity(tokens.len());
            for token in tokens {
                let header = format!("X-Callback-Token: {token}\r\n");
                let request = request("POST", "/api/v1/webhooks/callbacks", &header, &body);
                let sent = Instant::now();
                let (status, body) = connection.ask(&request).await;
                assert_eq!(status, 202, "{body}");
                durations.push(sent.elapsed());
            }
            durations
        });
    }
    let mut durations: Vec<Duration> = posting.join_all().await.into_iter().flatten().collect();
    let rate = total as f64 / begin.elapsed().as_secs_f64();
    durations.sort();
    (rate, durations[total / 2], durations[total * 99 / 100])
}

fn variants(redis: &str) -> Vec<Variant> {
    let variant = |name, arguments: &[&str]| Variant {
        name,
        arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
    };
    vec![
        variant("memory, no log", &["--log-level", "off,callback_ingress::cli=info"]),
        variant("memory", &[]),
        variant("redis, no log", &["--log-level", "off,callback_ingress::cli=info", "--store", redis]),
        variant("redis", &["--store", redis]),
    ]
}

fn main() {
    let redis = std::env::args().find(|argument| argument.starts_with("redis:"));
    let variants = variants(&redis.unwrap_or_default());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut results: Vec<Vec<(f64, Duration, Duration)>> = variants.iter().map(|_| Vec::new()).collect();
    for number in 0..ROUNDS {
        for (variant, results) in variants.iter().zip(&mut results) {
            results.push(runtime.block_on(round(variant, number)));
        }
    }
    let medians: Vec<_> = results
        .iter_mut()
        .map(|rounds| {
            rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
            rounds[rounds.len() / 2]
        })
        .collect();
    println!("{:<24} {:>12} {:>8} {:>10} {:>10}", "variant", "callbacks/s", "ratio", "p50", "p99");
    for (variant, (rate, p50, p99)) in variants.iter().zip(&medians) {
        let ratio = rate / medians[0].0;
        println!("{:<24} {rate:>12.0} {ratio:>8.2} {p50:>10.2?} {p99:>10.2?}", variant.name);
    }
}
