//! Starts a primary with replicas, monitored by sentinels.

use std::sync::OnceLock;

use crate::redis_cluster::wait;
use crate::redis_commands::{replication, words};
use crate::redis_server::RedisServer;

/// The service name in the sentinels' configuration.
const SERVICE: &str = "calls";

/// Running servers and their sentinels. The first server starts as the primary.
#[derive(Debug)]
pub struct RedisSentinels {
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

impl RedisSentinels {
    /// Starts a primary, replicas and sentinels with this `down-after-milliseconds`.
    pub fn start(replicas: usize, sentinels: usize, down_after_ms: u32) -> Self {
        let durable = ["--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"];
        let master = RedisServer::with(&durable);
        let port = master.port().to_string();
        let following = ["--replicaof", "127.0.0.1", &port];
        let mut servers = vec![master];
        servers.extend((0..replicas).map(|_| RedisServer::with(&[&durable[..], &following].concat())));
        let quorum = sentinels / 2 + 1;
        let configuration = format!(
            "sentinel monitor {SERVICE} 127.0.0.1 {port} {quorum}\n\
             sentinel down-after-milliseconds {SERVICE} {down_after_ms}\n\
             sentinel failover-timeout {SERVICE} 4000\n"
        );
        wait("all replicas follow", || replication(&servers[0]).matches("state=online").count() == replicas);
        let sentinels: Vec<_> = (0..sentinels).map(|_| RedisServer::sentinel(&configuration)).collect();
        wait("the sentinels know all", || {
            sentinels.iter().all(|sentinel| {
                let known = |what: &str| {
                    let told: Vec<redis::Value> = tell(sentinel, &["SENTINEL", what, SERVICE]);
                    told.len()
                };
                known("replicas") == replicas && known("sentinels") + 1 == sentinels.len()
            })
        });
        Self { servers, sentinels }
    }

    /// The deployment shared by tests that cause no failover. It has failed over once.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<RedisSentinels> = OnceLock::new();
        SHARED.get_or_init(|| {
            // Long, so that nothing fails over on a busy machine.
            let service = Self::start(1, 1, 60_000);
            service.fail_over();
            service
        })
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: u16) -> String {
        let named: Vec<String> =
            self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
        format!("redis+sentinel://{}/{SERVICE}/{database}", named.join(","))
    }

    /// The port of the first sentinel.
    pub fn sentinel_port(&self) -> u16 {
        self.sentinels[0].port()
    }

    /// Index of the primary, as the first sentinel reports it.
    pub fn master(&self) -> usize {
        let (_, port): (String, u16) =
            tell(&self.sentinels[0], &["SENTINEL", "get-master-addr-by-name", SERVICE]);
        self.servers.iter().position(|server| server.port() == port).unwrap()
    }

    /// The port of a replica.
    pub fn replica_port(&self) -> u16 {
        self.servers[(self.master() + 1) % self.servers.len()].port()
    }

    /// The primary and the replicas.
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// Shortens the sentinels' periods and their pause between failovers. Before Redis 7 the periods are fixed, so a
    /// failover takes longer.
    pub fn hurry(&self) {
        let haste =
            ["info-period", "200", "ping-period", "300", "ask-period", "100", "publish-period", "300"];
        for sentinel in &self.sentinels {
            let mut connection = connection(sentinel);
            drop(words(&["SENTINEL", "DEBUG"]).arg(&haste).exec(&mut connection));
            let again = ["SENTINEL", "SET", SERVICE, "failover-timeout", "2000"];
            words(&again).exec(&mut connection).unwrap();
        }
        // When all sentinels start an election at the same moment, each votes for itself and none wins. The last one
        // detects the failure later, so it can vote for another.
        let last = self.sentinels.last().unwrap();
        let late = ["SENTINEL", "SET", SERVICE, "down-after-milliseconds", "10000"];
        words(&late).exec(&mut connection(last)).unwrap();
    }

    /// The server at this index.
    pub fn server(&mut self, place: usize) -> &mut RedisServer {
        &mut self.servers[place]
    }

    /// Forces a failover.
    pub fn fail_over(&self) {
        let before = self.master();
        // A sentinel that has just started does not know yet that the replica is suitable.
        wait("the sentinel fails over", || {
            words(&["SENTINEL", "FAILOVER", SERVICE]).exec(&mut connection(&self.sentinels[0])).is_ok()
        });
        self.wait_for_another_master(before);
        wait("the old master follows", || {
            replication(&self.servers[before]).contains("master_link_status:up")
        });
    }

    /// Waits until the server at this index is no longer the primary.
    pub fn wait_for_another_master(&self, before: usize) {
        wait("there is another master", || {
            let now = self.master();
            let is_master = |place: usize| replication(&self.servers[place]).contains("role:master");
            now != before && is_master(now)
        });
    }
}

/// Sentinels have no databases, so the URL names none.
fn connection(sentinel: &RedisServer) -> redis::Connection {
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", sentinel.port())).unwrap();
    client.get_connection().unwrap()
}

/// Sends a command to a sentinel and returns the reply.
fn tell<T: redis::FromRedisValue>(sentinel: &RedisServer, question: &[&str]) -> T {
    words(question).query(&mut connection(sentinel)).unwrap()
}
