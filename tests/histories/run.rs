//! One batch: concurrent histories on one deployment with injected faults, and their check.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{join, join_all};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::checker::{self, Verdict, Violation};
use crate::client::Client;
use crate::deployment::{Deployment, Kind};
use crate::drive;
use crate::nemesis::{self, Fault};
use crate::plan::Plan;
use crate::record::{History, Outage};
use crate::story;

/// A batch. Equal batches on the same kind of deployment have equal plans.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) seed: u64,
    pub(crate) histories: usize,
    pub(crate) faults: Vec<Fault>,
}

/// The result of a batch.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) histories: Vec<History>,
    pub(crate) outages: Vec<Outage>,
    pub(crate) verdict: Verdict,
}

impl Batch {
    /// The seed of one history.
    fn seed_of(&self, history: usize) -> u64 {
        self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(history as u64)
    }

    pub(crate) async fn run(&self, deployment: &Arc<Deployment>) -> Done {
        // Unique ids, even for a repeated batch on the same deployment.
        static RUN: AtomicU64 = AtomicU64::new(1);
        let run = RUN.fetch_add(1, Ordering::Relaxed);
        let client = Client::new(Arc::clone(deployment));
        let driven = join_all((0..self.histories).map(|number| {
            let client = client.clone();
            let plan = Plan::of(self.seed_of(number));
            // The clients retry long enough for a failover.
            let plan = if deployment.kind.fails_over() { plan.patient(3) } else { plan };
            tokio::spawn(async move { drive::drive(&client, &format!("r{run}.h{number}"), &plan).await })
        }));
        let (driven, outages) = join(driven, self.strike(&client)).await;
        let seen = driven.into_iter().map(|conversations| async {
            let mut conversations = conversations.unwrap();
            for conversation in &mut conversations {
                conversation.truth = drive::truth(&client, &conversation.id).await;
            }
            History { conversations, outages: outages.clone() }
        });
        let histories = join_all(seen).await;
        let mut verdict = Verdict::default();
        for history in &histories {
            let one = checker::check(history);
            verdict.violations.extend(one.violations);
            verdict.lateness.extend(one.lateness);
            verdict.lost += one.lost;
            verdict.lost_before.extend(one.lost_before);
        }
        // After a failover in an earlier batch, clients may still use the former primary.
        if self.faults.is_empty() && !deployment.kind.fails_over() {
            verdict.violations.extend(checker::unfounded(&histories));
        }
        Done { histories, outages, verdict }
    }

    async fn strike(&self, client: &Client) -> Vec<Outage> {
        let mut outages = Vec::new();
        for strike in nemesis::strikes(self.seed, &self.faults) {
            sleep(Duration::from_millis(strike.after)).await;
            let (deployment, stopwatch) = (Arc::clone(&client.deployment), client.stopwatch);
            let struck = spawn_blocking(move || nemesis::strike(&deployment, strike, stopwatch));
            outages.push(struck.await.unwrap());
        }
        outages
    }

    /// The command that repeats it.
    pub(crate) fn command(&self, kind: Kind) -> String {
        let (store, replicas) = match kind {
            Kind::Memory => ("memory", 1),
            Kind::Durable(replicas) => ("durable", replicas),
            Kind::Forgetful(replicas) => ("forgetful", replicas),
            Kind::Sentinels { replicas, waits: false } => ("sentinels", replicas),
            Kind::Sentinels { replicas, waits: true } => ("sentinels-waiting", replicas),
            Kind::Cluster { replicas, waits: false } => ("cluster", replicas),
            Kind::Cluster { replicas, waits: true } => ("cluster-waiting", replicas),
        };
        let faults: Vec<String> = self.faults.iter().map(|fault| format!("{fault:?}")).collect();
        let faults = if faults.is_empty() { "none".to_owned() } else { faults.join(",") };
        format!(
            "HISTORIES='seed={} batch={} count={} store={store} replicas={replicas} faults={faults}' \
             tests/run --test histories long_form -- --ignored --nocapture",
            self.seed, self.histories, self.histories
        )
    }
}

impl Done {
    /// The violations that fail this kind of deployment.
    pub(crate) fn violations(&self, kind: Kind) -> Vec<&Violation> {
        let may_lose = match kind {
            Kind::Memory | Kind::Durable(_) => false,
            Kind::Forgetful(_) => true,
            Kind::Sentinels { waits, .. } | Kind::Cluster { waits, .. } => {
                !waits && self.outages.iter().any(|outage| outage.loses_until.is_some())
            }
        };
        if may_lose { self.beyond_loss() } else { self.verdict.violations.iter().collect() }
    }

    /// The violations that are not explained by lost writes.
    pub(crate) fn beyond_loss(&self) -> Vec<&Violation> {
        self.verdict.violations.iter().filter(|violation| !violation.rule.is_explained_by_loss()).collect()
    }

    /// The story of the first conversation with one of these violations.
    pub(crate) fn story(&self, violations: &[&Violation]) -> String {
        let Some(first) = violations.first() else { return String::new() };
        let mut all = self.histories.iter().flat_map(|history| &history.conversations);
        let conversation = all.find(|conversation| conversation.id == first.conversation).unwrap();
        story::tell(conversation, &self.outages, violations)
    }
}
