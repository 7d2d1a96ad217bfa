//! Questions about all partitions at once: what is due, and what is held. One server is asked for many partitions with
//! each call; of a cluster each node for its own, with one round trip.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Pipeline, Value};
use tokio::time::timeout;

use super::RedisStore;
use super::keys::{self, Keys};
use super::nodes::{Lane, Node};
use super::script::{Call, broken, bytes, list, number};
use super::slots::Slot;
use crate::domain::gate::Totals;
use crate::domain::time::Timestamp;
use crate::store::{CLAIM_MS, Due, StoreError, gather};

/// How many partitions one call looks through; in a cluster one, because each has its own slot.
const PARTITIONS_AT_ONCE: usize = 64;

/// What can be asked of some partitions with one call.
pub(super) trait Question: Sync {
    /// What is answered.
    type Answer: Send;
    /// Which of a node's connections it takes.
    const LANE: Lane;
    /// The call, for these partitions.
    fn call<'a>(&self, store: &'a RedisStore, partitions: &[u16]) -> Call<'a>;
    /// Reads the script's reply for these partitions.
    fn read(reply: Value, partitions: &[u16]) -> Result<Self::Answer, StoreError>;
    /// How long a node of a cluster may take.
    fn patience(store: &RedisStore) -> Duration;
}

/// What is due, at most so many timers of each partition.
pub(super) struct WhatIsDue {
    pub(super) limit: usize,
}

impl Question for WhatIsDue {
    type Answer = Due;
    const LANE: Lane = Lane::Commands;

    fn call<'a>(&self, store: &'a RedisStore, partitions: &[u16]) -> Call<'a> {
        let keys: Vec<String> = partitions.iter().copied().map(Keys::timers).collect();
        Call::new(&store.scripts.due, &keys, 0).raw(store.now()).arg(self.limit).arg(CLAIM_MS)
    }

    fn read(reply: Value, partitions: &[u16]) -> Result<Due, StoreError> {
        let mut values = list(reply)?.into_iter();
        let now = values.next().ok_or_else(|| broken("a list without a time"))?;
        let now = Timestamp::from_millis(number(&now)?);
        let mut next_in_ms = Vec::new();
        let mut markers = Vec::new();
        for (&partition, value) in partitions.iter().zip(values) {
            let mut value = list(value)?.into_iter();
            // -1 stands for none.
            next_in_ms.push((partition, value.next().and_then(|next| number(&next).ok())));
            for member in value {
                let member = bytes(member)?;
                // What is no marker of ours must not stop the others.
                if let Some(marker) = std::str::from_utf8(&member).ok().and_then(keys::marked) {
                    markers.push(marker);
                } else {
                    tracing::debug!("a member of a set of timers is no marker");
                }
            }
        }
        Ok(Due { now, conversations: gather(markers), next_in_ms })
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

    fn call<'a>(&self, store: &'a RedisStore, partitions: &[u16]) -> Call<'a> {
        let keys =
            partitions.iter().flat_map(|&partition| [Keys::timers(partition), Keys::totals(partition)]);
        Call::new(&store.scripts.totals, &keys.collect::<Vec<_>>(), 0)
    }

    fn read(reply: Value, _: &[u16]) -> Result<Totals, StoreError> {
        let mut values = list(reply)?.into_iter();
        let mut count =
            || values.next().ok_or_else(|| broken("totals that are too few")).and_then(|n| number(&n));
        Ok(Totals { awaiting: count()?, held: count()?, held_bytes: count()? })
    }

    fn patience(store: &RedisStore) -> Duration {
        store.connection_limits.response
    }
}

/// An answer, and the partitions that it is about.
type Part<T> = (Vec<u16>, Result<T, StoreError>);

impl RedisStore {
    /// The answers of these partitions, some together. Who cannot be asked has a failure among them.
    pub(super) async fn ask<Q: Question>(&self, question: &Q, partitions: &[u16]) -> Vec<Part<Q::Answer>> {
        if self.nodes.is_cluster() {
            return self.ask_cluster(question, partitions).await;
        }
        let groups = partitions.chunks(PARTITIONS_AT_ONCE);
        join_all(groups.map(async |group| (group.to_vec(), self.ask_together(question, group).await))).await
    }

    async fn ask_together<Q: Question>(
        &self,
        question: &Q,
        partitions: &[u16],
    ) -> Result<Q::Answer, StoreError> {
        let answer = question.call(self, partitions).send(&self.nodes, Q::LANE).await?;
        Q::read(answer.value, partitions)
    }

    /// Asks for one partition of a cluster, wherever it is by now.
    async fn ask_alone<Q: Question>(&self, question: &Q, partition: u16) -> Part<Q::Answer> {
        let alone = [partition];
        let asked = timeout(Q::patience(self), self.ask_together(question, &alone));
        (vec![partition], asked.await.unwrap_or_else(|_| Err(slow())))
    }

    /// Asks a node for some partitions at once. One that it refuses is asked for alone. If the node is silent only one
    /// is, which looks for its new owner: the next round finds the others there.
    async fn ask_node<Q: Question>(
        &self,
        question: &Q,
        node: Arc<Node>,
        partitions: Vec<u16>,
    ) -> Vec<Part<Q::Answer>> {
        let mut commands = Pipeline::new();
        for &partition in &partitions {
            commands.add_command(question.call(self, &[partition]).command());
        }
        let sent = timeout(Q::patience(self), node.link(Q::LANE).send_all(&commands));
        let Ok(Ok(answers)) = sent.await else {
            self.nodes.look_again().await;
            return match partitions.split_first() {
                Some((&first, others)) => {
                    vec![self.ask_alone(question, first).await, (others.to_vec(), Err(slow()))]
                }
                None => Vec::new(),
            };
        };
        let mut found = Vec::with_capacity(partitions.len());
        for (partition, answer) in partitions.into_iter().zip(answers) {
            found.push(match answer.extract_error() {
                Ok(value) => (vec![partition], Q::read(value, &[partition])),
                Err(_) => self.ask_alone(question, partition).await,
            });
        }
        found
    }

    /// Asks each node by itself.
    async fn ask_cluster<Q: Question>(&self, question: &Q, partitions: &[u16]) -> Vec<Part<Q::Answer>> {
        let mut nodes: Vec<(Arc<Node>, Vec<u16>)> = Vec::new();
        let mut found = Vec::new();
        for &partition in partitions {
            let owner = match self.nodes.owner(Slot::of(&Keys::timers(partition))).await {
                Ok(owner) => owner,
                Err(error) => {
                    found.push((vec![partition], Err(StoreError::Unavailable(error.into()))));
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
