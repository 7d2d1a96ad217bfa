//! Plain HTTP/1.1, one request per connection.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::program::PATIENCE;

/// A complete reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {text:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Self {
            status: status.unwrap_or_else(|| panic!("no status: {head:?}")),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts a refusal with this status and code.
    #[track_caller]
    pub(crate) fn refuses(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.json()["error"]["code"], code, "{self:?}");
    }
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct UnderWay(TcpStream);

impl UnderWay {
    /// Sends bytes of the request.
    pub(crate) fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until this text or the end.
    pub(crate) fn read_until(&mut self, wanted: &str) -> String {
        let mut read = Vec::new();
        let mut byte = [0];
        while !read.ends_with(wanted.as_bytes()) {
            assert_ne!(self.0.read(&mut byte).unwrap(), 0, "{wanted:?} does not come");
            read.extend(byte);
        }
        String::from_utf8(read).unwrap()
    }

    /// Reads until the connection closes.
    pub(crate) fn rest(mut self) -> String {
        let mut read = String::new();
        self.0.read_to_string(&mut read).unwrap();
        read
    }

    /// Reads the reply.
    pub(crate) fn reply(self) -> Reply {
        Reply::parse(&self.rest())
    }
}

/// Starts a request with these header lines and the first part of its body. The reply ends with the connection.
pub(crate) fn begin(address: &str, request: &str, headers: &[&str], body: &str) -> UnderWay {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut under_way = UnderWay(stream);
    let (request, host) = (format!("{request} HTTP/1.1"), format!("host: {address}"));
    let head = [&[&request[..], &host, "connection: close"], headers, &["", body]].concat();
    under_way.send(&head.join("\r\n"));
    under_way
}

/// Sends a request and reads the reply.
pub(crate) fn call(address: &str, request: &str, headers: &[&str], body: &str) -> Reply {
    let length = format!("content-length: {}", body.len());
    let headers = [headers, &[&length, "content-type: application/json"]].concat();
    begin(address, request, &headers, body).reply()
}

/// `GET /health`.
pub(crate) fn health(address: &str) -> Reply {
    call(address, "GET /health", &[], "")
}
