//! Histories: many clients at random, a nemesis, and a checker that proves afterwards that every promise was kept.
//!
//! `plan` says from a seed what clients do, `drive` does it over HTTP with a `client` and writes a `record`; meanwhile
//! `nemesis` breaks the `deployment`. `checker` judges the record. `run` puts one batch of them together; `short`,
//! `long`, `mutations` and `tampering` are the tests. `story` tells of a history that fails, `figures` counts those that
//! do not.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "everything here is a test, and what a test does not expect fails it; what it found is for people"
)]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a rule is about some of what can be asked for, and no more"
)]

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
