//! `/metrics`, for Prometheus.

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::telemetry::Metrics;

/// The path.
pub const PATH: &str = "/metrics";

/// The route. It needs no service key: metrics contain no secrets, and the listener is on a private network.
pub fn routes(metrics: Metrics) -> Router {
    Router::new().route(PATH, get(move || async move { show(&metrics) }))
}

fn show(metrics: &Metrics) -> Response {
    let text = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, text)], metrics.prometheus()).into_response()
}
