//! Writes the files: JSON with the machine and all rounds of all sections, and the chart.

use std::fs;

use serde_json::{Map, Value, json};

use crate::options::Options;
use crate::picture;
use crate::sections::Outcome;

pub(crate) fn write(options: &Options, machine: &Value, outcomes: &[Outcome]) {
    let section = |outcome: &Outcome| (format!("{:?}", outcome.name).to_lowercase(), outcome.data.clone());
    let sections: Map<String, Value> = outcomes.iter().map(section).collect();
    let report = json!({
        "machine": machine,
        "arguments": std::env::args().skip(1).filter(|argument| argument != "--bench").collect::<Vec<_>>(),
        "sections": sections,
    });
    fs::write(options.out.join("compare.json"), serde_json::to_string_pretty(&report).unwrap()).unwrap();
    let text = |name: &str| machine[name].as_str().unwrap_or("unknown");
    let (date, cpu, cores, revision) = (text("date"), text("cpu"), &machine["cores"], text("revision"));
    let line = format!("{date}, {cpu}, {cores} cores shared by load, servers and Redis, revision {revision}");
    if let Some(picture) = picture::draw(outcomes, &line) {
        fs::write(options.out.join("compare.svg"), picture).unwrap();
    }
}
