//! Log lines, spans and metrics.
//!
//! Log lines go to standard error. All three signals are exported to an OTLP collector if the OpenTelemetry environment
//! variables configure one.
//!
//! Telemetry never delays a request or makes it fail. What cannot be queued or exported is dropped and counted.

pub mod attributes;
mod event;
mod exporters;
mod keyed_histogram;
mod lines;
mod log;
mod metrics;
pub mod names;
mod queue;
pub mod trace;

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::{BufWriter, IsTerminal, stderr};
use std::sync::Arc;
use std::time::Duration;

pub use exporters::ExportError;
pub use keyed_histogram::KeyedHistogram;
pub use metrics::{Metrics, REQUEST_SECONDS};
use opentelemetry::logs::LoggerProvider;
use opentelemetry::trace::{
    Span, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer as _, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{BatchLogProcessor, SdkLoggerProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracer, SdkTracerProvider};
use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use self::lines::LineFormat;
use self::log::{BatchWriter, LogLayer, RecordExport, may_be_logged};
use self::queue::{ExportQueue, Queued};
use self::trace::SpanRef;
use crate::config::{Exports, LogFormat, TelemetryConfig};

thread_local! {
    /// Source location of the last panic of this thread.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Source location of the last panic of the current thread, for code that has just caught one. Empty if there was none.
pub fn last_panic() -> String {
    LAST_PANIC.with(|location| location.borrow().clone())
}

/// The metrics and the tracer of the process. Clones share them.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// The metrics.
    pub metrics: Metrics,
    /// `None` if spans are not exported.
    tracer: Option<Tracer>,
}

#[derive(Clone, Debug)]
struct Tracer {
    sdk: SdkTracer,
    queue: Arc<ExportQueue>,
}

/// Keeps logging and exporting alive. Dropping it writes the remaining log lines, for about a second at most.
#[must_use = "logging stops when this is dropped"]
#[derive(Debug)]
pub struct TelemetryGuard {
    _log: WorkerGuard,
    traces: SdkTracerProvider,
    logs: SdkLoggerProvider,
    metrics: SdkMeterProvider,
    queues: [Arc<ExportQueue>; 3],
}

impl TelemetryGuard {
    /// Exports the queued spans, log records and metrics, for at most `limit`, and stops the exporters.
    pub async fn flush(&self, limit: Duration) {
        let (traces, logs, metrics) = (self.traces.clone(), self.logs.clone(), self.metrics.clone());
        let lost = || self.queues.iter().map(|queue| queue.lost()).sum::<u64>();
        let lost_before = lost();
        // `shutdown_with_timeout` blocks, and can exceed its timeout.
        let traces = tokio::task::spawn_blocking(move || traces.shutdown_with_timeout(limit));
        let logs = tokio::task::spawn_blocking(move || logs.shutdown_with_timeout(limit));
        let all = tokio::time::timeout(limit, async {
            let queued = tokio::join!(traces, logs);
            // Metrics come last, because they count the lost spans and log records.
            let metrics = tokio::task::spawn_blocking(move || metrics.shutdown_with_timeout(limit)).await;
            matches!((queued, metrics), ((Ok(Ok(())), Ok(Ok(()))), Ok(Ok(()))))
        });
        // The SDK reports success even if the last batch was lost.
        if !all.await.unwrap_or_default() || lost() > lost_before {
            tracing::warn!(name: "telemetry.incomplete", "some telemetry could not be exported before shutdown");
        }
    }
}

/// The format of the lines on standard error.
fn line_format(config: &TelemetryConfig) -> LineFormat {
    let colour = anstream::AutoStream::choice(&stderr()) != anstream::ColorChoice::Never;
    match config.log_format {
        LogFormat::Auto if stderr().is_terminal() => LineFormat::Text { colour },
        LogFormat::Text => LineFormat::Text { colour },
        LogFormat::Auto | LogFormat::Json => LineFormat::Json,
    }
}

/// Starts logging and exporting. Must be called within a tokio runtime, and once per process: a second call does not
/// change the subscriber.
///
/// Installs a panic hook that logs the location of a panic without its message.
///
/// # Errors
/// An exporter cannot be created.
pub fn start(config: &TelemetryConfig, exports: Exports) -> Result<(Telemetry, TelemetryGuard), ExportError> {
    // `reqwest` is built without a crypto provider and uses that of the process. An error means that one is already
    // set.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let resource = exporters::resource();
    let (writer, log) = NonBlocking::new(BatchWriter(BufWriter::with_capacity(65_536, stderr())));
    let spans = ExportQueue::new("traces", exports.span_queue);
    let records = ExportQueue::new("logs", exports.log_queue);
    let points = ExportQueue::new("metrics", usize::MAX);
    let queues = [Arc::clone(&spans), Arc::clone(&points), Arc::clone(&records)];

    let exporter = exports.metrics.map(|protocol| exporters::metrics(&exports, protocol)).transpose()?;
    let metrics = Metrics::new(resource.clone(), exporter.map(|inner| Queued { inner, queue: points }));
    let (lost_items, unwritten) = (queues.clone(), writer.error_counter());
    metrics.observe(names::LOST, move || {
        let queues = lost_items.each_ref().map(|queue| (queue.signal, queue.lost()));
        let signals = queues.into_iter().chain([("stderr", unwritten.dropped_lines() as u64)]);
        signals.map(|(signal, lost)| (lost, Some(KeyValue::new(names::SIGNAL, signal)))).collect::<Vec<_>>()
    });
    let mut span_provider = SdkTracerProvider::builder().with_resource(resource.clone());
    if let Some(protocol) = exports.traces {
        let exporter = Queued { inner: exporters::spans(protocol)?, queue: Arc::clone(&spans) };
        let inner = BatchSpanProcessor::builder(exporter).build();
        span_provider = span_provider.with_span_processor(Queued { inner, queue: Arc::clone(&spans) });
    }
    let mut record_provider = SdkLoggerProvider::builder().with_resource(resource);
    if let Some(protocol) = exports.logs {
        let exporter = Queued { inner: exporters::logs(protocol)?, queue: Arc::clone(&records) };
        record_provider = record_provider.with_log_processor(BatchLogProcessor::builder(exporter).build());
    }
    let (traces, logs) = (span_provider.build(), record_provider.build());
    let sdk = traces.tracer(names::SERVICE);
    let logger = logs.logger(names::SERVICE);
    let spans = exports.traces.map(|_| Tracer { sdk, queue: spans });
    let records = exports.logs.map(|_| RecordExport { logger, queue: records });
    // The configuration contains only valid directives.
    let filter = EnvFilter::try_new(&config.log_level).unwrap_or_default();
    let layer = LogLayer { writer, format: line_format(config), records };
    let layer =
        layer.with_filter(filter.and(filter_fn(may_be_logged).with_max_level_hint(LevelFilter::TRACE)));
    // An error means that a subscriber is already set; it is kept.
    let _ = tracing_subscriber::registry().with(layer).try_init();
    let panics = metrics.clone();
    std::panic::set_hook(Box::new(move |panic| {
        // Leaves out the panic message, which can contain user data.
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        panics.record_panic();
        tracing::error!(name: "panic", location, "panic (this is a bug)");
        LAST_PANIC.set(location);
    }));
    let guard = TelemetryGuard { _log: log, traces, logs, metrics: metrics.provider().clone(), queues };
    Ok((Telemetry { metrics, tracer: spans }, guard))
}

impl Telemetry {
    /// Metrics without an OTLP exporter, and no spans.
    pub fn local() -> Self {
        let metrics = Metrics::new(Resource::builder_empty().build(), None::<Queued<MetricExporter>>);
        Self { metrics, tracer: None }
    }

    /// Exports all counters in the background while they are still 0. Call it after all counters are initialized.
    pub fn export_initial_counters(&self) {
        let provider = self.metrics.provider().clone();
        // A failure is counted and logged like that of any other export.
        std::thread::spawn(move || provider.force_flush());
    }

    /// Starts a span. `name` is computed only if spans are exported.
    pub fn start_span(
        &self,
        name: impl FnOnce() -> Cow<'static, str>,
        kind: SpanKind,
        parent: &Context,
    ) -> SpanRef {
        let tracer = self.tracer.as_ref().filter(|tracer| tracer.queue.admits());
        // With space for the attributes, which are added one by one when the span ends.
        let span = || SpanBuilder::from_name(name()).with_kind(kind).with_attributes(Vec::with_capacity(24));
        let started = tracer.and_then(|tracer| SpanRef::start(&tracer.sdk, span(), parent));
        started.unwrap_or_else(|| SpanRef::random(parent))
    }

    /// Whether the children of this span are exported.
    pub fn exports_spans(&self, parent: &Context) -> bool {
        self.tracer.is_some() && parent.span().span_context().is_sampled()
    }

    /// Exports a span that has ended, if its parent is exported. `error`: a failure of the service.
    pub fn export_span(
        &self,
        parent: &Context,
        error: Option<&'static str>,
        span: impl FnOnce() -> SpanBuilder,
    ) {
        if let Some(tracer) = self.tracer.as_ref().filter(|_| self.exports_spans(parent)) {
            let mut span = tracer.sdk.build_with_context(span(), parent);
            if let Some(error) = error {
                span.set_status(Status::error(error));
            }
            span.end();
        }
    }
}
