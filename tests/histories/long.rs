//! The long form: a chosen number of histories under each fault in turn, with totals.
//!
//! The variable `HISTORIES` has space-separated settings `NAME=VALUE`:
//!
//! - `count`: the number of histories
//! - `seed`: the seed of the first batch
//! - `batch`: the number of concurrent histories
//! - `store`: `durable`, `forgetful`, `memory`, `sentinels` or `cluster`; the last two with `-waiting` if a Redis replica
//!   must confirm writes
//! - `replicas`: the number of instances of the service; 0 for 1, 2 and 3 in turn
//! - `faults`: `each` for every fault alone and all together in turn, `none`, or names separated by commas

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::deployment::{Deployment, Kind};
use crate::figures::Figures;
use crate::nemesis::Fault;
use crate::run::Batch;

/// Number of batches per deployment. A restarted Redis reads everything that it ever wrote.
const BATCHES_OF_A_DEPLOYMENT: usize = 12;

/// The settings.
#[derive(Clone, Debug)]
struct Order {
    count: usize,
    seed: u64,
    batch: usize,
    store: String,
    replicas: usize,
    faults: String,
}

impl Order {
    #[expect(clippy::disallowed_methods, reason = "the only way to tell a test something")]
    fn read() -> Self {
        let said = std::env::var("HISTORIES").unwrap_or_default();
        let mut order = Self {
            count: 10_000,
            seed: rand::random::<u32>().into(),
            batch: 40,
            store: "durable".to_owned(),
            replicas: 0,
            faults: "each".to_owned(),
        };
        for word in said.split_whitespace() {
            let (name, value) = word.split_once('=').expect("HISTORIES is made of NAME=VALUE");
            match name {
                "count" => order.count = value.parse().unwrap(),
                "seed" => order.seed = value.parse().unwrap(),
                "batch" => order.batch = value.parse().unwrap(),
                "store" => value.clone_into(&mut order.store),
                "replicas" => order.replicas = value.parse().unwrap(),
                "faults" => value.clone_into(&mut order.faults),
                other => panic!("HISTORIES knows no {other}"),
            }
        }
        order
    }

    fn kind(&self, deployment: usize) -> Kind {
        let replicas = if self.replicas == 0 { deployment % 3 + 1 } else { self.replicas };
        match self.store.as_str() {
            "durable" => Kind::Durable(replicas),
            "forgetful" => Kind::Forgetful(replicas),
            "memory" => Kind::Memory,
            "sentinels" => Kind::Sentinels { replicas, waits: false },
            "sentinels-waiting" => Kind::Sentinels { replicas, waits: true },
            "cluster" => Kind::Cluster { replicas, waits: false },
            "cluster-waiting" => Kind::Cluster { replicas, waits: true },
            other => panic!("no store {other}"),
        }
    }

    /// The faults of each batch, with the name for its totals.
    fn faults(&self, kind: Kind) -> Vec<(String, Vec<Fault>)> {
        let known: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| fault.fits(kind)).collect();
        match self.faults.as_str() {
            "none" => vec![("none".to_owned(), Vec::new())],
            "each" => {
                let mut each: Vec<_> =
                    known.iter().map(|fault| (format!("{fault:?}"), vec![*fault])).collect();
                each.extend([("all".to_owned(), known), ("none".to_owned(), Vec::new())]);
                each
            }
            names => {
                let wanted = |fault: &Fault| names.split(',').any(|name| name == format!("{fault:?}"));
                vec![(names.to_owned(), known.into_iter().filter(wanted).collect())]
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes as long as it is told to"]
async fn long_form() {
    let order = Order::read();
    println!("{order:?}");
    let begun = Instant::now();
    let mut figures: BTreeMap<String, Figures> = BTreeMap::new();
    let (mut done_histories, mut number) = (0, 0);
    while done_histories < order.count {
        let kind = order.kind(number / BATCHES_OF_A_DEPLOYMENT);
        let deployment = Arc::new(Deployment::start(kind));
        for _ in 0..BATCHES_OF_A_DEPLOYMENT {
            let all = order.faults(kind);
            let (name, faults) = &all[number % all.len()];
            let histories = order.batch.min(order.count - done_histories);
            let batch = Batch { seed: order.seed + number as u64, histories, faults: faults.clone() };
            let done = batch.run(&deployment).await;
            let violations = done.violations(kind);
            if !violations.is_empty() {
                println!("{}\n{}", done.story(&violations), batch.command(kind));
            }
            figures.entry(name.clone()).or_default().add(&done, violations.len());
            done_histories += histories;
            number += 1;
            if done_histories >= order.count {
                break;
            }
        }
        println!("{done_histories} histories after {} s", begun.elapsed().as_secs());
    }
    let mut all = Figures::default();
    for (name, figures) in &figures {
        println!("{}", figures.told(name));
        all.join(figures);
    }
    println!("{}", all.told("in all"));
    assert_eq!(all.violations, 0);
}
