//! Memory in Redis of a conversation, of an awaiting work item without a payload, and of a delivered one.

use std::time::Duration;

use serde_json::json;

use super::{Outcome, Section};
use crate::bench::{BYTES, Bench, CONNECTIONS};
use crate::field::Competitor;
use crate::generator::Generator;
use crate::measured_redis::Aof;
use crate::options::SectionName;
use crate::plan::{Order, Plan};
use crate::protocol::Pace;
use crate::table::{Table, whole};

/// Number of conversations, and of items in each.
const SHAPES: [(usize, usize); 3] = [(10_000, 1), (100, 100), (1, 10_000)];
/// Time after which Redis has freed the memory of requests.
const SETTLE: Duration = Duration::from_millis(300);

/// Bytes in Redis per conversation, per awaiting item and per delivered item, with a number of conversations of `items`
/// items each.
struct Row {
    competitor: String,
    conversations: usize,
    items: usize,
    conversation: f64,
    awaiting: f64,
    delivered: f64,
}

#[derive(Default)]
pub(super) struct Memory {
    rows: Vec<Row>,
    unexpected: u64,
}

impl Section for Memory {
    /// The bytes do not depend on the machine's speed.
    fn rounds(&self) -> u64 {
        1
    }

    fn measure(&mut self, bench: &mut Bench, _: u64) {
        for competitor in bench.services(Some(Aof::Off), false) {
            for (conversations, items) in SHAPES.into_iter().take(bench.kinds(3)) {
                let part = |count: usize| if bench.options.smoke { count.div_ceil(1000) } else { count };
                let plan = Plan {
                    conversations: part(conversations),
                    items: part(items),
                    order: Order::AsIssued,
                    bytes: BYTES,
                };
                let settle = if bench.options.smoke { Duration::ZERO } else { SETTLE };
                let [conversation, awaiting, delivered] =
                    measure(&competitor, plan, settle, &mut self.unexpected);
                let name = &competitor.name;
                bench.progress(&format!(
                    "Memory: {name}: {conversations} conversations of {items} items: {awaiting:.0} bytes per \
                     awaiting item"
                ));
                let competitor = competitor.name.clone();
                self.rows.push(Row { competitor, conversations, items, conversation, awaiting, delivered });
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let mut table = Table::new(
            "memory: bytes in Redis, as differences of used_memory",
            &[
                ("conversations", 15),
                ("items each", 12),
                ("a conversation", 16),
                ("awaiting item", 15),
                ("delivered, 512 B", 18),
            ],
        );
        for row in &self.rows {
            // One conversation is too small to be distinguished from other allocations of Redis.
            let one = if row.conversations < 1000 { "–".to_owned() } else { whole(row.conversation) };
            let [conversations, items] = [row.conversations, row.items].map(|count| whole(count as f64));
            let cells = vec![conversations, items, one, whole(row.awaiting), whole(row.delivered)];
            table.row(&row.competitor, cells);
        }
        table.notes.push(
            "A conversation is measured before it has an item; its first item makes keys, which count as the item's."
                .to_owned(),
        );
        let data = self.rows.iter().map(|row| {
            json!({
                "competitor": row.competitor, "conversations": row.conversations, "items": row.items,
                "conversation_bytes": row.conversation, "awaiting_item_bytes": row.awaiting,
                "delivered_item_bytes": row.delivered,
            })
        });
        let (data, unexpected) = (data.collect(), self.unexpected);
        Outcome { name: SectionName::Memory, table, rows: Vec::new(), data, unexpected }
    }
}

/// Bytes of a conversation, of an awaiting item, and of a delivered item with its result.
fn measure(competitor: &Competitor, plan: Plan, settle: Duration, unexpected: &mut u64) -> [f64; 3] {
    let mut running = competitor.start();
    let mut generator = Generator::start();
    let target = running.target.clone();
    let redis = running.redis.as_mut().unwrap();
    let mut used = || {
        std::thread::sleep(settle);
        redis.used_memory() as f64
    };
    let empty = used();
    generator.open(&target, plan);
    let opened = used();
    generator.issue();
    let issued = used();
    let pace = Pace::Closed { connections: CONNECTIONS, seconds: 60.0 };
    *unexpected += generator.post(0, usize::MAX, pace).unexpected;
    let delivered = used();
    let items = (plan.conversations * plan.items) as f64;
    [(opened - empty) / plan.conversations as f64, (issued - opened) / items, (delivered - opened) / items]
}
