//! Sends raw requests and captures every reply.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::running::Running;
use super::search::Capture;
use super::tokens::Known;

/// Number of client addresses used. Each request has a new one, because failures are rate limited per address.
static CLIENTS: AtomicU32 = AtomicU32::new(0);

/// Longest wait for the end of a reply.
const ENDLESS: Duration = Duration::from_secs(3);

/// A reply, as far as it was received.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) json: Value,
}

impl Answer {
    /// The code of a refusal.
    pub(crate) fn code(&self) -> &str {
        self.json["error"]["code"].as_str().unwrap_or_default()
    }
}

/// Sends requests and captures replies.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) public: String,
    pub(crate) platform: String,
    pub(crate) known: Arc<Known>,
    pub(crate) captures: Vec<Capture>,
    /// The code of every refusal so far.
    pub(crate) codes: BTreeSet<String>,
    pub(crate) sent: usize,
}

/// A placeholder of a template and its value.
pub(crate) type Filling<'a> = (&'a str, &'a [u8]);

fn replaced(template: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
    let mut read = Vec::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.windows(what.len()).position(|window| window == what) {
        read.extend_from_slice(&rest[..at]);
        read.extend_from_slice(by);
        rest = &rest[at + what.len()..];
    }
    read.extend_from_slice(rest);
    read
}

/// Fills in a template and adds the required headers that it lacks.
pub(crate) fn request(template: &str, fillings: &[Filling<'_>]) -> Vec<u8> {
    let filled = |part: &str| {
        fillings
            .iter()
            .fold(part.as_bytes().to_vec(), |part, (what, by)| replaced(&part, what.as_bytes(), by))
    };
    let (head, body) = template.split_once("\n\n").unwrap();
    let body = filled(body);
    let mut lines = head.split('\n');
    let mut bytes = filled(lines.next().unwrap());
    bytes.extend(b" HTTP/1.1\r\n");
    for line in lines {
        bytes.extend(filled(line));
        bytes.extend(b"\r\n");
    }
    let length = body.len().to_string();
    let client = Ipv4Addr::from(0x0a00_0000 + CLIENTS.fetch_add(1, Ordering::Relaxed)).to_string();
    let needed = [
        ("host", "callbacks.test"),
        ("connection", "close"),
        ("content-type", "application/json"),
        ("content-length", length.as_str()),
        ("x-forwarded-for", client.as_str()),
    ];
    for (name, value) in needed {
        let encoded = name == "content-length" && head.contains("\ntransfer-encoding:");
        if !head.contains(&format!("\n{name}:")) && !encoded {
            bytes.extend(format!("{name}: {value}\r\n").into_bytes());
        }
    }
    bytes.extend(b"\r\n");
    bytes.extend(body);
    bytes
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Whether the reply is complete.
fn is_whole(reply: &[u8]) -> bool {
    let Some(end) = head_end(reply) else { return false };
    let head = String::from_utf8_lossy(&reply[..end]).to_ascii_lowercase();
    if head.starts_with("http/1.1 100") {
        return is_whole(&reply[end..]);
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.and_then(|length| length.parse::<usize>().ok()).is_some_and(|length| reply.len() >= end + length)
}

fn exchange(address: &str, request: &[u8], then: impl FnOnce(&TcpStream)) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(ENDLESS)).unwrap();
    // Fails where the service has refused and closed the connection.
    drop(stream.write_all(request));
    then(&stream);
    let mut reply = Vec::new();
    let mut buffer = [0; 8 * 1024];
    while !is_whole(&reply) {
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 => reply.extend_from_slice(&buffer[..count]),
            Ok(_) | Err(_) => break,
        }
    }
    reply
}

impl Wire {
    pub(crate) fn to(service: &Running, known: &Arc<Known>) -> Self {
        Self {
            public: service.public.clone(),
            platform: service.platform.clone(),
            known: Arc::clone(known),
            captures: Vec::new(),
            codes: BTreeSet::new(),
            sent: 0,
        }
    }

    /// Sends a request to a listener.
    pub(crate) fn say(&mut self, name: &str, address: &str, request: &[u8]) -> Answer {
        let reply = exchange(address, request, |_| ());
        self.keep(name, &reply)
    }

    /// Sends a request and closes the sending side.
    pub(crate) fn cut_off(&mut self, name: &str, address: &str, request: &[u8]) {
        // Fails where the service has closed the connection.
        let reply = exchange(address, request, |stream| drop(stream.shutdown(Shutdown::Write)));
        self.keep(name, &reply);
    }

    /// Captures a reply. A token in the reply to an issue is removed and registered as a secret.
    pub(crate) fn keep(&mut self, name: &str, reply: &[u8]) -> Answer {
        self.sent += 1;
        let end = head_end(reply).unwrap_or(reply.len());
        let head = String::from_utf8_lossy(&reply[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        let mut json: Value = serde_json::from_slice(&reply[end..]).unwrap_or_default();
        let name = format!("the reply to {}", name.replace('\n', " | "));
        let token = json["callback"]["token"].as_str().map(ToOwned::to_owned);
        let capture = if let (201, Some(token)) = (status, token) {
            self.known.token(&format!("work item {}", json["workItemId"]), &token);
            let mut shown = json.clone();
            for member in ["token", "url", "headers"] {
                shown["callback"].as_object_mut().unwrap().remove(member);
            }
            Capture::new(name, [head.as_bytes(), shown.to_string().as_bytes()].concat())
        } else if head.contains("text/event-stream") {
            Capture::with_results(name, reply)
        } else {
            Capture::new(name, reply)
        };
        self.captures.push(capture);
        let answer = Answer { status, json: json.take() };
        if !answer.code().is_empty() {
            self.codes.insert(answer.code().to_owned());
        }
        answer
    }
}
