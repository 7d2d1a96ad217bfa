//! The format of log lines: JSON for machines, text for people.

use std::fmt::Write as _;

use humantime::format_rfc3339_millis;
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{KeyValue, Value, time};
use tracing::Level;
use uuid::Uuid;

use super::event::LogEvent;
use super::names;

/// The format of a line.
#[derive(Clone, Copy)]
pub(super) enum LineFormat {
    /// `timestamp`, `level`, the ids of the current span, `message` and the event's attributes, as one object.
    Json,
    /// Text for people: the time and the level, then the status, code and duration of a request. Ids come last.
    Text {
        /// Whether the level is colored.
        colour: bool,
    },
}

/// The attributes in the text line of a request that was not refused, besides those with a fixed position and
/// `callback.replayed` if it is true. The line of a refused request, and a JSON line, have all attributes.
const SHOWN: [&str; 8] = [
    names::TOOL_NAME,
    names::HELD_BEHIND,
    names::CANCELLED,
    names::DROPPED_HELD,
    names::DROPPED_AWAITING,
    names::REASON,
    names::CLIENT_ADDRESS,
    names::USER_AGENT,
];

impl LineFormat {
    pub(super) fn line(self, event: &LogEvent) -> String {
        let Self::Text { colour } = self else { return json(event) };
        let fields = LineFields(event.attributes().collect());
        let is_request = event.metadata.name() == names::REQUEST_EVENT;
        let text = if is_request { fields.request() } else { fields.append_to(event.message.to_string()) };
        let (level, code) = match *event.metadata.level() {
            level @ Level::ERROR => (level, 31),
            level @ Level::WARN => (level, 33),
            level => (level, 32),
        };
        let level = if colour { format!("\x1b[{code}m{level}\x1b[0m") } else { level.to_string() };
        format!("{} {level} {text}\n", format_rfc3339_millis(time::now()))
    }
}

fn json(event: &LogEvent) -> String {
    let mut line = String::with_capacity(1024);
    let time = format_rfc3339_millis(time::now());
    // Writing to a `String` cannot fail.
    let _ = write!(line, r#"{{"timestamp":"{time}","level":"{}""#, event.metadata.level().as_str());
    let span = event.context.span();
    let ids = span.span_context();
    if ids.is_valid() {
        let trace_id = Uuid::from_bytes(ids.trace_id().to_bytes()).simple();
        let _ = write!(line, r#","trace_id":"{trace_id}","span_id":"{}""#, ids.span_id());
    }
    push_member(&mut line, "message", event.message.as_str());
    for KeyValue { key, value, .. } in event.attributes() {
        if matches!(value, Value::Bool(_) | Value::I64(_)) {
            let _ = write!(line, r#","{key}":{value}"#);
        } else {
            push_member(&mut line, key.as_str(), &value.as_str());
        }
    }
    line.push_str("}\n");
    line
}

/// Appends a member of a JSON object. `name` needs no escaping.
fn push_member(line: &mut String, name: &str, value: &str) {
    line.extend([",\"", name, "\":"]);
    // Without an early exit, the loop is vectorized.
    let is_special = |byte| u8::from(byte < b' ') | u8::from(byte == b'"') | u8::from(byte == b'\\');
    if value.bytes().fold(0, |found, byte| found | is_special(byte)) == 0 {
        line.extend(["\"", value, "\""]);
    } else {
        line.push_str(&serde_json::to_string(value).unwrap_or_default());
    }
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
    fn json_is_valid_for_any_text() {
        for value in
            ["", "usual text", "a\"b", "a\\b", "a long text, and a control character at its end\x1b", "é\n"]
        {
            let mut line = "{\"first\":1".to_owned();
            push_member(&mut line, "value", value);
            let read: serde_json::Value = serde_json::from_str(&(line + "}")).unwrap();
            assert_eq!(read["value"], value);
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        let fields = [("error", "a\x1b[2J\nb"), ("file", "a b"), ("n", "1")];
        let fields = fields.map(|(name, value)| KeyValue::new(name, value));
        let line = LineFields(fields.iter().collect()).append_to("message".to_owned());
        assert_eq!(line, r#"message error="a\u{1b}[2J\nb" file="a b" n=1"#);
    }
}
