//! Compares the service with a bare axum route, with what a team would write by hand, and with itself on each store.
//!
//! ```sh
//! cargo bench --bench compare -- [--quick] [SECTION]...     # --help names the sections and the options
//! ```
//!
//! It starts a Redis of its own, the service and the peers on free ports of loopback, one after the other, in several
//! interleaved rounds, and ends them. Each figure is a median over the rounds, and a ratio to the bare route in the same
//! round: `field` says what is compared, `sections` what is measured, `point` how. Load comes from a process of its
//! own (`load`, told by `protocol`). A table goes to standard output; a JSON file with all rounds and a picture go to
//! `target/bench/`. Under `cargo test` the self-check runs instead: tiny counts, and each reply's status.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    reason = "a benchmark: it stops at whatever goes wrong, prints, measures time and computes with it"
)]

mod bench;
mod children;
mod fastify;
mod field;
mod generator;
mod load;
mod machine;
mod options;
mod peer;
mod plan;
mod point;
mod protocol;
mod redis_server;
mod report;
mod sections;
mod service;
mod summary;
mod table;

use clap::Parser;

use self::bench::Bench;
use self::options::Options;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("load") => load::run(),
        Some("peer") => peer::run(&arguments[2..]),
        _ => compare(Options::parse()),
    }
}

fn compare(options: Options) {
    if machine::said("redis-server", &["--version"]).is_none() {
        eprintln!("there is no redis-server on PATH; on Debian and Ubuntu: apt-get install redis-server");
        std::process::exit(1);
    }
    children::end_with_signals();
    let machine = machine::describe();
    std::fs::create_dir_all(&options.out).unwrap();
    let fastify = fastify::install(&std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("fastify"));
    if let Err(reason) = &fastify {
        println!("Fastify is left out: {reason}");
    }
    let (sections, smoke) = (options.sections(), options.smoke);
    let mut bench = Bench::new(options, fastify);
    let mut outcomes = Vec::new();
    for name in sections {
        outcomes.push(sections::run(&mut bench, name));
        outcomes.last().unwrap().table.print();
        report::write(&bench.options, &machine, &outcomes);
    }
    let unexpected: u64 = outcomes.iter().map(|outcome| outcome.unexpected).sum();
    assert!(!smoke || unexpected == 0, "{unexpected} replies had another status than the expected one");
}
