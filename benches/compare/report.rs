//! The JSON file: the machine, and all rounds of all sections.

use std::fs;

use serde_json::{Map, Value, json};

use crate::options::Options;
use crate::sections::Outcome;

pub(crate) fn write(options: &Options, machine: &Value, outcomes: &[Outcome]) {
    let section = |outcome: &Outcome| (format!("{:?}", outcome.name).to_lowercase(), outcome.data.clone());
    let sections: Map<String, Value> = outcomes.iter().map(section).collect();
    let report = json!({
        "machine": machine,
        "arguments": std::env::args().skip(1).filter(|argument| argument != "--bench").collect::<Vec<_>>(),
        "sections": sections,
    });
    let path = options.out.join("compare.json");
    fs::write(&path, serde_json::to_string_pretty(&report).unwrap()).unwrap();
}
