//! What is specific to Redis: keys, connections, failures, and servers that are refused.

mod admission;
mod bounded;
mod cluster;
mod connections;
mod faults;
mod health;
mod heartbeats;
mod keys;
mod recovery;
mod refused;
mod replicas;
mod sentinel;
mod server;
mod sweeping;
mod tls;
mod waiting;

use callback_ingress::clock::ManualClock;
use test_support::redis_server::RedisServer;

use crate::stage::{ROOMY, START, Stage, settings};

/// A stage on this server.
async fn stage_in(server: &RedisServer) -> Stage {
    Stage::in_redis(settings(server.url(0), ROOMY), ManualClock::at(START)).await
}
