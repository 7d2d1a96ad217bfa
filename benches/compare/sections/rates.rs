//! Requests per second in a closed loop. A ratio compares the mean rate of a row with that of its reference, which is
//! the bare route except in the sections about telemetry.

use super::{Outcome, ROUNDS, Section};
use crate::bench::{Bench, Workload};
use crate::children::Process;
use crate::field::Competitor;
use crate::measured_redis::Aof;
use crate::options::SectionName;
use crate::plan::{Order, Plan};
use crate::point::{self, Figures};
use crate::summary::Summary;
use crate::table::Table;

/// Length of a measurement, in seconds. Many short rounds vary less between runs than a few long ones, because the
/// machine's speed changes between them.
const ROUND: f64 = 0.4;
/// Number of rounds of a quick run.
const QUICK: u64 = 3;

/// Number of other cases between two measurements of the reference.
const BETWEEN: usize = 4;

/// A row of the table.
pub(super) struct Case {
    group: String,
    competitor: Competitor,
    workload: Workload,
    /// Whether the rows of its group are compared with this one. In a group without such a row, they are compared with
    /// that of the group without a name.
    reference: bool,
    /// Whether issuing is measured instead of posting.
    issuing: bool,
}

impl Case {
    /// A row. The bare route is the reference of its group.
    pub(super) fn new(group: &str, competitor: Competitor, workload: Workload) -> Self {
        let reference = competitor.is_bare();
        Self { group: group.to_owned(), competitor, workload, reference, issuing: false }
    }

    /// Makes this row the reference of its group.
    pub(super) fn reference(self) -> Self {
        Self { reference: true, ..self }
    }

    /// The name in progress messages.
    fn name(&self) -> String {
        let apart = if self.group.is_empty() { "" } else { ", " };
        format!("{}{apart}{}", self.group, self.competitor.name)
    }
}

/// Each competitor and each store.
pub(super) fn stores(bench: &Bench) -> Rates {
    let mut field = Competitor::peers(bench.fastify.as_ref().ok());
    for redis in [None, Some(Aof::Off), Some(Aof::EverySecond), Some(Aof::Always)] {
        field.extend(bench.services(redis, false));
        // The self-check starts only one competitor of each kind.
        field.extend(if bench.options.smoke { Vec::new() } else { bench.services(redis, true) });
    }
    let workload = bench.workload(ROUND);
    let cases = bench.wanted(field).into_iter().map(|competitor| Case::new("", competitor, workload));
    let cases: Vec<Case> = cases.collect();
    let title = "stores: 64 connections, results of 512 bytes, in order";
    let note = bench.fastify.as_ref().err().map(|reason| format!("Fastify is left out: {reason}"));
    Rates { note, ..Rates::new(bench, SectionName::Stores, title, cases) }
}

/// Results of different sizes. They are compared with the bare route at the default size: it hardly uses a result, and
/// its rate at 64 KiB depends on the machine's memory more than on its processor.
pub(super) fn sizes(bench: &Bench) -> Rates {
    let mut cases = vec![Case::new("", Competitor::bare(), bench.workload(ROUND))];
    let sizes = [("64 KiB", 64 << 10), ("2 KiB", 2 << 10), ("200 bytes", 200)];
    for (name, bytes) in sizes.into_iter().take(bench.kinds(3)).rev() {
        let workload = Workload { bytes, ..bench.workload(ROUND) };
        let field = bench.short_field().into_iter().filter(|competitor| !competitor.is_bare());
        cases.extend(field.map(|competitor| Case::new(name, competitor, workload)));
    }
    Rates::new(bench, SectionName::Sizes, "sizes: 64 connections, in order", cases)
}

/// Different orders of posting, and forged tokens.
pub(super) fn order(bench: &Bench) -> Rates {
    let orders = [
        ("in order", Order::AsIssued),
        ("reversed: all held, then released", Order::Reversed),
        ("30 % repeated", Order::Repeated),
        ("forged tokens", Order::Forged),
    ];
    let mut cases = vec![Case::new("", Competitor::bare(), bench.workload(ROUND))];
    for (name, order) in orders {
        // Longer if the held results of a block of conversations are released at its end.
        let seconds = if order == Order::Reversed { 2.0 * ROUND } else { ROUND };
        let workload = Workload { order, ..bench.workload(seconds) };
        cases.extend(
            bench.service_field().into_iter().map(|competitor| Case::new(name, competitor, workload)),
        );
    }
    Rates::new(bench, SectionName::Order, "order: 64 connections, results of 512 bytes", cases)
}

/// Different numbers of connections.
pub(super) fn concurrency(bench: &Bench) -> Rates {
    let mut cases = Vec::new();
    for connections in [1, 8, 64, 256].into_iter().take(bench.kinds(4)) {
        let workload = Workload { connections, ..bench.workload(ROUND) };
        let name = format!("connections: {connections}");
        cases
            .extend(bench.short_field().into_iter().map(|competitor| Case::new(&name, competitor, workload)));
    }
    let title = "concurrency: results of 512 bytes, in order";
    Rates::new(bench, SectionName::Concurrency, title, cases)
}

/// Issuing work items over the platform's listener.
pub(super) fn issue(bench: &Bench) -> Rates {
    let workload = bench.workload(ROUND);
    let mut cases = vec![Case::new("", Competitor::bare(), workload)];
    let issuing = |competitor| Case { issuing: true, ..Case::new("issuing", competitor, workload) };
    cases.extend(bench.service_field().into_iter().map(issuing));
    Rates::new(bench, SectionName::Issue, "issue: 64 connections of the platform", cases)
}

/// A section of rates.
pub(super) struct Rates {
    name: SectionName,
    title: &'static str,
    cases: Vec<Case>,
    rounds: u64,
    /// The figures of each case.
    figures: Vec<Vec<Figures>>,
    note: Option<String>,
    /// Runs until the section is dropped.
    _collector: Option<Process>,
}

impl Rates {
    pub(super) fn new(bench: &Bench, name: SectionName, title: &'static str, cases: Vec<Case>) -> Self {
        let figures = cases.iter().map(|_| Vec::new()).collect();
        let rounds = bench.options.rounds(ROUNDS, QUICK);
        Self { name, title, cases, figures, rounds, note: None, _collector: None }
    }

    pub(super) fn with_collector(self, collector: Process) -> Self {
        Self { _collector: Some(collector), ..self }
    }

    /// The case with which a case is compared.
    fn reference_of(&self, case: &Case) -> usize {
        let of = |group: &str| self.cases.iter().position(|case| case.group == group && case.reference);
        of(&case.group).or_else(|| of("")).unwrap()
    }

    fn measure_case(&mut self, bench: &mut Bench, round: u64, at: usize) {
        let case = &self.cases[at];
        let figures = measure(bench, case);
        let (name, rounds, rate) = (self.name, self.rounds, figures.rate);
        bench.progress(&format!("{name:?} {}/{rounds}: {}: {rate:.0} requests/s", round + 1, case.name()));
        self.figures[at].push(figures);
    }
}

impl Section for Rates {
    fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Measures all cases. A reference comes first, and the order of the others is rotated. If there are many others,
    /// the reference is measured several times.
    fn measure(&mut self, bench: &mut Bench, round: u64) {
        let references: Vec<usize> = (0..self.cases.len()).filter(|&at| self.cases[at].reference).collect();
        for reference in references {
            let mut others: Vec<usize> = (0..self.cases.len()).collect();
            others.retain(|&at| at != reference && self.reference_of(&self.cases[at]) == reference);
            let first = others.len() as u64 * round / self.rounds;
            others.rotate_left(usize::try_from(first).unwrap());
            self.measure_case(bench, round, reference);
            let often = others.len() > BETWEEN;
            for some in others.chunks(BETWEEN) {
                for &at in some {
                    self.measure_case(bench, round, at);
                }
                if often {
                    self.measure_case(bench, round, reference);
                }
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let summary = |(case, own): (&Case, &Vec<Figures>)| {
            let reference = &self.figures[self.reference_of(case)];
            Summary::of(&case.group, &case.competitor.name, own.clone(), reference)
        };
        let rows: Vec<Summary> = self.cases.iter().zip(&self.figures).map(summary).collect();
        let mut table = Table::of_rates(self.title, &rows);
        table.notes.extend(self.note.clone());
        Outcome {
            name: self.name,
            table,
            data: serde_json::to_value(&rows).unwrap(),
            unexpected: rows.iter().map(|row| row.unexpected).sum(),
            rows,
        }
    }
}

fn measure(bench: &mut Bench, case: &Case) -> Figures {
    if !case.issuing {
        return bench.closed(&case.competitor, case.workload);
    }
    let requests = bench.requests(&case.competitor, case.workload, case.workload.seconds);
    point::prepared(&case.competitor, Plan::of(requests, Order::AsIssued, case.workload.bytes)).2
}
