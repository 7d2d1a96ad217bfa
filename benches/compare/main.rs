//! Compares the service on each store with a bare axum route and with hand-written handlers.
//!
//! ```sh
//! cargo bench --bench compare -- [--quick] [SECTION]...     # --help names the sections and the options
//! ```
//!
//! Starts Redis, the service and the peers on free loopback ports, one after the other, in several rounds, which are
//! spread over the whole run. Each figure is a median over the rounds. A ratio of rates compares the mean rate of a row
//! with that of its reference, usually the bare route; `depth` compares the lower quartiles of times. `field` lists the
//! competitors, `sections` the measurements, and `point` measures one competitor. A separate process generates the load
//! (`load`, controlled over `protocol`). At the end, tables go to standard output. A JSON file with all rounds and a
//! picture go to `target/bench/` after each pass over the sections, so that a stopped run leaves those of its complete
//! passes. Under `cargo test`, a self-check runs instead: tiny counts, and the status of each reply is checked.
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
mod harness;
mod load;
mod machine;
mod measured_redis;
mod options;
mod peer;
mod picture;
mod plan;
mod point;
mod protocol;
mod report;
mod sections;
mod service;
mod summary;
mod table;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use self::bench::Bench;
use self::options::Options;
use self::sections::Outcome;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("load") => load::run(),
        Some("peer") => peer::run(&arguments[1..]),
        // `cargo test` passes its own arguments, and no `--bench`.
        _ if !arguments.iter().any(|argument| argument == "--bench") => {
            return harness::run(&arguments, || self_check(false));
        }
        _ => return compare(Options::parse()),
    }
    ExitCode::SUCCESS
}

fn compare(options: Options) -> ExitCode {
    if options.smoke {
        return harness::run(&[], || self_check(true));
    }
    if let Err(reason) = run(options, true) {
        eprintln!("{reason}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Runs all sections with tiny counts. Checks that the files are written and each reply has the expected status.
fn self_check(print: bool) -> Result<String, String> {
    let (begin, out) = (Instant::now(), tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
    let out_text = out.path().to_str().unwrap();
    let (outcomes, fastify) = run(Options::parse_from(["compare", "--smoke", "--out", out_text]), print)?;
    let unexpected: u64 = outcomes.iter().map(|outcome| outcome.unexpected).sum();
    if unexpected > 0 {
        return Err(format!("{unexpected} replies had another status than the expected one"));
    }
    for name in ["compare.json", "compare.svg"] {
        std::fs::metadata(out.path().join(name)).map_err(|error| format!("{name}: {error}"))?;
    }
    let left_out = fastify.err().map_or(String::new(), |reason| format!("; Fastify is left out: {reason}"));
    Ok(format!("{} sections in {:.1?}{left_out}", outcomes.len(), begin.elapsed()))
}

/// The outcome of each section, and whether the Node peer was available.
type Ran = (Vec<Outcome>, Result<std::path::PathBuf, String>);

fn run(options: Options, print: bool) -> Result<Ran, String> {
    if machine::said("redis-server", &["--version"]).is_none() {
        return Err("there is no redis-server on PATH; on Debian: apt-get install redis-server".to_owned());
    }
    children::end_with_signals();
    let machine = machine::describe();
    std::fs::create_dir_all(&options.out).map_err(|error| format!("{}: {error}", options.out.display()))?;
    let fastify = fastify::install(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("fastify"));
    let sections = options.sections();
    let busy = machine::busy();
    let mut bench = Bench::new(options, fastify, print);
    let save = |bench: &Bench, outcomes: &[Outcome]| report::write(&bench.options, &machine, outcomes);
    let outcomes = sections::run(&mut bench, &sections, save);
    if print {
        bench.progress("done");
        for outcome in &outcomes {
            outcome.table.print();
        }
        println!(
            "\nAll rounds and the picture are in {}",
            bench.options.out.canonicalize().unwrap().display()
        );
        if let Some(warning) = busy {
            println!("{warning}");
        }
    }
    Ok((outcomes, bench.fastify))
}
