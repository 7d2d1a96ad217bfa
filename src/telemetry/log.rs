//! Writes each event as a line to standard error, and exports it as a log record.

use std::io::{self, BufWriter, Stderr, Write};
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::logs::{AnyValue, LogRecord, Logger, Severity};
use opentelemetry::{Context, StringValue, Value};
use opentelemetry_sdk::logs::SdkLogger;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_appender::non_blocking::NonBlocking;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer;

use super::event::LogEvent;
use super::lines::LineFormat;
use super::queue::ExportQueue;

/// Writes the lines of a few milliseconds together.
pub(super) struct BatchWriter(pub(super) BufWriter<Stderr>);

impl Write for BatchWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line)
    }

    /// Called when no line is queued. Lets lines accumulate, because waking the writer's thread for each line would
    /// cost more than the line.
    fn flush(&mut self) -> io::Result<()> {
        // An error would make the writer's thread forget that it has been told to stop.
        let _ = self.0.flush();
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    }
}

/// The layer that writes and exports events.
pub(super) struct LogLayer {
    pub(super) writer: NonBlocking,
    pub(super) format: LineFormat,
    pub(super) records: Option<RecordExport>,
}

/// Exports log records.
pub(super) struct RecordExport {
    pub(super) logger: SdkLogger,
    pub(super) queue: Arc<ExportQueue>,
}

/// Whether an event may be logged. Excludes `debug` and `trace` events of libraries, which can contain credentials and
/// bodies, and the SDK's event for each failed export: [`super::queue`] logs the outage instead.
pub(super) fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let is_export_failure = metadata.target().starts_with("opentelemetry")
        && ["Export", "Shutdown"].iter().any(|what| metadata.name().contains(what));
    is_own(metadata) || *metadata.level() <= Level::INFO && !is_export_failure
}

fn is_own(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("callback_ingress")
}

impl<S: Subscriber> Layer<S> for LogLayer {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let (context, message) = (Context::current(), StringValue::from(""));
        let mut read = LogEvent { metadata: event.metadata(), context, message, fields: Vec::new() };
        event.record(&mut read);
        // `NonBlocking` counts the lines that it drops because its queue is full.
        let _ = self.writer.make_writer().write_all(self.format.line(&read).as_bytes());
        // Does not export events of libraries: an export itself emits events, which would cause further exports.
        if let Some(records) = self.records.as_ref().filter(|_| is_own(event.metadata())) {
            records.export(read);
        }
    }
}

impl RecordExport {
    fn export(&self, event: LogEvent) {
        let (level, name) = (*event.metadata.level(), event.metadata.name());
        let severity = match level {
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warn,
            Level::INFO => Severity::Info,
            Level::DEBUG => Severity::Debug,
            _ => Severity::Trace,
        };
        // The SDK disables events that are emitted during an export.
        let is_enabled = self.logger.event_enabled(severity, event.metadata.target(), Some(name));
        if !is_enabled || !self.queue.enqueue() {
            return;
        }
        let mut record = self.logger.create_log_record();
        record.set_target(event.metadata.target());
        record.set_event_name(name);
        record.set_severity_number(severity);
        record.set_severity_text(level.as_str());
        for attribute in event.attributes() {
            let value = if let Value::Bool(value) = attribute.value {
                AnyValue::Boolean(value)
            } else if let Value::I64(value) = attribute.value {
                AnyValue::Int(value)
            } else {
                AnyValue::String(attribute.value.clone().into())
            };
            record.add_attribute(attribute.key.clone(), value);
        }
        record.set_body(AnyValue::String(event.message));
        self.logger.emit(record);
    }
}
