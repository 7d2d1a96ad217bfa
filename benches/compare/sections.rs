//! The measurements, one module per section.

mod depth;
mod events;
mod memory;
mod open;
mod rates;
mod telemetry;

use serde_json::Value;

use crate::bench::Bench;
use crate::options::SectionName;
use crate::summary::Summary;
use crate::table::Table;

/// The outcome of a section.
pub(crate) struct Outcome {
    pub(crate) name: SectionName,
    pub(crate) table: Table,
    /// Rates by competitor, for the chart.
    pub(crate) rows: Vec<Summary>,
    /// All figures, for the JSON file.
    pub(crate) data: Value,
    /// Number of replies with an unexpected status.
    pub(crate) unexpected: u64,
}

/// Standard number of rounds. `open` and `memory` have fewer.
const ROUNDS: u64 = 12;

/// A section under measurement.
pub(crate) trait Section {
    /// Number of rounds.
    fn rounds(&self) -> u64;
    /// Measures a round. The first round is 0.
    fn measure(&mut self, bench: &mut Bench, round: u64);
    /// The outcome of the rounds so far, which are at least one.
    fn outcome(&self) -> Outcome;
}

fn begin(bench: &Bench, name: SectionName) -> Box<dyn Section> {
    match name {
        SectionName::Stores => Box::new(rates::stores(bench)),
        SectionName::Sizes => Box::new(rates::sizes(bench)),
        SectionName::Order => Box::new(rates::order(bench)),
        SectionName::Concurrency => Box::new(rates::concurrency(bench)),
        SectionName::Issue => Box::new(rates::issue(bench)),
        SectionName::Open => Box::new(open::Open::new(bench)),
        SectionName::Events => Box::new(events::Events::new(bench)),
        SectionName::Memory => Box::new(memory::Memory::default()),
        SectionName::Depth => Box::new(depth::Depth::new(bench)),
        SectionName::Exporters => Box::new(telemetry::exporters(bench)),
        SectionName::Telemetry => Box::new(telemetry::telemetry(bench)),
    }
}

/// Measures all sections. Their rounds are spread over the whole run, because the machine's speed changes within
/// minutes; the last round of each section is in the last pass. Calls `save` after each pass.
pub(crate) fn run(
    bench: &mut Bench,
    names: &[SectionName],
    save: impl Fn(&Bench, &[Outcome]),
) -> Vec<Outcome> {
    let mut sections: Vec<_> = names.iter().map(|&name| begin(bench, name)).collect();
    let passes = sections.iter().map(|section| section.rounds()).max().unwrap_or_default();
    let mut outcomes = Vec::new();
    for pass in 0..passes {
        let mut measured = Vec::new();
        for section in &mut sections {
            let [round, next] = [pass, pass + 1].map(|pass| pass * section.rounds() / passes);
            // A section with fewer rounds skips some passes.
            if next > round {
                section.measure(bench, round);
            }
            if next > 0 {
                measured.push(section.outcome());
            }
        }
        save(bench, &measured);
        outcomes = measured;
    }
    outcomes
}
