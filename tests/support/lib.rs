//! Shared by the tests and the benchmarks: Redis servers, a proxy that breaks connections, npm packages, and the memory
//! and processor time of a process.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "only tests and benchmarks call this; an unexpected result fails them"
)]
#![expect(clippy::missing_panics_doc, reason = "as above: every function panics when it fails")]

pub mod fake_redis;
pub mod npm;
pub mod process;
pub mod proxy;
pub mod python;
pub mod redis_cluster;
pub mod redis_commands;
pub mod redis_sentinels;
pub mod redis_server;
