//! Queries over many partitions: due timers, totals and waiting conversations. On a single server, one script call
//! covers many partitions. On a cluster, each node gets one pipeline, with one script call per partition.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Pipeline, Value};
use tokio::time::timeout;

use super::keys::{self, Keys};
use super::node::{ConnectionRole, Node};
use super::nodes::Nodes;
use super::script::{ScriptCall, broken, bytes, list, number, text};
use super::scripts::Scripts;
use super::slots::HashSlot;
use crate::domain::gate::Totals;
use crate::domain::ids::ConversationRef;
use crate::domain::time::Timestamp;
use crate::store::{CLAIM_MS, Due, StoreError, group_by_conversation};

/// Maximum number of partitions per script call. In a cluster it is one, because partitions are in different slots.
const PARTITIONS_PER_CALL: usize = 64;
/// Maximum number of index entries that one script call for several partitions returns. Reading them takes Redis about
/// 2 ms.
const WAITING_PER_CALL: usize = 2_048;

/// A query that is executed as a script call for one or more partitions.
pub(super) trait PartitionQuery: Sync {
    /// The decoded reply.
    type Output: Send;
    /// The connection that the query uses.
    const ROLE: ConnectionRole;
    /// The script call for these partitions.
    fn call<'a>(&self, scripts: &'a Scripts, partitions: &[u16]) -> ScriptCall<'a>;
    /// Decodes the script's reply for these partitions.
    fn read(reply: Value, partitions: &[u16]) -> Result<Self::Output, StoreError>;
    /// The timeout for a cluster node, derived from the response timeout of a command.
    fn timeout(response: Duration) -> Duration;
    /// Maximum number of partitions per script call on a single server.
    fn partitions_per_call(&self) -> usize {
        PARTITIONS_PER_CALL
    }
}

/// Finds and claims due timers, at most `limit` per partition.
pub(super) struct DueQuery {
    pub(super) limit: usize,
    /// The current time in milliseconds. Empty: the script uses the server's clock.
    pub(super) now: String,
}

impl PartitionQuery for DueQuery {
    type Output = Due;
    const ROLE: ConnectionRole = ConnectionRole::Commands;

    fn call<'a>(&self, scripts: &'a Scripts, partitions: &[u16]) -> ScriptCall<'a> {
        let keys: Vec<String> = partitions.iter().copied().map(Keys::timers).collect();
        ScriptCall::new(&scripts.due, &keys, 0).raw(&*self.now).arg(self.limit).arg(CLAIM_MS)
    }

    fn read(reply: Value, partitions: &[u16]) -> Result<Due, StoreError> {
        let mut values = list(reply)?.into_iter();
        let now = values.next().ok_or_else(|| broken("the time is missing"))?;
        let now = Timestamp::from_millis(number(&now)?);
        let mut next_in_ms = Vec::new();
        let mut timers = Vec::new();
        for (&partition, value) in partitions.iter().zip(values) {
            let mut value = list(value)?.into_iter();
            // -1: the partition has no further timer.
            next_in_ms.push((partition, value.next().and_then(|next| number(&next).ok())));
            for member in value {
                let member = bytes(member)?;
                // An invalid member must not stop the other timers.
                if let Some(timer) = std::str::from_utf8(&member).ok().and_then(keys::parse_timer_member) {
                    timers.push(timer);
                } else {
                    tracing::debug!(name: "timer.invalid", "ignored an invalid member of a timer set");
                }
            }
        }
        Ok(Due { now, conversations: group_by_conversation(timers), next_in_ms })
    }

    /// Short, because a slow node delays the timers of the other nodes by up to twice this time.
    fn timeout(response: Duration) -> Duration {
        response / 4
    }
}

/// Adds up the totals of the partitions.
pub(super) struct TotalsQuery;

impl PartitionQuery for TotalsQuery {
    type Output = Totals;
    const ROLE: ConnectionRole = ConnectionRole::Reads;

    fn call<'a>(&self, scripts: &'a Scripts, partitions: &[u16]) -> ScriptCall<'a> {
        let keys =
            partitions.iter().flat_map(|&partition| [Keys::timers(partition), Keys::totals(partition)]);
        ScriptCall::new(&scripts.totals, &keys.collect::<Vec<_>>(), 0)
    }

    fn read(reply: Value, _: &[u16]) -> Result<Totals, StoreError> {
        let mut values = list(reply)?.into_iter();
        let mut count = || values.next().ok_or_else(|| broken("a total is missing")).and_then(|n| number(&n));
        Ok(Totals { awaiting: count()?, held: count()?, held_bytes: count()? })
    }

    fn timeout(response: Duration) -> Duration {
        response
    }
}

/// Finds the conversations with the oldest held results, at most `count` per partition.
pub(super) struct WaitingQuery {
    pub(super) count: usize,
}

impl PartitionQuery for WaitingQuery {
    /// For each conversation: the time in milliseconds at which its oldest held item was settled, and its reference.
    type Output = Vec<(u64, ConversationRef)>;
    const ROLE: ConnectionRole = ConnectionRole::Reads;

    fn call<'a>(&self, scripts: &'a Scripts, partitions: &[u16]) -> ScriptCall<'a> {
        let keys: Vec<String> = partitions.iter().copied().map(Keys::waiting).collect();
        ScriptCall::new(&scripts.waiting, &keys, 0).arg(self.count)
    }

    fn read(reply: Value, _: &[u16]) -> Result<Self::Output, StoreError> {
        let mut values = list(reply)?.into_iter();
        let mut found = Vec::new();
        while let (Some(conversation), Some(since)) = (values.next(), values.next()) {
            let conversation = text(conversation)?.parse();
            // An invalid member must not hide the others.
            if let (Ok(conversation), Ok(since)) = (conversation, text(since)?.parse()) {
                found.push((since, conversation));
            }
        }
        Ok(found)
    }

    fn timeout(response: Duration) -> Duration {
        response
    }

    fn partitions_per_call(&self) -> usize {
        (WAITING_PER_CALL / self.count.max(1)).clamp(1, PARTITIONS_PER_CALL)
    }
}

/// A reply and the partitions that it covers.
type PartReply<T> = (Vec<u16>, Result<T, StoreError>);

/// Sends partition queries.
pub(super) struct Partitions<'a> {
    pub(super) nodes: &'a Nodes,
    pub(super) scripts: &'a Scripts,
    pub(super) response_timeout: Duration,
}

impl Partitions<'_> {
    /// Queries these partitions. Each partition is covered by exactly one result, which can be an error.
    pub(super) async fn query<Q: PartitionQuery>(
        &self,
        query: &Q,
        partitions: &[u16],
    ) -> Vec<PartReply<Q::Output>> {
        if self.nodes.is_cluster() {
            return self.query_cluster(query, partitions).await;
        }
        let groups = partitions.chunks(query.partitions_per_call());
        join_all(groups.map(async |group| (group.to_vec(), self.query_group(query, group).await))).await
    }

    async fn query_group<Q: PartitionQuery>(
        &self,
        query: &Q,
        partitions: &[u16],
    ) -> Result<Q::Output, StoreError> {
        let reply = query.call(self.scripts, partitions).send(self.nodes, Q::ROLE).await?;
        Q::read(reply.value, partitions)
    }

    /// Queries one partition of a cluster. Follows redirections to its current node.
    async fn query_one<Q: PartitionQuery>(&self, query: &Q, partition: u16) -> PartReply<Q::Output> {
        let alone = [partition];
        let reply = timeout(Q::timeout(self.response_timeout), self.query_group(query, &alone));
        (vec![partition], reply.await.unwrap_or_else(|_| Err(no_response())))
    }

    /// Queries a node for some partitions in one pipeline. If the reply for a partition is an error, that partition is
    /// queried again on its own. If the node does not respond, only the first partition is queried again. This finds
    /// the new owner, which the next query then uses for all these partitions.
    async fn query_node<Q: PartitionQuery>(
        &self,
        query: &Q,
        node: Arc<Node>,
        partitions: Vec<u16>,
    ) -> Vec<PartReply<Q::Output>> {
        let mut commands = Pipeline::new();
        for &partition in &partitions {
            commands.add_command(query.call(self.scripts, &[partition]).command());
        }
        let sent = timeout(Q::timeout(self.response_timeout), node.connection(Q::ROLE).send_all(&commands));
        let Ok(Ok(replies)) = sent.await else {
            self.nodes.refresh_slots().await;
            return match partitions.split_first() {
                Some((&first, others)) => {
                    vec![self.query_one(query, first).await, (others.to_vec(), Err(no_response()))]
                }
                None => Vec::new(),
            };
        };
        let mut found = Vec::with_capacity(partitions.len());
        for (partition, reply) in partitions.into_iter().zip(replies) {
            found.push(match reply.extract_error() {
                Ok(value) => (vec![partition], Q::read(value, &[partition])),
                Err(_) => self.query_one(query, partition).await,
            });
        }
        found
    }

    /// Queries all nodes concurrently, each for its own partitions.
    async fn query_cluster<Q: PartitionQuery>(
        &self,
        query: &Q,
        partitions: &[u16],
    ) -> Vec<PartReply<Q::Output>> {
        let mut nodes: Vec<(Arc<Node>, Vec<u16>)> = Vec::new();
        let mut found = Vec::new();
        for &partition in partitions {
            let owner = match self.nodes.owner(HashSlot::of(&Keys::timers(partition))).await {
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
        let queries = nodes.into_iter().map(|(node, partitions)| self.query_node(query, node, partitions));
        found.extend(join_all(queries).await.into_iter().flatten());
        found
    }
}

fn no_response() -> StoreError {
    StoreError::Unavailable("a cluster node did not respond in time".into())
}
