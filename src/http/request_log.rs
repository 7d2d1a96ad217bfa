//! The facts about a request, and its end: the log line, the span and the metrics are made of them.

use std::sync::PoisonError;

use axum::extract::MatchedPath;
use axum::http::StatusCode;
use opentelemetry::{KeyValue, Value};
use tokio::time::Instant;
use tracing::field::{DisplayValue, display};

use super::code::{CLIENT_CLOSED_REQUEST, Code};
use super::context::{Listener, RequestState};
use super::refusal::Refusal;
use super::refusal_summaries::RefusalKey;
use crate::domain::gate::{CallbackTarget, Delivery, HeartbeatReceipt, Receipt};
use crate::domain::ids::{ConversationId, Fingerprint, Sequence, TraceParent, TurnId, contains_token};
use crate::domain::reason::Reason;
use crate::domain::time::Timestamp;
use crate::domain::token::{Claims, TokenFingerprint};
use crate::domain::work_item::{Outcome, TimeoutCause, WorkItem};
use crate::telemetry::trace::saturating_i64;
use crate::telemetry::{ResponseLabels, names};

/// Maximum length of a logged `User-Agent`, in characters.
const USER_AGENT_CHARS: usize = 120;

/// The facts about a request.
#[derive(Debug, Default)]
pub struct RequestLog {
    /// The status of the response. `None`: the client disconnected before it.
    pub(super) status: Option<StatusCode>,
    pub(super) refusal: Option<Refusal>,
    /// The conversation's id.
    pub conversation: Option<ConversationId>,
    /// The claims of the request's authentic token.
    pub claims: Option<Claims>,
    /// Fingerprint of the request's token, authentic or not.
    pub token: Option<TokenFingerprint>,
    /// The work item.
    pub item: Option<WorkItem>,
    /// Why the work item of a late callback or heartbeat timed out, and how long ago in milliseconds.
    pub late: Option<(TimeoutCause, u64)>,
    /// Whether it is a heartbeat. Accepted heartbeats are logged at `debug`, because there can be many.
    pub is_heartbeat: bool,
    /// The outcome that the request has set.
    pub outcome: Option<Outcome>,
    /// Whether the result is on the channel or held.
    pub delivery: Option<Delivery>,
    /// Whether the callback is a repetition that got the first receipt again.
    pub replayed: Option<bool>,
    /// Time from the issue to the acceptance of the result, in milliseconds.
    pub turnaround_ms: Option<u64>,
    /// The turn that is cancelled.
    pub turn_id: Option<TurnId>,
    /// Number of work items that the cancellation of a turn cancelled.
    pub cancelled: Option<u64>,
    /// Why the platform cancels or ends.
    pub reason: Option<Reason>,
    /// Number of envelopes that the request released, at most 256.
    pub released: usize,
    /// Number of held items and number of awaiting items that the end of the conversation dropped.
    pub dropped: Option<(u64, u64)>,
    /// When a callback was accepted or refused.
    pub decided_at: Option<Instant>,
    /// Fingerprint of the body without the token.
    pub digest: Option<Fingerprint>,
    /// Size of the body in bytes, and when its last byte was read.
    pub body: Option<(usize, Instant)>,
}

impl RequestLog {
    /// Records an accepted callback.
    pub fn receipt(&mut self, receipt: Receipt) {
        self.outcome = Some(receipt.outcome);
        self.delivery = Some(receipt.delivery);
        self.replayed = Some(receipt.replayed);
        self.released = receipt.released.len();
        self.turnaround_ms = Some(receipt.item.issued_at.millis_until(receipt.received_at));
        self.conversation = Some(receipt.conversation_id);
        self.item = Some(receipt.item);
    }

    /// Records an accepted heartbeat.
    pub fn heartbeat(&mut self, receipt: HeartbeatReceipt) {
        self.conversation = Some(receipt.conversation_id);
        self.item = Some(receipt.item.item);
    }

    /// Records the conversation and the item of a refused callback or heartbeat. `late_at`: the time, if it came after the
    /// item's timeout.
    pub fn refused(&mut self, target: &CallbackTarget, late_at: Option<Timestamp>) {
        self.conversation = Some(target.conversation_id.clone());
        self.item.clone_from(&target.item);
        if let (Some(item), Some(timed_out_at), Some(now)) = (&target.item, target.times_out_at, late_at) {
            self.late = Some((item.timeout_cause(timed_out_at), timed_out_at.millis_until(now)));
        }
    }

    fn code(&self) -> Option<Code> {
        self.refusal.as_ref().map(|refusal| refusal.code)
    }

    fn delivery_name(&self) -> Option<&'static str> {
        self.delivery.map(|delivery| match delivery {
            Delivery::Delivered => "delivered",
            Delivery::Held { .. } => "held",
        })
    }

    /// The sequence for which the result is held.
    fn held_behind(&self) -> Option<u64> {
        match self.delivery {
            Some(Delivery::Held { waiting_for }) => Some(waiting_for.get()),
            Some(Delivery::Delivered) | None => None,
        }
    }
}

/// Passes the fields that a request's log line and its span have in common to the macro `$record`, with its argument
/// `$to`. Each field has a name and an optional value.
macro_rules! common_fields {
    ($record:ident($to:ident), $request:ident, $log:ident, $status:ident) => {{
        let (item, claims) = ($log.item.as_ref(), $log.claims.as_ref());
        let with_deadline = item.filter(|_| $request.is_on(Listener::Platform) || $log.late.is_some());
        let is_failure = $status >= 400;
        $record! { $to,
            { names::REQUEST_ID } = Some(display($request.request_id)),
            { names::HTTP_REQUEST_METHOD } = Some($request.method),
            { names::HTTP_ROUTE } = $request.route(),
            { names::HTTP_RESPONSE_STATUS_CODE } = Some(u64::from($status)),
            { names::CONVERSATION_ID } = $log.conversation.as_ref().map(display),
            { names::CONVERSATION_REFERENCE } = claims.map(|claims| display(claims.conversation)),
            { names::WORK_ITEM_ID } =
                item.map(|item| item.id).or(claims.map(|claims| claims.work_item)).map(display),
            { names::WORK_ITEM_SEQUENCE } =
                item.map(|item| item.sequence).or(claims.map(|claims| claims.sequence)).map(Sequence::get),
            { names::WORK_ITEM_KIND } = item.map(|item| item.kind.as_str()),
            { names::TURN_ID } =
                item.and_then(|item| item.turn_id.as_ref()).or($log.turn_id.as_ref()).map(display),
            { names::TOOL_CALL_ID } = item.and_then(|item| item.tool_call_id.as_ref()).map(display),
            { names::TOOL_NAME } = item.and_then(|item| item.name.as_ref()).map(display),
            { names::DEADLINE } = with_deadline.map(|item| display(item.deadline)),
            { names::TIMEOUT_MS } = with_deadline.map(|item| item.issued_at.millis_until(item.deadline)),
            { names::TIMEOUT_CAUSE } = $log.late.map(|(cause, _)| cause.as_str()),
            { names::LATE_MS } = $log.late.map(|(_, ms)| ms),
            { names::OUTCOME } = $log.outcome.map(Outcome::as_str),
            { names::DELIVERY } = $log.delivery_name(),
            { names::HELD_BEHIND } = $log.held_behind(),
            { names::REPLAYED } = $log.replayed,
            { names::TURNAROUND_MS } = $log.turnaround_ms,
            { names::CANCELLED } = $log.cancelled,
            { names::REASON } = $log.reason.as_ref().map(display),
            { names::RELEASED } = Some($log.released as u64).filter(|released| *released > 0),
            { names::DROPPED_HELD } = $log.dropped.map(|(held, _)| held),
            { names::DROPPED_AWAITING } = $log.dropped.map(|(_, awaiting)| awaiting),
            { names::TOKEN_FINGERPRINT } = $log.token.map(display),
            { names::HTTP_REQUEST_BODY_SIZE } = $log.body.map(|(bytes, _)| bytes as u64),
            { names::BODY_DIGEST } = $log.digest.map(|digest| display(digest.short())),
            { names::ISSUED_TRACE } =
                item.and_then(|item| item.traceparent.as_ref()).map(TraceParent::trace_id),
            { names::CODE } = $log.code().map(Code::as_str),
            { names::CLIENT_ADDRESS } = is_failure.then(|| display($request.client)),
            { names::USER_AGENT } = $request.user_agent().filter(|_| is_failure),
        }
    }};
}

/// The value of a field, as the value of an attribute.
trait AttributeValue {
    fn attribute_value(self) -> Value;
}

impl AttributeValue for bool {
    fn attribute_value(self) -> Value {
        self.into()
    }
}

impl AttributeValue for u64 {
    fn attribute_value(self) -> Value {
        saturating_i64(self).into()
    }
}

impl AttributeValue for &str {
    fn attribute_value(self) -> Value {
        self.to_owned().into()
    }
}

impl<T: std::fmt::Display> AttributeValue for DisplayValue<T> {
    fn attribute_value(self) -> Value {
        self.to_string().into()
    }
}

/// The end of a request. See [`RequestContext`](super::context::RequestContext).
impl Drop for RequestState {
    fn drop(&mut self) {
        let log = std::mem::take(self.log.get_mut().unwrap_or_else(PoisonError::into_inner));
        let status = log.status.map_or(CLIENT_CLOSED_REQUEST, |status| status.as_u16());
        if status < 400 || self.has_own_line(&log) {
            let _in_span = self.span.enter();
            self.write_line(status, &log);
            self.end_span(status, &log);
        } else {
            self.span.discard();
        }
        self.count(status, &log);
    }
}

impl RequestState {
    fn is_on(&self, listener: Listener) -> bool {
        self.instrumentation.listener == listener
    }

    fn route(&self) -> Option<&str> {
        self.route.as_ref().map(MatchedPath::as_str)
    }

    /// The `User-Agent` header, if it is text and contains no token.
    pub fn user_agent(&self) -> Option<&str> {
        let text = self.user_agent.as_ref()?.to_str().ok()?;
        // ASCII only, so that it can be cut anywhere.
        Some(&text[..text.len().min(USER_AGENT_CHARS)]).filter(|text| !contains_token(text))
    }

    /// Whether a refusal gets its own log line and span. Repeated refusals of unauthenticated clients and of
    /// heartbeats are summarized.
    fn has_own_line(&self, log: &RequestLog) -> bool {
        let code = log.code();
        let is_unauthenticated = match self.instrumentation.listener {
            Listener::Public => log.claims.is_none(),
            Listener::Platform => matches!(code, Some(Code::ServiceKeyMissing | Code::ServiceKeyInvalid)),
        };
        let may_be_summarized = code == Some(Code::RateLimited)
            || (is_unauthenticated || log.is_heartbeat) && code != Some(Code::Internal);
        let refusal = RefusalKey { client: Some(self.client), code, token: log.claims.zip(log.token) };
        !may_be_summarized || self.instrumentation.refusal_summaries.is_first(refusal)
    }

    fn write_line(&self, status: u16, log: &RequestLog) {
        let (id, method) = (self.request_id, self.method);
        let (route, code) = (self.route().unwrap_or_default(), log.code());
        let result = code.map(Code::as_str).or(log.delivery_name());
        let space = if result.is_some() { " " } else { "" };
        macro_rules! line {
            ($level:ident, $($field:tt)*) => {
                tracing::$level!(
                    name: names::REQUEST_EVENT,
                    {
                        $($field)*
                        { names::DURATION_US } =
                            u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
                        { names::MESSAGE } = log.refusal.as_ref().map(|refusal| &*refusal.message),
                        error = log.refusal.as_ref().and_then(|refusal| refusal.cause.as_deref()),
                    },
                    "{method} {route} {status} {}{space}{id}",
                    result.unwrap_or_default(),
                )
            };
        }
        match code {
            Some(Code::Internal) => common_fields!(line(error), self, log, status),
            Some(Code::StoreUnavailable | Code::OutcomeUnknown) => {
                common_fields!(line(warn), self, log, status);
            }
            None if status < 400 && (self.is_probe || log.is_heartbeat) => {
                common_fields!(line(debug), self, log, status);
            }
            Some(_) | None => common_fields!(line(info), self, log, status),
        }
    }

    fn end_span(&self, status: u16, log: &RequestLog) {
        if !self.span.is_recorded() {
            return;
        }
        let error = log.code().and_then(server_error);
        let mut attributes = Vec::with_capacity(40);
        macro_rules! attribute {
            ($all:ident, $({ $name:expr } = $value:expr,)*) => {
                $($all.extend($value.map(|value| KeyValue::new($name, value.attribute_value())));)*
            };
        }
        common_fields!(attribute(attributes), self, log, status);
        attributes.push(KeyValue::new(names::URL_SCHEME, self.instrumentation.scheme));
        attributes.extend(self.route().map(|route| KeyValue::new(names::URL_PATH, route.to_owned())));
        attributes.extend(error.map(|error| KeyValue::new(names::ERROR_TYPE, error)));
        let issued_in = log.item.as_ref().and_then(|item| item.traceparent.as_ref());
        self.span.link(issued_in, names::ISSUED_IN);
        self.span.end(attributes, error);
    }

    fn count(&self, status: u16, log: &RequestLog) {
        let code = log.code();
        let labels = ResponseLabels {
            method: self.method,
            scheme: self.instrumentation.scheme,
            status,
            code: code.map_or("", Code::as_str),
            outcome: log.outcome.map_or("", Outcome::as_str),
            failure: code.and_then(server_error),
        };
        let body = log.body.map(|(bytes, _)| bytes);
        let is_callback = self.is_on(Listener::Public) && !log.is_heartbeat;
        let decided_at = log.decided_at.unwrap_or_else(Instant::now);
        let decision = log.body.filter(|_| is_callback).map(|(_, read_at)| decided_at - read_at);
        let route = self.route().unwrap_or_default();
        let metrics = &self.instrumentation.telemetry.metrics;
        metrics.record_request(route, labels, self.started.elapsed(), body, decision);
    }
}

/// `error.type` of a refusal. By OpenTelemetry's conventions, a 4xx is not an error of the server.
pub(super) fn server_error(code: Code) -> Option<&'static str> {
    code.status().is_server_error().then(|| code.as_str())
}
