//! A non-blocking connection with at most one request in flight.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::http::{self, Reply};

pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
    /// Number of bytes sent, and the total.
    sent: usize,
    length: usize,
    /// Number of the request.
    pub(super) current: usize,
    /// The start of its latency.
    pub(super) since: Instant,
}

impl Connection {
    pub(super) fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        let buffer = vec![0; 4096];
        Self { stream, buffer, filled: 0, sent: 0, length: 0, current: 0, since: Instant::now() }
    }

    pub(super) fn send(&mut self, number: usize, since: Instant, head: &[u8], body: &[u8]) {
        (self.current, self.since) = (number, since);
        (self.sent, self.length) = (0, head.len() + body.len());
        self.write(head, body);
    }

    fn write(&mut self, head: &[u8], body: &[u8]) {
        while self.sent < self.length {
            let head_left = &head[self.sent.min(head.len())..];
            let body_left = &body[self.sent.saturating_sub(head.len())..];
            match self.stream.write_vectored(&[IoSlice::new(head_left), IoSlice::new(body_left)]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("cannot send request {}: {error}", self.current),
            }
        }
    }

    /// The events that it waits for.
    pub(super) fn interest(&self) -> PollFd<'_> {
        let writing = if self.sent < self.length { PollFlags::OUT } else { PollFlags::empty() };
        PollFd::new(&self.stream, PollFlags::IN | writing)
    }

    /// Sends the rest of the request and reads. Returns the reply once it is complete.
    pub(super) fn proceed(&mut self, head: &[u8], body: &[u8]) -> Option<Reply> {
        self.write(head, body);
        if self.filled == self.buffer.len() {
            self.buffer.resize(2 * self.filled, 0);
        }
        match self.stream.read(&mut self.buffer[self.filled..]) {
            Ok(0) => panic!("the connection was closed before the reply to request {}", self.current),
            Ok(read) => self.filled += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => panic!("no reply to request {}: {error}", self.current),
        }
        http::reply(&self.buffer[..self.filled]).filter(|reply| reply.end <= self.filled)
    }

    pub(super) fn body(&self, reply: Reply) -> &[u8] {
        &self.buffer[reply.head..reply.end]
    }

    /// Ready for the next request.
    pub(super) fn finish(&mut self) {
        self.filled = 0;
    }
}
