//! Reads server-sent events.

use std::time::Duration;

use memchr::memmem;
use reqwest::Response;
use tokio::time::timeout;

use super::client::{ClientError, root_cause};

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct StreamEvent {
    /// Its type. Empty: an envelope.
    pub(super) name: String,
    pub(super) id: Option<String>,
    pub(super) data: String,
}

impl StreamEvent {
    /// Whether it is the last event of the conversation.
    pub(super) fn is_end(&self) -> bool {
        self.name == "end"
    }

    /// Whether it is an envelope.
    pub(super) const fn is_envelope(&self) -> bool {
        self.name.is_empty()
    }
}

/// Reads the events of a response. The service ends lines with line feeds only.
pub(super) struct EventStream {
    response: Response,
    received: Vec<u8>,
    /// Number of bytes at the start of `received` that contain no end of an event.
    searched: usize,
    timeout: Duration,
}

impl EventStream {
    /// `timeout`: the longest time between two chunks of the body. The service sends a comment at least every 15 s.
    pub(super) const fn new(response: Response, timeout: Duration) -> Self {
        Self { response, received: Vec::new(), searched: 0, timeout }
    }

    /// Waits for the next event. `None`: the stream has been closed.
    pub(super) async fn next(&mut self) -> Result<Option<StreamEvent>, ClientError> {
        loop {
            while let Some(at) = memmem::find(&self.received[self.searched..], b"\n\n") {
                let block: Vec<u8> = self.received.drain(..self.searched + at + 2).collect();
                self.searched = 0;
                if let Some(event) = parse(std::str::from_utf8(&block)?) {
                    return Ok(Some(event));
                }
            }
            // The line feeds can be in two chunks.
            self.searched = self.received.len().saturating_sub(1);
            match timeout(self.timeout, self.response.chunk()).await? {
                Ok(Some(chunk)) => self.received.extend_from_slice(&chunk),
                Ok(None) => return Ok(None),
                Err(error) => return Err(root_cause(&error).into()),
            }
        }
    }
}

/// Parses the lines of one event. `None` for comments.
fn parse(block: &str) -> Option<StreamEvent> {
    let mut event = StreamEvent::default();
    let mut data: Vec<&str> = Vec::new();
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut event.name),
            "id" => event.id = Some(value.to_owned()),
            "data" => data.push(value),
            _ => {}
        }
    }
    event.data = data.join("\n");
    (!data.is_empty()).then_some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_parsed_and_comments_skipped() {
        assert_eq!(parse(":\n\n"), None);
        let event = parse("id: 7-1\ndata: {\"a\":\ndata: 1}\n\n").unwrap();
        assert_eq!((event.id.as_deref(), event.data.as_str()), (Some("7-1"), "{\"a\":\n1}"));
        assert!(event.is_envelope() && !event.is_end());
        let end = parse("event: end\ndata: {}\n\n").unwrap();
        assert!(end.is_end() && !end.is_envelope());
    }
}
