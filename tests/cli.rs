//! The real binary: exit codes, signals, output; and the README, whose lines are run as they stand.
//!
//! `program` starts it, `service` keeps it running, `wire` speaks HTTP to it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "everything here is a test, and what a test does not expect fails it"
)]

#[path = "cli/collector.rs"]
mod collector;
#[path = "cli/configuration.rs"]
mod configuration;
#[path = "cli/demo.rs"]
mod demo;
#[path = "cli/draining.rs"]
mod draining;
#[path = "cli/exporters.rs"]
mod exporters;
#[path = "cli/filter.rs"]
mod filter;
#[path = "cli/healthcheck.rs"]
mod healthcheck;
#[path = "cli/memory.rs"]
mod memory;
#[path = "cli/old_redis.rs"]
mod old_redis;
#[path = "cli/open_files.rs"]
mod open_files;
#[path = "cli/program.rs"]
mod program;
#[path = "it/proxy.rs"]
#[expect(dead_code, reason = "the other test binary uses all of it")]
mod proxy;
#[path = "cli/readme.rs"]
mod readme;
#[path = "cli/reason.rs"]
mod reason;
#[path = "it/redis_server.rs"]
#[expect(dead_code, reason = "the other test binary uses all of it")]
mod redis_server;
#[path = "cli/secrecy.rs"]
mod secrecy;
#[path = "cli/security.rs"]
mod security;
#[path = "cli/serve.rs"]
mod serve;
#[path = "cli/service.rs"]
mod service;
#[path = "cli/signoz.rs"]
mod signoz;
#[path = "cli/store.rs"]
mod store;
#[path = "cli/tls.rs"]
mod tls;
#[path = "cli/traces.rs"]
mod traces;
#[path = "cli/usage.rs"]
mod usage;
#[path = "cli/wire.rs"]
mod wire;
