//! The command line.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};

use crate::field::Program;
use crate::service;

/// Compares callback-ingress with a bare axum route and with hand-written handlers, over loopback and on a Redis that it
/// starts.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench compare --", bin_name = "cargo bench --bench compare --")]
pub(crate) struct Options {
    /// Sections to measure. Default: all except exporters and telemetry.
    pub(crate) sections: Vec<SectionName>,
    /// Fewer and shorter rounds: a minute or two, with larger spreads.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Tiny counts without meaningful figures. Fails if a reply has an unexpected status.
    #[arg(long)]
    pub(crate) smoke: bool,
    /// Number of rounds of each section except memory.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) rounds: Option<u64>,
    /// Duration of each measurement.
    #[arg(long, value_name = "S")]
    pub(crate) seconds: Option<f64>,
    /// Only competitors whose name contains this text, and the bare route.
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,
    /// Another build of the service, instead of the one built here; with several, each needs a label.
    #[arg(long, value_name = "[LABEL=]PATH")]
    pub(crate) service: Vec<String>,
    /// Directory of the JSON file and the picture.
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/../bench"))]
    pub(crate) out: PathBuf,
    /// Passed by Cargo.
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum SectionName {
    /// Each competitor and each store, at 64 connections with results of 512 bytes
    Stores,
    /// Results of 200 bytes, 2 KiB and 64 KiB
    Sizes,
    /// In order, reversed, with 30 % repetitions, and with forged tokens
    Order,
    /// 1 to 256 connections
    Concurrency,
    /// A fixed rate of arrivals: 25, 50 and 75 % of the maximum
    Open,
    /// Issuing work items
    Issue,
    /// Latency of a post until its response and until its event, on an idle machine
    Events,
    /// Memory in Redis
    Memory,
    /// A conversation with 10,000 items, compared with one with 10
    Depth,
    /// Collectors that do not exist or never respond (not in the default run)
    Exporters,
    /// Traces, metrics and logs to a collector (not in the default run)
    Telemetry,
}

impl SectionName {
    const STANDARD: [Self; 9] = [
        Self::Stores,
        Self::Sizes,
        Self::Order,
        Self::Concurrency,
        Self::Open,
        Self::Issue,
        Self::Events,
        Self::Memory,
        Self::Depth,
    ];
}

impl Options {
    pub(crate) fn sections(&self) -> Vec<SectionName> {
        if self.sections.is_empty() { SectionName::STANDARD.to_vec() } else { self.sections.clone() }
    }

    /// The builds of the service.
    pub(crate) fn programs(&self) -> Vec<Program> {
        let given = self.service.iter().map(|given| match given.split_once('=') {
            Some((label, path)) => Program { label: format!("{label}: "), path: PathBuf::from(path) },
            None => Program { label: String::new(), path: PathBuf::from(given) },
        });
        let programs: Vec<_> = given.collect();
        if programs.is_empty() {
            return vec![Program { label: String::new(), path: service::built() }];
        }
        for program in &programs {
            assert!(Path::new(&program.path).exists(), "there is no {}", program.path.display());
        }
        programs
    }

    /// The number of rounds. `standard` is the default.
    pub(crate) fn rounds(&self, standard: u64, quick: u64) -> u64 {
        let usual = if self.quick { quick } else { standard };
        if self.smoke { 1 } else { self.rounds.unwrap_or(usual) }
    }

    /// The duration of a measurement.
    pub(crate) fn seconds(&self, standard: f64) -> f64 {
        self.seconds.unwrap_or(if self.quick { standard / 2.5 } else { standard })
    }
}
