//! The outermost layer: names the request, times it, writes its one log line, ends its span, counts it, and renders
//! refusals, those of the framework included.

use std::any::Any;
use std::future::Future;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use opentelemetry::KeyValue;
use tokio::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::{Instrument, Span};

use super::code::Code;
use super::context::{Facts, REQUEST_ID, RequestContext, Side};
use super::health;
use super::refusal::{Refusal, SOMETHING_WENT_WRONG};
use crate::domain::ids::Sequence;
use crate::domain::work_item::{Kind, Outcome};
use crate::telemetry::trace::TARGET;
use crate::telemetry::{self, Answered, Telemetry, names};

/// Names the trace in every reply.
pub const TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");
/// The reply's place in the trace, as W3C Trace Context Level 2 drafts it.
pub const TRACE_RESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// A request, as it may be told of.
struct Asked {
    method: &'static str,
    /// `http` or `https`.
    scheme: &'static str,
    /// The template and never the path: a path may hold a token.
    route: Option<MatchedPath>,
    /// A probe that finds all well is asked every few seconds: it is no news.
    probe: bool,
    side: Side,
}

/// These routes, their panics caught, and every request of them, answered or not, named, timed and told of. Their
/// listener has this scheme.
pub fn around(side: Side, scheme: &'static str, telemetry: Telemetry, routes: Router) -> Router {
    routes.layer(catch_panics()).layer(from_fn(move |request, next| {
        let telemetry = telemetry.clone();
        async move { observe((side, scheme), &telemetry, request, next).await }
    }))
}

async fn observe(
    (side, scheme): (Side, &'static str),
    telemetry: &Telemetry,
    mut request: Request,
    next: Next,
) -> Response {
    let method = known(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let path = route.as_ref().map(MatchedPath::as_str);
    let probe = path.is_some_and(|path| path.starts_with(health::PATH) || path == super::metrics::PATH);
    let exported = if probe { Span::none() } else { server_span(method, path) };
    let context = RequestContext::begin(side, request.headers(), &exported, telemetry);
    request.extensions_mut().insert(context.clone());
    let asked = Asked { method, scheme, route, probe, side };
    let under_way = telemetry.metrics.under_way(method, scheme);
    // A task of its own: a caller that goes away must not stop what the store has begun, nor the telling of it.
    let told = tokio::spawn(
        async move {
            let response = told(&context, &asked, next.run(request)).await;
            drop(under_way);
            response
        }
        .instrument(exported),
    );
    // Only the end of the process cuts it off.
    told.await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// The span that is exported, as the conventions for HTTP servers name it.
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

/// The method as it may be told: another one is anything that a stranger cares to write, a token for one.
fn known(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    known.into_iter().find(|name| method.as_str() == *name).unwrap_or("_OTHER")
}

async fn told(context: &RequestContext, asked: &Asked, answer: impl Future<Output = Response>) -> Response {
    let start = Instant::now();
    let mut response = answer.await;
    let refusal = response.extensions_mut().remove::<Refusal>().or_else(|| framework_refusal(&response));
    if let Some(refusal) = &refusal {
        response = refusal.render(context.request_id, &context.place.trace_id);
        response.extensions_mut().insert(refusal.code);
    }
    name(context, response.headers_mut());
    let code = refusal.as_ref().map(|refusal| refusal.code);
    let facts = context.facts();
    log(context, asked, response.status(), refusal.as_ref(), start, &facts);
    export(context, asked, response.status(), code, &facts);
    count(context, asked, response.status(), code, start, &facts);
    response
}

fn name(context: &RequestContext, headers: &mut HeaderMap) {
    let names = [
        (REQUEST_ID, context.request_id.to_string()),
        (TRACE_ID, context.place.trace_id.clone()),
        (TRACE_RESPONSE, context.place.header()),
    ];
    for (name, value) in names {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

/// The one line of a request. What the caller did wrong is no trouble of ours.
fn log(
    context: &RequestContext,
    asked: &Asked,
    status: StatusCode,
    refusal: Option<&Refusal>,
    start: Instant,
    facts: &Facts,
) {
    let duration_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    let code = refusal.map(|refusal| refusal.code);
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                trace_id = context.place.trace_id,
                span_id = context.place.span_id,
                { names::REQUEST_ID } = %context.request_id,
                { names::HTTP_REQUEST_METHOD } = asked.method,
                { names::HTTP_ROUTE } = asked.route.as_ref().map(MatchedPath::as_str),
                { names::HTTP_RESPONSE_STATUS_CODE } = status.as_u16(),
                { names::CODE } = code.map(Code::as_str),
                error = refusal.and_then(|refusal| refusal.cause.as_deref()),
                { names::DURATION_US } = duration_us,
                { names::CONVERSATION_ID } = facts.conversation.as_ref().map(tracing::field::display),
                { names::CONVERSATION_REFERENCE } = facts.reference.map(tracing::field::display),
                { names::WORK_ITEM_ID } = facts.work_item.map(tracing::field::display),
                { names::WORK_ITEM_SEQUENCE } = facts.sequence.map(Sequence::get),
                { names::WORK_ITEM_KIND } = facts.kind.map(Kind::as_str),
                { names::OUTCOME } = facts.outcome.map(Outcome::as_str),
                { names::DELIVERY } = facts.delivery_name(),
                { names::HELD_BEHIND } = facts.held_behind(),
                { names::REPLAYED } = facts.replayed,
                { names::RELEASED } = (facts.released > 0).then_some(facts.released),
                { names::DROPPED_HELD } = facts.dropped.map(|(settled, _)| settled),
                { names::DROPPED_AWAITING } = facts.dropped.map(|(_, awaiting)| awaiting),
                { names::TOKEN_FINGERPRINT } = facts.token.map(tracing::field::display),
                { names::CLIENT_ADDRESS } = facts.client.map(tracing::field::display),
                "answered"
            )
        };
    }
    match code {
        Some(Code::Internal) => line!(error),
        Some(Code::StoreUnavailable | Code::OutcomeUnknown) => line!(warn),
        None if asked.probe => line!(debug),
        Some(_) | None => line!(info),
    }
}

/// A failure of ours, as the conventions want it told: what the caller did wrong is none.
fn failure(status: StatusCode, code: Option<Code>) -> Option<&'static str> {
    code.filter(|_| status.is_server_error()).map(Code::as_str)
}

fn export(context: &RequestContext, asked: &Asked, status: StatusCode, code: Option<Code>, facts: &Facts) {
    let place = &context.place;
    if !place.is_recorded() {
        return;
    }
    let mut attributes = facts.attributes();
    attributes.extend([
        KeyValue::new(names::HTTP_REQUEST_METHOD, asked.method),
        KeyValue::new(names::URL_SCHEME, asked.scheme),
        KeyValue::new(names::HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16())),
    ]);
    attributes.push(KeyValue::new(names::REQUEST_ID, context.request_id.to_string()));
    attributes.extend(code.map(|code| KeyValue::new(names::CODE, code.as_str())));
    if let Some(route) = &asked.route {
        attributes.push(KeyValue::new(names::HTTP_ROUTE, route.as_str().to_owned()));
        attributes.push(KeyValue::new(names::URL_PATH, route.as_str().to_owned()));
    }
    if let Some(why) = failure(status, code) {
        attributes.push(KeyValue::new(names::ERROR_TYPE, why));
        place.fail(why);
    }
    place.note(attributes);
    place.link(facts.issued_in.as_ref(), names::ISSUED_IN);
}

fn count(
    context: &RequestContext,
    asked: &Asked,
    status: StatusCode,
    code: Option<Code>,
    start: Instant,
    facts: &Facts,
) {
    let answered = Answered {
        method: asked.method,
        scheme: asked.scheme,
        status: status.as_u16(),
        code: code.map_or("", Code::as_str),
        outcome: facts.outcome.map_or("", Outcome::as_str),
        failure: failure(status, code),
    };
    let route = asked.route.as_ref().map_or("", MatchedPath::as_str);
    let body = facts.body.map(|(bytes, _)| bytes);
    let decided = facts.body.filter(|_| asked.side == Side::Public).map(|(_, read)| read.elapsed());
    let metrics = &context.telemetry.metrics;
    metrics.answered(route, answered, start.elapsed(), body, decided);
    if let Some(code) = code.filter(|code| code.is_for_want_of_room()) {
        metrics.shed(code.as_str());
    }
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
    let refusal = Refusal::new(Code::Internal, SOMETHING_WENT_WRONG);
    refusal.with_cause(format!("panicked at {}", telemetry::last_panic())).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_of_the_callers_own_making_is_not_logged() {
        assert_eq!(known(&Method::POST), "POST");
        assert_eq!(known(&Method::from_bytes(b"cbt_AQJrMQ").unwrap()), "_OTHER");
        assert_eq!(known(&Method::from_bytes(b"post").unwrap()), "_OTHER");
    }
}
