//! Running, draining, done; and who is let in.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::body::discard;
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

impl Admission {
    /// A place among the requests under way.
    pub fn slot(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let overloaded =
            || Refusal::new(Code::Overloaded, "too many requests are under way; nothing was changed");
        Arc::clone(&self.in_flight).try_acquire_owned().map_err(|_| overloaded())
    }

    fn refuse_while_draining(&self) -> Result<(), Refusal> {
        if !self.lifecycle.is_draining() {
            return Ok(());
        }
        Err(Refusal::new(Code::Draining, "the service is ending; another instance will answer")
            .with_header(header::CONNECTION, HeaderValue::from_static("close")))
    }
}

/// These routes, for requests that are let in, each with its slot from its head on.
pub fn admitted(routes: Router, admission: Admission) -> Router {
    routes.layer(from_fn_with_state(admission, admit))
}

async fn admit(
    State(admission): State<Admission>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    admission.refuse_while_draining()?;
    let under_way = admission.slot()?;
    let response = next.run(request).await;
    drop(under_way);
    Ok(response)
}

/// These routes, unless the service drains. Each takes its slot by itself, once it has read what a stranger may send
/// slowly.
pub fn admitted_late(routes: Router, admission: Admission) -> Router {
    let undrained = async |State(admission): State<Admission>, request: Request, next: Next| {
        if let Err(refusal) = admission.refuse_while_draining() {
            let (head, body) = request.into_parts();
            discard(&head.headers, body);
            return Err(refusal);
        }
        Ok::<_, Refusal>(next.run(request).await)
    };
    routes.layer(from_fn_with_state(admission, undrained))
}
