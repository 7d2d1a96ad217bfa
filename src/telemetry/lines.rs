//! The format of log lines: JSON for machines, text for people. Each line has the ids of the current span.

use std::fmt::{self, Debug, Write as _};

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;
use serde::ser::{SerializeMap, Serializer as _};
use serde_json::Serializer;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::names;

/// The format of a line.
pub(super) enum LineFormat {
    /// `timestamp`, `level`, the ids of the span and the event's fields, including `message`, as one object. In a
    /// single write, which halves the time per line of `tracing-subscriber`'s own format.
    Json,
    /// Text for people: time and level, then for a request its status, code and duration. Ids come last.
    Text,
}

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match self {
            Self::Json => writer.write_str(&json(event).map_err(|_| fmt::Error)?),
            Self::Text => {
                let mut fields = Fields::default();
                event.record(&mut fields);
                let is_request = event.metadata().name() == names::REQUEST_EVENT;
                let text = if is_request { fields.request() } else { fields.other() };
                let (level, colour) = match *event.metadata().level() {
                    level @ Level::ERROR => (level, 31),
                    level @ Level::WARN => (level, 33),
                    level => (level, 32),
                };
                if writer.has_ansi_escapes() {
                    writeln!(writer, "{} \x1b[{colour}m{level}\x1b[0m {text}", now()?)
                } else {
                    writeln!(writer, "{} {level} {text}", now()?)
                }
            }
        }
    }
}

/// The time in milliseconds, by RFC 3339.
fn now() -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(32);
    SystemTime.format_time(&mut Writer::new(&mut text))?;
    text.truncate("2026-01-01T00:00:00.000".len());
    text.push('Z');
    Ok(text)
}

fn json(event: &Event<'_>) -> Result<String, Box<dyn std::error::Error>> {
    let mut line = Vec::with_capacity(1024);
    let mut serializer = Serializer::new(&mut line);
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("timestamp", &now()?)?;
    map.serialize_entry("level", event.metadata().level().as_str())?;
    let ids = Context::map_current(|context| {
        let span = context.span().span_context().clone();
        span.is_valid().then(|| (span.trace_id().to_string(), span.span_id().to_string()))
    });
    if let Some((trace, span)) = ids {
        map.serialize_entry("trace_id", &trace)?;
        map.serialize_entry("span_id", &span)?;
    }
    let mut fields = tracing_serde::SerdeMapVisitor::new(map);
    event.record(&mut fields);
    fields.finish()?;
    line.push(b'\n');
    Ok(String::from_utf8(line)?)
}

/// The fields of an event as text.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

/// Fields that a text line leaves out when the request succeeded. A JSON line has all of them.
const DETAILS: [&str; 12] = [
    names::CONVERSATION_REFERENCE,
    names::WORK_ITEM_ID,
    names::WORK_ITEM_KIND,
    names::TURN_ID,
    names::TOOL_CALL_ID,
    names::OUTCOME,
    names::RELEASED,
    names::TURNAROUND_MS,
    names::TOKEN_FINGERPRINT,
    names::HTTP_REQUEST_BODY_SIZE,
    names::BODY_DIGEST,
    names::ISSUED_TRACE,
];

impl Fields {
    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.others.iter().position(|(known, _)| *known == name)?;
        Some(self.others.remove(at).1)
    }

    fn request(mut self) -> String {
        let mut line = self.take(names::HTTP_RESPONSE_STATUS_CODE).unwrap_or_default();
        let code = self.take(names::CODE);
        if code.is_none() {
            self.others.retain(|(name, value)| {
                !(DETAILS.contains(name) || *name == names::REPLAYED && value == "false")
            });
        }
        let delivery = self.take(names::DELIVERY);
        let micros = self.take(names::DURATION_US).and_then(|text| text.parse().ok()).unwrap_or(0.0);
        let duration = format!("{:.1}ms", micros / 1000.0);
        let (method, route) = (self.take(names::HTTP_REQUEST_METHOD), self.take(names::HTTP_ROUTE));
        for word in [code.or(delivery), Some(duration), method, route].into_iter().flatten() {
            line.push(' ');
            line.push_str(&word);
        }
        let message = self.take(names::MESSAGE);
        let sequence = self.take(names::WORK_ITEM_SEQUENCE).map(|number| format!("#{number}"));
        let conversation = self.take(names::CONVERSATION_ID).map(|id| id + sequence.as_deref().unwrap_or(""));
        let request = self.take(names::REQUEST_ID);
        if let Some(message) = message {
            line.push_str(": ");
            line.push_str(&message);
        }
        self.others.extend(conversation.map(|id| ("conversation", id)));
        self.others.extend(request.map(|id| ("request", id)));
        self.append_to(line)
    }

    fn other(mut self) -> String {
        let message = std::mem::take(&mut self.message);
        self.append_to(message)
    }

    fn append_to(self, mut line: String) -> String {
        for (name, value) in self.others {
            // Cannot fail.
            let _ = if value.is_empty() || value.contains([' ', '"']) || value.contains(char::is_control) {
                write!(line, " {name}={value:?}")
            } else {
                write!(line, " {name}={value}")
            };
        }
        // So that no value can move the cursor or start a new line.
        if line.contains(char::is_control) { line.escape_debug().to_string() } else { line }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.others.push((field.name(), value.to_owned()));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&'static str, &str)]) -> Fields {
        let others = pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Fields { message: "message".to_owned(), others }
    }

    #[test]
    fn request_line_starts_with_status_and_fits_160_columns() {
        let usual = fields(&[
            (names::REQUEST_ID, "0198c6f0-97a4-4b51-8d1c-6f6d3d1c9f3a"),
            (names::HTTP_REQUEST_METHOD, "POST"),
            (names::HTTP_ROUTE, "/api/v1/webhooks/callbacks"),
            (names::HTTP_RESPONSE_STATUS_CODE, "202"),
            (names::DURATION_US, "840"),
            (names::CONVERSATION_ID, "call-1"),
            (names::WORK_ITEM_ID, "0198c6f0-97a4-7b51-8d1c-6f6d3d1c9f3a"),
            (names::WORK_ITEM_SEQUENCE, "3"),
            (names::DELIVERY, "delivered"),
            (names::REPLAYED, "false"),
        ]);
        let line = usual.request();
        assert_eq!(
            line,
            "202 delivered 0.8ms POST /api/v1/webhooks/callbacks conversation=call-1#3 \
             request=0198c6f0-97a4-4b51-8d1c-6f6d3d1c9f3a"
        );
        assert!("2026-01-01T00:00:00.000Z INFO ".len() + line.len() <= 160);
    }

    #[test]
    fn control_characters_are_escaped() {
        let line = fields(&[("error", "a\x1b[2J\nb"), ("file", "a b"), ("n", "1")]).other();
        assert_eq!(line, r#"message error="a\u{1b}[2J\nb" file="a b" n=1"#);
    }
}
