//! Trace context, in and out, and the spans that are exported.
//!
//! Spans that are exported are made apart from those that name log lines: their target tells them from the others.

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

/// The target of spans that are exported, and of nothing else.
pub const TARGET: &str = "callback_ingress::exported";

/// A span, whether it is exported or not.
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
    /// `tracestate` travels on as it is: one in which a token stands is left behind.
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok().filter(|text| !contains_token(text))
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

/// The caller's place in its trace, from `traceparent` and `tracestate`.
pub fn caller(headers: &HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers))
}

fn remote(traceparent: &TraceParent) -> Option<SpanContext> {
    let mut parts = traceparent.as_str().split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let span = SpanId::from_hex(parts.next()?).ok()?;
    let flags = u8::from_str_radix(parts.next()?, 16).ok()?;
    let flags = TraceFlags::new(flags) & TraceFlags::SAMPLED;
    Some(SpanContext::new(trace, span, flags, true, TraceState::NONE))
}

/// Makes a span the child of `parent`, or the root of a new trace. Where spans are not exported, it has ids nevertheless:
/// responses and log lines always have a trace id.
pub fn begin(span: &Span, parent: &Context) -> SpanRef {
    if span.is_disabled() {
        return unexported(parent);
    }
    // It fails where spans are not exported.
    let _ = span.set_parent(parent.clone());
    let context = span.context();
    let known = context.span().span_context().clone();
    if known.is_valid() {
        return SpanRef {
            trace_id: known.trace_id().to_string(),
            span_id: known.span_id().to_string(),
            context,
        };
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

    /// As W3C Trace Context writes it, in `traceresponse` as in `traceparent`.
    pub fn header(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags())
    }

    /// What others continue with: only a place that is exported can be continued.
    pub fn traceparent(&self) -> Option<TraceParent> {
        let span = self.context.span();
        let at = span.span_context();
        let (trace_id, span_id) = (at.trace_id().to_bytes(), at.span_id().to_bytes());
        TraceParent::of(u128::from_be_bytes(trace_id), u64::from_be_bytes(span_id), at.trace_flags().to_u8())
    }

    /// Whether anybody will see what is noted of the span.
    pub fn is_recorded(&self) -> bool {
        self.context.span().is_recording()
    }

    /// Adds attributes.
    pub fn set_attributes(&self, attributes: Vec<KeyValue>) {
        self.context.span().set_attributes(attributes);
    }

    /// Marks the span as failed, for a reason of ours.
    pub fn fail(&self, why: &'static str) {
        self.context.span().set_status(opentelemetry::trace::Status::error(why));
    }

    /// Links the span to another trace. One to its own trace would say nothing.
    pub fn link(&self, traceparent: Option<&TraceParent>, what: &'static str) {
        if let Some(other) = traceparent.filter(|other| other.trace_id() != self.trace_id).and_then(remote) {
            self.context.span().add_link(other, vec![KeyValue::new(names::LINK, what)]);
        }
    }
}

/// The span in which a conversation's timers fire: a trace of its own.
pub fn sweep_span() -> Span {
    tracing::info_span!(target: TARGET, parent: None, "sweep", otel.kind = "internal")
}

/// One span for a work item that timed out, in the sweep's trace.
pub fn timed_out(tracer: &SdkTracer, sweep: &SpanRef, conversation: &str, timed_out: &TimedOut) {
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

/// Which channel an envelope was put on.
#[derive(Clone, Copy, Debug)]
pub struct Channel<'a> {
    /// The conversation's id, or what is known of it.
    pub conversation: &'a str,
    /// Whose channel it is.
    pub system: &'static str,
    /// Its name there.
    pub name: &'a str,
}

fn links(pairs: &[(Option<&TraceParent>, &'static str)], own: TraceId) -> Vec<Link> {
    let linked = pairs.iter().filter_map(|(traceparent, what)| Some((remote((*traceparent)?)?, what)));
    linked
        .filter(|(context, _)| context.trace_id() != own)
        .map(|(context, what)| Link::new(context, vec![KeyValue::new(names::LINK, *what)], 0))
        .collect()
}

/// One span for an envelope that a step put on a channel, in the trace of what settled it. If it was held, one that
/// lasts as long as that comes before.
pub fn published(
    tracer: &SdkTracer,
    step: &SpanRef,
    channel: Channel<'_>,
    envelope: &Released,
    held_behind: Option<u64>,
) {
    // What would not be exported needs no attributes.
    if !envelope.settled_in.as_ref().map_or_else(|| step.is_recorded(), TraceParent::is_sampled) {
        return;
    }
    let settled_in = envelope.settled_in.as_ref().and_then(remote);
    let parent =
        settled_in.map_or_else(|| step.context.clone(), |at| Context::new().with_remote_span_context(at));
    let own = parent.span().span_context().trace_id();
    let step_traceparent = step.traceparent();
    let links = links(
        &[(envelope.issued_in.as_ref(), names::ISSUED_IN), (step_traceparent.as_ref(), names::RELEASED_IN)],
        own,
    );
    let held_ms = envelope.received_at.millis_until(envelope.released_at);
    let now = time::now();
    let about = |mut attributes: Vec<KeyValue>| {
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
            .with_attributes(about(Vec::new()))
            .start_with_context(tracer, &parent)
            .end_with_timestamp(now);
    }
    tracer
        .span_builder("publish channel:{conversation}")
        .with_kind(SpanKind::Producer)
        .with_start_time(now)
        .with_links(links)
        .with_attributes(about(vec![
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

/// A number as attributes hold it.
pub fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracestate_with_a_token_is_left_behind_and_the_trace_goes_on() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        for (state, taken) in [("vendor=1,other=2", "vendor=1,other=2"), ("vendor=1,other=cbt_AQJrMQ", "")] {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", format!("00-{trace}-b7ad6b7169203331-01").parse().unwrap());
            headers.insert("tracestate", state.parse().unwrap());
            let context = caller(&headers).span().span_context().clone();
            assert_eq!(
                (context.trace_id().to_string(), context.trace_state().header()),
                (trace.into(), taken.into())
            );
        }
    }
}
