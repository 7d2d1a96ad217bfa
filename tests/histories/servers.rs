//! The Redis servers of a deployment: a single one, sentinels, or a cluster.

use test_support::redis_cluster::{RedisCluster, wait};
use test_support::redis_commands::{ask, replication, words};
use test_support::redis_sentinels::RedisSentinels;
use test_support::redis_server::RedisServer;

use crate::deployment::Kind;

/// Milliseconds until a primary counts as failed; long, so that no busy server does.
const DOWN_AFTER_MS: u32 = 1_500;
/// Replicas of the primary under sentinels: one is promoted, and the other acknowledges its writes.
const REPLICAS: usize = 2;
/// Primaries of a cluster, each with a replica.
const MASTERS: usize = 3;
/// Number of slots that migrate together.
const SLOTS_MOVED: usize = 10;

/// Running servers, stopped when dropped.
#[derive(Debug)]
pub(crate) enum Servers {
    One(RedisServer),
    Sentinels(RedisSentinels),
    Cluster(RedisCluster),
}

/// A primary that was killed.
#[derive(Debug)]
pub(crate) struct Killed {
    place: usize,
    /// One of its slots, in a cluster.
    slot: u16,
}

impl Servers {
    pub(crate) fn start(kind: Kind) -> Option<Self> {
        Some(match kind {
            Kind::Memory => return None,
            Kind::Durable(_) => Self::One(RedisServer::durable()),
            Kind::Forgetful(_) => Self::One(RedisServer::start()),
            Kind::Sentinels { .. } => {
                let service = RedisSentinels::start(REPLICAS, 3, DOWN_AFTER_MS);
                service.hurry();
                Self::Sentinels(service)
            }
            Kind::Cluster { .. } => Self::Cluster(RedisCluster::start(DOWN_AFTER_MS)),
        })
    }

    /// The only one.
    pub(crate) fn one(&mut self) -> &mut RedisServer {
        match self {
            Self::One(server) => server,
            Self::Sentinels(_) | Self::Cluster(_) => panic!("there are several servers"),
        }
    }

    /// The store URL.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::One(server) => server.url(0),
            Self::Sentinels(service) => service.url(0),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    /// The URLs of the servers that may have a stream.
    pub(crate) fn stream_urls(&self) -> Vec<String> {
        match self {
            Self::One(server) => vec![server.url(0)],
            Self::Sentinels(service) => vec![service.servers()[service.master()].url(0)],
            // The other nodes reply with a redirection.
            Self::Cluster(cluster) => cluster.running().map(|node| node.url(0)).collect(),
        }
    }

    /// The running servers.
    pub(crate) fn running(&self) -> Vec<&RedisServer> {
        match self {
            Self::One(server) => vec![server],
            Self::Sentinels(service) => service.servers().iter().filter(|one| one.is_running()).collect(),
            Self::Cluster(cluster) => cluster.running().collect(),
        }
    }

    /// The server that has a key.
    pub(crate) fn with(&mut self, key: &str) -> &RedisServer {
        match self {
            Self::One(server) => server,
            Self::Sentinels(service) => &service.servers()[service.master()],
            Self::Cluster(cluster) => {
                let slot = slot_of(cluster, key);
                let place = cluster.owner(slot);
                cluster.node(place)
            }
        }
    }

    /// A primary, chosen by a number up to 1000.
    fn master(&self, number: u64) -> Killed {
        match self {
            Self::One(_) => panic!("nobody stands in for a single server"),
            Self::Sentinels(service) => Killed { place: service.master(), slot: 0 },
            Self::Cluster(cluster) => {
                let slot = u16::try_from(number * 16).unwrap();
                Killed { place: cluster.owner(slot), slot }
            }
        }
    }

    fn at(&mut self, place: usize) -> &mut RedisServer {
        match self {
            Self::One(server) => server,
            Self::Sentinels(service) => service.server(place),
            Self::Cluster(cluster) => cluster.node(place),
        }
    }

    /// Kills a primary. If its replicas are to lag, they receive no writes until `meanwhile` is done.
    pub(crate) fn kill_master(&mut self, number: u64, behind: bool, meanwhile: impl FnOnce()) -> Killed {
        let killed = self.master(number);
        if behind {
            let master = self.at(killed.place).port();
            self.let_in(master, false);
            ask::<i64>(self.at(killed.place), &["CLIENT", "KILL", "TYPE", "replica"]);
            meanwhile();
            self.at(killed.place).kill();
            self.let_in(master, true);
        } else {
            self.at(killed.place).kill();
        }
        killed
    }

    /// Lets the replicas of the primary at this port connect to it again, or prevents it.
    fn let_in(&self, master: u16, known: bool) {
        let followed = format!("master_port:{master}\r");
        let follow = |server: &&RedisServer| replication(server).contains(&followed);
        for replica in self.running().into_iter().filter(follow) {
            let name = if known { "" } else { "nobody" };
            ask::<()>(replica, &["CONFIG", "SET", "masteruser", name]);
            ask::<()>(replica, &["CONFIG", "SET", "masterauth", name]);
        }
    }

    /// Waits until a replica is promoted in place of this server.
    pub(crate) fn wait_for_another(&self, killed: &Killed) {
        match self {
            Self::One(_) => {}
            Self::Sentinels(service) => service.wait_for_another_master(killed.place),
            Self::Cluster(cluster) => cluster.wait_for_another_owner(killed.slot, killed.place),
        }
    }

    /// Restarts it and waits until all servers are connected again, with the roles after the failover.
    pub(crate) fn bring_back(&mut self, killed: &Killed) {
        self.at(killed.place).restart();
        self.wait_until_whole();
    }

    /// Waits until every replica has its primary's data as of the call.
    pub(crate) fn wait_until_whole(&self) {
        let masters = match self {
            Self::One(_) => return,
            Self::Sentinels(_) => 1,
            Self::Cluster(cluster) => {
                cluster.wait_until_whole();
                MASTERS
            }
        };
        let servers = self.running();
        wait("the replicas follow", || {
            let told: Vec<String> = servers.iter().map(|server| replication(server)).collect();
            let replicas: usize = told.iter().map(|info| info.matches("state=online").count()).sum();
            let in_charge = told.iter().filter(|info| info.contains("role:master")).count();
            in_charge == masters && replicas == servers.len() - masters
        });
        for server in &servers {
            let info = replication(server);
            let number =
                |text: &str| text.split(['\r', ',']).next().and_then(|text| text.parse::<u64>().ok());
            let offsets = |info: &str, name: &str| -> Vec<u64> {
                info.split(name).skip(1).filter_map(number).collect()
            };
            let written = offsets(&info, "master_repl_offset:");
            if info.contains("role:master") {
                wait("the replicas have everything", || {
                    let read = offsets(&replication(server), ",offset=");
                    !read.is_empty() && read.iter().all(|offset| Some(offset) >= written.first())
                });
            }
        }
    }

    /// Migrates some slots with conversations to other primaries, one by one, with a pause during each migration.
    pub(crate) fn move_slots(&self, number: u64, halfway: impl Fn()) {
        let Self::Cluster(cluster) = self else { panic!("only a cluster has slots") };
        let tags = (0..64).map(|partition| format!("cb:{}", (partition + number) % 64));
        let held = tags.map(|tag| slot_of(cluster, &tag)).filter(|&slot| {
            let count: u64 = words(&["CLUSTER", "COUNTKEYSINSLOT"])
                .arg(slot)
                .query(&mut cluster.nodes()[cluster.owner(slot)].connection(0))
                .unwrap();
            count > 0
        });
        for slot in held.take(SLOTS_MOVED) {
            let from = cluster.owner(slot);
            let mut others = (1..16).map(|on| cluster.owner((slot + on * 1_024) % 16_384));
            let to = others.find(|&other| other != from).unwrap();
            cluster.migrate(slot, to);
            halfway();
            cluster.give(slot, to);
        }
        // Redis does not wait until the new primary's replicas have the migrated keys.
        self.wait_until_whole();
    }
}

fn slot_of(cluster: &RedisCluster, key: &str) -> u16 {
    ask(cluster.running().next().unwrap(), &["CLUSTER", "KEYSLOT", key])
}
