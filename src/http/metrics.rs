//! `/metrics`, for Prometheus, and the metrics of requests.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;

use super::code::Code;
use crate::telemetry::{KeyedHistogram, Metrics, REQUEST_SECONDS, names};

/// The path.
pub const PATH: &str = "/metrics";

/// Histogram boundaries in bytes for bodies, up to the maximum of `http.max_body_bytes`.
const BODY_BYTES: &[f64] = &[
    0.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// The route. It needs no service key: metrics contain no secrets, and the listener is on a private network.
pub fn routes(metrics: Metrics) -> Router {
    Router::new().route(PATH, get(move || async move { show(&metrics) }))
}

fn show(metrics: &Metrics) -> Response {
    let text = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, text)], metrics.prometheus()).into_response()
}

/// The attributes of a finished request in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ResponseLabels {
    /// The method, `_OTHER` if it is not a standard one.
    pub(super) method: &'static str,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    /// The response's status; 499 if the client disconnected before it.
    pub(super) status: u16,
    /// The code of a refusal.
    pub(super) code: Option<Code>,
    /// The outcome in the receipt of a callback or cancellation; otherwise empty.
    pub(super) outcome: &'static str,
}

impl ResponseLabels {
    fn attributes(&self, route: &str) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new(names::HTTP_REQUEST_METHOD, self.method),
            KeyValue::new(names::URL_SCHEME, self.scheme),
            KeyValue::new(names::HTTP_RESPONSE_STATUS_CODE, i64::from(self.status)),
        ];
        attributes.extend((!route.is_empty()).then(|| KeyValue::new(names::HTTP_ROUTE, route.to_owned())));
        let failure = self.code.and_then(Code::error_type);
        attributes.extend(failure.map(|code| KeyValue::new(names::ERROR_TYPE, code)));
        attributes
    }

    fn decision(&self) -> [KeyValue; 2] {
        let code = self.code.map_or("", Code::as_str);
        [KeyValue::new(names::CODE, code), KeyValue::new(names::OUTCOME, self.outcome)]
    }
}

/// The metrics of the requests on both listeners.
#[derive(Debug)]
pub struct RequestMetrics {
    /// Cloned by each request in flight.
    pub(super) active: Arc<()>,
    duration: KeyedHistogram<ResponseLabels>,
    body_size: KeyedHistogram<ResponseLabels>,
    accept_duration: KeyedHistogram<ResponseLabels>,
    refused: Counter<u64>,
}

impl RequestMetrics {
    /// Creates the instruments.
    pub fn new(metrics: &Metrics) -> Self {
        let active = Arc::new(());
        let requests = Arc::downgrade(&active);
        // Minus the clone that `RequestMetrics` keeps.
        let in_flight = move || requests.strong_count().saturating_sub(1) as u64;
        metrics.observe(names::ACTIVE_REQUESTS, move || [(in_flight(), None)]);
        let refused = metrics.counter(names::REFUSED);
        for code in Code::ALL {
            refused.add(0, &refusal_attributes(*code));
        }
        Self {
            active,
            duration: metrics.histogram(names::REQUEST_DURATION, REQUEST_SECONDS),
            body_size: metrics.histogram(names::REQUEST_BODY_SIZE, BODY_BYTES),
            accept_duration: metrics.histogram(names::ACCEPT_DURATION, REQUEST_SECONDS),
            refused,
        }
    }

    /// Records a finished request. `body`: the size of its body in bytes, if it was read to its end. `decision`: for a
    /// callback, the time from the last byte of its body to its acceptance or refusal.
    pub(super) fn record(
        &self,
        route: &str,
        labels: ResponseLabels,
        duration: Duration,
        body: Option<usize>,
        decision: Option<Duration>,
    ) {
        let attributes = || labels.attributes(route);
        self.duration.record(route, labels, duration.as_secs_f64(), || {
            [&attributes()[..], &labels.decision()].concat()
        });
        if let Some(bytes) = body.and_then(|bytes| u32::try_from(bytes).ok()) {
            self.body_size.record(route, labels, f64::from(bytes), attributes);
        }
        if let Some(duration) = decision {
            self.accept_duration.record("", labels, duration.as_secs_f64(), || labels.decision().to_vec());
        }
        if let Some(code) = labels.code {
            self.refused.add(1, &refusal_attributes(code));
        }
    }
}

fn refusal_attributes(code: Code) -> Vec<KeyValue> {
    let failure = code.error_type().map(|kind| KeyValue::new(names::ERROR_TYPE, kind));
    [KeyValue::new(names::CODE, code.as_str())].into_iter().chain(failure).collect()
}
