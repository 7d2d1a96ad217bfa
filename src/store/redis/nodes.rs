//! Selects the node for a request, and retries the request where that is safe and can help.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::aio::PubSub;
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::time::{Instant, sleep, timeout};

use super::cluster::Cluster;
use super::connection::{Endpoint, Request, RequestError, RunId, ServerReply};
use super::failure::FailureKind;
use super::keys::Keys;
use super::node::{ConnectionRole, Node};
use super::sentinel::{LastEpoch, Sentinels};
use super::servers::{Address, Servers};
use super::settings::{ConnectionSettings, Replicas};
use super::slots::HashSlot;
use crate::store::StoreError;

/// Time during which a request is retried if no server could execute it: there was no connection, the slot was not
/// served, or the server was not the primary.
const RETRY_WINDOW: Duration = Duration::from_millis(250);
/// Delay between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum number of `MOVED` and `ASK` redirections of a request.
const MAX_REDIRECTIONS: u32 = 8;

/// A reply, the node that sent it, and the node's `run_id` if known.
#[derive(Debug)]
pub(super) struct NodeReply {
    pub(super) value: Value,
    pub(super) node: Arc<Node>,
    pub(super) run_id: Option<RunId>,
}

impl NodeReply {
    /// Takes the value, leaving `Nil`.
    pub(super) const fn take(&mut self) -> Value {
        std::mem::replace(&mut self.value, Value::Nil)
    }
}

/// All servers that accept writes.
#[derive(Debug)]
pub(super) enum Nodes {
    /// One primary. `has_failover`: whether sentinels can replace it.
    Single { node: Arc<Node>, has_failover: bool },
    /// A Redis Cluster.
    Cluster(Box<Cluster>),
}

impl Nodes {
    /// `connections` counts opened connections, without those for pub/sub.
    pub(super) fn new(
        servers: Servers,
        settings: ConnectionSettings,
        replicas: Option<Replicas>,
        connections: &Arc<AtomicU64>,
    ) -> Self {
        let one = |endpoint, has_failover| {
            let node = Arc::new(Node::new(endpoint, settings, replicas, connections));
            Self::Single { node, has_failover }
        };
        match servers {
            Servers::Single { access, address } => one(Endpoint::Server { access, address }, false),
            Servers::Sentinel { access, sentinel_access, sentinels, service } => {
                let sentinels = Sentinels {
                    access,
                    sentinel_access,
                    addresses: sentinels,
                    service,
                    settings,
                    last_seen: LastEpoch::default(),
                };
                one(Endpoint::Primary(Arc::new(sentinels)), true)
            }
            Servers::Cluster { access, seeds } => Self::Cluster(Box::new(Cluster::new(
                access,
                &seeds,
                settings,
                replicas,
                Arc::clone(connections),
            ))),
        }
    }

    pub(super) const fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// Whether a replica can be promoted when the primary fails.
    pub(super) const fn has_failover(&self) -> bool {
        match self {
            Self::Single { has_failover, .. } => *has_failover,
            Self::Cluster(_) => true,
        }
    }

    /// The node that owns a slot according to the cached slot map. Fails if the owner is unknown and no node of the
    /// cluster reports it.
    pub(super) async fn owner(&self, slot: HashSlot) -> Result<Arc<Node>, RedisError> {
        match self {
            Self::Single { node, .. } => Ok(Arc::clone(node)),
            Self::Cluster(cluster) => cluster.owner(slot).await,
        }
    }

    fn at(&self, address: &Address) -> Option<Arc<Node>> {
        match self {
            Self::Single { .. } => None,
            Self::Cluster(cluster) => Some(cluster.node(address)),
        }
    }

    fn set_owner(&self, slot: HashSlot, address: &Address) {
        if let Self::Cluster(cluster) = self {
            cluster.set_owner(slot, address);
        }
    }

    /// Refreshes the slot map, unless it was refreshed within the last 100 ms. No effect outside a cluster.
    pub(super) async fn refresh_slots(&self) {
        if let Self::Cluster(cluster) = self {
            cluster.refresh().await;
        }
    }

    /// All primaries.
    pub(super) async fn all(&self) -> Result<Vec<Arc<Node>>, RedisError> {
        match self {
            Self::Single { node, .. } => Ok(vec![Arc::clone(node)]),
            Self::Cluster(cluster) => cluster.primaries().await,
        }
    }

    /// Succeeds if at least one node accepts writes, because a cluster with failed nodes still serves other slots.
    pub(super) async fn ping(&self, partitions: u16) -> Result<(), StoreError> {
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        let mut tried = FuturesUnordered::new();
        let mut failure = None;
        for partition in 0..if self.is_cluster() { partitions } else { 1 } {
            match self.owner(HashSlot::of(&Keys::probe(partition).0)).await {
                Ok(node) if nodes.iter().any(|known| Arc::ptr_eq(known, &node)) => {}
                Ok(node) => {
                    nodes.push(node);
                    tried.push(self.probe_write(partition));
                }
                Err(error) => failure = Some(StoreError::Unavailable(error.into())),
            }
        }
        while let Some(answer) = tried.next().await {
            match answer {
                Ok(()) => return Ok(()),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Sends a write that Redis rejects under the same conditions as the write of a callback. It changes nothing,
    /// because `SET … XX` sets only an existing key, and this key never exists.
    async fn probe_write(&self, partition: u16) -> Result<(), StoreError> {
        let (key, _) = Keys::probe(partition);
        let write = redis::cmd("SET").arg(&key).arg("").arg("XX").arg("PX").arg(1).to_owned();
        let answer =
            self.call(ConnectionRole::Commands, HashSlot::of(&key), Request::command(&write)).await?;
        let Some(barrier) = &answer.node.barrier else { return Ok(()) };
        let confirmed = barrier.confirm(answer.run_id.as_ref(), &Keys::health(partition)).await;
        confirmed.map_err(StoreError::OutcomeUnknown)
    }

    /// Opens a pub/sub connection. In a cluster every node receives all messages.
    pub(super) async fn listen(&self, limit: Duration) -> RedisResult<PubSub> {
        let listen = async {
            match self {
                Self::Single { node, .. } => node.listen().await,
                Self::Cluster(cluster) => cluster.any_responding().await?.listen().await,
            }
        };
        timeout(limit, listen).await.map_err(std::io::Error::from)?
    }

    /// Sends an idempotent request to the owner of a slot.
    ///
    /// A request whose connection was lost is retried once. A request that no server could execute is retried for
    /// [`RETRY_WINDOW`] if a failover is possible.
    ///
    /// Fails with [`StoreError::OutcomeUnknown`] if a write may have been executed, with [`StoreError::Broken`] if a
    /// script failed, and otherwise with [`StoreError::Unavailable`].
    pub(super) async fn call(
        &self,
        role: ConnectionRole,
        slot: HashSlot,
        mut request: Request<'_>,
    ) -> Result<NodeReply, StoreError> {
        let since = Instant::now();
        let unknown = |error: RedisError| match role {
            ConnectionRole::Commands => StoreError::OutcomeUnknown(error.into()),
            ConnectionRole::Reads | ConnectionRole::Pages => StoreError::Unavailable(error.into()),
        };
        let asking = redis::cmd("ASKING");
        let mut redirected_to: Option<Arc<Node>> = None;
        let mut redirections = 0;
        let mut lost: Option<RedisError> = None;
        let mut refreshed = false;
        loop {
            let (owner, sent) = match redirected_to.take() {
                Some(node) => (Ok(node), request.preceded_by(&asking)),
                None => (self.owner(slot).await, request),
            };
            let tried = owner.as_ref().ok().cloned();
            let failed = match owner {
                Ok(node) => match node.connection(role).send(sent).await {
                    Ok(ServerReply { value, run_id }) => return Ok(NodeReply { value, node, run_id }),
                    Err(failed) => failed,
                },
                Err(error) => RequestError { kind: FailureKind::NotSent, error },
            };
            let error = failed.error;
            match failed.kind {
                FailureKind::ScriptFailed => return Err(StoreError::Broken(error.to_string())),
                FailureKind::TimedOut => {
                    // The next request uses the new owner if the node was replaced.
                    self.refresh_slots().await;
                    return Err(unknown(error));
                }
                FailureKind::ConnectionLost if lost.is_some() => return Err(unknown(error)),
                FailureKind::ConnectionLost => {
                    lost = Some(error);
                    request = request.into_retry();
                    continue;
                }
                FailureKind::Moved(slot, address) if redirections < MAX_REDIRECTIONS && self.is_cluster() => {
                    redirections += 1;
                    self.set_owner(slot, &address);
                    continue;
                }
                FailureKind::Ask(address) if redirections < MAX_REDIRECTIONS && self.is_cluster() => {
                    redirections += 1;
                    redirected_to = self.at(&address);
                    continue;
                }
                FailureKind::NotSent | FailureKind::NotPrimary
                    if self.has_failover() && since.elapsed() < RETRY_WINDOW =>
                {
                    sleep(RETRY_INTERVAL).await;
                    self.refresh_slots().await;
                    continue;
                }
                // Connecting to a failed host can take longer than the window. Try a new owner once, if there is one.
                FailureKind::NotSent | FailureKind::NotPrimary if !refreshed && self.is_cluster() => {
                    refreshed = true;
                    self.refresh_slots().await;
                    let owner = self.owner(slot).await.ok();
                    if owner.as_ref().map(Arc::as_ptr) != tried.as_ref().map(Arc::as_ptr) {
                        continue;
                    }
                }
                FailureKind::Rejected
                | FailureKind::NotSent
                | FailureKind::NotPrimary
                | FailureKind::Moved(..)
                | FailureKind::Ask(_) => {}
            }
            return Err(match lost {
                Some(lost) => unknown(lost),
                None => StoreError::Unavailable(error.into()),
            });
        }
    }

    /// Sends a command to the owner of `key`.
    pub(super) async fn command(&self, key: &str, command: &Cmd) -> Result<Value, StoreError> {
        let answer =
            self.call(ConnectionRole::Commands, HashSlot::of(key), Request::command(command)).await?;
        Ok(answer.value)
    }
}
