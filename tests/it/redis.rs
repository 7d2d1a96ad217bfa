//! What is specific to Redis: keys, connections, failures, and servers that are refused.

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

/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(30);

/// A stage on this server.
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
