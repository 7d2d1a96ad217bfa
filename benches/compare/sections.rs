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

pub(crate) fn run(bench: &mut Bench, name: SectionName) -> Outcome {
    match name {
        SectionName::Stores => rates::stores(bench),
        SectionName::Sizes => rates::sizes(bench),
        SectionName::Order => rates::order(bench),
        SectionName::Concurrency => rates::concurrency(bench),
        SectionName::Issue => rates::issue(bench),
        SectionName::Open => open::open(bench),
        SectionName::Events => events::events(bench),
        SectionName::Memory => memory::memory(bench),
        SectionName::Depth => depth::depth(bench),
        SectionName::Exporters => telemetry::exporters(bench),
        SectionName::Telemetry => telemetry::telemetry(bench),
    }
}
