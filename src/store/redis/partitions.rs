//! Questions about all partitions at once: what is due, and what is held. One server is asked for many partitions with
//! each call; of a cluster each node for its own, with one round trip.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Pipeline, Value};
use tokio::time::timeout;

use super::RedisStore;
use super::keys::{self, Keys};
use super::nodes::{Lane, Node};
use super::script::{Call, broken, list, string};
use super::slots::Slot;
use crate::domain::gate::Totals;
use crate::domain::ids::{ConversationRef, WorkItemId};
use crate::store::{Due, DueConversation, StoreError};

/// How many partitions one call looks through; in a cluster one, because each has its own slot.
const PARTITIONS_AT_ONCE: u16 = 64;

/// What can be asked of some partitions with one call.
pub(super) trait Question: Sync {
    /// What is answered.
    type Answer: Send;
    /// Which of a node's connections it takes.
    const LANE: Lane;
    /// The call, for these partitions.
    fn call<'a>(&self, store: &'a RedisStore, partitions: Range<u16>) -> Call<'a>;
    /// Reads the script's reply.
    fn read(reply: Value) -> Result<Self::Answer, StoreError>;
    /// How long a node of a cluster may take.
    fn patience(store: &RedisStore) -> Duration;
}

/// What is due, at most so many items of each partition.
pub(super) struct WhatIsDue {
    pub(super) limit: usize,
}

impl Question for WhatIsDue {
    type Answer = Due;
    const LANE: Lane = Lane::Commands;

    fn call<'a>(&self, store: &'a RedisStore, partitions: Range<u16>) -> Call<'a> {
        let keys: Vec<String> = partitions.map(Keys::deadlines).collect();
        Call::new(&store.scripts.due, keys).plain(store.now()).plain(self.limit)
    }

    fn read(reply: Value) -> Result<Due, StoreError> {
        let mut values = list(reply)?.into_iter();
        let (Some(next), Some(more)) = (values.next(), values.next()) else {
            return Err(broken("a list without its head"));
        };
        let (next, more) = (string(next)?, string(more)? == "1");
        let mut found: BTreeMap<ConversationRef, Vec<WorkItemId>> = BTreeMap::new();
        for member in values {
            // What is no marker of ours must not stop the others.
            let Some((conversation, work_item)) = keys::deadline_member(&string(member)?) else {
                tracing::debug!("a member of the deadlines is no awaiting marker");
                continue;
            };
            found.entry(conversation).or_default().push(work_item);
        }
        Ok(Due {
            conversations: found
                .into_iter()
                .map(|(conversation, work_items)| DueConversation { conversation, work_items })
                .collect(),
            next_in_ms: next.parse().ok(),
            more,
        })
    }

    /// A node that is slow makes the timers of the others late by no more than this, twice.
    fn patience(store: &RedisStore) -> Duration {
        store.connection_limits.response / 4
    }
}

/// What the conversations hold.
pub(super) struct WhatIsHeld;

impl Question for WhatIsHeld {
    type Answer = Totals;
    const LANE: Lane = Lane::Reads;

    fn call<'a>(&self, store: &'a RedisStore, partitions: Range<u16>) -> Call<'a> {
        let keys = partitions.flat_map(|partition| [Keys::deadlines(partition), Keys::totals(partition)]);
        Call::new(&store.scripts.totals, keys.collect::<Vec<_>>())
    }

    fn read(reply: Value) -> Result<Totals, StoreError> {
        let [awaiting, held, held_bytes] =
            <[Value; 3]>::try_from(list(reply)?).map_err(|_| broken("totals without their three parts"))?;
        let count = |value| string(value)?.parse().map_err(|_| broken("totals"));
        Ok(Totals { awaiting: count(awaiting)?, held: count(held)?, held_bytes: count(held_bytes)? })
    }

    fn patience(store: &RedisStore) -> Duration {
        store.connection_limits.response
    }
}

impl RedisStore {
    /// The answers of all partitions, some together. Who cannot be asked has a failure among them.
    pub(super) async fn ask_all<Q: Question>(&self, question: &Q) -> Vec<Result<Q::Answer, StoreError>> {
        if self.nodes.is_cluster() {
            return self.ask_cluster(question).await;
        }
        let partitions = self.keys.partitions;
        let starts = (0..partitions).step_by(usize::from(PARTITIONS_AT_ONCE));
        let groups = starts.map(|start| start..partitions.min(start.saturating_add(PARTITIONS_AT_ONCE)));
        join_all(groups.map(|group| self.ask(question, group))).await
    }

    async fn ask<Q: Question>(&self, question: &Q, partitions: Range<u16>) -> Result<Q::Answer, StoreError> {
        Q::read(question.call(self, partitions).send(&self.nodes, Q::LANE).await?.value)
    }

    /// Asks for one partition of a cluster, wherever it is by now.
    async fn ask_alone<Q: Question>(&self, question: &Q, partition: u16) -> Result<Q::Answer, StoreError> {
        let asked = self.ask(question, partition..partition + 1);
        timeout(Q::patience(self), asked).await.unwrap_or_else(|_| Err(slow()))
    }

    /// Asks a node for some partitions at once. One that it refuses is asked for alone. If the node is silent only one
    /// is, which looks for its new owner: the next round finds the others there.
    async fn ask_node<Q: Question>(
        &self,
        question: &Q,
        node: Arc<Node>,
        partitions: Vec<u16>,
    ) -> Vec<Result<Q::Answer, StoreError>> {
        let mut commands = Pipeline::new();
        for partition in &partitions {
            commands.add_command(question.call(self, *partition..partition + 1).command());
        }
        let sent = timeout(Q::patience(self), node.link(Q::LANE).send_all(&commands));
        let Ok(Ok(answers)) = sent.await else {
            self.nodes.look_again().await;
            return match partitions.first() {
                Some(first) => vec![self.ask_alone(question, *first).await, Err(slow())],
                None => Vec::new(),
            };
        };
        let mut found = Vec::with_capacity(partitions.len());
        for (partition, answer) in partitions.into_iter().zip(answers) {
            found.push(match answer.extract_error() {
                Ok(value) => Q::read(value),
                Err(_) => self.ask_alone(question, partition).await,
            });
        }
        found
    }

    /// Asks each node by itself.
    async fn ask_cluster<Q: Question>(&self, question: &Q) -> Vec<Result<Q::Answer, StoreError>> {
        let mut nodes: Vec<(Arc<Node>, Vec<u16>)> = Vec::new();
        let mut found = Vec::new();
        for partition in 0..self.keys.partitions {
            let owner = match self.nodes.owner(Slot::of(&Keys::deadlines(partition))).await {
                Ok(owner) => owner,
                Err(error) => {
                    found.push(Err(StoreError::Unavailable(error.into())));
                    continue;
                }
            };
            match nodes.iter_mut().find(|(node, _)| Arc::ptr_eq(node, &owner)) {
                Some((_, partitions)) => partitions.push(partition),
                None => nodes.push((owner, vec![partition])),
            }
        }
        let asked = nodes.into_iter().map(|(node, partitions)| self.ask_node(question, node, partitions));
        found.extend(join_all(asked).await.into_iter().flatten());
        found
    }
}

fn slow() -> StoreError {
    StoreError::Unavailable("a node of the cluster is slow".into())
}
