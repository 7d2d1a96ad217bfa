//! `/health`, in the response format that the platform's gateway (TelAPI) expects, and `/health/live`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::admission::Lifecycle;
use super::code::Code;
use super::refusal::Refusal;
use crate::store::InstrumentedStore;

/// The state that `/health` reports.
#[derive(Clone, Debug)]
pub struct Health {
    /// Healthy if the last check of the store succeeded.
    pub store: Arc<InstrumentedStore>,
    /// Unhealthy while the service is draining.
    pub lifecycle: Lifecycle,
}

/// The path of the health check, and the prefix of `/health/live`.
pub(super) const PATH: &str = "/health";

fn ok() -> Response {
    (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#).into_response()
}

async fn health(State(health): State<Health>) -> Response {
    if health.lifecycle.is_draining() {
        return Refusal::new(Code::Draining, "the service is shutting down").into_response();
    }
    match health.store.health().problem() {
        None => ok(),
        Some(problem) => Refusal::new(Code::StoreUnavailable, problem).into_response(),
    }
}

/// `/health`: 200 if the last check of the store succeeded and the service is not draining, otherwise 503.
/// `/health/live`: 200 while the process runs.
pub fn routes(state: Health) -> Router {
    Router::new().route(PATH, get(health).with_state(state)).route("/health/live", get(|| async { ok() }))
}
