//! What only Redis can do wrong: its keys, its connections, its failures, and servers that must not be used.

mod admission;
mod bounded;
mod cluster;
mod connections;
mod faults;
mod health;
mod keys;
mod recovery;
mod refused;
mod replicas;
mod sentinel;
mod server;
mod sweeping;
mod tls;

use std::time::Duration;

use callback_ingress::clock::ManualClock;
use test_support::redis_server::RedisServer;
use tokio::time::{Instant, sleep};

use crate::stage::{ROOMY, START, Stage, settings};

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(30);

/// A stage in this server.
async fn stage_in(server: &RedisServer) -> Stage {
    Stage::in_redis(settings(server.url(0), ROOMY), ManualClock::at(START)).await
}

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let since = Instant::now();
    while !holds().await {
        assert!(since.elapsed() < PATIENCE, "waited in vain: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
