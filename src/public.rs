//! The provider's listener: its routes.
//!
//! A callback passes through three modules: `carrier` finds the token, `callback` verifies it and calls the store, and
//! `reply` builds the response. For heartbeats, `heartbeat` takes the place of `callback`.

mod callback;
mod carrier;
mod client_limits;
mod heartbeat;
mod openapi;
mod reply;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
pub use callback::CALLBACK_COPIES;
pub use carrier::{Carriers, TokenLocation};
pub use client_limits::ClientLimits;

use crate::clock::Clock;
use crate::config::Carrier;
use crate::domain::token::Keyring;
use crate::http::admission::Admission;
use crate::http::body::{BodyBudget, BodyLimits};
use crate::http::context::Instrumentation;
use crate::http::health::{self, Health};
use crate::http::observe::observe_requests;
use crate::openapi::document_route;
use crate::store::InstrumentedStore;

/// Where callbacks are posted.
pub const CALLBACKS_PATH: &str = "/api/v1/webhooks/callbacks";
/// Appended to the path of a callback to form the path of its heartbeats. Cannot be a token.
pub const HEARTBEAT_SEGMENT: &str = "/heartbeat";

/// The state of the provider's listener.
#[derive(Debug)]
pub struct Public {
    /// The store.
    pub store: Arc<InstrumentedStore>,
    /// Response timeout of the store. The memory of a command without a response stays counted for this long.
    pub store_timeout: Duration,
    /// Verifies tokens.
    pub keyring: Arc<Keyring>,
    /// Clock for token expiry.
    pub clock: Clock,
    /// The prefix of callback URLs.
    pub base_url: String,
    /// The enabled token carriers.
    pub carriers: Arc<Carriers>,
    /// Limits of a body.
    pub body: BodyLimits,
    /// Memory for bodies of requests with an authentic token in their head.
    pub authenticated: BodyBudget,
    /// Memory for all other bodies.
    pub anonymous: BodyBudget,
    /// Admission control.
    pub admission: Admission,
    /// Rate limits.
    pub clients: ClientLimits,
}

/// All routes of the public listener.
pub fn router(public: Arc<Public>, instrumentation: Instrumentation, health: Health) -> Router {
    let document = document_route(openapi::PATH, openapi::document(&public));
    let mut callbacks = Router::new()
        .route(CALLBACKS_PATH, post(callback::handle))
        .route(&format!("{CALLBACKS_PATH}{HEARTBEAT_SEGMENT}"), post(heartbeat::handle));
    if public.carriers.allows(Carrier::Path) {
        let with_token = format!("{CALLBACKS_PATH}/{{token}}");
        callbacks = callbacks
            .route(&with_token, post(callback::handle))
            .route(&format!("{with_token}{HEARTBEAT_SEGMENT}"), post(heartbeat::handle));
    }
    let callbacks =
        callbacks.fallback(callback::refuse).method_not_allowed_fallback(callback::refuse).with_state(public);
    observe_requests(instrumentation, health::routes(health).merge(document).merge(callbacks))
}
