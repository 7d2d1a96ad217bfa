//! Running, draining, done; and how many requests are under way.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;
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

/// Counts the requests under way on a listener, up to a limit.
#[derive(Clone, Debug)]
pub struct InFlight {
    count: Arc<watch::Sender<usize>>,
    max: usize,
}

struct UnderWay(Arc<watch::Sender<usize>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl InFlight {
    /// At most `max` requests at once.
    pub fn new(max: usize) -> Self {
        Self { count: Arc::new(watch::Sender::new(0)), max }
    }

    fn enter(&self) -> Option<UnderWay> {
        let entered = self.count.send_if_modified(|count| {
            let room = *count < self.max;
            *count += usize::from(room);
            room
        });
        entered.then(|| UnderWay(Arc::clone(&self.count)))
    }

    /// Waits until no request is under way.
    pub async fn none(&self) {
        // The sender is in `self`: the channel cannot be closed.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Who is let in.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Nobody while draining.
    pub lifecycle: Lifecycle,
    /// Not too many at once.
    pub in_flight: InFlight,
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
    let Some(under_way) = in_flight.enter() else {
        return Refusal::new(Code::Overloaded, "too many requests are under way; nothing was changed")
            .into_response();
    };
    let response = next.run(request).await;
    drop(under_way);
    response
}
