//! Exporters whose failures are counted, and told once an outage rather than once an export.

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

use super::valve::Valve;

/// Counts what was lost on its way out.
#[derive(Debug, Default)]
pub(super) struct Losses {
    pub(super) traces: AtomicU64,
    pub(super) metrics: AtomicU64,
    pub(super) logs: AtomicU64,
    /// What guards a signal's queue.
    valves: [OnceLock<Arc<Valve>>; 3],
    /// Of the log that this process writes itself.
    pub(super) lines: OnceLock<ErrorCounter>,
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

impl Losses {
    const fn of(&self, signal: Signal) -> &AtomicU64 {
        match signal {
            Signal::Traces => &self.traces,
            Signal::Metrics => &self.metrics,
            Signal::Logs => &self.logs,
        }
    }

    /// A valve before the queue of a signal, with so much room.
    pub(super) fn behind(&self, signal: Signal, room: usize) -> Arc<Valve> {
        Arc::clone(self.valves[signal as usize].get_or_init(|| Valve::new(room)))
    }

    /// Each signal's name, and how many items of it are lost.
    pub(super) fn counts(&self) -> [(&'static str, u64); 4] {
        let of = |signal: Signal| {
            let turned_away = self.valves[signal as usize].get().map_or(0, |valve| valve.turned_away());
            (signal.as_str(), self.of(signal).load(Ordering::Relaxed) + turned_away)
        };
        let lines = self.lines.get().map_or(0, |lines| lines.dropped_lines() as u64);
        [of(Signal::Traces), of(Signal::Metrics), of(Signal::Logs), ("stderr", lines)]
    }
}

/// An exporter of one signal, watched.
pub(super) struct Watched<E> {
    exporter: E,
    signal: Signal,
    losses: Arc<Losses>,
    failing: AtomicBool,
}

impl<E> fmt::Debug for Watched<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watched({})", self.signal.as_str())
    }
}

impl<E> Watched<E> {
    pub(super) fn new(exporter: E, signal: Signal, losses: &Arc<Losses>) -> Self {
        Self { exporter, signal, losses: Arc::clone(losses), failing: AtomicBool::new(false) }
    }

    fn note(&self, items: usize, result: OTelSdkResult) -> OTelSdkResult {
        let failing = result.is_err();
        if let Some(valve) = self.losses.valves[self.signal as usize].get() {
            valve.left(items, failing);
        }
        let was_failing = self.failing.swap(failing, Ordering::Relaxed);
        if let Err(error) = &result {
            self.losses.of(self.signal).fetch_add(items as u64, Ordering::Relaxed);
            if !was_failing {
                tracing::warn!(signal = self.signal.as_str(), error = %error, "the collector does not take telemetry; it is lost");
            }
        } else if was_failing {
            tracing::info!(signal = self.signal.as_str(), "the collector takes telemetry again");
        }
        result
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let items = batch.len();
        self.note(items, self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Watched<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let items = batch.iter().count();
        self.note(items, self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Watched<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.note(1, self.exporter.export(metrics).await)
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
