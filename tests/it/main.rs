//! The service from outside: its stores, its two listeners, and what happens when things fail.
//!
//! `stage` and `conversation` are how a test says what happens to a store, `redis_server`, `redis_cluster` and
//! `redis_sentinels` are the Redis it happens in, and `proxy` a wire to it that can be cut. `service` starts the real service in this process and speaks to it over
//! real sockets.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "everything here is a test, and what a test does not expect fails it"
)]

mod contract;
mod conversation;
mod events;
mod fake_redis;
mod gateways;
mod model;
mod overload;
mod platform;
mod proxy;
mod races;
mod redis;
#[expect(dead_code, reason = "the other test binary uses all of it")]
mod redis_cluster;
#[expect(dead_code, reason = "the other test binary uses all of it")]
mod redis_sentinels;
mod redis_server;
mod service;
mod stage;
mod story;
mod wire;
