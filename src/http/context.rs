//! The context of a request: its ids, and the facts that are recorded for the log line, the span and the metrics.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::extract::MatchedPath;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use tokio::time::Instant;

use super::client_address::TrustedProxies;
use super::metrics::RequestMetrics;
use super::refusal::Refusal;
use super::refusal_summaries::{RefusalSummaries, TokenIds};
use crate::domain::gate::{CallbackTarget, Delivery, HeartbeatReceipt, Receipt};
use crate::domain::ids::{
    ConversationId, ConversationRef, Fingerprint, RequestId, Sequence, ToolCallId, ToolName, TraceParent,
    TurnId, WorkItemId,
};
use crate::domain::reason::Reason;
use crate::domain::time::Timestamp;
use crate::domain::token::{Claims, TokenFingerprint};
use crate::domain::work_item::{Kind, Outcome, TimeoutCause, WorkItem};
use crate::telemetry::Telemetry;
use crate::telemetry::trace::SpanRef;

/// Response header with the request id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// For providers. Each request begins a new trace.
    Public,
    /// For the platform. A request continues the caller's trace.
    Platform,
}

/// How the requests of a listener are instrumented.
#[derive(Clone, Debug)]
pub struct Instrumentation {
    /// Which listener it is.
    pub listener: Listener,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The proxies whose `X-Request-Id` is trusted. The platform listener trusts the header of every caller.
    pub trusted_proxies: TrustedProxies,
    /// Receives the spans of the requests.
    pub telemetry: Telemetry,
    /// The metrics of requests. Both listeners share them.
    pub metrics: Arc<RequestMetrics>,
    /// Summarizes repeated refusals. Both listeners share it.
    pub refusal_summaries: Arc<RefusalSummaries>,
}

/// The context of a request. Clones share it. When the last clone is dropped, the request is logged and counted. A call
/// that outlives the client's connection holds a clone, so that the log line contains its result.
#[derive(Clone, Debug)]
pub struct RequestContext(Arc<RequestState>);

/// The state that the clones of a [`RequestContext`] share.
#[derive(Debug)]
pub struct RequestState {
    /// The caller's `X-Request-Id`, if the caller is trusted and the value is a UUID. Otherwise a new id.
    pub request_id: RequestId,
    /// The request's span.
    pub span: SpanRef,
    /// The client's address.
    pub client: IpAddr,
    pub(super) instrumentation: Arc<Instrumentation>,
    pub(super) line: RequestLine,
    pub(super) started: Instant,
    pub(super) response: OnceLock<LoggedResponse>,
    pub(super) log: Mutex<RequestLog>,
    pub(super) _active: Arc<()>,
}

/// The parts of a request's head that may be logged.
#[derive(Debug)]
pub(super) struct RequestLine {
    pub(super) method: &'static str,
    /// The route's template. The path itself is never logged, because it can contain a token.
    pub(super) route: Option<MatchedPath>,
    /// Whether the request is a health check or a scrape. Such requests are logged at `debug` if they succeed.
    pub(super) probe: bool,
    pub(super) user_agent: Option<HeaderValue>,
}

/// The response to a request, as it is logged.
#[derive(Debug)]
pub(super) struct LoggedResponse {
    pub(super) status: StatusCode,
    pub(super) refusal: Option<Refusal>,
}

/// The facts about a request, for its log line, its span and the metrics.
#[derive(Debug, Default)]
pub struct RequestLog {
    /// The conversation's id.
    pub conversation: Option<ConversationId>,
    /// The conversation's reference, which the token contains.
    pub reference: Option<ConversationRef>,
    /// The work item.
    pub work_item: Option<WorkItemId>,
    /// The work item's sequence.
    pub sequence: Option<Sequence>,
    /// The work item's kind.
    pub kind: Option<Kind>,
    /// The platform's `turnId` of the work item.
    pub turn_id: Option<TurnId>,
    /// The platform's tool call.
    pub tool_call_id: Option<ToolCallId>,
    /// The tool or provider.
    pub name: Option<ToolName>,
    /// The work item's deadline, and the time from its issue to the deadline in milliseconds. Only for the platform's
    /// requests and late callbacks.
    pub deadline: Option<(Timestamp, u64)>,
    /// Time from the timeout to a late callback or heartbeat, in milliseconds.
    pub late_ms: Option<u64>,
    /// Why the work item of a late callback or heartbeat timed out.
    pub timeout_cause: Option<TimeoutCause>,
    /// Whether it is a heartbeat. Accepted heartbeats are logged at `debug`, because there can be many.
    pub is_heartbeat: bool,
    /// Time from the issue to the acceptance of the result, in milliseconds.
    pub turnaround_ms: Option<u64>,
    /// The trace in which the work item was issued.
    pub issued_in: Option<TraceParent>,
    /// The work item's outcome.
    pub outcome: Option<Outcome>,
    /// Whether the result is on the channel or held.
    pub delivery: Option<Delivery>,
    /// Whether the callback is a repetition that got the first receipt again.
    pub replayed: Option<bool>,
    /// Number of work items that the cancellation of a turn cancelled.
    pub cancelled: Option<u64>,
    /// Why the platform cancels or ends.
    pub reason: Option<Reason>,
    /// Number of envelopes that the request released, at most 256.
    pub released: usize,
    /// Number of held items and number of awaiting items that the end of the conversation dropped.
    pub dropped: Option<(u64, u64)>,
    /// Fingerprint of the token.
    pub token: Option<TokenFingerprint>,
    /// When a callback was accepted or refused.
    pub decided_at: Option<Instant>,
    /// Fingerprint of the body without the token.
    pub digest: Option<Fingerprint>,
    /// Size of the body in bytes, and when its last byte was read.
    pub body: Option<(usize, Instant)>,
}

impl RequestLog {
    /// Records the claims of an authentic token.
    pub fn claims(&mut self, claims: &Claims) {
        self.reference = Some(claims.conversation);
        self.work_item = Some(claims.work_item);
        self.sequence = Some(claims.sequence);
    }

    /// The ids of the request's authentic token.
    pub(super) fn token_ids(&self) -> Option<TokenIds> {
        Some(TokenIds {
            reference: self.reference?,
            work_item: self.work_item?,
            sequence: self.sequence?,
            fingerprint: self.token?,
        })
    }

    /// Records the work item of the request, without its deadline.
    pub fn item(&mut self, item: &WorkItem) {
        self.work_item = Some(item.id);
        self.sequence = Some(item.sequence);
        self.kind = Some(item.kind);
        self.turn_id.clone_from(&item.turn_id);
        self.tool_call_id.clone_from(&item.tool_call_id);
        self.name.clone_from(&item.name);
        self.issued_in.clone_from(&item.traceparent);
    }

    /// Records the work item of the request, with its deadline.
    pub fn item_with_deadline(&mut self, item: &WorkItem) {
        self.item(item);
        self.deadline = Some((item.deadline, item.issued_at.millis_until(item.deadline)));
    }

    /// Records an accepted callback.
    pub fn receipt(&mut self, receipt: &Receipt) {
        self.conversation = Some(receipt.conversation_id.clone());
        self.item(&receipt.item);
        self.outcome = Some(receipt.outcome);
        self.delivery = Some(receipt.delivery);
        self.replayed = Some(receipt.replayed);
        self.released = receipt.released.len();
        self.turnaround_ms = Some(receipt.item.issued_at.millis_until(receipt.received_at));
    }

    /// Records an accepted heartbeat.
    pub fn heartbeat(&mut self, receipt: &HeartbeatReceipt) {
        self.conversation = Some(receipt.conversation_id.clone());
        self.item(&receipt.item.item);
    }

    /// Records the conversation and the item of a refused callback or heartbeat. `late_at`: the time, if it came after the
    /// item's timeout.
    pub fn refused(&mut self, target: &CallbackTarget, late_at: Option<Timestamp>) {
        self.conversation = Some(target.conversation_id.clone());
        let Some(item) = &target.item else { return };
        match (late_at, target.times_out_at) {
            (Some(now), Some(timed_out_at)) => {
                self.item_with_deadline(item);
                self.late_ms = Some(timed_out_at.millis_until(now));
                self.timeout_cause = Some(item.timeout_cause(timed_out_at));
            }
            _ => self.item(item),
        }
    }

    /// The value of `callback.delivery`.
    pub fn delivery_name(&self) -> Option<&'static str> {
        self.delivery.map(|delivery| match delivery {
            Delivery::Delivered => "delivered",
            Delivery::Held { .. } => "held",
        })
    }

    /// The sequence for which the result is held.
    pub fn held_behind(&self) -> Option<u64> {
        match self.delivery {
            Some(Delivery::Held { waiting_for }) => Some(waiting_for.get()),
            Some(Delivery::Delivered) | None => None,
        }
    }
}

impl RequestContext {
    pub(super) fn new(state: RequestState) -> Self {
        Self(Arc::new(state))
    }

    /// The telemetry of the listener.
    pub fn telemetry(&self) -> &Telemetry {
        &self.0.instrumentation.telemetry
    }

    /// Records facts about the request.
    pub fn record(&self, record: impl FnOnce(&mut RequestLog)) {
        record(&mut self.0.log.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Deref for RequestContext {
    type Target = RequestState;

    fn deref(&self) -> &RequestState {
        &self.0
    }
}
