//! Starts a Redis cluster: three primaries, each with a replica.

use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use redis::FromRedisValue;
use tokio::time::Instant;

use crate::redis_commands::{ask, replication, words};
use crate::redis_server::RedisServer;

/// Number of primaries.
const MASTERS: usize = 3;
/// Longest time for the nodes to agree.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running cluster. The first three nodes start as primaries; the others are their replicas, in the same order.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

/// Polls until the condition holds; panics after a minute.
pub fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "waited in vain: {what}");
        sleep(Duration::from_millis(10));
    }
}

impl RedisCluster {
    /// Starts a cluster with this `cluster-node-timeout`.
    pub fn start(node_timeout_ms: u32) -> Self {
        let timeout = node_timeout_ms.to_string();
        let options = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            &timeout,
            "--cluster-replica-validity-factor",
            "0",
            "--cluster-require-full-coverage",
            "no",
            "--repl-diskless-sync-delay",
            "0",
        ];
        let cluster = Self { nodes: (0..2 * MASTERS).map(|_| RedisServer::with(&options)).collect() };
        cluster.introduce();
        cluster
    }

    /// The cluster shared by tests that neither kill nodes nor move slots.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<RedisCluster> = OnceLock::new();
        // Long, so that no node fails over on a busy machine.
        SHARED.get_or_init(|| Self::start(30_000))
    }

    fn introduce(&self) {
        let mut epoch = 0;
        for node in &self.nodes {
            epoch += 1;
            ask::<()>(node, &["CLUSTER", "SET-CONFIG-EPOCH", &epoch.to_string()]);
        }
        for (number, master) in self.nodes[..MASTERS].iter().enumerate() {
            let bound = |number: usize| number * 16_384 / MASTERS;
            let (first, end) = (bound(number), bound(number + 1));
            let mut add = words(&["CLUSTER", "ADDSLOTS"]);
            (first..end).for_each(|slot| {
                add.arg(slot);
            });
            add.exec(&mut master.connection(0)).unwrap();
        }
        for node in &self.nodes[1..] {
            ask::<()>(&self.nodes[0], &["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string()]);
        }
        wait("all nodes know each other", || {
            self.nodes.iter().all(|node| {
                let known: String = ask(node, &["CLUSTER", "NODES"]);
                known.lines().count() == self.nodes.len() && !known.contains("handshake")
            })
        });
        for (master, replica) in self.nodes[..MASTERS].iter().zip(&self.nodes[MASTERS..]) {
            let id: String = ask(master, &["CLUSTER", "MYID"]);
            ask::<()>(replica, &["CLUSTER", "REPLICATE", &id]);
        }
        wait("all replicas follow", || {
            let following = |node| replication(node).contains("master_link_status:up");
            self.nodes[MASTERS..].iter().all(following)
        });
        self.wait_until_whole();
    }

    /// Waits until every running node reports all slots as served.
    pub fn wait_until_whole(&self) {
        wait("the cluster is whole", || {
            self.running().all(|node| {
                let info: String = ask(node, &["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
            })
        });
    }

    /// The nodes that have not been killed.
    pub fn running(&self) -> impl Iterator<Item = &RedisServer> {
        self.nodes.iter().filter(|node| node.is_running())
    }

    /// The cluster's URL, which lists the first three nodes.
    pub fn url(&self) -> String {
        let named: Vec<String> =
            self.nodes[..MASTERS].iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{}", named.join(","))
    }

    /// The running primaries.
    pub fn masters(&self) -> impl Iterator<Item = &RedisServer> {
        self.running().filter(|node| replication(node).contains("role:master"))
    }

    /// Index of the node that owns a slot.
    pub fn owner(&self, slot: u16) -> usize {
        self.owner_by(self.running().next().unwrap(), slot)
    }

    /// Index of the slot's owner in the view of this node.
    fn owner_by(&self, node: &RedisServer, slot: u16) -> usize {
        let slots: Vec<redis::Value> = ask(node, &["CLUSTER", "SLOTS"]);
        for range in slots {
            let redis::Value::Array(parts) = range else { panic!("a range is a list") };
            let redis::Value::Array(master) = &parts[2] else { panic!("a node is a list") };
            let number = |value: &redis::Value| u16::from_redis_value(value.clone()).unwrap();
            let port = number(&master[1]);
            if (number(&parts[0])..=number(&parts[1])).contains(&slot) {
                return self.nodes.iter().position(|node| node.port() == port).unwrap();
            }
        }
        panic!("slot {slot} has no owner");
    }

    /// Waits until the node at this index no longer owns the slot.
    pub fn wait_for_another_owner(&self, slot: u16, before: usize) {
        wait("the slot has another owner", || self.owner(slot) != before);
    }

    /// Moves the keys of a slot to the primary at this index. The slot stays in migration until [`RedisCluster::give`].
    pub fn migrate(&self, slot: u16, to: usize) {
        let (from, to) = (&self.nodes[self.owner(slot)], &self.nodes[to]);
        let slot = slot.to_string();
        let id = |node| ask::<String>(node, &["CLUSTER", "MYID"]);
        ask::<()>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
        ask::<()>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
        let port = to.port().to_string();
        loop {
            let keys: Vec<String> = ask(from, &["CLUSTER", "GETKEYSINSLOT", &slot, "10"]);
            if keys.is_empty() {
                break;
            }
            let mut migrate = words(&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"]);
            migrate.arg(keys).exec(&mut from.connection(0)).unwrap();
        }
    }

    /// Makes the primary at this index the owner of a migrated slot, and waits until all nodes know.
    pub fn give(&self, slot: u16, place: usize) {
        let (from, to) = (&self.nodes[self.owner(slot)], &self.nodes[place]);
        let id: String = ask(to, &["CLUSTER", "MYID"]);
        let is_other = |node: &&RedisServer| ![from.port(), to.port()].contains(&node.port());
        for node in [to, from].into_iter().chain(self.masters().filter(is_other)) {
            ask::<()>(node, &["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &id]);
        }
        wait("all know who has the slot", || self.running().all(|node| self.owner_by(node, slot) == place));
    }

    /// All nodes.
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// The node at this index.
    pub fn node(&mut self, place: usize) -> &mut RedisServer {
        &mut self.nodes[place]
    }

    /// Deletes all keys.
    pub fn clear(&self) {
        self.masters().for_each(|master| ask::<()>(master, &["FLUSHALL"]));
    }
}
