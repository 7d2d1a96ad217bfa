//! A raw connection, for malformed and slow requests.

use std::io::ErrorKind;
use std::net::SocketAddr;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{PATIENCE, Reply};

/// An open connection.
#[derive(Debug)]
pub(crate) struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    /// Sends bytes on a new connection and reads the reply.
    pub(crate) async fn say(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Reply {
        let mut raw = Self::connect(address).await;
        raw.send(bytes).await;
        raw.reply().await
    }

    /// Sends bytes. Errors are ignored, because a service that has refused may close the connection.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = self.stream.write_all(bytes.as_ref());
        drop(timeout(PATIENCE, sent).await.expect("the service reads, or ends the connection"));
    }

    /// Closes the sending side.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// The next reply.
    pub(crate) async fn reply(&mut self) -> Reply {
        let head_end = loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(self.fill().await, "the connection ended before a reply: {:?}", self.read);
        };
        let head: Vec<u8> = self.read.drain(..head_end).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().strip_prefix("HTTP/1.1 ").expect("HTTP/1.1").get(..3).unwrap();
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let length = headers.get("content-length").expect("a length").to_str().unwrap().parse().unwrap();
        while self.read.len() < length {
            assert!(self.fill().await, "the connection ended within a reply");
        }
        let body: Vec<u8> = self.read.drain(..length).collect();
        Reply { status: StatusCode::from_bytes(status.as_bytes()).unwrap(), headers, body: Bytes::from(body) }
    }

    /// Reads exactly these bytes, such as an interim response.
    pub(crate) async fn interim(&mut self, expected: &str) {
        while self.read.len() < expected.len() {
            assert!(self.fill().await, "the connection ended");
        }
        let read: Vec<u8> = self.read.drain(..expected.len()).collect();
        assert_eq!(read, expected.as_bytes());
    }

    /// Reads until this text has been received.
    pub(crate) async fn until(&mut self, expected: &str) -> Vec<u8> {
        let mut looked_at = 0_usize;
        loop {
            let from = looked_at.saturating_sub(expected.len());
            if self.read[from..].windows(expected.len()).any(|found| found == expected.as_bytes()) {
                return std::mem::take(&mut self.read);
            }
            looked_at = self.read.len();
            assert!(self.fill().await, "the connection ended");
        }
    }

    /// Whether nothing has been received so far.
    pub(crate) fn is_silent(&self) -> bool {
        let peeked = self.stream.try_read(&mut [0]);
        self.read.is_empty() && peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Whether the peer has closed the connection.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.stream.try_read(&mut [0]), Ok(0)) || self.stream.peer_addr().is_err()
    }

    /// Waits until the peer closes the connection; returns the remaining bytes.
    pub(crate) async fn closed(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.read)
    }

    /// Reads more bytes; false at the end.
    async fn fill(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await;
        matches!(read.expect("a reply, or the end of the connection, in time"), Ok(count) if count > 0)
    }
}
