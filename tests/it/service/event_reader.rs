//! A reader of server-sent events, by the HTML standard.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::timeout;

use super::{Call, PATIENCE};

/// An event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) id: String,
    /// Empty for an envelope.
    pub(crate) name: String,
    pub(crate) data: String,
}

impl Event {
    /// The envelope that it carries.
    pub(crate) fn envelope(&self) -> Value {
        assert_eq!(self.name, "", "an envelope's event has no name");
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {}", self.data))
    }

    /// The sequence that its id names.
    pub(crate) fn sequence(&self) -> u64 {
        let (opened_at, sequence) = self.id.split_once('-').expect("a stream id");
        assert!(opened_at.parse::<u64>().unwrap() > 1_600_000_000_000, "when the conversation was opened");
        sequence.parse().unwrap()
    }
}

/// More events than any test makes.
const ENDLESS: usize = 10_000;

/// An open event stream.
#[derive(Debug)]
pub(crate) struct EventReader {
    body: Incoming,
    read: Vec<u8>,
    /// Length of the buffer's start that is known to contain no end of an event.
    looked_at: usize,
}

impl EventReader {
    pub(crate) async fn of(call: Call<'_>) -> Self {
        let reply = call.begin().await;
        assert_eq!(reply.status(), 200);
        assert_eq!(reply.headers()["content-type"], "text/event-stream; charset=utf-8");
        assert_eq!(reply.headers()["cache-control"], "no-cache, no-transform");
        assert!(reply.headers().contains_key("x-request-id") && reply.headers().contains_key("x-trace-id"));
        Self { body: reply.into_body(), read: Vec::new(), looked_at: 0 }
    }

    /// The next event; `None` after the end of the stream. An unfinished event is discarded.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.take_event() {
                return Some(event);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next `count` events.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            events.push(self.next().await.unwrap_or_else(|| panic!("the stream ended after {events:?}")));
        }
        events
    }

    /// All events until the end of the stream.
    pub(crate) async fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
            assert!(events.len() <= ENDLESS, "the stream does not end: {event:?}", event = events.last());
        }
        events
    }

    /// Reads this many bytes, closes the connection and returns the complete events.
    pub(crate) async fn cut_after(mut self, bytes: usize) -> Vec<Event> {
        while self.read.len() < bytes && self.fill().await {}
        self.read.truncate(bytes);
        std::iter::from_fn(|| self.take_event()).collect()
    }

    /// Reads more bytes; false at the end.
    async fn fill(&mut self) -> bool {
        let frame = timeout(PATIENCE, self.body.frame()).await.expect("an event in time");
        let Some(Ok(frame)) = frame else { return false };
        self.read.extend_from_slice(frame.data_ref().expect("a stream without trailers"));
        true
    }

    /// Removes the first complete event from the buffer, skipping comments.
    fn take_event(&mut self) -> Option<Event> {
        loop {
            let from = self.looked_at.saturating_sub(1).min(self.read.len());
            let Some(end) = self.read[from..].windows(2).position(|pair| pair == b"\n\n") else {
                self.looked_at = self.read.len();
                return None;
            };
            let end = from + end + 2;
            self.looked_at = 0;
            let block: Vec<u8> = self.read.drain(..end).collect();
            let block = String::from_utf8(block).expect("events are UTF-8");
            assert!(!block.contains('\r'), "a carriage return ends a line for some readers only: {block:?}");
            let mut event = Event::default();
            let mut data = Vec::new();
            for line in block.lines() {
                let (field, value) = line.split_once(':').unwrap_or((line, ""));
                let value = value.strip_prefix(' ').unwrap_or(value);
                match field {
                    "id" => value.clone_into(&mut event.id),
                    "event" => value.clone_into(&mut event.name),
                    "data" => data.push(value),
                    _ => {}
                }
            }
            if !data.is_empty() {
                event.data = data.join("\n");
                return Some(event);
            }
        }
    }
}
