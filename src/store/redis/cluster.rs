//! The nodes of a cluster, and which of them has which slot.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join;
use futures_util::stream::FuturesUnordered;
use redis::{ErrorKind, RedisError, Value, cmd};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::link::{ConnectionLimits, Request, Target};
use super::nodes::{Lane, Node};
use super::replicas::Replicas;
use super::sentinel::text;
use super::servers::{Access, Address};
use super::slots::{SLOTS, Slot};

/// Shortest time between two looks at the cluster.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a second opinion is waited for: nodes learn of a failover one after the other.
const SECOND_OPINION: Duration = Duration::from_millis(30);

const NOBODY: &str = "no node of the cluster answers";

/// Some slots, first to last, and who has them.
type Range = (u16, u16, Address);

/// Who has which slot, as one node sees it.
#[derive(Debug)]
struct Opinion {
    /// Whether the node is one of the many, and the latest change that it knows of: one that is cut off counts on by
    /// itself.
    standing: (bool, u64),
    ranges: Vec<Range>,
}

/// Who has which slot.
#[derive(Debug)]
struct Map {
    owners: Vec<Option<Address>>,
    nodes: HashMap<Address, Arc<Node>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Cluster {
    access: Access,
    limits: ConnectionLimits,
    replicas: Option<Replicas>,
    connections: Arc<AtomicU64>,
    /// Never forgotten, whatever the cluster says.
    seeds: Vec<Address>,
    map: RwLock<Map>,
    /// When it was looked at, and why nothing was seen.
    looked: Mutex<Option<(Instant, Option<RedisError>)>>,
}

impl Cluster {
    pub(super) fn new(
        access: Access,
        seeds: &[Address],
        limits: ConnectionLimits,
        replicas: Option<Replicas>,
        connections: Arc<AtomicU64>,
    ) -> Self {
        let map = Map { owners: vec![None; usize::from(SLOTS)], nodes: HashMap::new() };
        Self {
            access,
            limits,
            replicas,
            connections,
            seeds: seeds.to_vec(),
            map: RwLock::new(map),
            looked: Mutex::default(),
        }
    }

    fn read<T>(&self, look: impl FnOnce(&Map) -> T) -> T {
        look(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The connections to the node at this address, made when they are first used.
    pub(super) fn node(&self, address: &Address) -> Arc<Node> {
        if let Some(node) = self.read(|map| map.nodes.get(address).cloned()) {
            return node;
        }
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let node = map.nodes.entry(address.clone()).or_insert_with(|| {
            let target = Target::Server { access: self.access.clone(), address: address.clone() };
            Arc::new(Node::new(target, self.limits, self.replicas, &self.connections))
        });
        Arc::clone(node)
    }

    /// The node that has a slot, as far as is known.
    pub(super) async fn owner(&self, slot: Slot) -> Result<Arc<Node>, RedisError> {
        let known = || self.read(|map| map.owners[slot.index()].clone());
        if let Some(address) = known() {
            return Ok(self.node(&address));
        }
        self.refresh().await;
        match known() {
            Some(address) => Ok(self.node(&address)),
            None => Err(self.unseen("no node that answers has the slot").await),
        }
    }

    /// A node said that another one has the slot.
    pub(super) fn learn(&self, slot: Slot, address: &Address) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.owners[slot.index()] = Some(address.clone());
    }

    /// Every node that has slots.
    pub(super) async fn masters(&self) -> Result<Vec<Arc<Node>>, RedisError> {
        self.refresh().await;
        let mut addresses = self.read(|map| map.owners.clone());
        addresses.dedup();
        let mut masters: Vec<Address> = Vec::new();
        for address in addresses.into_iter().flatten() {
            if !masters.contains(&address) {
                masters.push(address);
            }
        }
        if masters.is_empty() {
            return Err(self.unseen(NOBODY).await);
        }
        Ok(masters.iter().map(|address| self.node(address)).collect())
    }

    /// A node that answers.
    pub(super) async fn any(&self) -> Result<Arc<Node>, RedisError> {
        let ping = cmd("PING");
        let mut asked: FuturesUnordered<_> = self
            .masters()
            .await?
            .into_iter()
            .map(|node| async {
                let answer = node.link(Lane::Commands).send(Request::command(&ping)).await;
                answer.map(|_| node).map_err(|failed| failed.error)
            })
            .collect();
        let mut failure = None;
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(node) => return Ok(node),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| (ErrorKind::ClusterConnectionNotFound, NOBODY).into()))
    }

    /// Why the cluster could not be looked at, or else this.
    async fn unseen(&self, otherwise: &'static str) -> RedisError {
        let looked = self.looked.lock().await.clone();
        looked
            .and_then(|(_, why)| why)
            .unwrap_or_else(|| (ErrorKind::ClusterConnectionNotFound, otherwise).into())
    }

    /// Asks all nodes who has which slot, and believes the one of the many that knows of the latest change.
    pub(super) async fn refresh(&self) {
        let asked = Instant::now();
        let mut looked = self.looked.lock().await;
        if looked.as_ref().is_some_and(|(at, _)| *at > asked || at.elapsed() < LOOK_AGAIN) {
            return;
        }
        let mut addresses: Vec<Address> = self.read(|map| map.nodes.keys().cloned().collect());
        addresses
            .extend(self.seeds.iter().filter(|seed| !addresses.contains(seed)).cloned().collect::<Vec<_>>());
        let mut opinions: FuturesUnordered<_> =
            addresses.into_iter().map(|address| self.opinion(address)).collect();
        let mut best: Result<Opinion, Option<RedisError>> = Err(None);
        while let Some(opinion) = opinions.next().await {
            best = opinion.map_err(Some);
            if best.is_ok() {
                break;
            }
        }
        let others = async {
            while let Some(opinion) = opinions.next().await {
                if let (Ok(opinion), Ok(best)) = (opinion, &mut best)
                    && opinion.standing > best.standing
                {
                    *best = opinion;
                }
            }
        };
        // Who is late, or does not answer at all, is not waited for.
        let _ = timeout(SECOND_OPINION, others).await;
        *looked = Some((Instant::now(), best.as_ref().err().cloned().flatten()));
        if let Ok(best) = best {
            self.believe(&best.ranges);
        }
    }

    fn believe(&self, ranges: &[Range]) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.owners.fill(None);
        for (first, last, address) in ranges {
            for slot in (*first..=*last).filter_map(Slot::new) {
                map.owners[slot.index()] = Some(address.clone());
            }
        }
        // The connections to who has nothing any more are closed with their last user.
        let keep = |address: &Address| {
            self.seeds.contains(address) || ranges.iter().any(|(_, _, owner)| owner == address)
        };
        map.nodes.retain(|address, _| keep(address));
    }

    async fn opinion(&self, address: Address) -> Result<Opinion, RedisError> {
        let node = self.node(&address);
        // Not behind large pages, and no more patient than a callback is.
        let link = node.link(Lane::Commands);
        let question = cmd("CLUSTER").arg("SLOTS").to_owned();
        let (info, slots) =
            join(link.text(&["CLUSTER", "INFO"]), link.send(Request::command(&question))).await;
        let (info, slots) = (info.map_err(|failed| failed.error)?, slots.map_err(|failed| failed.error)?);
        let epoch = info.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:"));
        let epoch = epoch.and_then(|epoch| epoch.trim().parse().ok());
        let one_of_the_many = info.lines().any(|line| line.trim() == "cluster_state:ok");
        match (epoch, ranges(slots.value, &address)) {
            (Some(epoch), Some(ranges)) if !ranges.is_empty() => {
                Ok(Opinion { standing: (one_of_the_many, epoch), ranges })
            }
            // One that all others have forgotten knows of nobody.
            _ => Err((ErrorKind::ClusterConnectionNotFound, "a node knows of no slots").into()),
        }
    }
}

/// Reads the answer to `CLUSTER SLOTS`: of each range its bounds, its master, and its replicas.
fn ranges(answer: Value, sender: &Address) -> Option<Vec<Range>> {
    let Value::Array(entries) = answer else { return None };
    entries.into_iter().map(|entry| range(&entry, sender)).collect()
}

fn range(entry: &Value, sender: &Address) -> Option<Range> {
    let Value::Array(parts) = entry else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else { return None };
    let [host, Value::Int(port), ..] = &master[..] else { return None };
    // Without a host, or with one that it does not know, it is the sender's own.
    let host = text(host).filter(|host| !host.is_empty() && *host != "?").unwrap_or(&sender.host);
    let address = Address { host: host.to_owned(), port: u16::try_from(*port).ok()? };
    Some((u16::try_from(*first).ok()?, u16::try_from(*last).ok()?, address))
}
