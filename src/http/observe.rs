//! The outermost layer: names the request, times it, writes its one log line, and renders refusals, those of the
//! framework included.

use std::any::Any;
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

use super::code::Code;
use super::health;
use super::refusal::{Refusal, SOMETHING_WENT_WRONG};
use crate::clock::Entropy;
use crate::domain::ids::{ConversationId, ConversationRef, RequestId, Sequence, TraceParent, WorkItemId};
use crate::domain::token::TokenFingerprint;
use crate::domain::work_item::Outcome;

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
    facts: Arc<Mutex<Facts>>,
}

/// What is learned of a request while it is answered, for its log line.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The conversation's id.
    pub conversation: Option<ConversationId>,
    /// The conversation's reference: all that a token tells of it.
    pub reference: Option<ConversationRef>,
    /// The work item.
    pub work_item: Option<WorkItemId>,
    /// The work item's place.
    pub sequence: Option<Sequence>,
    /// How the callback settled it.
    pub outcome: Option<Outcome>,
    /// Of the token that was presented.
    pub token: Option<TokenFingerprint>,
    /// The client's address, where it is the reason for a refusal.
    pub client: Option<IpAddr>,
}

impl RequestContext {
    /// A context for a request that could not be read.
    pub fn fresh() -> Self {
        Self { request_id: Entropy.request_id(), trace_id: Entropy.trace_id(), facts: Arc::default() }
    }

    /// Notes what was learned of the request.
    pub fn note(&self, learn: impl FnOnce(&mut Facts)) {
        learn(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn facts(&self) -> Facts {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
            facts: Arc::default(),
        }
    }
}

/// These routes, their panics caught, and every request of them, answered or not, named, timed and logged.
pub fn around(side: Side, routes: Router) -> Router {
    routes.layer(catch_panics()).layer(from_fn(move |request, next| observe(side, request, next)))
}

async fn observe(side: Side, mut request: Request, next: Next) -> Response {
    let context = RequestContext::of(side, request.headers());
    let method = known(request.method());
    // The template and never the path: a path may hold a token.
    let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!(
        "request",
        "http.request.method" = method,
        "http.route" = route,
        "request.id" = %context.request_id,
        "trace.id" = context.trace_id,
    );
    request.extensions_mut().insert(context.clone());
    let probe = route.starts_with(health::PATH);
    timed(context, probe, next.run(request)).instrument(span).await
}

/// The method as it may be logged: another one is anything that a stranger cares to write, a token for one.
fn known(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    known.into_iter().find(|name| method.as_str() == *name).unwrap_or("_OTHER")
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
    let facts = context.facts();
    // Fields of the line and not of the span, where each would be written anew for every other.
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                status,
                code,
                duration_us,
                "conversation.id" = facts.conversation.as_ref().map(tracing::field::display),
                "conversation.reference" = facts.reference.map(tracing::field::display),
                "work_item.id" = facts.work_item.map(tracing::field::display),
                "work_item.sequence" = facts.sequence.map(Sequence::get),
                "callback.outcome" = facts.outcome.map(Outcome::as_str),
                "callback.token_fingerprint" = facts.token.map(tracing::field::display),
                "client.address" = facts.client.map(tracing::field::display),
                "answered"
            )
        };
    }
    if status == StatusCode::INTERNAL_SERVER_ERROR.as_u16() {
        line!(error);
    } else if probe && refusal.is_none() {
        line!(debug);
    } else {
        line!(info);
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

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_as_a_bug_and_shows_nothing_of_itself() {
        async fn broken() -> Response {
            panic!("cbt_secret")
        }
        let router = around(Side::Public, Router::new().route("/", get(broken)));
        for _ in 0..2 {
            let response = router.clone().oneshot(Request::new(Body::empty())).await.unwrap();
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert!(response.headers().contains_key(REQUEST_ID));
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(text.contains("\"INTERNAL\"") && !text.contains("cbt_secret"), "{text}");
        }
    }

    #[test]
    fn a_method_of_the_callers_own_making_is_not_logged() {
        assert_eq!(known(&Method::POST), "POST");
        assert_eq!(known(&Method::from_bytes(b"cbt_AQJrMQ").unwrap()), "_OTHER");
        assert_eq!(known(&Method::from_bytes(b"post").unwrap()), "_OTHER");
    }
}
