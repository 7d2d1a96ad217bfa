//! What only Redis can do wrong: its keys, its connections, its failures, and servers that must not be used.

mod admission;
mod connections;
mod faults;
mod keys;

use std::time::Duration;

use callback_ingress::clock::ManualClock;
use tokio::time::{Instant, sleep};

use crate::redis_server::RedisServer;
use crate::stage::{ROOMY, START, Stage, settings};

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(10);

/// A stage in this server, that waits for no answer longer than a moment.
async fn impatient(server: &RedisServer) -> Stage {
    let mut settings = settings(server.url(0), ROOMY);
    settings.connect_timeout = Duration::from_millis(500);
    settings.response_timeout = Duration::from_millis(300);
    Stage::in_redis(settings, ManualClock::at(START)).await
}

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let since = Instant::now();
    while !holds().await {
        assert!(since.elapsed() < PATIENCE, "waited in vain: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
