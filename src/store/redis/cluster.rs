//! The nodes of a Redis Cluster and the map from hash slots to nodes.

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

use super::connection::{Endpoint, Request};
use super::node::{ConnectionRole, Node};
use super::sentinel::text;
use super::servers::{Access, Address};
use super::settings::{ConnectionSettings, Replicas};
use super::slots::{HashSlot, SLOTS};

/// Minimum time between two refreshes of the slot map.
const REFRESH_INTERVAL: Duration = Duration::from_millis(100);
/// Time that a refresh waits for further replies after the first, because nodes learn of a failover at different times.
const LATE_REPLY_WAIT: Duration = Duration::from_millis(30);

const NO_RESPONSE: &str = "no node of the cluster responds";

/// The first and the last slot of a range, and the address of its primary.
type SlotRange = (u16, u16, Address);

/// The slot map as one node reports it.
#[derive(Debug)]
struct SlotReport {
    /// Whether `cluster_state` is `ok`, and the current epoch of the cluster. The state is compared first, because a
    /// node that is partitioned from the majority can have a higher epoch.
    rank: (bool, u64),
    ranges: Vec<SlotRange>,
}

/// The owner of each slot, and the known nodes.
#[derive(Debug)]
struct SlotMap {
    owners: Vec<Option<Address>>,
    nodes: HashMap<Address, Arc<Node>>,
}

/// A Redis Cluster, with a cached slot map.
#[derive(Debug)]
pub(super) struct Cluster {
    access: Access,
    settings: ConnectionSettings,
    replicas: Option<Replicas>,
    connections: Arc<AtomicU64>,
    /// The nodes in `store.url`. Kept even if the cluster does not report them.
    seeds: Vec<Address>,
    map: RwLock<SlotMap>,
    /// The time of the last refresh, and its error if no node responded.
    last_refresh: Mutex<Option<(Instant, Option<RedisError>)>>,
}

impl Cluster {
    pub(super) fn new(
        access: Access,
        seeds: &[Address],
        settings: ConnectionSettings,
        replicas: Option<Replicas>,
        connections: Arc<AtomicU64>,
    ) -> Self {
        let map = SlotMap { owners: vec![None; usize::from(SLOTS)], nodes: HashMap::new() };
        Self {
            access,
            settings,
            replicas,
            connections,
            seeds: seeds.to_vec(),
            map: RwLock::new(map),
            last_refresh: Mutex::default(),
        }
    }

    fn read<T>(&self, query: impl FnOnce(&SlotMap) -> T) -> T {
        query(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The node at this address. Does not connect: each connection is opened at its first use.
    pub(super) fn node(&self, address: &Address) -> Arc<Node> {
        if let Some(node) = self.read(|map| map.nodes.get(address).cloned()) {
            return node;
        }
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let node = map.nodes.entry(address.clone()).or_insert_with(|| {
            let endpoint = Endpoint::Server { access: self.access.clone(), address: address.clone() };
            Arc::new(Node::new(endpoint, self.settings, self.replicas, &self.connections))
        });
        Arc::clone(node)
    }

    /// The owner of a slot according to the cached map. Refreshes the map if the owner is unknown.
    pub(super) async fn owner(&self, slot: HashSlot) -> Result<Arc<Node>, RedisError> {
        let owner_address = || self.read(|map| map.owners[slot.index()].clone());
        if let Some(address) = owner_address() {
            return Ok(self.node(&address));
        }
        self.refresh().await;
        match owner_address() {
            Some(address) => Ok(self.node(&address)),
            None => Err(self.refresh_error("no responding node owns the slot").await),
        }
    }

    /// Records the new owner of a slot, after a `MOVED` redirection.
    pub(super) fn set_owner(&self, slot: HashSlot, address: &Address) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.owners[slot.index()] = Some(address.clone());
    }

    /// Refreshes the slot map, then returns all nodes that own slots.
    pub(super) async fn primaries(&self) -> Result<Vec<Arc<Node>>, RedisError> {
        self.refresh().await;
        let mut addresses = self.read(|map| map.owners.clone());
        addresses.dedup();
        let mut primaries: Vec<Address> = Vec::new();
        for address in addresses.into_iter().flatten() {
            if !primaries.contains(&address) {
                primaries.push(address);
            }
        }
        if primaries.is_empty() {
            return Err(self.refresh_error(NO_RESPONSE).await);
        }
        Ok(primaries.iter().map(|address| self.node(address)).collect())
    }

    /// The first primary that replies to `PING`.
    pub(super) async fn any_responding(&self) -> Result<Arc<Node>, RedisError> {
        let ping = cmd("PING");
        let mut replies: FuturesUnordered<_> = self
            .primaries()
            .await?
            .into_iter()
            .map(|node| async {
                let reply = node.connection(ConnectionRole::Commands).send(Request::command(&ping)).await;
                reply.map(|_| node).map_err(|failed| failed.error)
            })
            .collect();
        let mut failure = None;
        while let Some(reply) = replies.next().await {
            match reply {
                Ok(node) => return Ok(node),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| (ErrorKind::ClusterConnectionNotFound, NO_RESPONSE).into()))
    }

    /// The error of the last refresh. If it succeeded, an error with the message `otherwise`.
    async fn refresh_error(&self, otherwise: &'static str) -> RedisError {
        let last_refresh = self.last_refresh.lock().await.clone();
        last_refresh
            .and_then(|(_, error)| error)
            .unwrap_or_else(|| (ErrorKind::ClusterConnectionNotFound, otherwise).into())
    }

    /// Queries the slot map from all nodes and applies the report with the highest rank. Concurrent calls share one
    /// refresh.
    pub(super) async fn refresh(&self) {
        let called = Instant::now();
        let mut last_refresh = self.last_refresh.lock().await;
        if last_refresh.as_ref().is_some_and(|(at, _)| *at > called || at.elapsed() < REFRESH_INTERVAL) {
            return;
        }
        let mut addresses: Vec<Address> = self.read(|map| map.nodes.keys().cloned().collect());
        addresses
            .extend(self.seeds.iter().filter(|seed| !addresses.contains(seed)).cloned().collect::<Vec<_>>());
        let mut reports: FuturesUnordered<_> =
            addresses.into_iter().map(|address| self.report(address)).collect();
        let mut best: Result<SlotReport, Option<RedisError>> = Err(None);
        while let Some(report) = reports.next().await {
            best = report.map_err(Some);
            if best.is_ok() {
                break;
            }
        }
        let others = async {
            while let Some(report) = reports.next().await {
                if let (Ok(report), Ok(best)) = (report, &mut best)
                    && report.rank > best.rank
                {
                    *best = report;
                }
            }
        };
        // Nodes that do not respond must not delay the refresh.
        let _ = timeout(LATE_REPLY_WAIT, others).await;
        *last_refresh = Some((Instant::now(), best.as_ref().err().cloned().flatten()));
        if let Ok(best) = best {
            self.apply(&best.ranges);
        }
    }

    fn apply(&self, ranges: &[SlotRange]) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.owners.fill(None);
        for (first, last, address) in ranges {
            for slot in (*first..=*last).filter_map(HashSlot::new) {
                map.owners[slot.index()] = Some(address.clone());
            }
        }
        // The connections of a removed node are closed after its last request.
        let keep = |address: &Address| {
            self.seeds.contains(address) || ranges.iter().any(|(_, _, owner)| owner == address)
        };
        map.nodes.retain(|address, _| keep(address));
    }

    async fn report(&self, address: Address) -> Result<SlotReport, RedisError> {
        let node = self.node(&address);
        // This role has the shortest timeout and no large replies.
        let connection = node.connection(ConnectionRole::Commands);
        let command = cmd("CLUSTER").arg("SLOTS").to_owned();
        let (info, slots) =
            join(connection.text(&["CLUSTER", "INFO"]), connection.send(Request::command(&command))).await;
        let (info, slots) = (info.map_err(|failed| failed.error)?, slots.map_err(|failed| failed.error)?);
        let epoch = info.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:"));
        let epoch = epoch.and_then(|epoch| epoch.trim().parse().ok());
        let in_majority = info.lines().any(|line| line.trim() == "cluster_state:ok");
        match (epoch, ranges(slots.value, &address)) {
            (Some(epoch), Some(ranges)) if !ranges.is_empty() => {
                Ok(SlotReport { rank: (in_majority, epoch), ranges })
            }
            // A node that was removed from the cluster reports no slots.
            _ => Err((ErrorKind::ClusterConnectionNotFound, "the node reports no slots").into()),
        }
    }
}

/// Decodes the reply to `CLUSTER SLOTS`, which lists the bounds, the primary and the replicas of each range.
fn ranges(reply: Value, sender: &Address) -> Option<Vec<SlotRange>> {
    let Value::Array(entries) = reply else { return None };
    entries.into_iter().map(|entry| range(&entry, sender)).collect()
}

fn range(entry: &Value, sender: &Address) -> Option<SlotRange> {
    let Value::Array(parts) = entry else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = &parts[..] else { return None };
    let [host, Value::Int(port), ..] = &primary[..] else { return None };
    // An empty or unknown host means the host of the sender.
    let host = text(host).filter(|host| !host.is_empty() && *host != "?").unwrap_or(&sender.host);
    let address = Address { host: host.to_owned(), port: u16::try_from(*port).ok()? };
    Some((u16::try_from(*first).ok()?, u16::try_from(*last).ok()?, address))
}
