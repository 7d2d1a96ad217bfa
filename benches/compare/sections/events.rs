//! Latency of a post until its response, and until its event on the platform's stream, on an idle machine.

use serde_json::json;

use super::{Outcome, ROUNDS, Section};
use crate::bench::{BYTES, Bench, OneCore};
use crate::field::Competitor;
use crate::generator::Generator;
use crate::options::SectionName;
use crate::plan::{Order, Plan};
use crate::protocol::{Latencies, Percentiles};
use crate::summary::Spread;
use crate::table::Table;

const POSTS: usize = 300;
/// Pause between an event and the next post.
const PAUSE_MS: u64 = 3;

pub(super) struct Events {
    field: Vec<Competitor>,
    rounds: u64,
    figures: Vec<Vec<Latencies>>,
}

impl Events {
    pub(super) fn new(bench: &Bench) -> Self {
        let field = bench.service_field();
        let figures = field.iter().map(|_| Vec::new()).collect();
        Self { field, rounds: bench.options.rounds(ROUNDS, 1), figures }
    }
}

impl Section for Events {
    fn rounds(&self) -> u64 {
        self.rounds
    }

    fn measure(&mut self, bench: &mut Bench, round: u64) {
        for (competitor, figures) in self.field.iter().zip(&mut self.figures) {
            let latencies = measure(competitor, if bench.options.smoke { 20 } else { POSTS });
            let (name, p50) = (&competitor.name, latencies.event.p50);
            bench.progress(&format!("Events {}/{}: {name}: p50 {p50} µs", round + 1, self.rounds));
            figures.push(latencies);
        }
    }

    fn outcome(&self) -> Outcome {
        let mut table = Table::new(
            "events: one post at a time, followed on the event stream; from sending the post, in milliseconds",
            &[
                ("post p50", 11),
                ("post p99", 11),
                ("event p50", 12),
                ("event p99", 12),
                ("event − post p50", 18),
            ],
        );
        let mut rows = Vec::new();
        for (competitor, of) in self.field.iter().zip(&self.figures) {
            let over = |part: fn(&Latencies) -> Percentiles, value: fn(&Percentiles) -> u64| {
                Spread::of(of.iter().map(|latencies| value(&part(latencies)) as f64 / 1000.0))
            };
            let (post_p50, post_p99) = (over(|l| l.post, |p| p.p50), over(|l| l.post, |p| p.p99));
            let (event_p50, event_p99) = (over(|l| l.event, |p| p.p50), over(|l| l.event, |p| p.p99));
            let own =
                |latencies: &Latencies| (latencies.event.p50 as f64 - latencies.post.p50 as f64) / 1000.0;
            let difference = Spread::of(of.iter().map(own));
            let figures = [post_p50, post_p99, event_p50, event_p99, difference];
            table.row(&competitor.name, figures.map(|figure| format!("{:.3}", figure.median)).to_vec());
            rows.push(json!({
                "competitor": competitor.name, "post_p50_ms": post_p50, "post_p99_ms": post_p99,
                "difference_ms": difference, "event_p50_ms": event_p50, "event_p99_ms": event_p99, "rounds": of,
            }));
        }
        let unexpected = self.figures.iter().flatten().map(|latencies| latencies.unexpected).sum();
        Outcome { name: SectionName::Events, table, rows: Vec::new(), data: json!(rows), unexpected }
    }
}

fn measure(competitor: &Competitor, posts: usize) -> Latencies {
    let _one_core = OneCore::new();
    let running = competitor.start();
    let mut generator = Generator::start();
    let plan = Plan { conversations: 1, items: posts, order: Order::AsIssued, bytes: BYTES };
    generator.open(&running.target, plan);
    generator.issue();
    generator.follow(posts, PAUSE_MS)
}
