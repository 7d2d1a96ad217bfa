//! The trace context in the headers of requests and responses.

use std::collections::HashMap;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry_sdk::propagation::TraceContextPropagator;

use crate::domain::ids::contains_token;
use crate::telemetry::trace::SpanRef;

/// Response header with the trace id.
pub const TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");
/// Response header with the request's span, as a draft of W3C Trace Context Level 2 defines it.
pub const TRACE_RESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// Response header with the request's span for browsers, which expose this header to scripts (W3C Server Timing).
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The caller's trace context, from `traceparent` and `tracestate`. Empty if they are missing or invalid.
pub(super) fn caller(headers: &HeaderMap) -> Context {
    let header = |name: &str| {
        // Ignores a header that contains a token, because `tracestate` is exported and passed on unchanged.
        let value = headers.get(name)?.to_str().ok().filter(|text| !contains_token(text))?;
        Some((name.to_owned(), value.to_owned()))
    };
    let headers: HashMap<_, _> = ["traceparent", "tracestate"].into_iter().filter_map(header).collect();
    TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
}

/// Adds the headers with the ids of the request's span.
pub(super) fn add(span: &SpanRef, headers: &mut HeaderMap) {
    const PREFIX: &str = "trace;desc=";
    let Some(ids) = &span.ids else { return };
    // The three headers share one allocation.
    let timing = Bytes::from([PREFIX, ids.as_str()].concat());
    let trace = timing.slice(PREFIX.len()..);
    let ids = [
        (TRACE_ID, HeaderValue::from_maybe_shared(trace.slice("00-".len()..).slice(..32))),
        (TRACE_RESPONSE, HeaderValue::from_maybe_shared(trace)),
        (SERVER_TIMING, HeaderValue::from_maybe_shared(timing)),
    ];
    for (name, value) in ids {
        // Cannot fail.
        if let Ok(value) = value {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TraceContextExt;

    use super::*;

    #[test]
    fn tracestate_with_a_token_is_ignored_and_the_trace_continues() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        for (state, expected) in [("vendor=1,other=2", "vendor=1,other=2"), ("vendor=1,other=cbt_AQJrMQ", "")]
        {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", format!("00-{trace}-b7ad6b7169203331-01").parse().unwrap());
            headers.insert("tracestate", state.parse().unwrap());
            let context = caller(&headers).span().span_context().clone();
            assert_eq!(
                (context.trace_id().to_string(), context.trace_state().header()),
                (trace.into(), expected.into())
            );
        }
    }
}
