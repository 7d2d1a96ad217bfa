//! The platform's ear: reads an event stream.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::timeout;

use crate::cli::client::ClientError;

/// One event of the stream.
#[derive(Debug)]
pub(super) enum Heard {
    /// An envelope.
    Envelope(Value),
    /// The conversation has ended.
    End,
}

/// An event stream that is being read.
pub(super) struct Watcher {
    body: Incoming,
    text: String,
    limit: Duration,
}

impl Watcher {
    pub(super) fn new(body: Incoming, limit: Duration) -> Self {
        Self { body, text: String::new(), limit }
    }

    /// The next event.
    pub(super) async fn next(&mut self) -> Result<Heard, ClientError> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let heard = parse(block);
                self.text = rest.into();
                match heard {
                    Some(heard) => return Ok(heard),
                    None => continue,
                }
            }
            let frame = timeout(self.limit, self.body.frame()).await?;
            let frame = frame.ok_or("the event stream ended early")??;
            if let Some(data) = frame.data_ref() {
                self.text.push_str(std::str::from_utf8(data)?);
            }
        }
    }
}

/// A block of lines; `None` for a comment.
fn parse(block: &str) -> Option<Heard> {
    let of = |name: &str| {
        let values = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        values.collect::<Vec<_>>().join("\n")
    };
    match (of("event").as_str(), of("data").as_str()) {
        ("end", _) => Some(Heard::End),
        (_, "") => None,
        (_, data) => Some(Heard::Envelope(serde_json::from_str(data).unwrap_or_default())),
    }
}
