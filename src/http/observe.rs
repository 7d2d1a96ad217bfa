//! The outermost layer: gives a request its ids, renders refusals, and logs, traces and counts the request.

use std::any::Any;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use opentelemetry::{Context, KeyValue};
use tokio::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::{Instrument, Span};

use super::client_address::{Peer, Proxies};
use super::code::Code;
use super::context::{
    Listener, REQUEST_ID, RequestContext, RequestLine, RequestLog, RequestState, Responded,
};
use super::health;
use super::refusal::{INTERNAL, Refusal};
use crate::clock::Entropy;
use crate::domain::ids::{RequestId, Sequence};
use crate::domain::work_item::{Kind, Outcome};
use crate::telemetry::trace::{self, TARGET};
use crate::telemetry::{self, ResponseLabels, Telemetry, names};

/// Response header with the trace id.
pub const TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");
/// The request's span, as W3C Trace Context Level 2 (a draft) defines it.
pub const TRACE_RESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// Status in logs, spans and metrics if the client disconnects before the response, as in nginx.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// How the requests of a listener are observed.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Which listener it is.
    pub listener: Listener,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The proxies whose `X-Request-Id` is trusted. On the platform's listener every caller's is.
    pub proxies: Proxies,
    /// Where requests are measured.
    pub telemetry: Telemetry,
}

/// Wraps the routes with panic handling, request ids, the access log, spans and metrics.
pub fn observed(observation: Observation, routes: Router) -> Router {
    // The layer is cloned for each request.
    let observation = Arc::new(observation);
    routes.layer(catch_panics()).layer(from_fn(move |request: Request, next: Next| {
        let (context, span) = observation.begin(&request);
        async move { respond(context, request, next).instrument(span).await }
    }))
}

async fn respond(context: RequestContext, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(context.clone());
    let mut response = next.run(request).await;
    let refusal = response.extensions_mut().remove::<Refusal>().or_else(|| framework_refusal(&response));
    if let Some(refusal) = &refusal {
        response = refusal.render(context.request_id, &context.span.trace_id);
    }
    add_ids(&context, response.headers_mut());
    // Cannot fail: set only here.
    let _ = context.response.set(Responded { status: response.status(), refusal });
    response
}

impl Observation {
    fn begin(&self, request: &Request) -> (RequestContext, Span) {
        let method = standard_method(request.method());
        let route = request.extensions().get::<MatchedPath>().cloned();
        let path = route.as_ref().map(MatchedPath::as_str);
        let probe = path.is_some_and(|path| path.starts_with(health::PATH) || path == super::metrics::PATH);
        let span = if probe { Span::none() } else { server_span(method, path) };
        let parent = match self.listener {
            Listener::Platform => trace::caller(request.headers()),
            Listener::Public => Context::new(),
        };
        let context = RequestContext::new(RequestState {
            request_id: self.request_id(request),
            span: trace::begin(&span, &parent),
            telemetry: self.telemetry.clone(),
            line: RequestLine { method, scheme: self.scheme, route, probe, listener: self.listener },
            started: Instant::now(),
            response: OnceLock::new(),
            log: Mutex::default(),
            _active: self.telemetry.metrics.active_request(method, self.scheme),
        });
        (context, span)
    }

    fn request_id(&self, request: &Request) -> RequestId {
        let own = || Entropy.request_id();
        let Some(given) = request.headers().get(REQUEST_ID) else { return own() };
        let trusted = match self.listener {
            Listener::Platform => true,
            Listener::Public => {
                request.extensions().get().is_some_and(|peer: &Peer| self.proxies.trust(*peer))
            }
        };
        given.to_str().ok().filter(|_| trusted).and_then(RequestId::parse).unwrap_or_else(own)
    }
}

/// The exported span, named as OpenTelemetry's conventions for HTTP servers say.
fn server_span(method: &str, route: Option<&str>) -> Span {
    let method = if method == "_OTHER" { "HTTP" } else { method };
    match route {
        Some(route) => tracing::info_span!(
            target: TARGET, parent: None, "request", otel.kind = "server", otel.name = %format_args!("{method} {route}")
        ),
        None => {
            tracing::info_span!(target: TARGET, parent: None, "request", otel.kind = "server", otel.name = method)
        }
    }
}

/// The method, if it is a standard one. Others can be anything, including a token, and are not logged.
fn standard_method(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    known.into_iter().find(|name| method.as_str() == *name).unwrap_or("_OTHER")
}

fn add_ids(context: &RequestContext, headers: &mut HeaderMap) {
    let ids = [
        (REQUEST_ID, context.request_id.to_string()),
        (TRACE_ID, context.span.trace_id.clone()),
        (TRACE_RESPONSE, context.span.header()),
    ];
    for (name, value) in ids {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

/// The end of a request. See [`RequestContext`].
impl Drop for RequestState {
    fn drop(&mut self) {
        let log = std::mem::take(self.log.get_mut().unwrap_or_else(PoisonError::into_inner));
        let (status, refusal) = match self.response.take() {
            Some(Responded { status, refusal }) => (status.as_u16(), refusal),
            None => (CLIENT_CLOSED_REQUEST, None),
        };
        self.write_log_line(status, refusal.as_ref(), &log);
        let code = refusal.map(|refusal| refusal.code);
        self.complete_span(status, code, &log);
        self.count(status, code, &log);
    }
}

impl RequestState {
    fn write_log_line(&self, status: u16, refusal: Option<&Refusal>, log: &RequestLog) {
        let duration_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let code = refusal.map(|refusal| refusal.code);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    trace_id = self.span.trace_id,
                    span_id = self.span.span_id,
                    { names::REQUEST_ID } = %self.request_id,
                    { names::HTTP_REQUEST_METHOD } = self.line.method,
                    { names::HTTP_ROUTE } = self.line.route.as_ref().map(MatchedPath::as_str),
                    { names::HTTP_RESPONSE_STATUS_CODE } = status,
                    { names::CODE } = code.map(Code::as_str),
                    error = refusal.and_then(|refusal| refusal.cause.as_deref()),
                    { names::DURATION_US } = duration_us,
                    { names::CONVERSATION_ID } = log.conversation.as_ref().map(tracing::field::display),
                    { names::CONVERSATION_REFERENCE } = log.reference.map(tracing::field::display),
                    { names::WORK_ITEM_ID } = log.work_item.map(tracing::field::display),
                    { names::WORK_ITEM_SEQUENCE } = log.sequence.map(Sequence::get),
                    { names::WORK_ITEM_KIND } = log.kind.map(Kind::as_str),
                    { names::OUTCOME } = log.outcome.map(Outcome::as_str),
                    { names::DELIVERY } = log.delivery_name(),
                    { names::HELD_BEHIND } = log.held_behind(),
                    { names::REPLAYED } = log.replayed,
                    { names::RELEASED } = (log.released > 0).then_some(log.released),
                    { names::DROPPED_HELD } = log.dropped.map(|(held, _)| held),
                    { names::DROPPED_AWAITING } = log.dropped.map(|(_, awaiting)| awaiting),
                    { names::TOKEN_FINGERPRINT } = log.token.map(tracing::field::display),
                    { names::CLIENT_ADDRESS } = log.client.map(tracing::field::display),
                    "request completed"
                )
            };
        }
        match code {
            Some(Code::Internal) => line!(error),
            Some(Code::StoreUnavailable | Code::OutcomeUnknown) => line!(warn),
            None if self.line.probe => line!(debug),
            Some(_) | None => line!(info),
        }
    }

    fn complete_span(&self, status: u16, code: Option<Code>, log: &RequestLog) {
        let span = &self.span;
        if !span.is_recorded() {
            return;
        }
        let mut attributes = log.attributes();
        attributes.extend([
            KeyValue::new(names::HTTP_REQUEST_METHOD, self.line.method),
            KeyValue::new(names::URL_SCHEME, self.line.scheme),
            KeyValue::new(names::HTTP_RESPONSE_STATUS_CODE, i64::from(status)),
            KeyValue::new(names::REQUEST_ID, self.request_id.to_string()),
        ]);
        attributes.extend(code.map(|code| KeyValue::new(names::CODE, code.as_str())));
        if let Some(route) = &self.line.route {
            attributes.push(KeyValue::new(names::HTTP_ROUTE, route.as_str().to_owned()));
            attributes.push(KeyValue::new(names::URL_PATH, route.as_str().to_owned()));
        }
        if let Some(error) = server_error(status, code) {
            attributes.push(KeyValue::new(names::ERROR_TYPE, error));
            span.fail(error);
        }
        span.set_attributes(attributes);
        span.link(log.issued_in.as_ref(), names::ISSUED_IN);
    }

    fn count(&self, status: u16, code: Option<Code>, log: &RequestLog) {
        let answered = ResponseLabels {
            method: self.line.method,
            scheme: self.line.scheme,
            status,
            code: code.map_or("", Code::as_str),
            outcome: log.outcome.map_or("", Outcome::as_str),
            failure: server_error(status, code),
        };
        let route = self.line.route.as_ref().map_or("", MatchedPath::as_str);
        let body = log.body.map(|(bytes, _)| bytes);
        let on_public = self.line.listener == Listener::Public;
        let decided = log.body.filter(|_| on_public).map(|(_, read_at)| read_at.elapsed());
        let metrics = &self.telemetry.metrics;
        metrics.record_request(route, answered, self.started.elapsed(), body, decided);
        if let Some(code) = code.filter(|code| code.is_load_shed()) {
            metrics.record_shed(code.as_str());
        }
    }
}

/// The code of a 5xx response. Per OpenTelemetry's conventions, a 4xx is not a server error.
fn server_error(status: u16, code: Option<Code>) -> Option<&'static str> {
    code.filter(|_| (500..600).contains(&status)).map(Code::as_str)
}

/// The refusal for an error response of the framework.
fn framework_refusal(response: &Response) -> Option<Refusal> {
    let code = match response.status() {
        status if status.is_success() => return None,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
        StatusCode::PAYLOAD_TOO_LARGE => Code::BodyTooLarge,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Code::ContentTypeUnsupported,
        StatusCode::REQUEST_TIMEOUT => Code::RequestTimeout,
        StatusCode::SERVICE_UNAVAILABLE => return None,
        status if status.is_client_error() => Code::RequestInvalid,
        _ => Code::Internal,
    };
    Some(Refusal::new(code, response.status().canonical_reason().unwrap_or("refused")))
}

/// Answers 500 where a handler panicked.
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
    fn a_method_that_is_not_standard_is_not_logged() {
        assert_eq!(standard_method(&Method::POST), "POST");
        assert_eq!(standard_method(&Method::from_bytes(b"cbt_AQJrMQ").unwrap()), "_OTHER");
        assert_eq!(standard_method(&Method::from_bytes(b"post").unwrap()), "_OTHER");
    }
}
