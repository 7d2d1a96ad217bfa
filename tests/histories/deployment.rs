//! What is driven and broken: one to three replicas of the service, the store that they share, and the wires to it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use test_support::proxy::Proxy;
use test_support::redis_server::RedisServer;

use crate::replica::{Addresses, Replica};
use crate::servers::Servers;

/// The ways to deploy the service. What is to be promised of another one is another line here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One replica on its embedded store.
    Memory,
    /// So many replicas on one Redis that has on its disk what it acknowledged.
    Durable(usize),
    /// So many replicas on one Redis that forgets everything when it is killed.
    Forgetful(usize),
    /// So many replicas on a master of Redis with two replicas of its own, under sentinels.
    Sentinels { replicas: usize, waits: bool },
    /// So many replicas on a cluster of Redis: three masters, and a replica of each.
    Cluster { replicas: usize, waits: bool },
}

impl Kind {
    /// How many replicas of the service there are.
    pub(crate) const fn replicas(self) -> usize {
        match self {
            Self::Memory => 1,
            Self::Durable(replicas)
            | Self::Forgetful(replicas)
            | Self::Sentinels { replicas, .. }
            | Self::Cluster { replicas, .. } => replicas,
        }
    }

    /// Whether a server of Redis takes over for another.
    pub(crate) const fn fails_over(self) -> bool {
        matches!(self, Self::Sentinels { .. } | Self::Cluster { .. })
    }

    /// Whether a result is acknowledged only when a replica of Redis has it.
    pub(crate) const fn waits(self) -> bool {
        matches!(self, Self::Sentinels { waits: true, .. } | Self::Cluster { waits: true, .. })
    }
}

/// See the module. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Deployment {
    pub(crate) kind: Kind,
    pub(crate) replicas: Vec<Replica>,
    /// Each replica's wire to the store, where that is a single Redis.
    pub(crate) wires: Vec<Proxy>,
    servers: Option<Mutex<Servers>>,
    /// Where a Redis stream is to be looked for, without a wire.
    stream_urls: Mutex<Vec<String>>,
    next: AtomicUsize,
}

impl Deployment {
    pub(crate) fn start(kind: Kind) -> Self {
        Self::exchanging(kind, |_| Vec::new())
    }

    /// One whose store calls other scripts than the service asks for: pairs of hashes, once the server is there.
    pub(crate) fn exchanging(
        kind: Kind,
        scripts: impl FnOnce(&RedisServer) -> Vec<(String, String)>,
    ) -> Self {
        let servers = Servers::start(kind);
        let wires: Vec<Proxy> = match &servers {
            Some(Servers::One(redis)) => {
                let exchanged = scripts(redis);
                (0..kind.replicas()).map(|_| Proxy::exchanging(redis.port(), exchanged.clone())).collect()
            }
            _ => Vec::new(),
        };
        let url = servers.as_ref().map_or_else(|| "memory:".to_owned(), Servers::url);
        let urls = (0..kind.replicas()).map(|number| {
            wires
                .get(number)
                .map_or_else(|| url.clone(), |wire| format!("redis://127.0.0.1:{}/0", wire.port()))
        });
        let replicas = urls.map(|url| Replica::start(url, kind.waits())).collect();
        let stream_urls = servers.as_ref().map(Servers::stream_urls).unwrap_or_default();
        Self {
            kind,
            replicas,
            wires,
            servers: servers.map(Mutex::new),
            stream_urls: Mutex::new(stream_urls),
            next: AtomicUsize::new(0),
        }
    }

    /// The replica whose turn it is, and where it is now. One that is gone has its turn like the others.
    pub(crate) fn turn(&self) -> (usize, Addresses) {
        let replica = self.next.fetch_add(1, Ordering::Relaxed) % self.replicas.len();
        (replica, self.replicas[replica].addresses())
    }

    /// The store, where it is in Redis.
    pub(crate) fn servers<T>(&self, act: impl FnOnce(&mut Servers) -> T) -> Option<T> {
        self.servers.as_ref().map(|servers| act(&mut servers.lock().unwrap()))
    }

    /// The URLs of the servers on one of which a Redis stream is; none, where the store has none.
    pub(crate) fn stream_urls(&self) -> Vec<String> {
        self.stream_urls.lock().unwrap().clone()
    }

    /// From now on Redis streams are looked for elsewhere.
    pub(crate) fn look_for_streams_at(&self, urls: Vec<String>) {
        *self.stream_urls.lock().unwrap() = urls;
    }
}
