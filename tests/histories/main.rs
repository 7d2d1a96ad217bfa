//! Histories: random clients, injected faults, and a checker of everything that was recorded.
//!
//! `plan` derives the clients' actions from a seed. `drive` runs them over HTTP with a `client` and writes a `record`,
//! while `nemesis` injects faults into the `deployment`. `checker` checks the record. `run` runs one batch. The tests are
//! in `short`, `long`, `mutations` and `tampering`. `story` prints a failed history, `figures` the totals.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an unexpected result fails the test; histories print their figures"
)]
#![expect(clippy::wildcard_enum_match_arm, reason = "a rule concerns some kinds of requests")]

mod bodies;
mod checker;
mod client;
mod clock;
mod deployment;
mod drive;
mod exchange;
mod figures;
mod long;
mod mutations;
mod nemesis;
mod plan;
mod reader;
mod record;
mod recorded;
mod replica;
mod run;
mod servers;
mod short;
mod story;
mod tampering;
