//! Compares callbacks in a conversation that has many items with callbacks in one that has few.

use serde_json::json;

use super::{Outcome, ROUNDS, Section};
use crate::bench::{BYTES, Bench, OneCore};
use crate::field::Competitor;
use crate::options::SectionName;
use crate::plan::{Order, Plan};
use crate::point::{self, Figures};
use crate::protocol::Pace;
use crate::summary::Spread;
use crate::table::Table;

/// Number of measured callbacks, over one connection.
const MEASURED: usize = 500;
const SMOKE: usize = 10;
const MANY: usize = 10_000;
const FEW: usize = 10;
/// Number of warm-up posts, which load the scripts and open the connections.
const FIRST: usize = 50;

/// The items of the conversation before the measured callbacks.
struct Case {
    name: &'static str,
    plan: Plan,
    /// Number of posts before the measured ones.
    before: usize,
    measured: usize,
}

fn cases(smoke: bool) -> [Case; 4] {
    let (measured, many) = if smoke { (SMOKE, FEW) } else { (MEASURED, MANY) };
    let plan = |conversations, items, order| Plan { conversations, items, order, bytes: BYTES };
    // Callbacks are spread over a hundred conversations, so that each has few items.
    let few = plan(measured / 5, FEW + 5, Order::AsIssued);
    let one = |order| plan(1, many + measured + FIRST, order);
    let case = |name, plan, before| Case { name, plan, before, measured };
    [
        case("10 delivered", few, few.conversations * FEW),
        case("10,000 delivered", one(Order::AsIssued), many),
        case("10,000 awaiting", one(Order::AsIssued), FIRST),
        case("10,000 held", one(Order::Reversed), many),
    ]
}

pub(super) struct Depth {
    field: Vec<Competitor>,
    cases: [Case; 4],
    rounds: u64,
    /// By competitor, then by case.
    figures: Vec<Vec<Vec<Figures>>>,
}

impl Depth {
    pub(super) fn new(bench: &Bench) -> Self {
        let (mut field, cases) = (bench.service_field(), cases(bench.options.smoke));
        field.drain(..field.len().saturating_sub(bench.kinds(usize::MAX)));
        let figures = field.iter().map(|_| vec![Vec::new(); cases.len()]).collect();
        Self { field, cases, rounds: bench.options.rounds(ROUNDS, 1), figures }
    }
}

impl Section for Depth {
    fn rounds(&self) -> u64 {
        self.rounds
    }

    fn measure(&mut self, bench: &mut Bench, round: u64) {
        for (competitor, of_cases) in self.field.iter().zip(&mut self.figures) {
            for (case, of_case) in self.cases.iter().zip(of_cases) {
                let figures = measure(competitor, case);
                let (name, p50) = (&competitor.name, figures.tally.latency.p50);
                let round = format!("{}/{}", round + 1, self.rounds);
                bench.progress(&format!("Depth {round}: {name}, {}: p50 {p50} µs", case.name));
                of_case.push(figures);
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let mut table = Table::new(
            "depth: a callback in a conversation that has other items already, one connection",
            &[
                ("script µs", 12),
                ("min–max", 14),
                ("ratio to 10", 14),
                ("p50 ms", 10),
                ("ratio to 10", 14),
                ("commands", 11),
            ],
        );
        let mut rows = Vec::new();
        let script = |of: &[Figures]| Spread::of(of.iter().filter_map(|figures| figures.script_us));
        let p50 =
            |of: &[Figures]| Spread::of(of.iter().map(|figures| figures.tally.latency.p50 as f64 / 1000.0));
        for (competitor, of_cases) in self.field.iter().zip(&self.figures) {
            table.group(&competitor.name);
            let (few_script_us, few_p50_ms) = (script(&of_cases[0]), p50(&of_cases[0]));
            for (case, of) in self.cases.iter().zip(of_cases) {
                let (script_us, p50_ms) = (script(of), p50(of));
                let script_ratio = script_us.lower_quartile / few_script_us.lower_quartile;
                let p50_ratio = p50_ms.lower_quartile / few_p50_ms.lower_quartile;
                let commands = Spread::of(of.iter().filter_map(|figures| figures.commands)).median;
                let on_redis = |text: String| if script_us.median > 0.0 { text } else { "–".to_owned() };
                let cells = vec![
                    on_redis(format!("{:.1}", script_us.median)),
                    on_redis(format!("{:.1}–{:.1}", script_us.min, script_us.max)),
                    on_redis(format!("{script_ratio:.2}")),
                    format!("{:.3}", p50_ms.median),
                    format!("{p50_ratio:.2}"),
                    on_redis(format!("{commands:.1}")),
                ];
                table.row(case.name, cells);
                rows.push(json!({
                    "competitor": competitor.name, "has": case.name, "script_us": script_us,
                    "script_ratio": script_ratio.is_finite().then_some(script_ratio),
                    "p50_ms": p50_ms, "p50_ratio": p50_ratio, "rounds": of,
                }));
            }
        }
        let all = self.figures.iter().flatten().flatten();
        let unexpected = all.map(|figures| figures.tally.unexpected).sum();
        Outcome { name: SectionName::Depth, table, rows: Vec::new(), data: json!(rows), unexpected }
    }
}

fn measure(competitor: &Competitor, case: &Case) -> Figures {
    let _one_core = OneCore::new();
    let (mut running, mut generator, _) = point::prepared(competitor, case.plan);
    let pace = |connections| Pace::Closed { connections, seconds: 30.0 };
    generator.post(0, case.before, pace(16));
    let to = case.before + case.measured;
    point::measured(&mut running, || generator.post(case.before, to, pace(1)))
}
