//! Stops creating spans and log records while they could not be exported.
//!
//! A span or log record that is created and then dropped by a full queue costs as much as one that is sent. While the
//! queue is full, and for [`FAILURE_PAUSE`] after a failed export, new traces are not sampled and log records are not
//! created.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::logs::Severity;
use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, TraceState};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogProcessor, SdkLogRecord};
use opentelemetry_sdk::trace::{
    Sampler, SamplingDecision, SamplingResult, ShouldSample, Span, SpanData, SpanProcessor,
};
use tokio::time::Instant;

/// Time after a failed export for which the gate is closed.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// Counts the items in the queue of one signal, and those that the gate dropped.
#[derive(Debug)]
pub(super) struct ExportGate {
    queued: AtomicUsize,
    capacity: usize,
    dropped: AtomicU64,
    started: Instant,
    /// In milliseconds since `started`.
    closed_until: AtomicU64,
}

impl ExportGate {
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            queued: AtomicUsize::new(0),
            capacity,
            dropped: AtomicU64::new(0),
            started: Instant::now(),
            closed_until: AtomicU64::new(0),
        })
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether another item may be created. If not, counts it as dropped.
    fn admits(&self) -> bool {
        let open = self.queued.load(Ordering::Relaxed) < self.capacity
            && self.elapsed_ms() >= self.closed_until.load(Ordering::Relaxed);
        if !open {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        open
    }

    /// Removes the items of a batch, which was exported or lost.
    pub(super) fn batch_exported(&self, items: usize, failed: bool) {
        if failed {
            let until = self.elapsed_ms() + u64::try_from(FAILURE_PAUSE.as_millis()).unwrap_or(u64::MAX);
            self.closed_until.store(until, Ordering::Relaxed);
        }
        // Does not underflow: every exported item was counted by `GatedProcessor::enqueue`.
        self.queued.fetch_sub(items, Ordering::Relaxed);
    }

    /// Number of items that were dropped or not created.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Samples no new trace while the gate is closed. Children of a span of this process are not affected, so that a trace
/// is never exported in part.
#[derive(Clone, Debug)]
pub(super) struct GatedSampler {
    pub(super) sampler: Sampler,
    pub(super) gate: Arc<ExportGate>,
}

impl ShouldSample for GatedSampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let result = self.sampler.should_sample(parent, trace_id, name, kind, attributes, links);
        let is_local_root = parent.is_none_or(|parent| {
            let span = parent.span();
            !span.span_context().is_valid() || span.span_context().is_remote()
        });
        let sampled = result.decision == SamplingDecision::RecordAndSample;
        if sampled && is_local_root && !self.gate.admits() {
            let (attributes, trace_state) = (Vec::new(), TraceState::NONE);
            return SamplingResult { decision: SamplingDecision::Drop, attributes, trace_state };
        }
        result
    }
}

/// A batch processor whose queue never holds more items than the gate's capacity.
#[derive(Debug)]
pub(super) struct GatedProcessor<P> {
    pub(super) processor: P,
    pub(super) gate: Arc<ExportGate>,
}

impl<P> GatedProcessor<P> {
    /// Counts an item as queued, or as dropped if the queue is full. Returns whether it was queued.
    fn enqueue(&self) -> bool {
        let queued_before = self.gate.queued.fetch_add(1, Ordering::Relaxed);
        let fits = queued_before < self.gate.capacity;
        if !fits {
            self.gate.queued.fetch_sub(1, Ordering::Relaxed);
            self.gate.dropped.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }
}

impl<P: SpanProcessor> SpanProcessor for GatedProcessor<P> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.processor.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.enqueue() {
            self.processor.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

impl<P: LogProcessor> LogProcessor for GatedProcessor<P> {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.enqueue() {
            self.processor.emit(record, scope);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn event_enabled(&self, level: Severity, target: &str, name: Option<&str>) -> bool {
        self.gate.admits() && self.processor.event_enabled(level, target, name)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn gate_is_closed_while_the_queue_is_full_and_after_a_failed_export() {
        let gated = GatedProcessor { processor: (), gate: ExportGate::new(2) };
        assert!(gated.enqueue() && gated.gate.admits() && gated.enqueue());
        assert!(!gated.gate.admits() && !gated.enqueue());
        assert_eq!(gated.gate.dropped(), 2);
        gated.gate.batch_exported(2, false);
        assert!(gated.gate.admits());
        assert!(gated.enqueue());
        gated.gate.batch_exported(1, true);
        assert!(!gated.gate.admits());
        tokio::time::advance(FAILURE_PAUSE).await;
        assert!(gated.gate.admits());
    }

    #[test]
    fn closed_gate_drops_only_new_traces() {
        let gate = ExportGate::new(0);
        let sampling = GatedSampler { sampler: Sampler::ParentBased(Box::new(Sampler::AlwaysOn)), gate };
        let decide = |parent: Option<&Context>| {
            let result =
                sampling.should_sample(parent, TraceId::from(1_u128), "", &SpanKind::Server, &[], &[]);
            result.decision == SamplingDecision::RecordAndSample
        };
        let parent = |remote| {
            let flags = opentelemetry::TraceFlags::SAMPLED;
            let (trace, span) = (TraceId::from(1_u128), opentelemetry::SpanId::from(1_u64));
            let at = opentelemetry::trace::SpanContext::new(trace, span, flags, remote, TraceState::NONE);
            Context::new().with_remote_span_context(at)
        };
        assert!(!decide(None) && !decide(Some(&parent(true))));
        assert!(decide(Some(&parent(false))), "a span of a trace that is already sampled here");
    }
}
