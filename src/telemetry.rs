//! Log lines, spans and metrics.
//!
//! Log lines go to standard error. All three signals are exported to an OTLP collector if the OpenTelemetry environment
//! variables configure one.
//! Telemetry never delays or fails a request: what cannot be written or exported in time is dropped and counted.

mod exports;
mod lines;
mod metrics;
pub mod names;
mod queue;
pub mod trace;

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::{IsTerminal, stderr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use exports::{ExportError, Exports};
pub use metrics::{ActiveRequest, Metrics, ResponseLabels, redis_call_attributes};
use opentelemetry::trace::{SpanBuilder, SpanKind, TraceContextExt, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::logs::{BatchLogProcessor, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracerProvider};
use tracing::{Level, Metadata, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use self::lines::LineFormat;
use self::metrics::DropCounters;
use self::queue::{ExportQueue, Queued};
use self::trace::{ChannelAttributes, SpanRef, Tracer};
use crate::config::{LogFormat, TelemetryConfig};
use crate::domain::gate::{Released, TimedOut};
use crate::domain::ids::{ConversationId, ConversationRef, TraceParent};
use crate::domain::work_item::Outcome;

/// Prefix of the targets of this crate's events.
const OWN_TARGETS: &str = "callback_ingress";

thread_local! {
    /// Source location of the last panic of this thread.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Source location of the last panic of the current thread, for code that has just caught one. Empty if there was none.
pub fn last_panic() -> String {
    LAST_PANIC.with(|location| location.borrow().clone())
}

/// The instruments of a service. Clones share them.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// The metrics.
    pub metrics: Metrics,
    /// Set if spans are exported.
    tracer: Option<Tracer>,
}

/// Keeps logging and exporting alive. Dropping it writes the remaining log lines, for at most a second.
#[must_use = "logging stops when this is dropped"]
#[derive(Debug)]
pub struct TelemetryGuard {
    _log: WorkerGuard,
    traces: Option<SdkTracerProvider>,
    logs: Option<SdkLoggerProvider>,
    metrics: SdkMeterProvider,
    queues: Vec<Arc<ExportQueue>>,
}

impl TelemetryGuard {
    /// Exports the queued spans, log records and metrics, for at most `limit`, and stops the exporters.
    pub async fn flush(&self, limit: Duration) {
        let (traces, logs, metrics) = (self.traces.clone(), self.logs.clone(), self.metrics.clone());
        let lost_before = self.lost();
        // `shutdown_with_timeout` blocks, and can exceed its timeout.
        let traces = tokio::task::spawn_blocking(move || {
            traces.map_or(Ok(()), |provider| provider.shutdown_with_timeout(limit))
        });
        let logs = tokio::task::spawn_blocking(move || {
            logs.map_or(Ok(()), |provider| provider.shutdown_with_timeout(limit))
        });
        let all = tokio::time::timeout(limit, async {
            let queued = tokio::join!(traces, logs);
            // Last: the metrics count what the other two lost.
            let metrics = tokio::task::spawn_blocking(move || metrics.shutdown_with_timeout(limit)).await;
            matches!((queued, metrics), ((Ok(Ok(())), Ok(Ok(()))), Ok(Ok(()))))
        });
        // The SDK reports success even if the last batch was lost.
        if !all.await.unwrap_or_default() || self.lost() > lost_before {
            tracing::warn!(name: "telemetry.incomplete", "some telemetry could not be exported before shutdown");
        }
    }

    fn lost(&self) -> u64 {
        self.queues.iter().map(|queue| queue.lost()).sum()
    }
}

/// Whether an event may become a log line. Excludes `debug` and `trace` events of libraries, which can contain
/// credentials and bodies, and the SDK's event for each failed export: [`queue`] logs outages instead.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let is_own = metadata.target().starts_with(OWN_TARGETS);
    let is_export_failure = metadata.target().starts_with("opentelemetry")
        && ["Export", "Shutdown"].iter().any(|what| metadata.name().contains(what));
    is_own || *metadata.level() <= Level::INFO && !is_export_failure
}

fn log_layer<S>(
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
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let filter = filter.and(filter_fn(may_be_logged));
    if json {
        lines.event_format(LineFormat::Json).with_filter(filter).boxed()
    } else {
        let colour = anstream::AutoStream::choice(&stderr()) != anstream::ColorChoice::Never;
        lines.with_ansi(colour).event_format(LineFormat::Text).with_filter(filter).boxed()
    }
}

/// Starts logging and exporting. Must be called within a tokio runtime, and once per process: a second call does not
/// change the subscriber.
///
/// Installs a panic hook that logs the location of a panic without its message.
///
/// # Errors
/// An `OTEL_` variable is invalid, or an exporter cannot be created.
pub fn start(config: &TelemetryConfig, exports: Exports) -> Result<(Telemetry, TelemetryGuard), ExportError> {
    // `reqwest` is built without a crypto provider and uses the process's default. An error means that one is set.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let resource = exports::resource();
    let (writer, log) = tracing_appender::non_blocking(stderr());
    let spans = ExportQueue::new("traces", exports.span_queue);
    let records = ExportQueue::new("logs", exports.log_queue);
    let points = ExportQueue::new("metrics", usize::MAX);
    let queues = vec![Arc::clone(&spans), Arc::clone(&points), Arc::clone(&records)];
    let drop_counters = DropCounters { queues: queues.clone(), lines: Some(writer.error_counter()) };

    let exporter = exports.metrics.map(|protocol| exports.metric_exporter(protocol)).transpose()?;
    let exporter = exporter.map(|inner| Queued { inner, queue: points });
    let metrics = Metrics::new(resource.clone(), drop_counters, |builder| match exporter {
        Some(exporter) => builder.with_reader(PeriodicReader::builder(exporter).build()),
        None => builder,
    });
    let span_provider = match exports.traces {
        Some(protocol) => {
            let inner = Queued { inner: exports::spans(protocol)?, queue: Arc::clone(&spans) };
            let inner = BatchSpanProcessor::builder(inner).build();
            let provider = SdkTracerProvider::builder().with_resource(resource.clone());
            Some(provider.with_span_processor(Queued { inner, queue: Arc::clone(&spans) }).build())
        }
        None => None,
    };
    let logs = match exports.logs {
        Some(protocol) => {
            let inner = Queued { inner: exports::logs(protocol)?, queue: Arc::clone(&records) };
            let inner = BatchLogProcessor::builder(inner).build();
            let provider = SdkLoggerProvider::builder().with_resource(resource);
            Some(provider.with_log_processor(Queued { inner, queue: records }).build())
        }
        None => None,
    };
    let tracer =
        span_provider.as_ref().map(|provider| Tracer { sdk: provider.tracer(names::SCOPE), queue: spans });

    // The configuration contains only valid directives.
    let filter = || EnvFilter::try_new(&config.log_level).unwrap_or_default();
    let record_layer = logs.as_ref().map(|provider| {
        // Excludes library events: an export emits events, which would cause further exports.
        let is_own = filter_fn(|metadata| metadata.is_event() && metadata.target().starts_with(OWN_TARGETS));
        OpenTelemetryTracingBridge::new(provider).with_filter(filter().and(is_own))
    });
    // An error means that a subscriber is already set; it is kept.
    let _ = tracing_subscriber::registry()
        .with(log_layer(config, writer, filter()))
        .with(record_layer)
        .try_init();
    let panics = metrics.clone();
    std::panic::set_hook(Box::new(move |panic| {
        // Without the message, which can contain user data.
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        panics.record_panic();
        tracing::error!(name: "panic", location, "panic (this is a bug)");
        LAST_PANIC.set(location);
    }));
    let guard = TelemetryGuard {
        _log: log,
        traces: span_provider,
        logs,
        metrics: metrics.provider().clone(),
        queues,
    };
    Ok((Telemetry { metrics, tracer }, guard))
}

impl Telemetry {
    /// Metrics without exporters, and no spans.
    pub fn local() -> Self {
        Self { metrics: Metrics::local(), tracer: None }
    }

    /// Exports the counters, which are 0, in the background. Call it once all of them are initialised.
    pub fn export_initial_counters(&self) {
        let provider = self.metrics.provider().clone();
        // A failure is counted and logged like that of any export.
        std::thread::spawn(move || provider.force_flush());
    }

    /// Starts a span. `name` is computed only if spans are exported.
    pub fn start_span(
        &self,
        name: impl FnOnce() -> Cow<'static, str>,
        kind: SpanKind,
        parent: &Context,
    ) -> SpanRef {
        self.tracer
            .as_ref()
            .and_then(|tracer| tracer.start(name, kind, parent))
            .unwrap_or_else(|| SpanRef::random(parent))
    }

    /// Exports the span of a completed call to the store, as a child of the current span. `error`: the kind of its
    /// failure.
    pub fn export_call(
        &self,
        name: impl FnOnce() -> Cow<'static, str>,
        start: SystemTime,
        attributes: impl FnOnce() -> Vec<KeyValue>,
        error: Option<&'static str>,
    ) {
        let parent = Context::current();
        if let Some(tracer) = self.tracer.as_ref().filter(|_| parent.span().is_recording()) {
            let span = SpanBuilder::from_name(name())
                .with_kind(SpanKind::Client)
                .with_start_time(start)
                .with_attributes(attributes());
            tracer.export(span, &parent, error);
        }
    }

    /// Records a work item that the sweeper timed out: metric and span.
    pub fn timed_out(
        &self,
        sweep: &SpanRef,
        (reference, id): (ConversationRef, Option<&ConversationId>),
        timed_out: &TimedOut,
    ) {
        self.metrics.record_timed_out((timed_out.kind, timed_out.cause), timed_out.late_ms);
        if let Some(tracer) = &self.tracer {
            let conversation = id.map_or_else(|| reference.to_string(), ToString::to_string);
            tracer.export_timeout(sweep, &conversation, timed_out);
        }
    }

    /// Records envelopes that an operation released: metric and span for each. Logs a line for each that was held,
    /// which shows why it was late, and for each that timed out and is not in `logged_timeouts`. The log line of a
    /// request covers the others. `redis_stream`: the key of the channel's stream, on a store that has one.
    pub fn released(
        &self,
        step: &SpanRef,
        conversation: (ConversationRef, Option<&ConversationId>),
        redis_stream: impl FnOnce() -> Option<String>,
        envelopes: &[Released],
        logged_timeouts: &[TimedOut],
    ) {
        let Some(first) = envelopes.first() else { return };
        let (reference, id) = conversation;
        let channel = self.tracer.as_ref().map(|tracer| {
            let conversation = id.map_or_else(|| reference.to_string(), ToString::to_string);
            let (system, name) = match redis_stream() {
                Some(key) => ("redis", key),
                None => (names::MEMORY_CHANNEL_SYSTEM, format!("channel:{conversation}")),
            };
            (tracer, conversation, system, name)
        });
        for envelope in envelopes {
            self.metrics.record_released(envelope);
            let timed_out = envelope.outcome == Outcome::TimedOut;
            // The gate waited for the first envelope.
            let held_behind = envelope.held.then(|| first.sequence.get());
            if let Some((tracer, conversation, system, name)) = &channel {
                let channel = ChannelAttributes { conversation, system, name };
                tracer.export_publish(step, channel, envelope, held_behind);
            }
            let is_logged = || logged_timeouts.iter().any(|logged| logged.work_item == envelope.work_item);
            if envelope.held || timed_out && !is_logged() {
                let _in_span = step.enter();
                tracing::info!(
                    name: "released",
                    {
                        { names::CONVERSATION_ID } = id.map(tracing::field::display),
                        { names::CONVERSATION_REFERENCE } = %reference,
                        { names::WORK_ITEM_ID } = %envelope.work_item,
                        { names::WORK_ITEM_SEQUENCE } = envelope.sequence.get(),
                        { names::WORK_ITEM_KIND } = envelope.kind.as_str(),
                        { names::TOOL_CALL_ID } = envelope.tool_call_id.as_ref().map(tracing::field::display),
                        { names::TOOL_NAME } = envelope.name.as_ref().map(tracing::field::display),
                        { names::OUTCOME } = envelope.outcome.as_str(),
                        { names::HELD_MS } = envelope.received_at.millis_until(envelope.released_at),
                        { names::HELD_BEHIND } = held_behind,
                        { names::ISSUED_TRACE } = envelope.issued_in.as_ref().map(TraceParent::trace_id),
                    },
                    "released"
                );
            }
        }
    }
}
