//! The provider's listener: its routes and layers.
//!
//! A callback's way: [`carrier`] finds the token, [`callback`] checks and asks the store, [`reply`] tells the provider.

mod callback;
mod carrier;
mod reply;
mod throttle;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
pub use callback::COPIES;
pub use carrier::{Carriers, Place};
pub use throttle::Throttle;

use crate::clock::Clock;
use crate::config::Carrier;
use crate::domain::token::Keyring;
use crate::http::body::BodyLimits;
use crate::http::context::Side;
use crate::http::health::Health;
use crate::http::lifecycle::Admission;
use crate::http::room::Room;
use crate::http::{health, lifecycle, observe};
use crate::store::Observed;
use crate::telemetry::Telemetry;

/// Where callbacks are posted.
pub const CALLBACKS_PATH: &str = "/api/v1/webhooks/callbacks";

/// What the provider's listener works with.
#[derive(Debug)]
pub struct Public {
    /// Where results go.
    pub store: Arc<Observed>,
    /// Longest time to the store's answer.
    pub store_timeout: Duration,
    /// What tokens are checked with.
    pub keyring: Arc<Keyring>,
    /// Against which time.
    pub clock: Clock,
    /// Where tokens may travel.
    pub carriers: Arc<Carriers>,
    /// How large a result may be, and how long it may take.
    pub body: BodyLimits,
    /// Where bodies with a good token in their request's head are read.
    pub known: Room,
    /// Where all other bodies are read.
    pub strangers: Room,
    /// Who is let in.
    pub admission: Admission,
    /// Who asks too often.
    pub throttle: Arc<Throttle>,
}

/// All that the gateway exposes.
pub fn router(public: Arc<Public>, scheme: &'static str, telemetry: Telemetry, health: Health) -> Router {
    let (admission, limits) = (public.admission.clone(), Arc::clone(&public.throttle));
    let mut callbacks = Router::new().route(CALLBACKS_PATH, post(callback::take));
    if public.carriers.allows(Carrier::Path) {
        callbacks = callbacks.route(&format!("{CALLBACKS_PATH}/{{token}}"), post(callback::take));
    }
    let callbacks = throttle::throttled(callbacks.with_state(public), limits);
    let routes = health::routes(health).merge(lifecycle::admitted_late(callbacks, admission));
    observe::around(Side::Public, scheme, telemetry, routes)
}
