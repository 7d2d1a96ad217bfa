//! The service, started in this process on free ports.

mod calls;
mod client;
mod event_reader;
mod raw;
pub(crate) mod secure;

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use callback_ingress::app::{self, AppError};
use callback_ingress::clock::Clock;
use callback_ingress::config::{self, Sources};
use callback_ingress::telemetry::Telemetry;
use test_support::redis_cluster::RedisCluster;
use test_support::redis_sentinels::RedisSentinels;
use test_support::redis_server::RedisServer;
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub(crate) use self::calls::{CALLBACKS, Item, issued, millis};
pub(crate) use self::client::{Call, Client, Reply};
pub(crate) use self::event_reader::{Event, EventReader};
pub(crate) use self::raw::Raw;
pub(crate) use self::secure::Certificate;
use crate::stage::Backend;

/// The service key of all instances.
pub(crate) const SERVICE_KEY: &str = "the-platforms-key-of-the-tests";

/// Settings of every service in the tests. A test's own flags override them.
const FLAGS: [(&str, &str); 8] = [
    ("http.public_addr", "127.0.0.1:0"),
    ("http.platform_addr", "127.0.0.1:0"),
    ("http.drain_grace_ms", "0"),
    // All tests share one client address.
    ("rate_limit.failed_max", "0"),
    // Long, so that a busy machine does not look like an unavailable store.
    ("store.connect_timeout_ms", "10000"),
    ("store.response_timeout_ms", "10000"),
    ("token.keys", r#"["k1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="]"#),
    ("platform.service_keys", r#"["the-platforms-key-of-the-tests"]"#),
];

/// Longest wait for a condition.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two checks of a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// A running service, stopped when dropped.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) public: SocketAddr,
    pub(crate) platform: SocketAddr,
    pub(crate) client: Client,
    stop: CancellationToken,
    running: JoinHandle<Result<(), AppError>>,
}

impl Service {
    /// Starts on the memory store with default settings.
    pub(crate) async fn on_memory() -> Self {
        Self::start(&[]).await
    }

    /// Starts on this Redis.
    pub(crate) async fn on(redis: &RedisServer) -> Self {
        Self::start(&[("store.url", &redis.url(0))]).await
    }

    /// Starts with these flags.
    pub(crate) async fn start(flags: &[(&str, &str)]) -> Self {
        Self::with_clock(flags, Clock::System).await
    }

    /// Starts with these flags and this clock.
    pub(crate) async fn with_clock(flags: &[(&str, &str)], clock: Clock) -> Self {
        let flags = FLAGS.iter().chain(flags).map(|&(key, value)| (key.to_owned(), value.to_owned()));
        let sources = Sources { flags: flags.collect(), ..Sources::default() };
        let config = config::load(sources).unwrap().config;
        let app = app::build(&config, clock, Telemetry::local()).await.unwrap();
        let (public, platform) = (app.public_addr(), app.platform_addr());
        let stop = CancellationToken::new();
        let running = tokio::spawn(app.run(stop.clone().cancelled_owned()));
        Self { public, platform, client: Client::default(), stop, running }
    }

    /// A service in another process, with the tests' keys.
    pub(crate) fn elsewhere(public: SocketAddr, platform: SocketAddr) -> Self {
        let running = tokio::spawn(async { Ok(()) });
        Self { public, platform, client: Client::default(), stop: CancellationToken::new(), running }
    }

    /// The environment variables for a service in another process.
    pub(crate) fn variables(public: SocketAddr, platform: SocketAddr) -> Vec<(String, String)> {
        let addresses = [("http.public_addr", public), ("http.platform_addr", platform)];
        let addresses = addresses.into_iter().map(|(key, address)| (key, address.to_string()));
        let settings = FLAGS.into_iter().map(|(key, value)| (key, value.to_owned())).chain(addresses);
        let name = |key: &str| format!("CALLBACK_INGRESS__{}", key.to_uppercase().replace('.', "__"));
        settings.map(|(key, value)| (name(key), value)).collect()
    }

    /// Drains it, as SIGTERM does.
    pub(crate) fn drain(&self) {
        self.stop.cancel();
    }

    /// Waits until the drain is complete.
    pub(crate) async fn ended(self) {
        timeout(PATIENCE, self.running).await.expect("draining ends").unwrap().unwrap();
    }
}

/// One or several instances of the service on one store.
#[derive(Debug)]
pub(crate) struct Deployment {
    replicas: Vec<Service>,
    next: AtomicUsize,
    /// Dropped after the services.
    pub(crate) redis: Option<RedisServer>,
}

/// The kinds of deployments with the same contract.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Memory,
    Redis,
    TwoReplicas,
    /// Two instances on the primary after a failover, found through a sentinel.
    Sentinel,
    /// Two instances on a cluster.
    Cluster,
}

impl Kind {
    pub(crate) async fn deploy(self, flags: &[(&str, &str)]) -> Deployment {
        let (redis, count) = match self {
            Self::Memory => (None, 1),
            Self::Redis => (Some(RedisServer::start()), 1),
            Self::TwoReplicas => (Some(RedisServer::start()), 2),
            Self::Sentinel | Self::Cluster => (None, 2),
        };
        let url = match self {
            Self::Sentinel => block_in_place(RedisSentinels::shared).url(Backend::unused_database()),
            Self::Cluster => block_in_place(cluster_of_services).url(),
            Self::Memory | Self::Redis | Self::TwoReplicas => {
                redis.as_ref().map_or_else(|| "memory:".to_owned(), |redis| redis.url(0))
            }
        };
        let mut replicas = Vec::new();
        for _ in 0..count {
            replicas.push(Service::start(&[&[("store.url", url.as_str())], flags].concat()).await);
        }
        Deployment { replicas, next: AtomicUsize::new(0), redis }
    }
}

/// A cluster for these tests alone, because they use real time and the store's tests a manual clock.
fn cluster_of_services() -> &'static RedisCluster {
    static CLUSTER: OnceLock<RedisCluster> = OnceLock::new();
    CLUSTER.get_or_init(|| RedisCluster::start(30_000))
}

impl Deployment {
    /// The next instance, round-robin.
    pub(crate) fn any(&self) -> &Service {
        &self.replicas[self.next.fetch_add(1, Ordering::Relaxed) % self.replicas.len()]
    }
}

/// Runs each test, an `async fn(Kind)`, on every kind of deployment.
macro_rules! on_every_deployment {
    ($($test:ident),+ $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::service::Kind::Memory).await; })+
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::service::Kind::Redis).await; })+
        }
        mod two_replicas {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::service::Kind::TwoReplicas).await; })+
        }
    };
}
pub(crate) use on_every_deployment;

/// As `on_every_deployment`, and with sentinels and a cluster.
macro_rules! on_every_topology {
    ($($test:ident),+ $(,)?) => {
        $crate::service::on_every_deployment!($($test),+);
        mod sentinel {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::service::Kind::Sentinel).await; })+
        }
        mod cluster {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test($crate::service::Kind::Cluster).await; })+
        }
    };
}
pub(crate) use on_every_topology;

/// Polls until the condition holds.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let asked = async {
        while !is_so().await {
            sleep(PAUSE).await;
        }
    };
    assert!(timeout(PATIENCE, asked).await.is_ok(), "it never came to this: {what}");
}
