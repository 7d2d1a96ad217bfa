//! Slows a connection down whose client was told that there is too much, and sends the next request all the same.
//!
//! A refusal costs little, but thousands of clients that ask again at once cost all the time that there is, and those
//! who were let in wait for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::response::Response;
use tokio::time::{Instant, sleep_until};

use super::code::Code;

/// How long after such a refusal the connection's next request is looked at: a tenth of what `Retry-After` asks for,
/// so that other clients behind the same gateway hardly notice.
const PAUSE: Duration = Duration::from_millis(100);

/// Shared by all requests of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace(Arc<Mutex<Option<Instant>>>);

impl Pace {
    /// Waits until the next request may be looked at.
    pub(super) async fn wait(&self) {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = until {
            sleep_until(until).await;
        }
    }

    /// Remembers whether this reply says that there is too much.
    pub(super) fn replied(&self, response: &Response) {
        if response.extensions().get() == Some(&Code::Overloaded) {
            let until = Some(Instant::now() + PAUSE);
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
        }
    }
}
