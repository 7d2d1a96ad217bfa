//! Trace context of requests and responses, and the exported spans.
//!
//! Exported spans have the target [`TARGET`], by which the log and the exporter tell them from all other spans.

use std::time::Duration;

use axum::http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Link, Span as _, SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
};
use opentelemetry::{Context, KeyValue, time};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::names;
use crate::clock::Entropy;
use crate::domain::envelope::event_id;
use crate::domain::gate::{Released, TimedOut};
use crate::domain::ids::{TraceParent, contains_token};
use crate::domain::work_item::Outcome;

/// The target of exported spans, and of nothing else.
pub const TARGET: &str = "callback_ingress::exported";

/// The ids of a span, whether or not it is exported.
#[derive(Clone, Debug)]
pub struct SpanRef {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    context: Context,
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    /// Ignores a header that contains a token: `tracestate` is exported and passed on unchanged.
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok().filter(|text| !contains_token(text))
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

/// The caller's trace context, from `traceparent` and `tracestate`. Empty if they are missing or invalid.
pub fn caller(headers: &HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers))
}

fn remote_context(traceparent: &TraceParent) -> Option<SpanContext> {
    let mut parts = traceparent.as_str().split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let span = SpanId::from_hex(parts.next()?).ok()?;
    let flags = u8::from_str_radix(parts.next()?, 16).ok()?;
    let flags = TraceFlags::new(flags) & TraceFlags::SAMPLED;
    Some(SpanContext::new(trace, span, flags, true, TraceState::NONE))
}

/// Makes a span the child of `parent`, or the root of a new trace. Generates ids if the span is not exported, because
/// responses and log lines always have a trace id.
pub fn begin(span: &Span, parent: &Context) -> SpanRef {
    if span.is_disabled() {
        return unexported(parent);
    }
    // Fails if spans are not exported.
    let _ = span.set_parent(parent.clone());
    let context = span.context();
    let own = context.span().span_context().clone();
    if own.is_valid() {
        return SpanRef { trace_id: own.trace_id().to_string(), span_id: own.span_id().to_string(), context };
    }
    unexported(parent)
}

fn unexported(parent: &Context) -> SpanRef {
    let caller = parent.span().span_context().clone();
    let trace_id = if caller.is_valid() { caller.trace_id().to_string() } else { Entropy.trace_id() };
    SpanRef { trace_id, span_id: Entropy.span_id(), context: Context::new() }
}

impl SpanRef {
    fn flags(&self) -> u8 {
        self.context.span().span_context().trace_flags().to_u8()
    }

    /// The value of a `traceresponse` header (W3C Trace Context).
    pub fn header(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags())
    }

    /// The trace context to pass on. `None` if the span is not exported.
    pub fn traceparent(&self) -> Option<TraceParent> {
        let span = self.context.span();
        let own = span.span_context();
        let (trace_id, span_id) = (own.trace_id().to_bytes(), own.span_id().to_bytes());
        TraceParent::of(u128::from_be_bytes(trace_id), u64::from_be_bytes(span_id), own.trace_flags().to_u8())
    }

    /// Whether the span is exported, so that attributes are worth computing.
    pub fn is_recorded(&self) -> bool {
        self.context.span().is_recording()
    }

    /// Adds attributes, if the span is exported.
    pub fn set_attributes(&self, attributes: Vec<KeyValue>) {
        self.context.span().set_attributes(attributes);
    }

    /// Sets the span's status to error, for failures of the service.
    pub fn fail(&self, reason: &'static str) {
        self.context.span().set_status(opentelemetry::trace::Status::error(reason));
    }

    /// Links the span to a span of another trace; ignores one of the same trace.
    pub fn link(&self, traceparent: Option<&TraceParent>, relation: &'static str) {
        if let Some(other) =
            traceparent.filter(|other| other.trace_id() != self.trace_id).and_then(remote_context)
        {
            self.context.span().add_link(other, vec![KeyValue::new(names::LINK, relation)]);
        }
    }
}

/// The root span of a sweep of one conversation.
pub fn sweep_span() -> Span {
    tracing::info_span!(target: TARGET, parent: None, "sweep", otel.kind = "internal")
}

/// Exports a span for a work item that timed out, as a child of the sweep's span.
pub fn export_timeout_span(tracer: &SdkTracer, sweep: &SpanRef, conversation: &str, timed_out: &TimedOut) {
    if !sweep.is_recorded() {
        return;
    }
    let own = sweep.context.span().span_context().trace_id();
    tracer
        .span_builder("time out")
        .with_kind(SpanKind::Internal)
        .with_links(links(&[(timed_out.issued_in.as_ref(), names::ISSUED_IN)], own))
        .with_attributes(vec![
            KeyValue::new(names::CONVERSATION_ID, conversation.to_owned()),
            KeyValue::new(names::WORK_ITEM_ID, timed_out.work_item.to_string()),
            KeyValue::new(names::WORK_ITEM_SEQUENCE, integer(timed_out.sequence.get())),
            KeyValue::new(names::WORK_ITEM_KIND, timed_out.kind.as_str()),
            KeyValue::new(names::OUTCOME, Outcome::TimedOut.as_str()),
            KeyValue::new(names::LATE_MS, integer(timed_out.late_ms)),
        ])
        .start_with_context(tracer, &sweep.context)
        .end();
}

/// The messaging attributes of a channel.
#[derive(Clone, Copy, Debug)]
pub struct ChannelAttributes<'a> {
    /// The conversation's id, or its reference if the id is unknown.
    pub conversation: &'a str,
    /// `messaging.system`
    pub system: &'static str,
    /// `messaging.destination.name`
    pub name: &'a str,
}

fn links(pairs: &[(Option<&TraceParent>, &'static str)], own: TraceId) -> Vec<Link> {
    let linked =
        pairs.iter().filter_map(|(traceparent, relation)| Some((remote_context((*traceparent)?)?, relation)));
    linked
        .filter(|(context, _)| context.trace_id() != own)
        .map(|(context, relation)| Link::new(context, vec![KeyValue::new(names::LINK, *relation)], 0))
        .collect()
}

/// Exports a span for a released envelope, in the trace of the request that settled it. If the envelope was held, also
/// exports a span for the hold time.
pub fn export_publish_span(
    tracer: &SdkTracer,
    step: &SpanRef,
    channel: ChannelAttributes<'_>,
    envelope: &Released,
    held_behind: Option<u64>,
) {
    // Saves computing the attributes of a span that is not sampled.
    if !envelope.settled_in.as_ref().map_or_else(|| step.is_recorded(), TraceParent::is_sampled) {
        return;
    }
    let settled_in = envelope.settled_in.as_ref().and_then(remote_context);
    let parent = settled_in
        .map_or_else(|| step.context.clone(), |settled| Context::new().with_remote_span_context(settled));
    let own = parent.span().span_context().trace_id();
    let step_traceparent = step.traceparent();
    let links = links(
        &[(envelope.issued_in.as_ref(), names::ISSUED_IN), (step_traceparent.as_ref(), names::RELEASED_IN)],
        own,
    );
    let held_ms = envelope.received_at.millis_until(envelope.released_at);
    let now = time::now();
    let with_work_item = |mut attributes: Vec<KeyValue>| {
        attributes.extend([
            KeyValue::new(names::CONVERSATION_ID, channel.conversation.to_owned()),
            KeyValue::new(names::WORK_ITEM_ID, envelope.work_item.to_string()),
            KeyValue::new(names::WORK_ITEM_SEQUENCE, integer(envelope.sequence.get())),
            KeyValue::new(names::WORK_ITEM_KIND, envelope.kind.as_str()),
            KeyValue::new(names::OUTCOME, envelope.outcome.as_str()),
            KeyValue::new(names::HELD_MS, integer(held_ms)),
        ]);
        attributes.extend(held_behind.map(|sequence| KeyValue::new(names::HELD_BEHIND, integer(sequence))));
        attributes
    };
    if held_behind.is_some() {
        let start = now.checked_sub(Duration::from_millis(held_ms)).unwrap_or(now);
        tracer
            .span_builder("hold")
            .with_kind(SpanKind::Internal)
            .with_start_time(start)
            .with_attributes(with_work_item(Vec::new()))
            .start_with_context(tracer, &parent)
            .end_with_timestamp(now);
    }
    tracer
        .span_builder("publish channel:{conversation}")
        .with_kind(SpanKind::Producer)
        .with_start_time(now)
        .with_links(links)
        .with_attributes(with_work_item(vec![
            KeyValue::new(names::MESSAGING_SYSTEM, channel.system),
            KeyValue::new(names::MESSAGING_OPERATION_NAME, "publish"),
            KeyValue::new(names::MESSAGING_OPERATION_TYPE, "send"),
            KeyValue::new(names::MESSAGING_DESTINATION_NAME, channel.name.to_owned()),
            KeyValue::new(names::MESSAGING_DESTINATION_TEMPLATE, "channel:{conversation}"),
            KeyValue::new(names::MESSAGING_MESSAGE_ID, event_id(envelope.opened_at, envelope.sequence)),
            KeyValue::new(names::MESSAGING_MESSAGE_CONVERSATION_ID, channel.conversation.to_owned()),
        ]))
        .start_with_context(tracer, &parent)
        .end_with_timestamp(time::now());
}

/// Converts to the integer type of attributes, saturating.
pub fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracestate_with_a_token_is_ignored_and_the_trace_continues() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        for (state, expected) in [("vendor=1,other=2", "vendor=1,other=2"), ("vendor=1,other=cbt_AQJrMQ", "")]
        {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", format!("00-{trace}-b7ad6b7169203331-01").parse().unwrap());
            headers.insert("tracestate", state.parse().unwrap());
            let context = caller(&headers).span().span_context().clone();
            assert_eq!(
                (context.trace_id().to_string(), context.trace_state().header()),
                (trace.into(), expected.into())
            );
        }
    }
}
