//! The real binary: exit codes, signals, output; and the README, whose lines are run as they stand.
//!
//! `program` starts it, `service` keeps it running, `wire` speaks HTTP to it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "everything here is a test, and what a test does not expect fails it"
)]

mod collector;
mod configuration;
mod demo;
mod draining;
mod exporters;
mod filter;
mod healthcheck;
mod incidents;
mod memory;
mod old_redis;
mod open_files;
mod program;
#[path = "../it/proxy.rs"]
#[expect(dead_code, reason = "the other test binary uses all of it")]
mod proxy;
mod readme;
mod reason;
#[path = "../it/redis_server.rs"]
#[expect(dead_code, reason = "the other test binary uses all of it")]
mod redis_server;
mod secrecy;
mod security;
mod serve;
mod service;
mod signoz;
mod store;
mod tls;
mod traces;
mod usage;
mod wire;
