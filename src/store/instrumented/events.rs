//! Log lines, spans and metrics of the work items that an operation released or timed out.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::{SpanBuilder, SpanKind, TraceContextExt};
use opentelemetry::{Context, time};

use super::InstrumentedStore;
use crate::domain::envelope::event_id;
use crate::domain::gate::{Released, TimedOut};
use crate::domain::ids::{ConversationId, ConversationRef, TraceParent};
use crate::domain::work_item::Outcome;
use crate::store::Store;
use crate::telemetry::attributes::{attributes, number, text};
use crate::telemetry::names;
use crate::telemetry::trace::{SpanRef, link, remote_context};

impl InstrumentedStore {
    /// Records work items that a sweep timed out: a log line, a span and a metric for each.
    pub fn record_timed_out(
        &self,
        sweep: &SpanRef,
        (reference, id): (ConversationRef, Option<&ConversationId>),
        timed_out: &[TimedOut],
    ) {
        for item in timed_out {
            self.metrics.timed_out(item);
            let shared = Arc::new(attributes([
                (names::CONVERSATION_ID, id.map(text)),
                (names::CONVERSATION_REFERENCE, Some(text(reference))),
                (names::WORK_ITEM_ID, Some(text(item.work_item))),
                (names::WORK_ITEM_SEQUENCE, Some(number(item.sequence.get()))),
                (names::WORK_ITEM_KIND, Some(item.kind.as_str().into())),
                (names::TOOL_CALL_ID, item.tool_call_id.as_ref().map(text)),
                (names::TOOL_NAME, item.name.as_ref().map(text)),
                (names::OUTCOME, Some(Outcome::TimedOut.as_str().into())),
                (names::TIMEOUT_CAUSE, Some(item.cause.as_str().into())),
                (names::LATE_MS, Some(number(item.late_ms))),
                (names::ISSUED_TRACE, item.issued_in.as_ref().map(|issued| text(issued.trace_id()))),
            ]));
            let in_span = sweep.enter_with(&shared);
            tracing::info!(name: "work_item.timed_out", "a work item timed out");
            drop(in_span);
            self.telemetry.export_span(sweep.context(), None, || {
                let span = SpanBuilder::from_name("time out").with_kind(SpanKind::Internal);
                let issued_in = link(sweep.context(), item.issued_in.as_ref(), names::ISSUED_IN);
                span.with_links(issued_in.into_iter().collect()).with_attributes(Arc::unwrap_or_clone(shared))
            });
        }
    }

    /// Records envelopes that an operation released: a metric for each, and a span for each except a result that its
    /// own callback released without holding it, because the request's span has its event id. Logs a line for each
    /// envelope that was held, to show why it was late, and for each timeout that is not in `logged_timeouts`. The
    /// other envelopes need no line, because the log line of a request covers them.
    pub fn record_released(
        &self,
        step: &SpanRef,
        (reference, id): (ConversationRef, Option<&ConversationId>),
        envelopes: &[Released],
        logged_timeouts: &[TimedOut],
    ) {
        // The held envelopes waited for the first one, or, if this step continues a release, for that of an earlier
        // step.
        let Some(first) = envelopes.first() else { return };
        let releasing = step.traceparent();
        for envelope in envelopes {
            self.metrics.released(envelope);
            if envelope.is_callbacks_own() {
                continue;
            }
            let is_logged = || logged_timeouts.iter().any(|logged| logged.work_item == envelope.work_item);
            let needs_line = envelope.held || envelope.outcome == Outcome::TimedOut && !is_logged();
            // If another operation settled the work item, the spans belong to the trace of that operation.
            let settled_in =
                envelope.settled_in.as_ref().filter(|settled| Some(*settled) != releasing.as_ref());
            let released_in = releasing.as_ref().filter(|_| settled_in.is_some());
            let settled_in = settled_in.and_then(remote_context);
            let settled_in = settled_in.map(|settled| Context::new().with_remote_span_context(settled));
            let parent = settled_in.as_ref().unwrap_or(step.context());
            if !needs_line && !self.telemetry.exports_spans(parent) {
                continue;
            }
            let held_ms = envelope.received_at.millis_until(envelope.released_at);
            let conversation = id.map_or_else(|| text(reference), text);
            let shared = Arc::new(attributes([
                (names::CONVERSATION_ID, Some(conversation.clone())),
                (names::WORK_ITEM_ID, Some(text(envelope.work_item))),
                (names::WORK_ITEM_SEQUENCE, Some(number(envelope.sequence.get()))),
                (names::WORK_ITEM_KIND, Some(envelope.kind.as_str().into())),
                (names::TOOL_CALL_ID, envelope.tool_call_id.as_ref().map(text)),
                (names::TOOL_NAME, envelope.name.as_ref().map(text)),
                (names::OUTCOME, Some(envelope.outcome.as_str().into())),
                (names::HELD_MS, Some(number(held_ms))),
                (names::HELD_BEHIND, envelope.held.then(|| number(first.sequence.get()))),
                (names::ISSUED_TRACE, envelope.issued_in.as_ref().map(|issued| text(issued.trace_id()))),
            ]));
            if needs_line {
                let _in_span = step.enter_with(&shared);
                tracing::info!(
                    name: "released",
                    { { names::CONVERSATION_REFERENCE } = %reference },
                    "released"
                );
            }
            let now = time::now();
            if envelope.held {
                self.telemetry.export_span(parent, None, || {
                    let start = now.checked_sub(Duration::from_millis(held_ms)).unwrap_or(now);
                    let hold = SpanBuilder::from_name("hold").with_kind(SpanKind::Internal);
                    hold.with_start_time(start).with_attributes(shared.to_vec())
                });
            }
            self.telemetry.export_span(parent, None, || {
                let issued_in = link(parent, envelope.issued_in.as_ref(), names::ISSUED_IN);
                let release = link(parent, released_in, names::RELEASED_IN);
                let other_trace = released_in.filter(|_| release.is_some());
                let (system, channel) = match self.channel(reference) {
                    Some(key) => ("redis", key),
                    None => (names::MEMORY_CHANNEL_SYSTEM, format!("channel:{conversation}")),
                };
                let event = event_id(envelope.opened_at, envelope.sequence);
                let messaging = attributes([
                    (names::RELEASED_TRACE, other_trace.map(TraceParent::trace_id).map(text)),
                    (names::MESSAGING_SYSTEM, Some(system.into())),
                    (names::MESSAGING_OPERATION_NAME, Some("publish".into())),
                    (names::MESSAGING_OPERATION_TYPE, Some("send".into())),
                    (names::MESSAGING_DESTINATION_NAME, Some(channel.into())),
                    (names::MESSAGING_DESTINATION_TEMPLATE, Some("channel:{conversation}".into())),
                    (names::MESSAGING_MESSAGE_ID, Some(event.into())),
                    (names::MESSAGING_MESSAGE_CONVERSATION_ID, Some(conversation)),
                ]);
                SpanBuilder::from_name("publish channel:{conversation}")
                    .with_kind(SpanKind::Producer)
                    .with_start_time(now)
                    .with_links(issued_in.into_iter().chain(release).collect())
                    .with_attributes(Arc::unwrap_or_clone(shared).into_iter().chain(messaging))
            });
        }
    }
}
