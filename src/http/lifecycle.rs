//! Running, draining, done; and who is let in.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::code::Code;
use super::refusal::Refusal;

/// Shared by everything that must know that the end is near.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    draining: CancellationToken,
}

impl Lifecycle {
    /// Begins to drain.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits until draining begins.
    pub async fn drained(&self) {
        self.draining.cancelled().await;
    }
}

/// Who is let in.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Nobody while draining.
    pub lifecycle: Lifecycle,
    /// A permit for each request under way.
    pub in_flight: Arc<Semaphore>,
}

/// These routes, for requests that are let in.
pub fn admitted(routes: Router, admission: Admission) -> Router {
    routes.layer(from_fn_with_state(admission, admit))
}

/// Lets a request in unless the service drains or has too much to do.
async fn admit(
    State(Admission { lifecycle, in_flight }): State<Admission>,
    request: Request,
    next: Next,
) -> Response {
    if lifecycle.is_draining() {
        return Refusal::new(Code::Draining, "the service is ending; another instance will answer")
            .with_header(header::CONNECTION, HeaderValue::from_static("close"))
            .into_response();
    }
    let Ok(under_way) = in_flight.try_acquire() else {
        return Refusal::new(Code::Overloaded, "too many requests are under way; nothing was changed")
            .into_response();
    };
    let response = next.run(request).await;
    drop(under_way);
    response
}
