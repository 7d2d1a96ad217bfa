//! What leaves the process to be looked at: log lines, spans, metrics.
//!
//! Log lines go to standard error, and all of it to a collector where OpenTelemetry's variables name one. Nothing here
//! may delay or fail a request: what cannot be written or sent in time is dropped, and counted.

mod exports;
mod json;
mod metrics;
pub mod names;
mod outage;
pub mod trace;
mod valve;

use std::cell::RefCell;
use std::io::{IsTerminal, stderr};
use std::sync::Arc;
use std::time::Duration;

pub use exports::{ExportError, Exports};
pub use metrics::{ActiveRequest, Answered, Metrics};
use opentelemetry::trace::TracerProvider;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{BatchLogProcessor, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracer, SdkTracerProvider};
use outage::{Losses, Signal, Watched};
use tracing::{Level, Metadata, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use self::trace::{Channel, SpanRef};
use self::valve::{Behind, Sampling};
use crate::config::{LogFormat, TelemetryConfig};
use crate::domain::gate::{Released, TimedOut};
use crate::domain::ids::{ConversationId, ConversationRef};
use crate::domain::work_item::Outcome;
use crate::store::ChannelAddress;

/// What our own targets begin with.
const OURS: &str = "callback_ingress";

thread_local! {
    /// Where this thread panicked last.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Where this thread panicked last: whoever catches a panic does so on the thread that had it.
pub fn last_panic() -> String {
    LAST_PANIC.with(|location| location.borrow().clone())
}

/// What a service is watched with. Clones share it.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// Its instruments.
    pub metrics: Metrics,
    /// Makes spans, where they are exported.
    tracer: Option<SdkTracer>,
}

/// Writes and sends what is still to be written and sent.
#[must_use = "lines are written in the background until this is dropped"]
#[derive(Debug)]
pub struct Flush {
    _log: WorkerGuard,
    traces: Option<SdkTracerProvider>,
    logs: Option<SdkLoggerProvider>,
    metrics: SdkMeterProvider,
}

impl Flush {
    /// Sends what is still to be sent, for at most so long. Log lines follow when this is dropped, for at most a
    /// second.
    pub async fn send(&self, limit: Duration) {
        let (traces, logs, metrics) = (self.traces.clone(), self.logs.clone(), self.metrics.clone());
        // Each waits for its own exporter; none of them may hold up the end of the process.
        let sent = [
            tokio::task::spawn_blocking(move || {
                traces.map_or(Ok(()), |all| all.shutdown_with_timeout(limit))
            }),
            tokio::task::spawn_blocking(move || logs.map_or(Ok(()), |all| all.shutdown_with_timeout(limit))),
            tokio::task::spawn_blocking(move || metrics.shutdown_with_timeout(limit)),
        ];
        let all = tokio::time::timeout(limit, futures_util::future::join_all(sent)).await;
        let failed = |result: &Result<_, _>| !matches!(result, Ok(Ok(())));
        if all.map_or(true, |results| results.iter().any(failed)) {
            tracing::warn!("some telemetry could not be sent before the end");
        }
    }
}

/// Ours, but not the spans that are made for export only; and what matters of others.
fn is_for_people(metadata: &Metadata<'_>) -> bool {
    let exported = metadata.target() == trace::TARGET;
    !exported && may_tell(metadata.target(), *metadata.level()) && !is_told_otherwise(metadata)
}

/// What other libraries tell below `info` may hold what they send and receive, headers with credentials included.
fn may_tell(target: &str, level: Level) -> bool {
    target.starts_with(OURS) || level <= Level::INFO
}

/// Failures to export, which the SDK tells with each export and at the end, and [`outage`] once an outage.
fn is_told_otherwise(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("opentelemetry")
        && ["Export", "Shutdown"].iter().any(|what| metadata.name().contains(what))
}

fn log_lines<S>(
    config: &TelemetryConfig,
    writer: NonBlocking,
    filter: EnvFilter,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let terminal = stderr().is_terminal();
    let json = match config.log_format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false);
    let filter = filter.and(filter_fn(is_for_people));
    if json {
        lines.event_format(json::JsonLine).with_filter(filter).boxed()
    } else {
        let colour = anstream::AutoStream::choice(&stderr()) != anstream::ColorChoice::Never;
        lines.with_ansi(colour).with_filter(filter).boxed()
    }
}

/// Starts logging and exporting, once for the process. Must be called within a tokio runtime.
pub fn start(config: &TelemetryConfig, exports: Exports) -> Result<(Telemetry, Flush), ExportError> {
    // The library takes the process's provider, and none is built in. One that is set already stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let resource = exports::resource();
    let losses = Arc::new(Losses::default());
    let (writer, log) = tracing_appender::non_blocking(stderr());
    let _ = losses.lines.set(writer.error_counter());

    let metrics = metrics(&resource, &losses, exports)?;
    let spans = match exports.traces {
        Some(protocol) => {
            let valve = losses.behind(Signal::Traces, exports.span_queue);
            let exporter = Watched::new(exports::spans(protocol)?, Signal::Traces, &losses);
            let processor = BatchSpanProcessor::builder(exporter).build();
            let provider = SdkTracerProvider::builder()
                .with_resource(resource.clone())
                .with_sampler(Sampling { sampler: exports.sampler(), valve: Arc::clone(&valve) })
                .with_span_processor(Behind { processor, valve });
            Some(provider.build())
        }
        None => None,
    };
    let logs = match exports.logs {
        Some(protocol) => {
            let valve = losses.behind(Signal::Logs, exports.log_queue);
            let exporter = Watched::new(exports::logs(protocol)?, Signal::Logs, &losses);
            let processor = BatchLogProcessor::builder(exporter).build();
            let provider = SdkLoggerProvider::builder().with_resource(resource);
            Some(provider.with_log_processor(Behind { processor, valve }).build())
        }
        None => None,
    };
    let tracer = spans.as_ref().map(|provider| provider.tracer(names::SCOPE));

    // The configuration holds directives that were parsed before.
    let filter = || EnvFilter::try_new(&config.log_level).unwrap_or_default();
    let exported = tracer.clone().map(|tracer| {
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == trace::TARGET))
    });
    let records = logs.as_ref().map(|provider| {
        // Only our own: the exporter's would beget others.
        let ours = filter_fn(|metadata| metadata.is_event() && metadata.target().starts_with(OURS));
        OpenTelemetryTracingBridge::new(provider).with_filter(filter().and(ours))
    });
    // A second start changes nothing: the first one's settings stay.
    let _ = tracing_subscriber::registry()
        .with(log_lines(config, writer, filter()))
        .with(exported)
        .with(records)
        .try_init();
    let panics = metrics.clone();
    std::panic::set_hook(Box::new(move |panic| {
        // What a panic says may hold anything; where it happened does not.
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        panics.panicked();
        tracing::error!(location, "a bug: something panicked");
        LAST_PANIC.set(location);
    }));
    let flush = Flush { _log: log, traces: spans, logs, metrics: metrics.provider().clone() };
    Ok((Telemetry { metrics, tracer }, flush))
}

fn metrics(resource: &Resource, losses: &Arc<Losses>, exports: Exports) -> Result<Metrics, ExportError> {
    let exporter = exports.metrics.map(exports::metrics).transpose()?;
    let exporter = exporter.map(|exporter| Watched::new(exporter, Signal::Metrics, losses));
    Ok(Metrics::new(resource.clone(), Arc::clone(losses), |builder| match exporter {
        Some(exporter) => builder.with_reader(PeriodicReader::builder(exporter).build()),
        None => builder,
    }))
}

impl Telemetry {
    /// Counts, and sends nothing anywhere.
    pub fn local() -> Self {
        Self { metrics: Metrics::local(), tracer: None }
    }

    /// Counts a work item that the sweeper timed out, and has a span for it.
    pub fn timed_out(
        &self,
        sweep: &SpanRef,
        (reference, id): (ConversationRef, Option<&ConversationId>),
        timed_out: &TimedOut,
    ) {
        self.metrics.timed_out(timed_out.kind, timed_out.late_ms);
        if let Some(tracer) = &self.tracer {
            let conversation = id.map_or_else(|| reference.to_string(), ToString::to_string);
            trace::timed_out(tracer, sweep, &conversation, timed_out);
        }
    }

    /// Tells of what a step put on a channel: counts each envelope, has a span for it, and a log line for each that was
    /// held before, the answer to "why did it come so late?". What was not held is told by the line of its own request;
    /// what timed out has none, and gets one unless `told` says that the step had one for it.
    pub fn released(
        &self,
        step: &SpanRef,
        conversation: (ConversationRef, Option<&ConversationId>),
        channel: impl FnOnce() -> ChannelAddress,
        envelopes: &[Released],
        told: &[TimedOut],
    ) {
        let Some(first) = envelopes.first() else { return };
        let (reference, id) = conversation;
        let channel = self.tracer.as_ref().map(|tracer| (tracer, channel()));
        for envelope in envelopes {
            self.metrics.released(envelope);
            let timed_out = envelope.outcome == Outcome::TimedOut;
            // The first one is what the gate waited for.
            let held_behind = envelope.held.then(|| first.sequence.get());
            if let Some((tracer, address)) = &channel {
                let (system, name) = match address {
                    ChannelAddress::EventStreamOnly => (names::SERVICE_NAMESPACE, String::new()),
                    ChannelAddress::RedisStream(key) => ("redis", key.clone()),
                };
                let conversation = id.map_or_else(|| reference.to_string(), ToString::to_string);
                let name = if name.is_empty() { format!("channel:{conversation}") } else { name };
                let channel = Channel { conversation: &conversation, system, name: &name };
                trace::published(tracer, step, channel, envelope, held_behind);
            }
            if envelope.held || timed_out && !told.iter().any(|told| told.work_item == envelope.work_item) {
                tracing::info!(
                    trace_id = step.trace_id,
                    span_id = step.span_id,
                    { names::CONVERSATION_ID } = id.map(tracing::field::display),
                    { names::CONVERSATION_REFERENCE } = %reference,
                    { names::WORK_ITEM_ID } = %envelope.work_item,
                    { names::WORK_ITEM_SEQUENCE } = envelope.sequence.get(),
                    { names::WORK_ITEM_KIND } = envelope.kind.as_str(),
                    { names::OUTCOME } = envelope.outcome.as_str(),
                    { names::HELD_MS } = envelope.received_at.millis_until(envelope.released_at),
                    { names::HELD_BEHIND } = held_behind,
                    "released"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_libraries_tell_nothing_below_info() {
        for (target, level, told) in [
            (module_path!(), Level::TRACE, true),
            ("h2::codec", Level::INFO, true),
            ("h2::codec", Level::DEBUG, false),
            ("opentelemetry-otlp", Level::TRACE, false),
        ] {
            assert_eq!(may_tell(target, level), told, "{target} {level}");
        }
    }
}
