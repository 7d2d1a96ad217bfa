//! Requests per second in a closed loop. A ratio compares the upper quartiles of a row and of its reference, which is
//! the bare route except in the sections about telemetry.

use super::Outcome;
use crate::bench::{Bench, Workload};
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
/// Number of rounds.
const ROUNDS: u64 = 6;
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
pub(super) fn stores(bench: &mut Bench) -> Outcome {
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
    let mut outcome = compare(bench, SectionName::Stores, title, &cases);
    if let Err(reason) = &bench.fastify {
        outcome.table.notes.push(format!("Fastify is left out: {reason}"));
    }
    outcome
}

/// Results of different sizes. They are compared with the bare route at the default size: it hardly uses a result, and
/// its rate at 64 KiB depends on the machine's memory more than on its processor.
pub(super) fn sizes(bench: &mut Bench) -> Outcome {
    let mut cases = vec![Case::new("", Competitor::bare(), bench.workload(ROUND))];
    let sizes = [("64 KiB", 64 << 10), ("2 KiB", 2 << 10), ("200 bytes", 200)];
    for (name, bytes) in sizes.into_iter().take(bench.kinds(3)).rev() {
        let workload = Workload { bytes, ..bench.workload(ROUND) };
        let field = bench.short_field().into_iter().filter(|competitor| !competitor.is_bare());
        cases.extend(field.map(|competitor| Case::new(name, competitor, workload)));
    }
    compare(bench, SectionName::Sizes, "sizes: 64 connections, in order", &cases)
}

/// Different orders of posting, and forged tokens.
pub(super) fn order(bench: &mut Bench) -> Outcome {
    let orders = [
        ("in order", Order::AsIssued),
        ("reversed: all held, then released", Order::Reversed),
        ("30 % repeated", Order::Repeated),
        ("forged tokens", Order::Forged),
    ];
    // Longer, because the held results of a block of conversations are released at its end.
    let workload = bench.workload(2.0 * ROUND);
    let mut cases = vec![Case::new("", Competitor::bare(), workload)];
    for (name, order) in orders {
        let workload = Workload { order, ..workload };
        cases.extend(
            bench.service_field().into_iter().map(|competitor| Case::new(name, competitor, workload)),
        );
    }
    compare(bench, SectionName::Order, "order: 64 connections, results of 512 bytes", &cases)
}

/// Different numbers of connections.
pub(super) fn concurrency(bench: &mut Bench) -> Outcome {
    let mut cases = Vec::new();
    for connections in [1, 8, 64, 256].into_iter().take(bench.kinds(4)) {
        let workload = Workload { connections, ..bench.workload(ROUND) };
        let name = format!("connections: {connections}");
        cases
            .extend(bench.short_field().into_iter().map(|competitor| Case::new(&name, competitor, workload)));
    }
    let title = "concurrency: results of 512 bytes, in order";
    compare(bench, SectionName::Concurrency, title, &cases)
}

/// Issuing work items over the platform's listener.
pub(super) fn issue(bench: &mut Bench) -> Outcome {
    let workload = bench.workload(ROUND);
    let mut cases = vec![Case::new("", Competitor::bare(), workload)];
    let issuing = |competitor| Case { issuing: true, ..Case::new("issuing", competitor, workload) };
    cases.extend(bench.service_field().into_iter().map(issuing));
    compare(bench, SectionName::Issue, "issue: 64 connections of the platform", &cases)
}

/// Measures all cases in interleaved rounds. In each round, the reference comes first, and the order of the others is
/// rotated. If there are many others, the reference is measured several times, because the machine's speed changes.
pub(super) fn compare(bench: &mut Bench, name: SectionName, title: &str, cases: &[Case]) -> Outcome {
    let count = bench.options.rounds(ROUNDS, QUICK);
    let mut rounds: Vec<Vec<Figures>> = cases.iter().map(|_| Vec::new()).collect();
    let reference_of = |case: &Case| {
        let of = |group: &str| cases.iter().position(|case| case.group == group && case.reference);
        of(&case.group).or_else(|| of("")).unwrap()
    };
    for round in 0..usize::try_from(count).unwrap() {
        for reference in (0..cases.len()).filter(|&at| cases[at].reference) {
            let mut others: Vec<usize> = (0..cases.len()).collect();
            others.retain(|&at| at != reference && reference_of(&cases[at]) == reference);
            let first = round * others.len() / usize::try_from(count).unwrap();
            others.rotate_left(first);
            let mut one = |at: usize, rounds: &mut Vec<Vec<Figures>>| {
                let figures = measure(bench, &cases[at]);
                let (rate, of) = (figures.rate, format!("{name:?} {}/{count}", round + 1));
                bench.progress(&format!("{of}: {}: {rate:.0} requests/s", cases[at].name()));
                rounds[at].push(figures);
            };
            one(reference, &mut rounds);
            let often = others.len() > BETWEEN;
            for some in others.chunks(BETWEEN) {
                for &at in some {
                    one(at, &mut rounds);
                }
                if often {
                    one(reference, &mut rounds);
                }
            }
        }
    }
    let summary = |(case, own): (&Case, &Vec<Figures>)| {
        Summary::of(&case.group, &case.competitor.name, own.clone(), &rounds[reference_of(case)])
    };
    let rows: Vec<Summary> = cases.iter().zip(&rounds).map(summary).collect();
    Outcome {
        name,
        table: Table::of_rates(title, &rows),
        data: serde_json::to_value(&rows).unwrap(),
        unexpected: rows.iter().map(|row| row.unexpected).sum(),
        rows,
    }
}

fn measure(bench: &mut Bench, case: &Case) -> Figures {
    if !case.issuing {
        return bench.closed(&case.competitor, case.workload);
    }
    let requests = bench.requests(&case.competitor, case.workload, case.workload.seconds);
    point::prepared(&case.competitor, Plan::of(requests, Order::AsIssued, case.workload.bytes)).2
}
