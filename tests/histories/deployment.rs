//! One to three instances of the service with their store and the proxies to it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use test_support::proxy::Proxy;
use test_support::redis_server::RedisServer;

use crate::replica::{Addresses, Replica};
use crate::servers::Servers;

/// The kinds of deployments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One instance on its memory store.
    Memory,
    /// This many instances on a Redis that writes to disk before it replies.
    Durable(usize),
    /// This many instances on a Redis without persistence.
    Forgetful(usize),
    /// This many instances on a Redis primary with two replicas and sentinels.
    Sentinels { replicas: usize, waits: bool },
    /// This many instances on a Redis cluster of three primaries with a replica each.
    Cluster { replicas: usize, waits: bool },
}

impl Kind {
    /// Number of instances of the service.
    pub(crate) const fn replicas(self) -> usize {
        match self {
            Self::Memory => 1,
            Self::Durable(replicas)
            | Self::Forgetful(replicas)
            | Self::Sentinels { replicas, .. }
            | Self::Cluster { replicas, .. } => replicas,
        }
    }

    /// Whether the deployment has failovers.
    pub(crate) const fn fails_over(self) -> bool {
        matches!(self, Self::Sentinels { .. } | Self::Cluster { .. })
    }

    /// Whether results are acknowledged only once a Redis replica has them.
    pub(crate) const fn waits(self) -> bool {
        matches!(self, Self::Sentinels { waits: true, .. } | Self::Cluster { waits: true, .. })
    }
}

/// A running deployment, stopped when dropped.
#[derive(Debug)]
pub(crate) struct Deployment {
    pub(crate) kind: Kind,
    pub(crate) replicas: Vec<Replica>,
    /// Each instance's proxy to a single Redis.
    pub(crate) wires: Vec<Proxy>,
    servers: Option<Mutex<Servers>>,
    /// URLs for reading Redis streams without a proxy.
    stream_urls: Mutex<Vec<String>>,
    next: AtomicUsize,
}

impl Deployment {
    pub(crate) fn start(kind: Kind) -> Self {
        Self::exchanging(kind, |_| Vec::new())
    }

    /// A deployment with replaced scripts: pairs of hashes, computed once the server runs.
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

    /// The next instance, round-robin and including stopped ones, with its current addresses.
    pub(crate) fn turn(&self) -> (usize, Addresses) {
        let replica = self.next.fetch_add(1, Ordering::Relaxed) % self.replicas.len();
        (replica, self.replicas[replica].addresses())
    }

    /// The Redis servers of the store, if any.
    pub(crate) fn servers<T>(&self, act: impl FnOnce(&mut Servers) -> T) -> Option<T> {
        self.servers.as_ref().map(|servers| act(&mut servers.lock().unwrap()))
    }

    /// The URLs of the servers that may have a Redis stream; empty for the memory store.
    pub(crate) fn stream_urls(&self) -> Vec<String> {
        self.stream_urls.lock().unwrap().clone()
    }

    /// Updates the URLs for reading Redis streams.
    pub(crate) fn look_for_streams_at(&self, urls: Vec<String>) {
        *self.stream_urls.lock().unwrap() = urls;
    }
}
