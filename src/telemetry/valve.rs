//! Lets no more into a queue than a collector takes out of it: what could only be dropped is not made.
//!
//! A span or a log record that is made and then dropped costs as much as one that is sent. So a request gets no span,
//! and a line no record, while as many wait as may, and for a while after an export has failed.

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

/// How long after a failed export nothing new is kept for the next.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Valve {
    waiting: AtomicUsize,
    room: usize,
    turned_away: AtomicU64,
    began: Instant,
    /// In milliseconds from the beginning.
    shut_until: AtomicU64,
}

impl Valve {
    pub(super) fn new(room: usize) -> Arc<Self> {
        Arc::new(Self {
            waiting: AtomicUsize::new(0),
            room,
            turned_away: AtomicU64::new(0),
            began: Instant::now(),
            shut_until: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether there is room for one more; who finds none is counted.
    fn lets_in(&self) -> bool {
        let open = self.waiting.load(Ordering::Relaxed) < self.room
            && self.now() >= self.shut_until.load(Ordering::Relaxed);
        if !open {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
        }
        open
    }

    /// So many were exported, or lost in the attempt.
    pub(super) fn left(&self, items: usize, failed: bool) {
        if failed {
            let until = self.now() + u64::try_from(AFTER_FAILURE.as_millis()).unwrap_or(u64::MAX);
            self.shut_until.store(until, Ordering::Relaxed);
        }
        // More are never exported than came in.
        self.waiting.fetch_sub(items, Ordering::Relaxed);
    }

    /// How many found no room.
    pub(super) fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }
}

/// A sampler that samples no new trace while the valve is shut. What belongs to one that is sampled here goes on.
#[derive(Clone, Debug)]
pub(super) struct Sampling {
    pub(super) sampler: Sampler,
    pub(super) valve: Arc<Valve>,
}

impl ShouldSample for Sampling {
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
        let begins_here = parent.is_none_or(|parent| {
            let span = parent.span();
            !span.span_context().is_valid() || span.span_context().is_remote()
        });
        let sampled = result.decision == SamplingDecision::RecordAndSample;
        if sampled && begins_here && !self.valve.lets_in() {
            let (attributes, trace_state) = (Vec::new(), TraceState::NONE);
            return SamplingResult { decision: SamplingDecision::Drop, attributes, trace_state };
        }
        result
    }
}

/// A processor behind a valve.
#[derive(Debug)]
pub(super) struct Behind<P> {
    pub(super) processor: P,
    pub(super) valve: Arc<Valve>,
}

impl<P> Behind<P> {
    /// Whether one more is let in: then it waits.
    fn enters(&self) -> bool {
        let before = self.valve.waiting.fetch_add(1, Ordering::Relaxed);
        let fits = before < self.valve.room;
        if !fits {
            self.valve.waiting.fetch_sub(1, Ordering::Relaxed);
            self.valve.turned_away.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }
}

impl<P: SpanProcessor> SpanProcessor for Behind<P> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.processor.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.enters() {
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

impl<P: LogProcessor> LogProcessor for Behind<P> {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.enters() {
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
        self.valve.lets_in() && self.processor.event_enabled(level, target, name)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_valve_is_shut_while_it_is_full_and_for_a_while_after_a_failure() {
        let behind = Behind { processor: (), valve: Valve::new(2) };
        assert!(behind.enters() && behind.valve.lets_in() && behind.enters());
        assert!(!behind.valve.lets_in() && !behind.enters());
        assert_eq!(behind.valve.turned_away(), 2);
        behind.valve.left(2, false);
        assert!(behind.valve.lets_in());
        assert!(behind.enters());
        behind.valve.left(1, true);
        assert!(!behind.valve.lets_in());
        tokio::time::advance(AFTER_FAILURE).await;
        assert!(behind.valve.lets_in());
    }

    #[test]
    fn only_what_begins_here_is_turned_away() {
        let valve = Valve::new(0);
        let sampling = Sampling { sampler: Sampler::ParentBased(Box::new(Sampler::AlwaysOn)), valve };
        let decide = |parent: Option<&Context>| {
            let result =
                sampling.should_sample(parent, TraceId::from(1_u128), "", &SpanKind::Server, &[], &[]);
            result.decision == SamplingDecision::RecordAndSample
        };
        let of = |remote| {
            let flags = opentelemetry::TraceFlags::SAMPLED;
            let (trace, span) = (TraceId::from(1_u128), opentelemetry::SpanId::from(1_u64));
            let at = opentelemetry::trace::SpanContext::new(trace, span, flags, remote, TraceState::NONE);
            Context::new().with_remote_span_context(at)
        };
        assert!(!decide(None) && !decide(Some(&of(true))));
        assert!(decide(Some(&of(false))), "what is sampled here is sampled whole");
    }
}
