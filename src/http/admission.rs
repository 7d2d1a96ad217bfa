//! Admission control: refuses requests while draining and limits the requests in flight.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::code::Code;
use super::refusal::Refusal;
use crate::store::ShieldedCalls;

/// Delay before an `OVERLOADED` response on the public listener, so that clients that retry at once do not slow the
/// requests in flight. A tenth of `Retry-After`.
pub const OVERLOAD_DELAY: Duration = Duration::from_millis(100);

/// Whether the service is draining, and the store calls that must be completed before it exits. Clones share this
/// state.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    draining: CancellationToken,
    /// The calls that are completed even if the client disconnects.
    pub calls: ShieldedCalls,
}

impl Lifecycle {
    /// Begins draining.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits until draining begins.
    pub async fn draining_started(&self) {
        self.draining.cancelled().await;
    }
}

/// The admission control of a listener. Clones share one limit.
#[derive(Clone, Debug)]
pub struct Admission {
    /// The lifecycle of the service.
    pub lifecycle: Lifecycle,
    in_flight: Arc<Semaphore>,
}

impl Admission {
    /// Allows at most `max_in_flight` requests at once.
    pub fn new(lifecycle: Lifecycle, max_in_flight: usize) -> Self {
        Self { lifecycle, in_flight: Arc::new(Semaphore::new(max_in_flight)) }
    }

    /// Refuses with `DRAINING` once draining has begun.
    pub fn refuse_while_draining(&self) -> Result<(), Refusal> {
        if !self.lifecycle.is_draining() {
            return Ok(());
        }
        Err(Refusal::new(Code::Draining, "the service is shutting down; retry the request")
            .with_header(header::CONNECTION, HeaderValue::from_static("close")))
    }

    /// Acquires an in-flight permit, or refuses with `OVERLOADED`.
    pub fn permit(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let overloaded =
            || Refusal::new(Code::Overloaded, "too many requests are in flight; nothing was changed");
        Arc::clone(&self.in_flight).try_acquire_owned().map_err(|_| overloaded())
    }
}
