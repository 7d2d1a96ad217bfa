//! Bounds the export queues, counts lost items, and logs the start and the end of an outage of the collector.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};

/// Name of a span that is not exported. See [`super::trace::SpanRef::discard`].
pub(super) const DISCARDED: &str = "";

/// Counts the items of one signal that wait to be exported.
///
/// Needed because the SDK reports lost items only in its own log, and because it drops an item only after creating it.
/// Creating an item costs as much as exporting it. While this queue is full, no log records and no spans of requests
/// and sweeps are created.
#[derive(Debug, Default)]
pub(super) struct ExportQueue {
    /// `traces`, `metrics` or `logs`.
    pub(super) signal: &'static str,
    capacity: usize,
    queued: AtomicUsize,
    lost: AtomicU64,
    is_failing: AtomicBool,
}

impl ExportQueue {
    pub(super) fn new(signal: &'static str, capacity: usize) -> Arc<Self> {
        Arc::new(Self { signal, capacity, ..Self::default() })
    }

    /// Whether another item may be created. If not, counts it as lost.
    pub(super) fn admits(&self) -> bool {
        let admits = self.queued.load(Ordering::Relaxed) < self.capacity;
        self.add_lost(usize::from(!admits));
        admits
    }

    /// Counts an item as queued. If the queue is full, counts it as lost and returns `false`.
    pub(super) fn enqueue(&self) -> bool {
        let next = |queued| (queued < self.capacity).then_some(queued + 1);
        let fits = self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok();
        self.add_lost(usize::from(!fits));
        fits
    }

    /// Number of items that were not created or not exported.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn add_lost(&self, items: usize) {
        if items > 0 {
            self.lost.fetch_add(items as u64, Ordering::Relaxed);
        }
    }

    /// Removes exported items from the queue, and records the result of the export.
    fn dequeue(&self, items: usize, result: OTelSdkResult) -> OTelSdkResult {
        self.queued.fetch_sub(items, Ordering::Relaxed);
        self.exported(items, result)
    }

    /// Counts the items of a failed export as lost. Logs the first failure of an outage, and its end.
    fn exported(&self, items: usize, result: OTelSdkResult) -> OTelSdkResult {
        let signal = self.signal;
        let was_failing = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) => {
                self.add_lost(items);
                if !was_failing {
                    tracing::warn!(
                        name: "export.failed",
                        signal,
                        %error,
                        "export to the collector failed; telemetry is dropped"
                    );
                }
            }
            Ok(()) if was_failing => {
                tracing::info!(name: "export.recovered", signal, "export to the collector works again");
            }
            Ok(()) => {}
        }
        result
    }
}

/// Counts items: as a span processor, when they enter the queue; as an exporter, when they leave it.
#[derive(Debug)]
pub(super) struct Queued<T> {
    pub(super) inner: T,
    pub(super) queue: Arc<ExportQueue>,
}

impl<P: SpanProcessor> SpanProcessor for Queued<P> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if span.name != DISCARDED && self.queue.enqueue() {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl<E: SpanExporter> SpanExporter for Queued<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let items = batch.len();
        self.queue.dequeue(items, self.inner.export(batch).await)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Queued<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let items = batch.iter().count();
        self.queue.dequeue(items, self.inner.export(batch).await)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Metrics are not queued, because each export contains all of them. A failed export counts as one lost item.
impl<E: PushMetricExporter> PushMetricExporter for Queued<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.queue.exported(1, self.inner.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.inner.temporality()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_queue_admits_nothing_until_a_batch_is_exported() {
        let queue = ExportQueue::new("traces", 2);
        assert!(queue.enqueue() && queue.admits() && queue.enqueue());
        assert!(!queue.admits() && !queue.enqueue());
        assert_eq!(queue.lost(), 2);
        queue.dequeue(2, Ok(())).unwrap();
        assert!(queue.admits());
        assert_eq!(queue.lost(), 2);
    }
}
