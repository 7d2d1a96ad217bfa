//! HTTP/1.1 without a library: prepared requests, and a minimal parser of replies.

use crate::peer::{CALLBACKS_PATH, TOKEN_HEADER};

/// A request whose body follows, or is empty.
pub(super) fn head(method: &str, path: &str, headers: &str, length: usize) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {length}\r\n\r\n")
        .into_bytes()
}

/// A request with its body.
pub(super) fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let headers = format!("{headers}content-type: application/json\r\n");
    let mut request = head(method, path, &headers, body.len());
    request.extend(body.as_bytes());
    request
}

/// The head of a post to a peer.
pub(super) fn callback(token: &str, length: usize) -> Vec<u8> {
    let headers = format!("content-type: application/json\r\n{TOKEN_HEADER}: {token}\r\n");
    head("POST", CALLBACKS_PATH, &headers, length)
}

/// A JSON result of this many bytes.
pub(super) fn result(bytes: usize) -> Vec<u8> {
    let empty = r#"{"result":""}"#.len();
    format!(r#"{{"result":"{}"}}"#, "x".repeat(bytes.saturating_sub(empty))).into_bytes()
}

/// Where a whole reply ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) head: usize,
    pub(super) end: usize,
}

/// Parses the reply at the start of the buffer, once its head is complete. Supports `content-length` only.
pub(super) fn reply(read: &[u8]) -> Option<Reply> {
    let head = read.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let status = std::str::from_utf8(&read[9..12]).unwrap().parse().unwrap();
    let length = read[..head].split(|&byte| byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(15)?;
        name.eq_ignore_ascii_case(b"content-length:").then(|| std::str::from_utf8(value).unwrap().trim())
    });
    let length: usize = length.expect("a reply has a content-length").parse().unwrap();
    Some(Reply { status, head, end: head + length })
}
