//! `/health`, as the gateway's probe wants it, and `/health/live`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::admission::Lifecycle;
use super::code::Code;
use super::refusal::Refusal;
use crate::store::Observed;

/// What health is made of.
#[derive(Clone, Debug)]
pub struct Health {
    /// The store must be able to take callbacks, as last seen.
    pub store: Arc<Observed>,
    /// The service must not be draining.
    pub lifecycle: Lifecycle,
}

/// What the probes' paths begin with.
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

/// `/health`: 200 when the store was last seen to take callbacks and the service is not draining, else 503.
/// `/health/live`: 200 while the process runs.
pub fn routes(state: Health) -> Router {
    Router::new().route(PATH, get(health).with_state(state)).route("/health/live", get(|| async { ok() }))
}
