//! The format of log lines: JSON for machines, text for people.

use std::fmt::Write as _;

use opentelemetry::trace::TraceContextExt;
use opentelemetry::{KeyValue, Value};
use serde::ser::{SerializeMap, Serializer as _};
use tracing::Level;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::event::LogEvent;
use super::names;

/// The format of a line.
#[derive(Clone, Copy)]
pub(super) enum LineFormat {
    /// `timestamp`, `level`, the ids of the current span, `message` and the event's attributes, as one object.
    Json,
    /// Text for people: the time and the level, then the status, code and duration of a request. Ids come last.
    Text {
        /// Whether the level is coloured.
        colour: bool,
    },
}

/// The further attributes in the text line of a successful request, after those with a fixed position. A JSON line has
/// all attributes.
const SHOWN: [&str; 8] = [
    names::TOOL_NAME,
    names::HELD_BEHIND,
    names::CANCELLED,
    names::DROPPED_HELD,
    names::DROPPED_AWAITING,
    names::REASON,
    // Of a client that disconnected.
    names::CLIENT_ADDRESS,
    names::USER_AGENT,
];

impl LineFormat {
    pub(super) fn line(self, event: &LogEvent) -> Vec<u8> {
        let Self::Text { colour } = self else {
            // Cannot fail.
            return json(event).unwrap_or_default();
        };
        let fields = LineFields(event.attributes().collect());
        let is_request = event.metadata.name() == names::REQUEST_EVENT;
        let text = if is_request { fields.request() } else { fields.append_to(event.message.to_string()) };
        let (level, code) = match *event.metadata.level() {
            level @ Level::ERROR => (level, 31),
            level @ Level::WARN => (level, 33),
            level => (level, 32),
        };
        let level = if colour { format!("\x1b[{code}m{level}\x1b[0m") } else { level.to_string() };
        format!("{} {level} {text}\n", now()).into_bytes()
    }
}

/// The current time in the format of RFC 3339, with milliseconds.
fn now() -> String {
    let mut text = String::with_capacity(32);
    // Cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text.truncate("2026-01-01T00:00:00.000".len());
    text.push('Z');
    text
}

fn json(event: &LogEvent) -> serde_json::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(1024);
    let mut serializer = serde_json::Serializer::new(&mut line);
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("timestamp", &now())?;
    map.serialize_entry("level", event.metadata.level().as_str())?;
    let span = event.context.span();
    if span.span_context().is_valid() {
        map.serialize_entry("trace_id", &span.span_context().trace_id().to_string())?;
        map.serialize_entry("span_id", &span.span_context().span_id().to_string())?;
    }
    map.serialize_entry("message", event.message.as_str())?;
    for attribute in event.attributes() {
        let name = attribute.key.as_str();
        if let Value::Bool(value) = &attribute.value {
            map.serialize_entry(name, value)?;
        } else if let Value::I64(value) = &attribute.value {
            map.serialize_entry(name, value)?;
        } else {
            map.serialize_entry(name, &attribute.value.as_str())?;
        }
    }
    map.end()?;
    line.push(b'\n');
    Ok(line)
}

/// The attributes of an event that are not yet in its text line.
struct LineFields<'a>(Vec<&'a KeyValue>);

impl LineFields<'_> {
    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|field| field.key.as_str() == name)?;
        Some(self.0.remove(at).value.to_string())
    }

    fn request(mut self) -> String {
        let mut line = self.take(names::HTTP_RESPONSE_STATUS_CODE).unwrap_or_default();
        let (code, delivery) = (self.take(names::CODE), self.take(names::DELIVERY));
        let micros = self.take(names::DURATION_US).and_then(|text| text.parse().ok()).unwrap_or(0.0);
        let duration = format!("{:.1}ms", micros / 1000.0);
        let (method, route) = (self.take(names::HTTP_REQUEST_METHOD), self.take(names::HTTP_ROUTE));
        let message = self.take(names::MESSAGE).map(|message| format!(": {message}"));
        let sequence = self.take(names::WORK_ITEM_SEQUENCE).map(|number| format!("#{number}"));
        let conversation = self.take(names::CONVERSATION_ID).map(|id| id + &sequence.unwrap_or_default());
        let ids = [
            conversation.map(|id| KeyValue::new("conversation", id)),
            self.take(names::REQUEST_ID).map(|id| KeyValue::new("request", id)),
        ];
        if code.is_none() {
            let replayed = KeyValue::new(names::REPLAYED, true);
            self.0.retain(|field| SHOWN.contains(&field.key.as_str()) || **field == replayed);
        }
        for word in [code.or(delivery), Some(duration), method, route].into_iter().flatten() {
            line.push(' ');
            line.push_str(&word);
        }
        line.extend(message);
        LineFields(self.0.into_iter().chain(ids.iter().flatten()).collect()).append_to(line)
    }

    fn append_to(self, mut line: String) -> String {
        for KeyValue { key, value, .. } in self.0 {
            let value = value.as_str();
            // Cannot fail.
            let _ = if value.is_empty() || value.contains([' ', '"']) || value.contains(char::is_control) {
                write!(line, " {key}={value:?}")
            } else {
                write!(line, " {key}={value}")
            };
        }
        // Escaped, so that no value can move the cursor or start a new line.
        if line.contains(char::is_control) { line.escape_debug().to_string() } else { line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_line_starts_with_status_and_fits_160_columns() {
        let usual = [
            (names::REQUEST_ID, "0198c6f0-97a4-4b51-8d1c-6f6d3d1c9f3a"),
            (names::HTTP_REQUEST_METHOD, "POST"),
            (names::HTTP_ROUTE, "/api/v1/webhooks/callbacks"),
            (names::HTTP_RESPONSE_STATUS_CODE, "202"),
            (names::DURATION_US, "840"),
            (names::CONVERSATION_ID, "call-1"),
            (names::WORK_ITEM_ID, "0198c6f0-97a4-7b51-8d1c-6f6d3d1c9f3a"),
            (names::WORK_ITEM_SEQUENCE, "3"),
            (names::DELIVERY, "delivered"),
        ];
        let mut usual = usual.map(|(name, value)| KeyValue::new(name, value)).to_vec();
        usual.push(KeyValue::new(names::REPLAYED, false));
        let line = LineFields(usual.iter().collect()).request();
        assert_eq!(
            line,
            "202 delivered 0.8ms POST /api/v1/webhooks/callbacks conversation=call-1#3 \
             request=0198c6f0-97a4-4b51-8d1c-6f6d3d1c9f3a"
        );
        assert!("2026-01-01T00:00:00.000Z INFO ".len() + line.len() <= 160);
    }

    #[test]
    fn control_characters_are_escaped() {
        let fields = [("error", "a\x1b[2J\nb"), ("file", "a b"), ("n", "1")];
        let fields = fields.map(|(name, value)| KeyValue::new(name, value));
        let line = LineFields(fields.iter().collect()).append_to("message".to_owned());
        assert_eq!(line, r#"message error="a\u{1b}[2J\nb" file="a b" n=1"#);
    }
}
