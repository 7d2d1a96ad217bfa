//! The spans of this process and their links.

use std::sync::Arc;

use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer as _,
};
use opentelemetry::{Context, ContextGuard, KeyValue};
use opentelemetry_sdk::trace::SdkTracer;

use super::event::SharedAttributes;
use super::names;
use super::queue::DISCARDED;
use crate::clock::Entropy;
use crate::domain::ids::TraceParent;

/// A span of this process and its context. Clones share the span. It ends with [`SpanRef::end`] or
/// [`SpanRef::discard`], or else when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct SpanRef {
    context: Context,
    /// The trace id, the span id and the flags. Never `None`, because no id is zero.
    pub ids: Option<TraceParent>,
    /// Whether this is an SDK span. Otherwise there are only ids, which responses and log lines need in any case.
    is_span: bool,
}

/// The context of a span whose `traceparent` was stored earlier.
pub fn remote_context(traceparent: &TraceParent) -> Option<SpanContext> {
    let (trace, span, flags) = traceparent.ids()?;
    let flags = TraceFlags::new(flags) & TraceFlags::SAMPLED;
    let trace = TraceId::from_bytes(trace);
    Some(SpanContext::new(trace, SpanId::from_bytes(span), flags, true, TraceState::NONE))
}

impl SpanRef {
    /// Starts a span. `None`: the exporter has been stopped.
    pub(super) fn start(tracer: &SdkTracer, span: SpanBuilder, parent: &Context) -> Option<Self> {
        let span = tracer.build_with_context(span, parent);
        let is_valid = span.span_context().is_valid();
        is_valid.then(|| Self::new(Context::new().with_span(span), true))
    }

    /// Random ids, in the caller's trace if there is one. No span is exported.
    pub fn random(parent: &Context) -> Self {
        let caller = parent.span().span_context().trace_id();
        let trace = if caller == TraceId::INVALID { TraceId::from(Entropy.trace_id()) } else { caller };
        let span = SpanId::from(Entropy.span_id());
        let ids = SpanContext::new(trace, span, TraceFlags::NOT_SAMPLED, false, TraceState::NONE);
        Self::new(Context::new().with_remote_span_context(ids), false)
    }

    fn new(context: Context, is_span: bool) -> Self {
        let span = context.span();
        let own = span.span_context();
        let (trace_id, span_id) = (own.trace_id().to_bytes(), own.span_id().to_bytes());
        let ids = TraceParent::of(trace_id, span_id, own.trace_flags().to_u8());
        Self { context, ids, is_span }
    }

    /// The trace id: 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        self.ids.as_ref().map_or("", TraceParent::trace_id)
    }

    /// The context of the span. The log lines and store calls of a future that runs in this context belong to the span.
    pub const fn context(&self) -> &Context {
        &self.context
    }

    /// Makes the span current: log lines belong to it until the guard is dropped.
    pub fn enter(&self) -> ContextGuard {
        self.context.clone().attach()
    }

    /// Like [`SpanRef::enter`]. The log lines also have these attributes.
    pub fn enter_with(&self, attributes: &Arc<Vec<KeyValue>>) -> ContextGuard {
        self.context.with_value(SharedAttributes(Arc::clone(attributes))).attach()
    }

    /// The trace context to pass on. `None` if there is no SDK span: spans are not exported, or the queue was full.
    pub fn traceparent(&self) -> Option<TraceParent> {
        self.ids.clone().filter(|_| self.is_span)
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

    /// Links the span to another span, unless both are in the same trace.
    pub fn link(&self, traceparent: Option<&TraceParent>, relation: &'static str) {
        if let Some(link) = link(&self.context, traceparent, relation) {
            self.context.span().add_link(link.span_context, link.attributes);
        }
    }
}

/// A link to the span `to`. `None` if there is no such span, or if it is in the trace of `context`.
pub fn link(context: &Context, to: Option<&TraceParent>, relation: &'static str) -> Option<Link> {
    let own = context.span().span_context().trace_id();
    let other = to.and_then(remote_context).filter(|other| other.trace_id() != own)?;
    Some(Link::new(other, vec![KeyValue::new(names::LINK, relation)], 0))
}
