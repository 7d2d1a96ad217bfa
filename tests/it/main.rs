//! The stores and the two listeners, in this process: contract, order, failures.
//!
//! `stage` and `conversation` drive a store. `service` starts the service and calls it over sockets. The crate
//! `test_support` starts Redis and breaks connections to it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "an unexpected result fails the test"
)]

mod clients;
mod console;
mod contract;
mod conversation;
mod events;
mod gateways;
mod model;
mod overload;
mod platform;
mod races;
mod redis;
mod service;
mod stage;
mod story;
mod wire;
