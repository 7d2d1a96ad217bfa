//! The context of a request: its ids and its [`RequestLog`].

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::MatchedPath;
use axum::http::HeaderValue;
use tokio::time::Instant;

use super::client_address::TrustedProxies;
use super::metrics::RequestMetrics;
use super::refusal_summaries::RefusalSummaries;
use super::request_log::RequestLog;
use crate::domain::ids::RequestId;
use crate::telemetry::Telemetry;
use crate::telemetry::trace::SpanRef;

/// A listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// For providers. Each request starts a new trace.
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
    /// The proxies whose `X-Request-Id` and client address are trusted. The platform listener trusts the `X-Request-Id`
    /// of every caller, and ignores reported client addresses.
    pub trusted_proxies: TrustedProxies,
    /// Starts the spans of the requests.
    pub telemetry: Telemetry,
    /// The metrics of requests. Both listeners share them.
    pub metrics: Arc<RequestMetrics>,
    /// Summarizes repeated refusals. Both listeners share this.
    pub refusal_summaries: Arc<RefusalSummaries>,
}

/// The context of a request. The request is logged and counted when the last clone is dropped. A store call that can
/// outlive the client's connection holds a clone, so that the log line contains its result.
pub type RequestContext = Arc<RequestState>;

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
    pub(super) method: &'static str,
    /// The route's template. The path itself is never logged, because it can contain a token.
    pub(super) route: Option<MatchedPath>,
    /// Whether the request is a health check or a scrape of the metrics. If it succeeds, it is logged at `debug`.
    pub(super) is_probe: bool,
    pub(super) user_agent: Option<HeaderValue>,
    pub(super) started: Instant,
    pub(super) log: Mutex<RequestLog>,
    pub(super) _active: Arc<()>,
}

impl RequestState {
    /// The telemetry of the listener.
    pub fn telemetry(&self) -> &Telemetry {
        &self.instrumentation.telemetry
    }

    /// Records facts about the request.
    pub fn record(&self, record: impl FnOnce(&mut RequestLog)) {
        record(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
