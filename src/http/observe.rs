//! The outermost layer: names the request, times it, writes its one log line, and renders refusals, those of the
//! framework included.

use std::any::Any;
use std::future::Future;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::{Instrument, field};

use super::code::Code;
use super::health;
use super::refusal::{Refusal, SOMETHING_WENT_WRONG};
use crate::clock::Entropy;
use crate::domain::ids::{RequestId, TraceParent};

/// Names the request in every reply.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Names the trace in every reply.
pub const TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");

/// Who is asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Providers and the internet: a trace begins here.
    Public,
    /// The platform: its trace goes on.
    Platform,
}

/// What names a request.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The caller's `X-Request-Id` where it is a UUID, or a new one.
    pub request_id: RequestId,
    /// 32 hexadecimal digits.
    pub trace_id: String,
}

impl RequestContext {
    /// A context for a request that could not be read.
    pub fn fresh() -> Self {
        Self { request_id: Entropy.request_id(), trace_id: Entropy.trace_id() }
    }

    fn of(side: Side, headers: &HeaderMap) -> Self {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let trace_id = match side {
            Side::Platform => text(HeaderName::from_static("traceparent"))
                .and_then(|text| TraceParent::parse(text).ok())
                .map(|parent| parent.trace_id().to_owned()),
            Side::Public => None,
        };
        Self {
            request_id: text(REQUEST_ID).and_then(RequestId::parse).unwrap_or_else(|| Entropy.request_id()),
            trace_id: trace_id.unwrap_or_else(|| Entropy.trace_id()),
        }
    }
}

/// These routes, their panics caught, and every request of them, answered or not, named, timed and logged.
pub fn around(side: Side, routes: Router) -> Router {
    routes.layer(catch_panics()).layer(from_fn(move |request, next| observe(side, request, next)))
}

async fn observe(side: Side, mut request: Request, next: Next) -> Response {
    let context = RequestContext::of(side, request.headers());
    let method = request.method().clone();
    // The template and never the path: a path may hold a token.
    let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!(
        "request",
        "http.request.method" = %method,
        "http.route" = route,
        "request.id" = %context.request_id,
        "trace.id" = context.trace_id,
        "conversation.id" = field::Empty,
        "conversation.reference" = field::Empty,
        "work_item.id" = field::Empty,
        "work_item.sequence" = field::Empty,
        "callback.outcome" = field::Empty,
        "callback.token_fingerprint" = field::Empty,
    );
    request.extensions_mut().insert(context.clone());
    let probe = route.starts_with(health::PATH);
    timed(context, probe, next.run(request)).instrument(span).await
}

/// A probe that finds all well is asked every few seconds: it is no news.
async fn timed(context: RequestContext, probe: bool, answer: impl Future<Output = Response>) -> Response {
    let start = Instant::now();
    let mut response = answer.await;
    let refusal = response.extensions_mut().remove::<Refusal>().or_else(|| framework_refusal(&response));
    if let Some(refusal) = &refusal {
        response = refusal.render(&context);
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::try_from(context.request_id.to_string()) {
        headers.insert(REQUEST_ID, id);
    }
    if let Ok(id) = HeaderValue::try_from(&context.trace_id) {
        headers.insert(TRACE_ID, id);
    }
    let status = response.status().as_u16();
    let code = refusal.as_ref().map_or("", |refusal| refusal.code.as_str());
    let duration_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    if status == StatusCode::INTERNAL_SERVER_ERROR.as_u16() {
        tracing::error!(status, code, duration_us, "answered");
    } else if probe && refusal.is_none() {
        tracing::debug!(status, code, duration_us, "answered");
    } else {
        tracing::info!(status, code, duration_us, "answered");
    }
    response
}

/// A refusal by the framework has a status and no envelope.
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

/// What a panic says may hold anything: it is not shown.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    Refusal::new(Code::Internal, SOMETHING_WENT_WRONG).into_response()
}
