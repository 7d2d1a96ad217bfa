//! The platform's listener: conversations, work items and event streams, behind a service key, and the console.

mod auth;
mod console;
mod conversations;
mod events;
mod openapi;
mod pages;
mod refusals;
mod request;
mod waiting;
mod work_items;

use std::sync::Arc;

pub use auth::{FailedAuthLimit, ServiceKeyDigests};
use axum::Router;
use axum::routing::{get, post, put};
pub use pages::Pages;
use tokio::sync::Semaphore;

use crate::config::ConsoleConfig;
use crate::domain::gate::Released;
use crate::domain::ids::ConversationId;
use crate::domain::token::Keyring;
use crate::http::admission::Admission;
use crate::http::body::{BodyBudget, BodyLimits};
use crate::http::context::{Instrumentation, RequestContext};
use crate::http::health::{self, Health};
use crate::http::metrics;
use crate::http::observe::observe_requests;
use crate::openapi::document_route;
use crate::public::Carriers;
use crate::store::InstrumentedStore;

/// Path prefix of the platform API.
pub const PLATFORM_PATH: &str = "/platform/v1";

/// The state of the platform's listener.
#[derive(Debug)]
pub struct Platform {
    /// The store of the conversations.
    pub store: Arc<InstrumentedStore>,
    /// Signs tokens.
    pub keyring: Arc<Keyring>,
    /// Where providers must send their tokens.
    pub carriers: Arc<Carriers>,
    /// The prefix of callback URLs.
    pub public_base_url: String,
    /// Default time from the issue of a work item to its deadline, in milliseconds.
    pub default_timeout_ms: u64,
    /// Maximum time from issue to deadline, in milliseconds.
    pub max_timeout_ms: u64,
    /// Time from the deadline to the token's expiry, in milliseconds.
    pub replay_window_ms: u64,
    /// Limits of a body.
    pub body: BodyLimits,
    /// Memory budget for bodies.
    pub bodies: BodyBudget,
    /// Fetches the pages of event streams, within a memory limit.
    pub pages: Pages,
    /// A permit for each event stream.
    pub event_streams: Arc<Semaphore>,
    /// The accepted service keys.
    pub service_keys: ServiceKeyDigests,
    /// Rate limit of requests without a valid service key.
    pub failed_auth_limit: FailedAuthLimit,
    /// Admission control.
    pub admission: Admission,
}

impl Platform {
    /// Records the envelopes that a request released: metrics, spans and log lines.
    fn record_released(
        &self,
        context: &RequestContext,
        conversation: &ConversationId,
        released: &[Released],
    ) {
        let ids = (conversation.reference(), Some(conversation));
        self.store.record_released(&context.span, ids, released, &[]);
    }
}

/// Routes of the platform API, the console, health checks and metrics.
pub fn router(
    platform: Arc<Platform>,
    console: &ConsoleConfig,
    instrumentation: Instrumentation,
    health: Health,
) -> Router {
    let conversation = put(conversations::open).get(conversations::show).delete(conversations::end);
    let document = openapi::document(&platform);
    let calls = Router::new()
        .route("/conversations", get(waiting::list))
        .route("/conversations/{conversationId}", conversation)
        .route("/conversations/{conversationId}/events", get(events::follow))
        .route(
            "/conversations/{conversationId}/work-items",
            post(work_items::issue).delete(work_items::cancel_turn),
        )
        .route(
            "/conversations/{conversationId}/work-items/{workItemId}",
            get(work_items::show).delete(work_items::cancel),
        )
        .with_state(Arc::clone(&platform))
        .merge(document_route(openapi::PATH, document));
    let routes = health::routes(health)
        .merge(metrics::routes(instrumentation.telemetry.metrics.clone()))
        .merge(console::routes(console));
    observe_requests(instrumentation, routes.nest(PLATFORM_PATH, auth::require_service_key(platform, calls)))
}
