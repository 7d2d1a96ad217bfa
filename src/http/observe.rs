//! The outermost layer: gives a request its ids, renders refusals, and logs, traces and counts the request.

use std::any::Any;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use opentelemetry::context::FutureExt;
use opentelemetry::trace::SpanKind;
use opentelemetry::{Context, KeyValue};
use tokio::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Level;

use super::client_address::Peer;
use super::code::{CLIENT_CLOSED_REQUEST, Code};
use super::context::{
    Instrumentation, Listener, LoggedResponse, REQUEST_ID, RequestContext, RequestLine, RequestLog,
    RequestState,
};
use super::health;
use super::metrics::ResponseLabels;
use super::refusal::{INTERNAL, Refusal};
use super::refusal_summaries::RefusalKey;
use super::trace_headers;
use crate::clock::Entropy;
use crate::domain::ids::{RequestId, contains_token};
use crate::domain::work_item::Outcome;
use crate::telemetry::attributes::{attributes, number, text};
use crate::telemetry::trace::SpanRef;
use crate::telemetry::{self, names};

/// Maximum length of a logged `User-Agent`, in characters.
const USER_AGENT_CHARS: usize = 120;

/// Wraps the routes with panic handling, request ids, the access log, spans and metrics.
pub fn observe_requests(instrumentation: Instrumentation, routes: Router) -> Router {
    // The layer is cloned for each request.
    let instrumentation = Arc::new(instrumentation);
    routes.layer(catch_panics()).layer(from_fn(move |request: Request, next: Next| {
        let context = instrumentation.begin(&request);
        let span = context.span.context().clone();
        respond(context, request, next).with_context(span)
    }))
}

async fn respond(context: RequestContext, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(context.clone());
    let mut response = next.run(request).await;
    let refusal = response.extensions_mut().remove::<Refusal>().or_else(|| framework_refusal(&response));
    if let Some(refusal) = &refusal {
        response = refusal.render(context.request_id, &context.span.trace_id());
    }
    if let Ok(id) = HeaderValue::try_from(context.request_id.to_string()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    trace_headers::add(&context.span, response.headers_mut());
    // Cannot fail: set only here.
    let _ = context.response.set(LoggedResponse { status: response.status(), refusal });
    response
}

impl Instrumentation {
    fn begin(self: &Arc<Self>, request: &Request) -> RequestContext {
        let method = standard_method(request.method());
        let route = request.extensions().get::<MatchedPath>().cloned();
        let path = route.as_ref().map(MatchedPath::as_str);
        let probe = path.is_some_and(|path| path.starts_with(health::PATH) || path == super::metrics::PATH);
        let parent = match self.listener {
            Listener::Platform => trace_headers::caller(request.headers()),
            Listener::Public => Context::new(),
        };
        let span = if probe {
            SpanRef::random(&parent)
        } else {
            self.telemetry.start_span(|| span_name(method, path).into(), SpanKind::Server, &parent)
        };
        let peer = request.extensions().get().copied().unwrap_or(Peer(Ipv4Addr::UNSPECIFIED.into()));
        RequestContext::new(RequestState {
            request_id: self.request_id(request, peer),
            span,
            client: self.client(request, peer),
            instrumentation: Arc::clone(self),
            line: RequestLine {
                method,
                route,
                probe,
                user_agent: request.headers().get(header::USER_AGENT).cloned(),
            },
            started: Instant::now(),
            response: OnceLock::new(),
            log: Mutex::default(),
            _active: Arc::clone(&self.metrics.active),
        })
    }

    fn client(&self, request: &Request, peer: Peer) -> IpAddr {
        match self.listener {
            Listener::Public => self.trusted_proxies.client_address(peer, request.headers()),
            Listener::Platform => peer.0.to_canonical(),
        }
    }

    fn request_id(&self, request: &Request, peer: Peer) -> RequestId {
        let own = || Entropy.request_id();
        let Some(given) = request.headers().get(REQUEST_ID) else { return own() };
        let trusted = self.listener == Listener::Platform || self.trusted_proxies.includes(peer);
        given.to_str().ok().filter(|_| trusted).and_then(RequestId::parse).unwrap_or_else(own)
    }
}

/// The name of the exported span, by OpenTelemetry's conventions for HTTP servers.
fn span_name(method: &str, route: Option<&str>) -> String {
    let method = if method == "_OTHER" { "HTTP" } else { method };
    route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}"))
}

/// The method, or `_OTHER` if it is not a standard one. A nonstandard method is not logged, because it can contain a
/// token.
fn standard_method(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    known.into_iter().find(|name| method.as_str() == *name).unwrap_or("_OTHER")
}

/// The end of a request. See [`RequestContext`].
impl Drop for RequestState {
    fn drop(&mut self) {
        let log = std::mem::take(self.log.get_mut().unwrap_or_else(PoisonError::into_inner));
        let (status, refusal) = match self.response.take() {
            Some(LoggedResponse { status, refusal }) => (status.as_u16(), refusal),
            None => (CLIENT_CLOSED_REQUEST, None),
        };
        let code = refusal.as_ref().map(|refusal| refusal.code);
        if status < 400 || self.has_own_line(code, &log) {
            self.report(status, refusal.as_ref(), &log);
        } else {
            self.span.discard();
        }
        self.count(status, code, &log);
    }
}

impl RequestState {
    /// Whether a refusal gets its own log line and span. Repeated refusals of unauthenticated clients and of
    /// heartbeats are summarized.
    fn has_own_line(&self, code: Option<Code>, log: &RequestLog) -> bool {
        let is_unauthenticated = match self.instrumentation.listener {
            Listener::Public => log.reference.is_none(),
            Listener::Platform => matches!(code, Some(Code::ServiceKeyMissing | Code::ServiceKeyInvalid)),
        };
        let may_be_summarized = code == Some(Code::RateLimited)
            || (is_unauthenticated || log.is_heartbeat) && code != Some(Code::Internal);
        let refusal = RefusalKey { client: Some(self.client), code, token: log.token_ids() };
        !may_be_summarized || self.instrumentation.refusal_summaries.is_first(refusal)
    }

    fn route(&self) -> &str {
        self.line.route.as_ref().map_or("", MatchedPath::as_str)
    }

    /// Logs the request, and ends its span.
    fn report(&self, status: u16, refusal: Option<&Refusal>, log: &RequestLog) {
        let is_frequent = status < 400 && (self.line.probe || log.is_heartbeat);
        let is_logged =
            if is_frequent { tracing::enabled!(Level::DEBUG) } else { tracing::enabled!(Level::ERROR) };
        if !is_logged && !self.span.is_recorded() {
            return;
        }
        let code = refusal.map(|refusal| refusal.code);
        let attributes = Arc::new(self.attributes(status, code, log));
        let result = code.map(Code::as_str).or(log.delivery_name()).unwrap_or_default();
        let in_span = self.span.enter_with(&attributes);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    name: names::REQUEST_EVENT,
                    {
                        { names::DURATION_US } = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
                        { names::MESSAGE } = refusal.map(|refusal| &*refusal.message),
                        error = refusal.and_then(|refusal| refusal.cause.as_deref()),
                    },
                    "{} {} {status} {result}{}{}",
                    self.line.method,
                    self.route(),
                    if result.is_empty() { "" } else { " " },
                    self.request_id,
                )
            };
        }
        match code {
            Some(Code::Internal) => line!(error),
            Some(Code::StoreUnavailable | Code::OutcomeUnknown) => line!(warn),
            None if is_frequent => line!(debug),
            Some(_) | None => line!(info),
        }
        drop(in_span);
        self.end_span(code, Arc::unwrap_or_clone(attributes), log);
    }

    /// The attributes that the log line and the span share.
    fn attributes(&self, status: u16, code: Option<Code>, log: &RequestLog) -> Vec<KeyValue> {
        // Who sent a request that was refused or aborted.
        let is_failure = status >= 400;
        let agent = self.user_agent().filter(|_| is_failure);
        attributes([
            (names::REQUEST_ID, Some(text(self.request_id))),
            (names::HTTP_REQUEST_METHOD, Some(self.line.method.into())),
            (names::HTTP_ROUTE, self.line.route.as_ref().map(|route| text(route.as_str()))),
            (names::HTTP_RESPONSE_STATUS_CODE, Some(i64::from(status).into())),
            (names::CODE, code.map(|code| code.as_str().into())),
            (names::CONVERSATION_ID, log.conversation.as_ref().map(text)),
            (names::CONVERSATION_REFERENCE, log.reference.map(text)),
            (names::WORK_ITEM_ID, log.work_item.map(text)),
            (names::WORK_ITEM_SEQUENCE, log.sequence.map(|sequence| number(sequence.get()))),
            (names::WORK_ITEM_KIND, log.kind.map(|kind| kind.as_str().into())),
            (names::TURN_ID, log.turn_id.as_ref().map(text)),
            (names::TOOL_CALL_ID, log.tool_call_id.as_ref().map(text)),
            (names::TOOL_NAME, log.name.as_ref().map(text)),
            (names::DEADLINE, log.deadline.map(|(deadline, _)| text(deadline))),
            (names::TIMEOUT_MS, log.deadline.map(|(_, timeout_ms)| number(timeout_ms))),
            (names::TIMEOUT_CAUSE, log.timeout_cause.map(|cause| cause.as_str().into())),
            (names::LATE_MS, log.late_ms.map(number)),
            (names::TURNAROUND_MS, log.turnaround_ms.map(number)),
            (names::ISSUED_TRACE, log.issued_in.as_ref().map(|issued| text(issued.trace_id()))),
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

    /// The `User-Agent` header, if it is text and contains no token.
    pub fn user_agent(&self) -> Option<&str> {
        let text = self.line.user_agent.as_ref()?.to_str().ok()?;
        // ASCII only, so that it can be cut anywhere.
        Some(&text[..text.len().min(USER_AGENT_CHARS)]).filter(|text| !contains_token(text))
    }

    fn end_span(&self, code: Option<Code>, mut attributes: Vec<KeyValue>, log: &RequestLog) {
        let route = attributes.iter().find(|attribute| attribute.key.as_str() == names::HTTP_ROUTE);
        let path = route.map(|route| KeyValue::new(names::URL_PATH, route.value.clone()));
        let failure = code.and_then(server_error);
        attributes.extend(path);
        attributes.push(KeyValue::new(names::URL_SCHEME, self.instrumentation.scheme));
        attributes.extend(failure.map(|error| KeyValue::new(names::ERROR_TYPE, error)));
        self.span.link(log.issued_in.as_ref(), names::ISSUED_IN);
        self.span.end(attributes, failure);
    }

    fn count(&self, status: u16, code: Option<Code>, log: &RequestLog) {
        let labels = ResponseLabels {
            method: self.line.method,
            scheme: self.instrumentation.scheme,
            status,
            code,
            outcome: log.outcome.map_or("", Outcome::as_str),
        };
        let body = log.body.map(|(bytes, _)| bytes);
        let is_callback = self.instrumentation.listener == Listener::Public && !log.is_heartbeat;
        let decided_at = log.decided_at.unwrap_or_else(Instant::now);
        let decision = log.body.filter(|_| is_callback).map(|(_, read_at)| decided_at - read_at);
        self.instrumentation.metrics.record(self.route(), labels, self.started.elapsed(), body, decision);
    }
}

/// `error.type` of a refusal. By OpenTelemetry's conventions, a 4xx is not an error of the server.
pub(super) fn server_error(code: Code) -> Option<&'static str> {
    code.status().is_server_error().then(|| code.as_str())
}

/// The refusal for an error response of the framework.
fn framework_refusal(response: &Response) -> Option<Refusal> {
    let reason = response.status().canonical_reason().unwrap_or("refused");
    let (code, message) = match response.status() {
        status if status.is_success() || status == StatusCode::NOT_MODIFIED => return None,
        StatusCode::NOT_FOUND => (Code::NotFound, "there is no such path on this listener"),
        StatusCode::METHOD_NOT_ALLOWED => {
            (Code::MethodNotAllowed, "the path does not support this method; see the header Allow")
        }
        StatusCode::PAYLOAD_TOO_LARGE => (Code::BodyTooLarge, reason),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => (Code::ContentTypeUnsupported, reason),
        StatusCode::REQUEST_TIMEOUT => (Code::RequestTimeout, reason),
        StatusCode::SERVICE_UNAVAILABLE => return None,
        status if status.is_client_error() => (Code::RequestInvalid, reason),
        _ => (Code::Internal, reason),
    };
    Some(Refusal::new(code, message))
}

/// Responds with 500 if a handler panics.
fn catch_panics() -> CatchPanicLayer<fn(Box<dyn Any + Send + 'static>) -> Response> {
    CatchPanicLayer::custom(panicked as fn(Box<dyn Any + Send + 'static>) -> Response)
}

/// Omits the panic message, which may contain secrets.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    let refusal = Refusal::new(Code::Internal, INTERNAL);
    refusal.with_cause(format!("panicked at {}", telemetry::last_panic())).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonstandard_method_is_not_logged() {
        assert_eq!(standard_method(&Method::POST), "POST");
        assert_eq!(standard_method(&Method::from_bytes(b"cbt_AQJrMQ").unwrap()), "_OTHER");
        assert_eq!(standard_method(&Method::from_bytes(b"post").unwrap()), "_OTHER");
    }
}
