//! A real master with replicas, of the test's own, watched by sentinels.

use std::sync::OnceLock;

use crate::redis_cluster::{replication, wait, words};
use crate::redis_server::RedisServer;

/// The name under which the sentinels know the master.
const SERVICE: &str = "calls";

/// The servers, the first of which is the first master, and their sentinels.
#[derive(Debug)]
pub(crate) struct RedisSentinels {
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

impl RedisSentinels {
    /// A master with as many replicas, whose sentinels take it for dead after this many milliseconds.
    pub(crate) fn start(replicas: usize, sentinels: usize, down_after_ms: u32) -> Self {
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

    /// The one service that tests share that do not disturb it, after a failover.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<RedisSentinels> = OnceLock::new();
        SHARED.get_or_init(|| {
            // So long that a busy machine is not taken for a dead one.
            let service = Self::start(1, 1, 60_000);
            service.fail_over();
            service
        })
    }

    /// Its URL, for one of its databases.
    pub(crate) fn url(&self, database: u16) -> String {
        let named: Vec<String> =
            self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
        format!("redis+sentinel://{}/{SERVICE}/{database}", named.join(","))
    }

    /// The port of a sentinel.
    pub(crate) fn sentinel_port(&self) -> u16 {
        self.sentinels[0].port()
    }

    /// The place of the master that the sentinels name.
    pub(crate) fn master(&self) -> usize {
        let (_, port): (String, u16) =
            tell(&self.sentinels[0], &["SENTINEL", "get-master-addr-by-name", SERVICE]);
        self.servers.iter().position(|server| server.port() == port).unwrap()
    }

    /// The port of a server that is not the master.
    pub(crate) fn replica_port(&self) -> u16 {
        self.servers[(self.master() + 1) % self.servers.len()].port()
    }

    /// The master and its replicas.
    pub(crate) fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// Lets the sentinels look and decide as fast as they can, and fail over again soon. Those before Redis 7 know no
    /// haste: with them it takes longer.
    pub(crate) fn hurry(&self) {
        let haste =
            ["info-period", "200", "ping-period", "300", "ask-period", "100", "publish-period", "300"];
        for sentinel in &self.sentinels {
            let mut connection = connection(sentinel);
            drop(words(&["SENTINEL", "DEBUG"]).arg(&haste).exec(&mut connection));
            let again = ["SENTINEL", "SET", SERVICE, "failover-timeout", "2000"];
            words(&again).exec(&mut connection).unwrap();
        }
        // Where all stand for election at the same moment, each has its own vote only, again and again. The last one
        // is late to find the master dead, and has a vote to give.
        let last = self.sentinels.last().unwrap();
        let late = ["SENTINEL", "SET", SERVICE, "down-after-milliseconds", "10000"];
        words(&late).exec(&mut connection(last)).unwrap();
    }

    /// The server at this place.
    pub(crate) fn server(&mut self, place: usize) -> &mut RedisServer {
        &mut self.servers[place]
    }

    /// Makes a replica the master, without need.
    pub(crate) fn fail_over(&self) {
        let before = self.master();
        // A sentinel that has just begun does not know yet that the replica will do.
        wait("the sentinel fails over", || {
            words(&["SENTINEL", "FAILOVER", SERVICE]).exec(&mut connection(&self.sentinels[0])).is_ok()
        });
        self.wait_for_another_master(before);
        wait("the old master follows", || {
            replication(&self.servers[before]).contains("master_link_status:up")
        });
    }

    /// Waits until another server than this one is the master.
    pub(crate) fn wait_for_another_master(&self, before: usize) {
        wait("there is another master", || {
            let now = self.master();
            let is_master = |place: usize| replication(&self.servers[place]).contains("role:master");
            now != before && is_master(now)
        });
    }
}

/// A sentinel knows no databases.
fn connection(sentinel: &RedisServer) -> redis::Connection {
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", sentinel.port())).unwrap();
    client.get_connection().unwrap()
}

/// What a sentinel answers.
fn tell<T: redis::FromRedisValue>(sentinel: &RedisServer, question: &[&str]) -> T {
    words(question).query(&mut connection(sentinel)).unwrap()
}
