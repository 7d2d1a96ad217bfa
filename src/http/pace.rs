//! Slows a connection down whose client was told that there is too much, and sends the next request all the same.
//!
//! A refusal costs little, but thousands of clients that ask again at once cost all the time that there is, and those
//! who were let in wait for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::Method;
use axum::response::Response;
use tokio::time::{Instant, sleep_until};

use super::code::Code;

/// How long after such a refusal the connection's next callback is looked at: a tenth of what `Retry-After` asks for,
/// so that other clients behind the same gateway hardly notice.
const PAUSE: Duration = Duration::from_millis(100);

/// Shared by all requests of a connection. One of a listener without pace never waits.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    listener_has_it: bool,
    until: Arc<Mutex<Option<Instant>>>,
}

impl Pace {
    pub(super) fn of(listener_has_it: bool) -> Self {
        Self { listener_has_it, until: Arc::default() }
    }

    /// Waits until the next request may be looked at. Probes cost little, and are not slowed down.
    pub(super) async fn wait(&self, method: &Method) {
        if method != Method::POST {
            return;
        }
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = until {
            sleep_until(until).await;
        }
    }

    /// Remembers whether this reply says that there is too much.
    pub(super) fn replied(&self, response: &Response) {
        if self.listener_has_it && response.extensions().get() == Some(&Code::Overloaded) {
            let until = Some(Instant::now() + PAUSE);
            *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        }
    }
}
