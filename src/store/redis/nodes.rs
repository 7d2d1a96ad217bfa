//! Who a request goes to, and what is done when it did not get there.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::aio::PubSub;
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::time::{Instant, sleep, timeout};

use super::cluster::Cluster;
use super::fate::Fate;
use super::keys::Keys;
use super::link::{Answered, ConnectionLimits, Failed, Link, Request, RunId, Target};
use super::replicas::{Fence, Replicas};
use super::sentinel::Sentinels;
use super::servers::{Address, Servers};
use super::slots::Slot;
use crate::store::StoreError;

/// For how long a request that nobody executed looks for another server.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long it waits between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// How many redirections it follows.
const REDIRECTIONS: u32 = 8;

/// Which of a node's connections a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// For what changes something, and for short questions; nothing large comes back on it.
    Commands,
    /// For what reads and changes nothing, so that a large conversation delays no callback.
    Reads,
    /// For pages of channels, so that they delay no other read.
    Pages,
}

/// A server that takes writes, and the connections to it.
#[derive(Debug)]
pub(super) struct Node {
    target: Target,
    commands: Link,
    reads: Link,
    pages: Link,
    pub(super) fence: Option<Fence>,
}

impl Node {
    pub(super) fn new(
        target: Target,
        limits: ConnectionLimits,
        replicas: Option<Replicas>,
        connections: &Arc<AtomicU64>,
    ) -> Self {
        let link = |limits, identify| Link::new(target.clone(), limits, identify, Arc::clone(connections));
        Self {
            commands: link(limits, replicas.is_some()),
            reads: link(limits.for_reads(), false),
            pages: link(limits.for_reads(), false),
            fence: replicas
                .map(|replicas| Fence::new(target.clone(), limits, replicas, Arc::clone(connections))),
            target,
        }
    }

    pub(super) const fn link(&self, lane: Lane) -> &Link {
        match lane {
            Lane::Commands => &self.commands,
            Lane::Reads => &self.reads,
            Lane::Pages => &self.pages,
        }
    }

    async fn listen(&self) -> RedisResult<PubSub> {
        match &self.target {
            Target::Server { access, address } => access.client(address)?.get_async_pubsub().await,
            Target::Master(sentinels) => {
                sentinels.master(|client, _| async move { client.get_async_pubsub().await }).await
            }
        }
    }
}

/// An answer, and the node that gave it.
#[derive(Debug)]
pub(super) struct FromNode {
    pub(super) value: Value,
    pub(super) node: Arc<Node>,
    pub(super) run: Option<RunId>,
}

impl FromNode {
    /// Takes the answer out.
    pub(super) const fn take(&mut self) -> Value {
        std::mem::replace(&mut self.value, Value::Nil)
    }
}

/// All servers that take writes.
#[derive(Debug)]
pub(super) enum Nodes {
    /// There is one, perhaps another one tomorrow.
    One { node: Arc<Node>, may_change: bool },
    /// There are several, each with slots of its own.
    Cluster(Box<Cluster>),
}

impl Nodes {
    /// Counts in `connections` each that is made, but those that listen.
    pub(super) fn new(
        servers: Servers,
        limits: ConnectionLimits,
        replicas: Option<Replicas>,
        connections: &Arc<AtomicU64>,
    ) -> Self {
        let one = |target, may_change| {
            let node = Arc::new(Node::new(target, limits, replicas, connections));
            Self::One { node, may_change }
        };
        match servers {
            Servers::One { access, address } => one(Target::Server { access, address }, false),
            Servers::Sentinel { access, asking, sentinels, service } => {
                let sentinels = Sentinels { access, asking, addresses: sentinels, service, limits };
                one(Target::Master(Arc::new(sentinels)), true)
            }
            Servers::Cluster { access, seeds } => Self::Cluster(Box::new(Cluster::new(
                access,
                &seeds,
                limits,
                replicas,
                Arc::clone(connections),
            ))),
        }
    }

    /// Whether the keys are spread over several servers.
    pub(super) const fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// Whether another server takes over when one fails.
    pub(super) const fn may_change(&self) -> bool {
        match self {
            Self::One { may_change, .. } => *may_change,
            Self::Cluster(_) => true,
        }
    }

    /// The node that has a slot, as far as is known.
    pub(super) async fn owner(&self, slot: Slot) -> Result<Arc<Node>, RedisError> {
        match self {
            Self::One { node, .. } => Ok(Arc::clone(node)),
            Self::Cluster(cluster) => cluster.owner(slot).await,
        }
    }

    fn at(&self, address: &Address) -> Option<Arc<Node>> {
        match self {
            Self::One { .. } => None,
            Self::Cluster(cluster) => Some(cluster.node(address)),
        }
    }

    fn learn(&self, slot: Slot, address: &Address) {
        if let Self::Cluster(cluster) = self {
            cluster.learn(slot, address);
        }
    }

    /// Looks who has which slot, unless that was done a moment ago.
    pub(super) async fn look_again(&self) {
        if let Self::Cluster(cluster) = self {
            cluster.refresh().await;
        }
    }

    /// Every node that takes writes.
    pub(super) async fn all(&self) -> Result<Vec<Arc<Node>>, RedisError> {
        match self {
            Self::One { node, .. } => Ok(vec![Arc::clone(node)]),
            Self::Cluster(cluster) => cluster.masters().await,
        }
    }

    /// Whether any of them can take callbacks: in a cluster of which a part is away, the others have work to do.
    pub(super) async fn ping(&self, partitions: u16) -> Result<(), StoreError> {
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        let mut tried = FuturesUnordered::new();
        let mut failure = None;
        for partition in 0..if self.is_cluster() { partitions } else { 1 } {
            match self.owner(Slot::of(&Keys::probe(partition).0)).await {
                Ok(node) if nodes.iter().any(|known| Arc::ptr_eq(known, &node)) => {}
                Ok(node) => {
                    nodes.push(node);
                    tried.push(self.try_to_write(partition));
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

    /// Tries a write that is refused like a callback's would be. Nothing is under its key, so it writes nothing.
    async fn try_to_write(&self, partition: u16) -> Result<(), StoreError> {
        let (key, _) = Keys::probe(partition);
        let write = redis::cmd("SET").arg(&key).arg("").arg("XX").arg("PX").arg(1).to_owned();
        let answer = self.call(Lane::Commands, Slot::of(&key), Request::command(&write)).await?;
        let Some(fence) = &answer.node.fence else { return Ok(()) };
        let confirmed = fence.confirm(answer.run.as_ref(), &Keys::health(partition)).await;
        confirmed.map_err(StoreError::OutcomeUnknown)
    }

    /// A connection that hears what is published, wherever it is.
    pub(super) async fn listen(&self, limit: Duration) -> RedisResult<PubSub> {
        let listen = async {
            match self {
                Self::One { node, .. } => node.listen().await,
                // What one node publishes all of them tell.
                Self::Cluster(cluster) => cluster.any().await?.listen().await,
            }
        };
        timeout(limit, listen).await.map_err(std::io::Error::from)?
    }

    /// Sends a request that can be repeated without harm to the owner of a slot. After a lost connection it is repeated
    /// once; what cannot be known then is told as [`StoreError::OutcomeUnknown`], except of reads, which change nothing
    /// either way. What nobody executed looks for another server for a while, where there may be one.
    pub(super) async fn call(
        &self,
        lane: Lane,
        slot: Slot,
        mut request: Request<'_>,
    ) -> Result<FromNode, StoreError> {
        let since = Instant::now();
        let unknown = |error: RedisError| match lane {
            Lane::Commands => StoreError::OutcomeUnknown(error.into()),
            Lane::Reads | Lane::Pages => StoreError::Unavailable(error.into()),
        };
        let asking = redis::cmd("ASKING");
        let mut asked: Option<Arc<Node>> = None;
        let mut redirections = 0;
        let mut lost: Option<RedisError> = None;
        let mut looked_for_another = false;
        loop {
            let (owner, sent) = match asked.take() {
                Some(node) => (Ok(node), request.after(&asking)),
                None => (self.owner(slot).await, request),
            };
            let tried = owner.as_ref().ok().cloned();
            let failed = match owner {
                Ok(node) => match node.link(lane).send(sent).await {
                    Ok(Answered { value, run }) => return Ok(FromNode { value, node, run }),
                    Err(failed) => failed,
                },
                Err(error) => Failed { fate: Fate::Astray, error },
            };
            let error = failed.error;
            match failed.fate {
                Fate::Mistake => return Err(StoreError::Broken(error.to_string())),
                Fate::Late => {
                    // For the next request: who is silent may have been replaced.
                    self.look_again().await;
                    return Err(unknown(error));
                }
                Fate::Disconnected if lost.is_some() => return Err(unknown(error)),
                Fate::Disconnected => {
                    lost = Some(error);
                    request = request.repeated();
                    continue;
                }
                Fate::Moved(slot, address) if redirections < REDIRECTIONS && self.is_cluster() => {
                    redirections += 1;
                    self.learn(slot, &address);
                    continue;
                }
                Fate::Ask(address) if redirections < REDIRECTIONS && self.is_cluster() => {
                    redirections += 1;
                    asked = self.at(&address);
                    continue;
                }
                Fate::Astray | Fate::NoMaster if self.may_change() && since.elapsed() < PATIENCE => {
                    sleep(PAUSE).await;
                    self.look_again().await;
                    continue;
                }
                // To find out that a host is gone takes longer than that.
                Fate::Astray | Fate::NoMaster if !looked_for_another && self.is_cluster() => {
                    looked_for_another = true;
                    self.look_again().await;
                    let owner = self.owner(slot).await.ok();
                    if owner.as_ref().map(Arc::as_ptr) != tried.as_ref().map(Arc::as_ptr) {
                        continue;
                    }
                }
                Fate::Refused | Fate::Astray | Fate::NoMaster | Fate::Moved(..) | Fate::Ask(_) => {}
            }
            return Err(match lost {
                Some(lost) => unknown(lost),
                None => StoreError::Unavailable(error.into()),
            });
        }
    }

    /// Sends a command that concerns one key.
    pub(super) async fn command(&self, key: &str, command: &Cmd) -> Result<Value, StoreError> {
        let answer = self.call(Lane::Commands, Slot::of(key), Request::command(command)).await?;
        Ok(answer.value)
    }
}
