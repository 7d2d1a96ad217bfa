//! The end of a request: its log line, its span and its metrics.

use std::sync::{Arc, PoisonError};

use axum::extract::MatchedPath;
use opentelemetry::KeyValue;
use tokio::time::Instant;
use tracing::Level;
use tracing::level_filters::LevelFilter;

use super::code::{CLIENT_CLOSED_REQUEST, Code};
use super::context::{Listener, RequestState};
use super::metrics::ResponseLabels;
use super::refusal_summaries::RefusalKey;
use super::request_log::RequestLog;
use crate::domain::envelope::event_id;
use crate::domain::ids::contains_token;
use crate::domain::work_item::Outcome;
use crate::telemetry::attributes::{attributes, number, text};
use crate::telemetry::names;

/// Maximum length of a logged `User-Agent`, in characters.
const USER_AGENT_CHARS: usize = 120;

/// Reports the request when the last clone of its context is dropped. See
/// [`RequestContext`](super::context::RequestContext).
impl Drop for RequestState {
    fn drop(&mut self) {
        let log = std::mem::take(self.log.get_mut().unwrap_or_else(PoisonError::into_inner));
        let status = log.status.map_or(CLIENT_CLOSED_REQUEST, |status| status.as_u16());
        if status < 400 || self.has_own_line(&log) {
            self.report(status, &log);
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
        // `to_str` accepts only ASCII, so the text can be cut at any byte.
        Some(&text[..text.len().min(USER_AGENT_CHARS)]).filter(|text| !contains_token(text))
    }

    /// Whether a refusal or a client's disconnect gets its own log line and span. `INTERNAL` always does. Repeated ones
    /// are summarized if the client is unauthenticated, the request is a heartbeat, or a rate limit refused it.
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

    /// Logs the request, and ends its span.
    fn report(&self, status: u16, log: &RequestLog) {
        let is_frequent = status < 400 && (self.is_probe || log.is_heartbeat);
        let level = match log.code() {
            Some(Code::Internal) => Level::ERROR,
            Some(Code::StoreUnavailable | Code::OutcomeUnknown) => Level::WARN,
            None if is_frequent => Level::DEBUG,
            Some(_) | None => Level::INFO,
        };
        if level > LevelFilter::current() && !self.span.is_recorded() {
            return;
        }
        let attributes = Arc::new(self.attributes(status, log));
        let (id, method) = (self.request_id, self.method);
        let (route, code) = (self.route().unwrap_or_default(), log.code());
        let result = code.map(Code::as_str).or(log.delivery_name());
        let space = if result.is_some() { " " } else { "" };
        let in_span = self.span.enter_with(&attributes);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    name: names::REQUEST_EVENT,
                    {
                        { names::DURATION_US } = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
                        { names::MESSAGE } = log.refusal.as_ref().map(|refusal| &*refusal.message),
                        error = log.refusal.as_ref().and_then(|refusal| refusal.cause.as_deref()),
                    },
                    "{method} {route} {status} {}{space}{id}",
                    result.unwrap_or_default(),
                )
            };
        }
        match level {
            Level::ERROR => line!(error),
            Level::WARN => line!(warn),
            Level::DEBUG => line!(debug),
            _ => line!(info),
        }
        drop(in_span);
        if self.span.is_recorded() {
            self.end_span(Arc::unwrap_or_clone(attributes), log);
        }
    }

    /// The attributes that the log line and the span share.
    fn attributes(&self, status: u16, log: &RequestLog) -> Vec<KeyValue> {
        let (item, claims) = (log.item.as_ref(), log.claims.as_ref());
        let id = item.map(|item| item.id).or(claims.map(|claims| claims.work_item));
        let sequence = item.map(|item| item.sequence).or(claims.map(|claims| claims.sequence));
        let turn = item.and_then(|item| item.turn_id.as_ref()).or(log.turn_id.as_ref());
        let with_deadline = item.filter(|_| self.is_on(Listener::Platform) || log.late.is_some());
        // The client's address and user agent are recorded only for refused and aborted requests.
        let is_failure = status >= 400;
        let agent = self.user_agent().filter(|_| is_failure);
        attributes([
            (names::REQUEST_ID, Some(text(self.request_id))),
            (names::HTTP_REQUEST_METHOD, Some(self.method.into())),
            (names::HTTP_ROUTE, self.route().map(text)),
            (names::HTTP_RESPONSE_STATUS_CODE, Some(i64::from(status).into())),
            (names::CODE, log.code().map(|code| code.as_str().into())),
            (names::CONVERSATION_ID, log.conversation.as_ref().map(text)),
            (names::CONVERSATION_REFERENCE, claims.map(|claims| text(claims.conversation))),
            (names::WORK_ITEM_ID, id.map(text)),
            (names::WORK_ITEM_SEQUENCE, sequence.map(|sequence| number(sequence.get()))),
            (names::WORK_ITEM_KIND, item.map(|item| item.kind.as_str().into())),
            (names::TURN_ID, turn.map(text)),
            (names::TOOL_CALL_ID, item.and_then(|item| item.tool_call_id.as_ref()).map(text)),
            (names::TOOL_NAME, item.and_then(|item| item.name.as_ref()).map(text)),
            (names::DEADLINE, with_deadline.map(|item| text(item.deadline))),
            (names::TIMEOUT_MS, with_deadline.map(|item| number(item.issued_at.millis_until(item.deadline)))),
            (names::TIMEOUT_CAUSE, log.late.map(|(cause, _)| cause.as_str().into())),
            (names::LATE_MS, log.late.map(|(_, ms)| number(ms))),
            (names::TURNAROUND_MS, log.turnaround_ms.map(number)),
            (names::ISSUED_TRACE, log.issued_in().map(|issued| text(issued.trace_id()))),
            (names::OUTCOME, log.outcome.map(|outcome| outcome.as_str().into())),
            (names::DELIVERY, log.delivery_name().map(Into::into)),
            (names::REPLAYED, log.replayed.map(Into::into)),
            (names::HELD_BEHIND, log.held_behind().map(number)),
            (names::CANCELLED, log.cancelled.map(number)),
            (names::REASON, log.reason.as_ref().map(text)),
            (names::RELEASED, (log.released > 0).then(|| number(log.released as u64))),
            (names::DROPPED_HELD, log.dropped.map(|(held, _)| number(held))),
            (names::DROPPED_AWAITING, log.dropped.map(|(_, awaiting)| number(awaiting))),
            (names::TOKEN_FINGERPRINT, log.token.map(text)),
            (names::HTTP_REQUEST_BODY_SIZE, log.body.map(|(bytes, _)| number(bytes as u64))),
            (names::BODY_DIGEST, log.digest.map(|digest| text(digest.short()))),
            (names::CLIENT_ADDRESS, is_failure.then(|| text(self.client))),
            (names::USER_AGENT, agent.map(text)),
        ])
    }

    fn end_span(&self, mut attributes: Vec<KeyValue>, log: &RequestLog) {
        let failure = log.code().and_then(Code::error_type);
        attributes.extend(self.route().map(|route| KeyValue::new(names::URL_PATH, text(route))));
        attributes.push(KeyValue::new(names::URL_SCHEME, self.instrumentation.scheme));
        attributes.extend(failure.map(|error| KeyValue::new(names::ERROR_TYPE, error)));
        let event = log.own_event.map(|(opened_at, sequence)| event_id(opened_at, sequence));
        attributes.extend(event.map(|event| KeyValue::new(names::MESSAGING_MESSAGE_ID, event)));
        self.span.link(log.issued_in(), names::ISSUED_IN);
        self.span.end(attributes, failure);
    }

    fn count(&self, status: u16, log: &RequestLog) {
        let labels = ResponseLabels {
            method: self.method,
            scheme: self.instrumentation.scheme,
            status,
            code: log.code(),
            outcome: log.outcome.map_or("", Outcome::as_str),
        };
        let body = log.body.map(|(bytes, _)| bytes);
        let is_callback = self.is_on(Listener::Public) && !log.is_heartbeat;
        let decided_at = log.decided_at.unwrap_or_else(Instant::now);
        let decision = log.body.filter(|_| is_callback).map(|(_, read_at)| decided_at - read_at);
        let route = self.route().unwrap_or_default();
        self.instrumentation.metrics.record(route, labels, self.started.elapsed(), body, decision);
    }
}
