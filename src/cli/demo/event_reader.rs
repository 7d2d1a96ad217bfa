//! Reads the envelopes of the demo's channel.

use std::time::Duration;

use serde_json::Value;

use crate::cli::client::ClientError;
use crate::cli::event_stream::EventStream;

/// One event of the stream.
#[derive(Debug)]
pub(super) enum DemoEvent {
    /// An envelope.
    Envelope(Value),
    /// The conversation has ended.
    End,
}

/// Reads the events of a response body.
pub(super) struct EventReader(EventStream);

impl EventReader {
    pub(super) const fn new(response: reqwest::Response, timeout: Duration) -> Self {
        Self(EventStream::new(response, timeout))
    }

    /// Waits for the next event. Each chunk of the body must arrive within the timeout.
    pub(super) async fn next(&mut self) -> Result<DemoEvent, ClientError> {
        loop {
            let event = self.0.next().await?.ok_or("the event stream ended early")?;
            if event.is_end() {
                return Ok(DemoEvent::End);
            } else if event.is_envelope() {
                return Ok(DemoEvent::Envelope(serde_json::from_str(&event.data).unwrap_or_default()));
            }
        }
    }
}
