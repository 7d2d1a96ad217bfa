//! The outermost layer: assigns each request its ids and its span, and renders refusals.

use std::any::Any;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use opentelemetry::Context;
use opentelemetry::context::FutureExt;
use opentelemetry::trace::SpanKind;
use tokio::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;

use super::client_address::Peer;
use super::code::Code;
use super::context::{Instrumentation, Listener, RequestContext, RequestState};
use super::health;
use super::refusal::{INTERNAL, Refusal};
use super::trace_headers;
use crate::clock::Entropy;
use crate::domain::ids::RequestId;
use crate::telemetry;
use crate::telemetry::trace::SpanRef;

/// Header with the request id, in requests and responses.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Wraps the routes with panic handling, request ids, the access log, spans and metrics.
pub fn observe_requests(instrumentation: Instrumentation, routes: Router) -> Router {
    // In an `Arc`, because the layer is cloned for each request.
    let instrumentation = Arc::new(instrumentation);
    routes.layer(CatchPanicLayer::custom(panicked)).layer(from_fn(move |request: Request, next: Next| {
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
        response = refusal.render(context.request_id, context.span.trace_id());
    }
    let headers = response.headers_mut();
    headers.reserve(4);
    if let Ok(id) = HeaderValue::try_from(context.request_id.to_string()) {
        headers.insert(REQUEST_ID, id);
    }
    trace_headers::add(&context.span, headers);
    context.record(|log| {
        log.status = Some(response.status());
        log.refusal = refusal;
    });
    response
}

impl Instrumentation {
    fn begin(self: &Arc<Self>, request: &Request) -> RequestContext {
        let method = standard_method(request.method());
        let route = request.extensions().get::<MatchedPath>().cloned();
        let path = route.as_ref().map(MatchedPath::as_str);
        let is_probe =
            path.is_some_and(|path| path.starts_with(health::PATH) || path == super::metrics::PATH);
        let parent = match self.listener {
            Listener::Platform => trace_headers::caller(request.headers()),
            Listener::Public => Context::new(),
        };
        let span = if is_probe {
            SpanRef::random(&parent)
        } else {
            self.telemetry.start_span(|| span_name(method, path).into(), SpanKind::Server, &parent)
        };
        let peer = request.extensions().get().copied().unwrap_or(Peer(Ipv4Addr::UNSPECIFIED.into()));
        Arc::new(RequestState {
            request_id: self.request_id(request, peer),
            span,
            client: self.client(request, peer),
            instrumentation: Arc::clone(self),
            method,
            route,
            is_probe,
            user_agent: request.headers().get(header::USER_AGENT).cloned(),
            started: Instant::now(),
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

/// The refusal that replaces an error response made by axum itself, such as 405.
fn framework_refusal(response: &Response) -> Option<Refusal> {
    let (code, message) = match response.status() {
        status if status.is_success() || status == StatusCode::NOT_MODIFIED => return None,
        StatusCode::NOT_FOUND => (Code::NotFound, "there is no such path on this listener"),
        StatusCode::METHOD_NOT_ALLOWED => {
            (Code::MethodNotAllowed, "the path does not support this method; see the header Allow")
        }
        status if status.is_client_error() => (Code::RequestInvalid, "the request is invalid"),
        _ => (Code::Internal, INTERNAL),
    };
    Some(Refusal::new(code, message))
}

/// The response if a handler panics. Omits the panic message, which may contain secrets.
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
