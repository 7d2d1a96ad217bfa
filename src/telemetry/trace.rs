//! Trace context of requests and responses, and the exported spans.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer as _,
};
use opentelemetry::{Context, ContextGuard, KeyValue, time};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;

use super::names;
use super::queue::{DISCARDED, ExportQueue};
use crate::clock::Entropy;
use crate::domain::envelope::event_id;
use crate::domain::gate::{Released, TimedOut};
use crate::domain::ids::{ToolCallId, ToolName, TraceParent, contains_token};
use crate::domain::work_item::Outcome;

/// A span of this process and its context. Clones share it. It ends with [`SpanRef::end`] or [`SpanRef::discard`],
/// otherwise when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct SpanRef {
    context: Context,
    /// Whether this is an SDK span. Otherwise the ids are random: responses and log lines always have ids.
    is_span: bool,
}

/// Creates the exported spans.
#[derive(Clone, Debug)]
pub(super) struct Tracer {
    pub(super) sdk: SdkTracer,
    pub(super) queue: Arc<ExportQueue>,
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

impl Tracer {
    /// Starts a span. `None`: the queue is full, or the exporter has been stopped.
    pub(super) fn start(
        &self,
        name: impl FnOnce() -> Cow<'static, str>,
        kind: SpanKind,
        parent: &Context,
    ) -> Option<SpanRef> {
        if !self.queue.admits() {
            return None;
        }
        let span = self.sdk.build_with_context(SpanBuilder::from_name(name()).with_kind(kind), parent);
        let is_valid = span.span_context().is_valid();
        is_valid.then(|| SpanRef { context: Context::new().with_span(span), is_span: true })
    }

    /// Exports a span that has ended.
    pub(super) fn export(&self, builder: SpanBuilder, parent: &Context, error: Option<&'static str>) {
        let mut span = self.sdk.build_with_context(builder, parent);
        if let Some(error) = error {
            span.set_status(Status::error(error));
        }
        span.end();
    }

    /// Exports a span for a work item that timed out, as a child of the sweep's span.
    pub(super) fn export_timeout(&self, sweep: &SpanRef, conversation: &str, timed_out: &TimedOut) {
        if !sweep.is_recorded() {
            return;
        }
        let issued_in = (timed_out.issued_in.as_ref(), names::ISSUED_IN, names::ISSUED_TRACE);
        let (links, traces) = links_and_trace_ids(&[issued_in], sweep.span_context().trace_id());
        let attributes = [
            KeyValue::new(names::CONVERSATION_ID, conversation.to_owned()),
            KeyValue::new(names::WORK_ITEM_ID, timed_out.work_item.to_string()),
            KeyValue::new(names::WORK_ITEM_SEQUENCE, saturating_i64(timed_out.sequence.get())),
            KeyValue::new(names::WORK_ITEM_KIND, timed_out.kind.as_str()),
            KeyValue::new(names::OUTCOME, Outcome::TimedOut.as_str()),
            KeyValue::new(names::TIMEOUT_CAUSE, timed_out.cause.as_str()),
            KeyValue::new(names::LATE_MS, saturating_i64(timed_out.late_ms)),
        ];
        let tool = tool_attributes(timed_out.tool_call_id.as_ref(), timed_out.name.as_ref());
        let builder = SpanBuilder::from_name("time out")
            .with_kind(SpanKind::Internal)
            .with_links(links)
            .with_attributes(attributes.into_iter().chain(tool).chain(traces));
        self.export(builder, &sweep.context, None);
    }

    /// Exports a span for a released envelope, in the trace of the request that settled it. If the envelope was held,
    /// also exports a span for the hold time.
    pub(super) fn export_publish(
        &self,
        step: &SpanRef,
        channel: ChannelAttributes<'_>,
        envelope: &Released,
        held_behind: Option<u64>,
    ) {
        // Saves computing the attributes of a span that is not sampled.
        if !envelope.settled_in.as_ref().map_or_else(|| step.is_recorded(), TraceParent::is_sampled) {
            return;
        }
        let parent = envelope
            .settled_in
            .as_ref()
            .and_then(remote_context)
            .map_or_else(|| step.context.clone(), |settled| Context::new().with_remote_span_context(settled));
        let releasing = step.traceparent();
        let (links, traces) = links_and_trace_ids(
            &[
                (envelope.issued_in.as_ref(), names::ISSUED_IN, names::ISSUED_TRACE),
                (releasing.as_ref(), names::RELEASED_IN, names::RELEASED_TRACE),
            ],
            parent.span().span_context().trace_id(),
        );
        let held_ms = envelope.received_at.millis_until(envelope.released_at);
        let mut work_item = vec![
            KeyValue::new(names::CONVERSATION_ID, channel.conversation.to_owned()),
            KeyValue::new(names::WORK_ITEM_ID, envelope.work_item.to_string()),
            KeyValue::new(names::WORK_ITEM_SEQUENCE, saturating_i64(envelope.sequence.get())),
            KeyValue::new(names::WORK_ITEM_KIND, envelope.kind.as_str()),
            KeyValue::new(names::OUTCOME, envelope.outcome.as_str()),
            KeyValue::new(names::HELD_MS, saturating_i64(held_ms)),
        ];
        work_item.extend(tool_attributes(envelope.tool_call_id.as_ref(), envelope.name.as_ref()));
        work_item
            .extend(held_behind.map(|sequence| KeyValue::new(names::HELD_BEHIND, saturating_i64(sequence))));
        work_item.extend(traces);
        let now = time::now();
        if held_behind.is_some() {
            let start = now.checked_sub(Duration::from_millis(held_ms)).unwrap_or(now);
            let hold = SpanBuilder::from_name("hold")
                .with_kind(SpanKind::Internal)
                .with_start_time(start)
                .with_attributes(work_item.clone());
            self.export(hold, &parent, None);
        }
        let messaging = [
            KeyValue::new(names::MESSAGING_SYSTEM, channel.system),
            KeyValue::new(names::MESSAGING_OPERATION_NAME, "publish"),
            KeyValue::new(names::MESSAGING_OPERATION_TYPE, "send"),
            KeyValue::new(names::MESSAGING_DESTINATION_NAME, channel.name.to_owned()),
            KeyValue::new(names::MESSAGING_DESTINATION_TEMPLATE, "channel:{conversation}"),
            KeyValue::new(names::MESSAGING_MESSAGE_ID, event_id(envelope.opened_at, envelope.sequence)),
            KeyValue::new(names::MESSAGING_MESSAGE_CONVERSATION_ID, channel.conversation.to_owned()),
        ];
        let publish = SpanBuilder::from_name("publish channel:{conversation}")
            .with_kind(SpanKind::Producer)
            .with_start_time(now)
            .with_links(links)
            .with_attributes(work_item.into_iter().chain(messaging));
        self.export(publish, &parent, None);
    }
}

impl SpanRef {
    /// Random ids, in the caller's trace if there is one. No span is exported.
    pub fn random(parent: &Context) -> Self {
        let caller = parent.span().span_context().trace_id();
        let trace = if caller == TraceId::INVALID { TraceId::from(Entropy.trace_id()) } else { caller };
        let span = SpanId::from(Entropy.span_id());
        let ids = SpanContext::new(trace, span, TraceFlags::NOT_SAMPLED, false, TraceState::NONE);
        Self { context: Context::new().with_remote_span_context(ids), is_span: false }
    }

    fn span_context(&self) -> SpanContext {
        self.context.span().span_context().clone()
    }

    /// The trace id: 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        self.span_context().trace_id().to_string()
    }

    /// The context of the span. Log lines and store calls of a future that runs in it belong to the span.
    pub const fn context(&self) -> &Context {
        &self.context
    }

    /// Log lines belong to the span until the guard is dropped.
    pub fn enter(&self) -> ContextGuard {
        self.context.clone().attach()
    }

    /// Range of the trace id in [`SpanRef::header`].
    pub const TRACE_ID: Range<usize> = 3..35;

    /// The value of a `traceresponse` header (W3C Trace Context).
    pub fn header(&self) -> String {
        let own = self.span_context();
        let (trace, span) = (own.trace_id().to_bytes(), own.span_id().to_bytes());
        let (trace, span) = (u128::from_be_bytes(trace), u64::from_be_bytes(span));
        format!("00-{trace:032x}-{span:016x}-{:02x}", own.trace_flags())
    }

    /// The trace context to pass on. `None` if spans are not exported.
    pub fn traceparent(&self) -> Option<TraceParent> {
        let own = self.span_context();
        let (trace_id, span_id) = (own.trace_id().to_bytes(), own.span_id().to_bytes());
        let (trace_id, span_id) = (u128::from_be_bytes(trace_id), u64::from_be_bytes(span_id));
        TraceParent::of(trace_id, span_id, own.trace_flags().to_u8()).filter(|_| self.is_span)
    }

    /// Whether the span is exported, so that attributes are worth computing.
    pub fn is_recorded(&self) -> bool {
        self.context.span().is_recording()
    }

    /// Ends the span with these attributes. `error`: a failure of the service.
    pub fn end(&self, attributes: Vec<KeyValue>, error: Option<&'static str>) {
        let span = self.context.span();
        span.set_attributes(attributes);
        if let Some(error) = error {
            span.set_status(Status::error(error));
        }
        span.end();
    }

    /// Ends the span without exporting it.
    pub fn discard(&self) {
        self.context.span().update_name(DISCARDED);
        self.context.span().end();
    }

    /// Links the span to a span of another trace; ignores one of the same trace.
    pub fn link(&self, traceparent: Option<&TraceParent>, relation: &'static str) {
        let own = self.span_context().trace_id();
        if let Some(other) = traceparent.and_then(remote_context).filter(|other| other.trace_id() != own) {
            self.context.span().add_link(other, vec![KeyValue::new(names::LINK, relation)]);
        }
    }
}

/// The messaging attributes of a channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChannelAttributes<'a> {
    /// The conversation's id, or its reference if the id is unknown.
    pub(super) conversation: &'a str,
    /// `messaging.system`
    pub(super) system: &'static str,
    /// `messaging.destination.name`
    pub(super) name: &'a str,
}

/// Links to the spans of other traces than `own`, and their trace ids as attributes, because `SigNoz` does not store the
/// attributes of links.
fn links_and_trace_ids(
    spans: &[(Option<&TraceParent>, &'static str, &'static str)],
    own: TraceId,
) -> (Vec<Link>, Vec<KeyValue>) {
    let others = spans.iter().filter_map(|(traceparent, relation, attribute)| {
        let context = remote_context((*traceparent)?).filter(|context| context.trace_id() != own)?;
        let trace = KeyValue::new(*attribute, context.trace_id().to_string());
        Some((Link::new(context, vec![KeyValue::new(names::LINK, *relation)], 0), trace))
    });
    others.unzip()
}

fn tool_attributes(
    tool_call_id: Option<&ToolCallId>,
    name: Option<&ToolName>,
) -> impl Iterator<Item = KeyValue> {
    let tool_call_id = tool_call_id.map(|id| KeyValue::new(names::TOOL_CALL_ID, id.to_string()));
    let name = name.map(|name| KeyValue::new(names::TOOL_NAME, name.to_string()));
    tool_call_id.into_iter().chain(name)
}

/// Converts to the integer type of attributes. Saturates at its maximum.
pub fn saturating_i64(number: u64) -> i64 {
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
