//! The service from outside: its stores, its two listeners, and what happens when things fail.
//!
//! `service` starts the real service in this process and speaks to it over real sockets.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "everything here is a test, and what a test does not expect fails it"
)]

mod events;
mod platform;
mod redis_server;
mod service;
mod story;
mod wire;
