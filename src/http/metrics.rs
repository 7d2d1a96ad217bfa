//! `/metrics`, for Prometheus.

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::telemetry::Metrics;

/// Where Prometheus asks.
pub const PATH: &str = "/metrics";

/// The route, without a key: no metric holds a secret, and the listener is for a private network.
pub fn routes(metrics: Metrics) -> Router {
    Router::new().route(PATH, get(move || async move { show(&metrics) }))
}

fn show(metrics: &Metrics) -> Response {
    let text = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, text)], metrics.prometheus()).into_response()
}
