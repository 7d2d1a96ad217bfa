//! Latency at a fixed arrival rate: a share of the rate that the same process has just reached in a closed loop.
//!
//! Latencies have no ratio to the bare route: each row has its own rate.

use serde::Serialize;
use serde_json::json;

use super::{Outcome, Section};
use crate::bench::{BYTES, Bench, CONNECTIONS};
use crate::field::Competitor;
use crate::options::SectionName;
use crate::plan::{Order, Plan};
use crate::point::{self, Figures};
use crate::protocol::Pace;
use crate::summary::Spread;
use crate::table::{Table, whole};

const SHARES: [f64; 3] = [0.25, 0.5, 0.75];
/// Duration of the closed loop that warms up and finds the maximum.
const WARM_UP: f64 = 0.3;
const MAXIMUM: f64 = 0.7;

#[derive(Clone, Serialize)]
struct Round {
    offered: f64,
    figures: Figures,
}

#[derive(Serialize)]
struct Row {
    share: f64,
    competitor: String,
    offered: Spread,
    achieved: Spread,
    p50_ms: Spread,
    p99_ms: Spread,
    p999_ms: Spread,
    unexpected: u64,
    rounds: Vec<Round>,
}

pub(super) struct Open {
    field: Vec<Competitor>,
    rounds: u64,
    /// By competitor, then by share.
    figures: Vec<Vec<Vec<Round>>>,
}

impl Open {
    pub(super) fn new(bench: &Bench) -> Self {
        let field = bench.short_field();
        let figures = field.iter().map(|_| vec![Vec::new(); SHARES.len()]).collect();
        Self { field, rounds: bench.options.rounds(3, 1), figures }
    }
}

impl Section for Open {
    fn rounds(&self) -> u64 {
        self.rounds
    }

    fn measure(&mut self, bench: &mut Bench, round: u64) {
        for (competitor, figures) in self.field.iter().zip(&mut self.figures) {
            let of_round = measure(bench, competitor);
            let p99 = of_round.last().map_or(0, |round| round.figures.tally.latency.p99);
            let name = &competitor.name;
            let progress = format!("Open {}/{}: {name}: p99 {p99} µs at 75 %", round + 1, self.rounds);
            bench.progress(&progress);
            for (at_share, round) in figures.iter_mut().zip(of_round) {
                at_share.push(round);
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let mut rows = Vec::new();
        for (at, share) in SHARES.into_iter().enumerate() {
            let row = |(competitor, rounds): (&Competitor, &Vec<Vec<Round>>)| {
                row(share, &competitor.name, rounds[at].clone())
            };
            rows.extend(self.field.iter().zip(&self.figures).map(row));
        }
        Outcome {
            name: SectionName::Open,
            table: table(&rows),
            rows: Vec::new(),
            unexpected: rows.iter().map(|row| row.unexpected).sum(),
            data: json!(rows),
        }
    }
}

/// One round: measures the maximum, then each share of it, in one process.
fn measure(bench: &mut Bench, competitor: &Competitor) -> Vec<Round> {
    let seconds = bench.options.seconds(1.5);
    let all = WARM_UP + MAXIMUM + seconds * SHARES.iter().sum::<f64>();
    let requests = bench.requests(competitor, bench.workload(seconds), all);
    let plan = Plan::of(requests, Order::AsIssued, BYTES);
    let (mut running, mut generator, _) = point::prepared(competitor, plan);
    let closed = |seconds| Pace::Closed { connections: CONNECTIONS, seconds };
    // The closed loop posts a fixed part of all items, whatever rate it reaches.
    let part = |of: f64| (requests as f64 * of / all) as usize;
    let warm = generator.post(0, part(WARM_UP), closed(WARM_UP)).requests as usize;
    let maximum = generator.post(warm, warm + part(MAXIMUM), closed(MAXIMUM));
    let mut from = warm + maximum.requests as usize;
    let rate = maximum.requests as f64 / maximum.seconds;
    let mut at_share = |share: f64| {
        let offered = rate * share;
        let to = from + part(seconds * share);
        let figures =
            point::measured(&mut running, || generator.post(from, to, Pace::Open { rate: offered }));
        from = to;
        Round { offered, figures }
    };
    SHARES.into_iter().map(&mut at_share).collect()
}

fn row(share: f64, competitor: &str, rounds: Vec<Round>) -> Row {
    let over = |value: fn(&Round) -> f64| Spread::of(rounds.iter().map(value));
    let p50 = |round: &Round| round.figures.tally.latency.p50 as f64 / 1000.0;
    let p99 = |round: &Round| round.figures.tally.latency.p99 as f64 / 1000.0;
    Row {
        share,
        competitor: competitor.to_owned(),
        offered: over(|round| round.offered),
        achieved: over(|round| round.figures.rate),
        p50_ms: over(p50),
        p99_ms: over(p99),
        p999_ms: over(|round| round.figures.tally.latency.p999 as f64 / 1000.0),
        unexpected: rounds.iter().map(|round| round.figures.tally.unexpected).sum(),
        rounds,
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(
        "open: a fixed arrival rate; latency from the scheduled time of a request",
        &[
            ("offered/s", 11),
            ("replies/s", 11),
            ("p50 ms", 9),
            ("p99 ms", 9),
            ("p99 min–max", 15),
            ("p99.9 ms", 10),
        ],
    );
    let mut share = 0.0;
    for row in rows {
        if row.share > share {
            share = row.share;
            table.group(&format!("{:.0} % of the maximum", share * 100.0));
        }
        let cells = vec![
            whole(row.offered.median),
            whole(row.achieved.median),
            format!("{:.2}", row.p50_ms.median),
            format!("{:.2}", row.p99_ms.median),
            format!("{:.2}–{:.2}", row.p99_ms.min, row.p99_ms.max),
            format!("{:.2}", row.p999_ms.median),
        ];
        table.row(&row.competitor, cells);
    }
    table
}
