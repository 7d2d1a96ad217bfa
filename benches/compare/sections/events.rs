//! Latency from a post to its event on the platform's stream, and of the post alone, on an idle machine.

use serde_json::json;

use super::Outcome;
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

pub(super) fn events(bench: &mut Bench) -> Outcome {
    let mut field = vec![Competitor::bare()];
    field.extend(bench.service_field());
    let count = bench.options.rounds(3, 1);
    let mut rounds: Vec<Vec<Latencies>> = field.iter().map(|_| Vec::new()).collect();
    for round in 0..count {
        for (competitor, rounds) in field.iter().zip(&mut rounds) {
            let latencies = measure(competitor, if bench.options.smoke { 20 } else { POSTS });
            let (name, p50) = (&competitor.name, latencies.event.p50);
            bench.progress(&format!("Events {}/{count}: {name}: p50 {p50} µs", round + 1));
            rounds.push(latencies);
        }
    }
    let mut table = Table::new(
        "events: one post at a time, followed on the event stream; from sending the post, in milliseconds",
        &[
            ("post p50", 11),
            ("post p99", 11),
            ("ratio", 8),
            ("event p50", 12),
            ("event p99", 12),
            ("event/post p50", 17),
        ],
    );
    let mut rows = Vec::new();
    for (competitor, of) in field.iter().zip(&rounds) {
        let over = |part: fn(&Latencies) -> Percentiles, value: fn(&Percentiles) -> u64| {
            Spread::of(of.iter().map(|latencies| value(&part(latencies)) as f64 / 1000.0))
        };
        let (post_p50, post_p99) = (over(|l| l.post, |p| p.p50), over(|l| l.post, |p| p.p99));
        let (event_p50, event_p99) = (over(|l| l.event, |p| p.p50), over(|l| l.event, |p| p.p99));
        let ratio = of.iter().zip(&rounds[0]).map(|(own, bare)| own.post.p50 as f64 / bare.post.p50 as f64);
        let ratio = Spread::of(ratio);
        let mut cells = vec![
            format!("{:.3}", post_p50.median),
            format!("{:.3}", post_p99.median),
            format!("{:.2}", ratio.median),
        ];
        if !competitor.is_bare() {
            cells.push(format!("{:.3}", event_p50.median));
            cells.push(format!("{:.3}", event_p99.median));
            cells.push(format!("{:.2}", event_p50.median / post_p50.median));
        }
        table.row(&competitor.name, cells);
        rows.push(json!({
            "competitor": competitor.name, "post_p50_ms": post_p50, "post_p99_ms": post_p99, "ratio": ratio,
            "event_p50_ms": event_p50, "event_p99_ms": event_p99, "rounds": of,
        }));
    }
    let unexpected = rounds.iter().flatten().map(|latencies| latencies.unexpected).sum();
    Outcome { name: SectionName::Events, table, rows: Vec::new(), data: json!(rows), unexpected }
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
