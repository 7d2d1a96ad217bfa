//! A store of each kind, with a clock that the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use callback_ingress::clock::{Clock, ManualClock};
use callback_ingress::domain::gate::{Limits, Totals};
use callback_ingress::domain::ids::ConversationId;
use callback_ingress::domain::time::Timestamp;
use callback_ingress::store::memory::MemoryStore;
use callback_ingress::store::redis::{RedisSettings, RedisStore, TlsFiles};
use callback_ingress::store::{self, Due, InstrumentedStore, Store};
use callback_ingress::telemetry::Telemetry;
use test_support::redis_cluster::RedisCluster;
use test_support::redis_sentinels::RedisSentinels;
use test_support::redis_server::{DATABASES, RedisServer};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::task::block_in_place;

use crate::conversation::Conversation;

/// The kinds of stores with the same contract. A new kind is a variant here and a line in `on_every_store!`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Memory,
    Redis,
    /// The primary after a failover, found through a sentinel.
    Sentinel,
    Cluster,
}

/// Runs each test, an `async fn(Backend)`, on every kind of store.
macro_rules! on_every_store {
    ($($test:ident),+ $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::stage::Backend::Memory).await; })+
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::stage::Backend::Redis).await; })+
        }
        mod sentinel {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::stage::Backend::Sentinel).await; })+
        }
        mod cluster {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::stage::Backend::Cluster).await; })+
        }
    };
}
pub(crate) use on_every_store;

/// Limits that tests do not reach by accident.
pub(crate) const ROOMY: Limits = Limits {
    max_held_items: 1_000,
    max_held_bytes: 16 * 1024 * 1024,
    max_awaiting_items: 1_000,
    max_channel_length: 100_000,
    max_channel_bytes: 1024 * 1024 * 1024,
    conversation_idle_ttl_ms: 60 * 60 * 1_000,
    ended_retention_ms: 10 * 60 * 1_000,
};

/// The time at the start of every test.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// A store and its clock.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) store: Arc<InstrumentedStore>,
    pub(crate) clock: ManualClock,
    settings: Option<RedisSettings>,
    /// Dropped last.
    _turn: Option<Turn>,
}

/// A cluster has no databases: most stages share it and use different conversations; some need it alone.
#[derive(Debug)]
enum Turn {
    Shared(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>),
}

static CLUSTER: RwLock<()> = RwLock::const_new(());

impl Backend {
    /// A store with large limits.
    pub(crate) async fn stage(self) -> Stage {
        self.limited(ROOMY).await
    }

    /// A store with these limits.
    pub(crate) async fn limited(self, limits: Limits) -> Stage {
        self.set(limits, false).await
    }

    /// An empty store with these limits that no other test uses.
    pub(crate) async fn alone(self, limits: Limits) -> Stage {
        self.set(limits, true).await
    }

    /// A database of the shared servers that no test has used.
    pub(crate) fn unused_database() -> u16 {
        unused_database()
    }

    async fn set(self, limits: Limits, alone: bool) -> Stage {
        let clock = ManualClock::at(START);
        let url = match self {
            Self::Memory => {
                let store = MemoryStore::new(Clock::Manual(clock.clone()), limits);
                return Stage {
                    store: Arc::new(instrumented(store::Backend::Memory(store))),
                    clock,
                    settings: None,
                    _turn: None,
                };
            }
            Self::Redis => RedisServer::shared().url(unused_database()),
            Self::Sentinel => block_in_place(RedisSentinels::shared).url(unused_database()),
            Self::Cluster => {
                let turn = if alone {
                    Turn::Alone(CLUSTER.write().await)
                } else {
                    Turn::Shared(CLUSTER.read().await)
                };
                let cluster = block_in_place(RedisCluster::shared);
                if alone {
                    cluster.clear();
                }
                let stage = Stage::in_redis(settings(cluster.url(), limits), clock).await;
                return Stage { _turn: Some(turn), ..stage };
            }
        };
        Stage::in_redis(settings(url, limits), clock).await
    }
}

/// A database of the shared servers that no test has used.
fn unused_database() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let database = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(database < DATABASES, "every database of the shared server is in use");
    database
}

/// Settings for a Redis at this URL.
pub(crate) fn settings(url: String, limits: Limits) -> RedisSettings {
    RedisSettings {
        url: url.into(),
        tls: TlsFiles::default(),
        sentinel_username: None,
        sentinel_password: None,
        replicas: None,
        partitions: 64,
        connect_timeout: Duration::from_secs(10),
        response_timeout: Duration::from_secs(10),
        max_requests_in_flight: 512,
        limits,
    }
}

impl Stage {
    /// A stage on a Redis that the test started.
    pub(crate) async fn in_redis(settings: RedisSettings, clock: ManualClock) -> Self {
        let store = redis_store(&settings, Clock::Manual(clock.clone())).await;
        Self { store, clock, settings: Some(settings), _turn: None }
    }

    /// The same store as seen by another instance. For the memory store, which is not shared, it is the same object.
    pub(crate) async fn seen_from_elsewhere(&self) -> Self {
        match &self.settings {
            Some(settings) => Self::in_redis(settings.clone(), self.clock.clone()).await,
            None => Self {
                store: Arc::clone(&self.store),
                clock: self.clock.clone(),
                settings: None,
                _turn: None,
            },
        }
    }

    /// Claims the due timers of all partitions, at most `limit` of each.
    pub(crate) async fn due(&self, limit: usize) -> Due {
        self.store.due(&self.partitions(), limit).await.unwrap()
    }

    /// Totals over all conversations.
    pub(crate) async fn totals(&self) -> Totals {
        self.store.totals(&self.partitions()).await.unwrap()
    }

    pub(crate) fn partitions(&self) -> Vec<u16> {
        (0..self.store.partitions()).collect()
    }

    /// An open conversation.
    pub(crate) async fn conversation(&self) -> Conversation<'_> {
        let conversation = self.unopened();
        conversation.open(|_| ()).await.unwrap();
        conversation
    }

    /// A conversation that is not open.
    pub(crate) fn unopened(&self) -> Conversation<'_> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.named(ConversationId::parse(&format!("call-{number}")).unwrap())
    }

    /// The conversation of this id.
    pub(crate) fn named(&self, id: ConversationId) -> Conversation<'_> {
        Conversation::new(self, id)
    }

    /// Moves the clock to this time, which is not before now.
    pub(crate) fn wait_until(&self, time: Timestamp) {
        assert!(time >= self.clock.now(), "time runs forward");
        self.clock.advance(self.clock.now().millis_until(time));
    }
}

/// A store that is ready to be used.
/// A store without a collector.
pub(crate) fn instrumented(backend: store::Backend) -> InstrumentedStore {
    InstrumentedStore::new(backend, Telemetry::local())
}

pub(crate) async fn redis_store(settings: &RedisSettings, clock: Clock) -> Arc<InstrumentedStore> {
    let store = RedisStore::new(settings, clock).unwrap();
    store.verify().await.unwrap();
    Arc::new(instrumented(store::Backend::Redis(Box::new(store))))
}
