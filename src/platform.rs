//! The platform's listener: conversations, work items and event streams, behind a service key.

mod auth;
mod conversations;
mod events;
mod pages;
mod refusals;
mod request;
mod work_items;

use std::sync::Arc;

pub use auth::Gatekeeper;
use axum::Router;
use axum::routing::{get, post, put};
pub use pages::Pages;
use tokio::sync::Semaphore;

use crate::domain::token::Keyring;
use crate::http::body::BodyLimits;
use crate::http::context::Side;
use crate::http::health::Health;
use crate::http::lifecycle::{Admission, Lifecycle};
use crate::http::room::Room;
use crate::http::{health, lifecycle, metrics, observe};
use crate::public::Carriers;
use crate::store::Observed;
use crate::telemetry::Telemetry;

/// Where the platform works.
pub const PLATFORM_PATH: &str = "/platform/v1";

/// What the platform's listener works with.
#[derive(Debug)]
pub struct Platform {
    /// Where conversations live.
    pub store: Arc<Observed>,
    /// What tokens are signed with.
    pub keyring: Arc<Keyring>,
    /// Where tokens may travel.
    pub carriers: Arc<Carriers>,
    /// What callback URLs begin with.
    pub public_base_url: String,
    /// A work item's time to its deadline, unless it says otherwise.
    pub default_timeout_ms: u64,
    /// Longest time to a deadline.
    pub max_timeout_ms: u64,
    /// Time from a deadline to the end of the token.
    pub replay_window_ms: u64,
    /// How large a request may be, and how long it may take.
    pub body: BodyLimits,
    /// Where bodies are read.
    pub room: Room,
    /// Where event streams get their pages.
    pub pages: Pages,
    /// A permit for each event stream.
    pub event_streams: Arc<Semaphore>,
    /// Event streams end when draining begins.
    pub lifecycle: Lifecycle,
}

/// All that the platform uses.
pub fn router(
    platform: Arc<Platform>,
    gatekeeper: Gatekeeper,
    scheme: &'static str,
    telemetry: Telemetry,
    health: Health,
    admission: Admission,
) -> Router {
    let conversation = put(conversations::open).get(conversations::show).delete(conversations::end);
    let calls = Router::new()
        .route("/conversations/{conversationId}", conversation)
        .route("/conversations/{conversationId}/events", get(events::follow))
        .route("/conversations/{conversationId}/work-items", post(work_items::issue))
        .route(
            "/conversations/{conversationId}/work-items/{workItemId}",
            get(work_items::show).delete(work_items::cancel),
        )
        .with_state(platform);
    let calls = gatekeeper.guard(lifecycle::admitted(calls, admission));
    let routes = health::routes(health).merge(metrics::routes(telemetry.metrics.clone()));
    observe::around(Side::Platform, scheme, telemetry, routes.nest(PLATFORM_PATH, calls))
}
