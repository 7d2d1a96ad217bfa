//! Wraps exporters: counts lost items, and logs the start and the end of an outage instead of every failed export.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tracing_appender::non_blocking::ErrorCounter;

use super::export_gate::ExportGate;

/// Counts the telemetry that was lost.
#[derive(Debug, Default)]
pub(super) struct DropCounters {
    pub(super) traces: AtomicU64,
    pub(super) metrics: AtomicU64,
    pub(super) logs: AtomicU64,
    /// Indexed by [`Signal`]; metrics have none.
    gates: [OnceLock<Arc<ExportGate>>; 3],
    /// Log lines that could not be written to standard error.
    pub(super) log_lines: OnceLock<ErrorCounter>,
}

/// One of OpenTelemetry's signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl Signal {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
        }
    }
}

impl DropCounters {
    const fn counter(&self, signal: Signal) -> &AtomicU64 {
        match signal {
            Signal::Traces => &self.traces,
            Signal::Metrics => &self.metrics,
            Signal::Logs => &self.logs,
        }
    }

    /// The gate of a signal's queue. The first call sets the capacity.
    pub(super) fn gate(&self, signal: Signal, capacity: usize) -> Arc<ExportGate> {
        Arc::clone(self.gates[signal as usize].get_or_init(|| ExportGate::new(capacity)))
    }

    /// The lost items by signal; `stderr` stands for log lines.
    pub(super) fn totals(&self) -> [(&'static str, u64); 4] {
        let total = |signal: Signal| {
            let dropped = self.gates[signal as usize].get().map_or(0, |gate| gate.dropped());
            (signal.as_str(), self.counter(signal).load(Ordering::Relaxed) + dropped)
        };
        let lines = self.log_lines.get().map_or(0, |lines| lines.dropped_lines() as u64);
        [total(Signal::Traces), total(Signal::Metrics), total(Signal::Logs), ("stderr", lines)]
    }
}

/// An exporter that counts what it fails to export.
pub(super) struct MonitoredExporter<E> {
    exporter: E,
    signal: Signal,
    drops: Arc<DropCounters>,
    is_failing: AtomicBool,
}

impl<E> fmt::Debug for MonitoredExporter<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MonitoredExporter({})", self.signal.as_str())
    }
}

impl<E> MonitoredExporter<E> {
    pub(super) fn new(exporter: E, signal: Signal, drops: &Arc<DropCounters>) -> Self {
        Self { exporter, signal, drops: Arc::clone(drops), is_failing: AtomicBool::new(false) }
    }

    fn record_result(&self, items: usize, result: OTelSdkResult) -> OTelSdkResult {
        let failing = result.is_err();
        if let Some(gate) = self.drops.gates[self.signal as usize].get() {
            gate.batch_exported(items, failing);
        }
        let was_failing = self.is_failing.swap(failing, Ordering::Relaxed);
        if let Err(error) = &result {
            self.drops.counter(self.signal).fetch_add(items as u64, Ordering::Relaxed);
            if !was_failing {
                tracing::warn!(signal = self.signal.as_str(), error = %error, "export to the collector failed; telemetry is dropped");
            }
        } else if was_failing {
            tracing::info!(signal = self.signal.as_str(), "export to the collector works again");
        }
        result
    }
}

impl<E: SpanExporter> SpanExporter for MonitoredExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let items = batch.len();
        self.record_result(items, self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for MonitoredExporter<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let items = batch.iter().count();
        self.record_result(items, self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for MonitoredExporter<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.record_result(1, self.exporter.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
