//! The program as a process: exit codes, signals, output, and the documented examples.
//!
//! `program` runs it to its end, `service` starts it as a server, `wire` sends HTTP requests.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "an unexpected result fails the test"
)]

mod blocking;
mod collector;
mod configuration;
mod demo;
mod deployment;
mod draining;
mod examples;
mod exporters;
mod filter;
mod healthcheck;
mod incidents;
mod keys;
mod memory;
mod open_files;
mod openapi;
mod probe;
mod program;
mod prometheus;
mod readme;
mod reason;
mod runbook;
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
