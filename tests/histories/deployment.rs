//! What is driven and broken: one to three replicas of the service, the store that they share, and the wires to it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::proxy::Proxy;
use crate::redis_server::RedisServer;
use crate::replica::{Addresses, Replica};

/// The ways to deploy the service. What is to be promised of another one, such as a cluster, is another line here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One replica on its embedded store.
    Memory,
    /// So many replicas on one Redis that has on its disk what it acknowledged.
    Durable(usize),
    /// So many replicas on one Redis that forgets everything when it is killed.
    Forgetful(usize),
}

/// See the module. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Deployment {
    pub(crate) replicas: Vec<Replica>,
    /// Each replica's wire to the store.
    pub(crate) wires: Vec<Proxy>,
    redis: Option<Mutex<RedisServer>>,
    /// Where the store is, without a wire, where it is a Redis.
    pub(crate) redis_url: Option<String>,
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
        let (redis, count) = match kind {
            Kind::Memory => (None, 1),
            Kind::Durable(count) => (Some(RedisServer::durable()), count),
            Kind::Forgetful(count) => (Some(RedisServer::start()), count),
        };
        let exchanged = redis.as_ref().map(scripts).unwrap_or_default();
        let wire = |redis: &RedisServer| Proxy::exchanging(redis.port(), exchanged.clone());
        let wires: Vec<Proxy> = redis.iter().flat_map(|redis| (0..count).map(move |_| wire(redis))).collect();
        let urls = wires.iter().map(|wire| format!("redis://127.0.0.1:{}/0", wire.port()));
        let redis_url = redis.as_ref().map(|redis| redis.url(0));
        let replicas: Vec<Replica> = if redis.is_some() {
            urls.map(Replica::start).collect()
        } else {
            vec![Replica::start("memory:".to_owned())]
        };
        Self { replicas, wires, redis: redis.map(Mutex::new), redis_url, next: AtomicUsize::new(0) }
    }

    /// The replica whose turn it is, and where it is now. One that is gone has its turn like the others.
    pub(crate) fn turn(&self) -> (usize, Addresses) {
        let replica = self.next.fetch_add(1, Ordering::Relaxed) % self.replicas.len();
        (replica, self.replicas[replica].addresses())
    }

    /// The store, where it is a Redis.
    pub(crate) fn redis<T>(&self, act: impl FnOnce(&mut RedisServer) -> T) -> Option<T> {
        self.redis.as_ref().map(|redis| act(&mut redis.lock().unwrap()))
    }
}
