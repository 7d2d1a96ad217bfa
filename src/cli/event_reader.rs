//! Reads server-sent events.

use std::time::Duration;

use axum::body::HttpBody;
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::time::timeout;

use super::client::ClientError;

/// One event of the stream.
#[derive(Debug)]
pub(super) enum StreamEvent {
    /// An envelope.
    Envelope(Value),
    /// The conversation has ended.
    End,
}

/// Reads the events of a response body.
pub(super) struct EventReader<B> {
    body: B,
    text: String,
    timeout: Duration,
}

impl<B: HttpBody<Data = Bytes, Error: Into<ClientError>> + Unpin> EventReader<B> {
    pub(super) fn new(body: B, timeout: Duration) -> Self {
        Self { body, text: String::new(), timeout }
    }

    /// Waits for the next event, at most `timeout` for each chunk of the body.
    pub(super) async fn next(&mut self) -> Result<StreamEvent, ClientError> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let event = parse(block);
                self.text = rest.into();
                match event {
                    Some(event) => return Ok(event),
                    None => continue,
                }
            }
            let frame = timeout(self.timeout, self.body.frame()).await?;
            let frame = frame.ok_or("the event stream ended early")?.map_err(Into::into)?;
            if let Some(data) = frame.data_ref() {
                self.text.push_str(std::str::from_utf8(data)?);
            }
        }
    }
}

/// Parses the lines of one event. `None` for a comment.
fn parse(block: &str) -> Option<StreamEvent> {
    let field = |name: &str| {
        let values = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        values.collect::<Vec<_>>().join("\n")
    };
    match (field("event").as_str(), field("data").as_str()) {
        ("end", _) => Some(StreamEvent::End),
        (_, "") => None,
        (_, data) => Some(StreamEvent::Envelope(serde_json::from_str(data).unwrap_or_default())),
    }
}
