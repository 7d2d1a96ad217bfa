//! Trace context of requests and responses, and the exported spans.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use axum::http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer as _,
};
use opentelemetry::{Context, ContextGuard, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;

use super::log::SharedAttributes;
use super::names;
use super::queue::{DISCARDED, ExportQueue};
use crate::clock::Entropy;
use crate::domain::ids::{TraceParent, contains_token};

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

/// The context of a span that another request has stored.
pub fn remote_context(traceparent: &TraceParent) -> Option<SpanContext> {
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

    /// As [`SpanRef::enter`]. The lines also have these attributes.
    pub fn enter_with(&self, attributes: &Arc<Vec<KeyValue>>) -> ContextGuard {
        self.context.with_value(SharedAttributes(Arc::clone(attributes))).attach()
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
        if let Some(link) = link(&self.context, traceparent, relation) {
            self.context.span().add_link(link.span_context, link.attributes);
        }
    }
}

/// A link to a span, unless it is in the trace of `context`.
pub fn link(context: &Context, to: Option<&TraceParent>, relation: &'static str) -> Option<Link> {
    let own = context.span().span_context().trace_id();
    let other = to.and_then(remote_context).filter(|other| other.trace_id() != own)?;
    Some(Link::new(other, vec![KeyValue::new(names::LINK, relation)], 0))
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
