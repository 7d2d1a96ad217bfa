//! The composition root: builds the service, binds the listeners, runs, drains.

#[cfg(test)]
mod documented_routes;
mod key_files;
mod store_check;
mod tasks;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use self::key_files::KeyFiles;
use self::store_check::StoreCheck;
pub use self::tasks::TaskEnded;
use self::tasks::Tasks;
use crate::clock::{Clock, Entropy, NoEntropy};
use crate::config::{Config, HttpConfig};
use crate::domain::gate::Totals;
use crate::domain::token::{InvalidKeyId, KeyId, KeyTooShort, Keyring, SigningKey};
use crate::http::admission::{Admission, Lifecycle};
use crate::http::body::{BodyBudget, BodyLimits};
use crate::http::connection::ConnectionLimits;
use crate::http::context::{Instrumentation, Listener};
use crate::http::health::Health;
use crate::http::metrics::RequestMetrics;
use crate::http::refusal_summaries::RefusalSummaries;
use crate::http::server;
use crate::http::tls::{CertificateFiles, Tls, TlsError};
use crate::platform::{self, FailedAuthLimit, Pages, Platform, ServiceKeyDigests};
use crate::public::{self, Carriers, ClientLimits, Public};
use crate::store::memory::MemoryStore;
use crate::store::redis::{InvalidServers, RedisStore};
use crate::store::{Backend, InstrumentedStore, Store, StoreHealth};
use crate::sweeper;
use crate::telemetry::{Telemetry, names};

/// Minimum and maximum interval at which the store's totals are computed.
const TOTALS_INTERVAL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// The interval is this time multiplied by the number of partitions with timers, within those bounds.
const TOTALS_INTERVAL_PER_PARTITION: Duration = Duration::from_millis(250);

/// Listen backlog. If it is full, the kernel drops the SYN and the client retries after about a second.
const BACKLOG: u32 = 4096;

/// Why the service did not start, or why it stopped.
#[derive(Debug, Error)]
pub enum AppError {
    /// An address cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// A task of the service ended before the service did.
    #[error(transparent)]
    TaskEnded(#[from] TaskEnded),
    /// The store's URL or certificates are not usable.
    #[error(transparent)]
    Store(#[from] InvalidServers),
    /// The store responds but fails a preflight check.
    #[error("{0}")]
    StoreRefused(String),
    /// A listener's certificate cannot be used.
    #[error("{listener} cannot use its certificate")]
    Tls {
        /// The prefix of its settings.
        listener: &'static str,
        /// The cause.
        source: Box<TlsError>,
    },
    /// The system provides no random bytes for keys.
    #[error(transparent)]
    NoEntropy(#[from] NoEntropy),
    /// A generated key is invalid: a bug.
    #[error(transparent)]
    KeyTooShort(#[from] KeyTooShort),
    /// The id of a generated key is invalid: a bug.
    #[error(transparent)]
    KeyId(#[from] InvalidKeyId),
}

/// The service, bound and ready to run.
#[derive(Debug)]
pub struct App {
    public: Bound,
    platform: Bound,
    store: Arc<InstrumentedStore>,
    store_check: StoreCheck,
    telemetry: Telemetry,
    lifecycle: Lifecycle,
    generated_service_key: Option<SecretString>,
    check_certificates: Arc<Notify>,
    key_files: KeyFiles,
    drain_grace: Duration,
    drain_time: Duration,
    refusal_summaries: Arc<RefusalSummaries>,
}

#[derive(Debug)]
struct Bound {
    socket: TcpListener,
    address: SocketAddr,
    router: Router,
    limits: ConnectionLimits,
    tls: Option<Tls>,
}

impl Bound {
    const fn scheme(&self) -> &'static str {
        scheme_of(self.tls.as_ref())
    }
}

/// The prefix of callback URLs.
fn public_base_url(http: &HttpConfig, address: SocketAddr, tls: Option<&Tls>) -> String {
    http.public_base_url.clone().unwrap_or_else(|| format!("{}://{address}", scheme_of(tls)))
}

const fn scheme_of(tls: Option<&Tls>) -> &'static str {
    if tls.is_some() { "https" } else { "http" }
}

fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), AppError> {
    let failed = |source| AppError::Bind { address, source };
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(failed)?;
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(address).map_err(failed)?;
    let listener = socket.listen(BACKLOG).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn keyring(config: &Config) -> Result<Keyring, AppError> {
    if let Some((first, others)) = config.token.keys.keys().split_first() {
        return Ok(Keyring::new(first.clone(), others.to_vec()));
    }
    let made = SigningKey::new(KeyId::parse("run")?, Entropy.bytes::<32>()?.to_vec())?;
    Ok(Keyring::new(made, Vec::new()))
}

/// The configured service keys, or a generated one.
fn service_keys(config: &Config) -> Result<(Vec<SecretString>, Option<SecretString>), NoEntropy> {
    let configured = config.platform.service_keys.keys();
    if configured.is_empty() {
        let generated = SecretString::from(new_service_key()?);
        return Ok((vec![generated.clone()], Some(generated)));
    }
    Ok((configured.to_vec(), None))
}

/// A random service key.
pub fn new_service_key() -> Result<String, NoEntropy> {
    Ok(format!("svc_{}", URL_SAFE_NO_PAD.encode(Entropy.bytes::<24>()?)))
}

fn store(config: &Config, clock: &Clock, telemetry: &Telemetry) -> Result<InstrumentedStore, AppError> {
    let store = match config.redis() {
        None => Backend::Memory(MemoryStore::new(clock.clone(), config.limits())),
        Some(settings) => Backend::Redis(Box::new(RedisStore::new(&settings, clock.clone())?)),
    };
    Ok(InstrumentedStore::new(store, telemetry.clone()))
}

fn tls(listener: &'static str, files: Option<CertificateFiles>) -> Result<Option<Tls>, AppError> {
    files.map(Tls::new).transpose().map_err(|source| AppError::Tls { listener, source: Box::new(source) })
}

fn body_limits(http: &HttpConfig) -> BodyLimits {
    BodyLimits { max_bytes: http.max_body_bytes.size(), timeout: http.body_timeout_ms.duration(), copies: 1 }
}

fn connection_limits(http: &HttpConfig) -> ConnectionLimits {
    ConnectionLimits {
        head_timeout: http.head_timeout_ms.duration(),
        write_timeout: http.write_timeout_ms.duration(),
        keep_alive_timeout: http.keep_alive_timeout_ms.duration(),
        max_connections: http.max_connections.size(),
        half_close: true,
    }
}

/// Builds the service and binds its listeners. A store that does not respond is retried while the service runs; a store
/// that fails a preflight check is an error.
pub async fn build(config: &Config, clock: Clock, telemetry: Telemetry) -> Result<App, AppError> {
    let http = &config.http;
    let public_tls = tls("http.public", config.public_tls())?;
    let platform_tls = tls("http.platform", config.platform_tls())?;
    let (public_socket, public_addr) = bind(http.public_addr)?;
    let (platform_socket, platform_addr) = bind(http.platform_addr)?;
    let keyring = Arc::new(keyring(config)?);
    let (service_keys, generated_service_key) = service_keys(config)?;
    let service_key_digests = ServiceKeyDigests::new(&service_keys);
    let key_files = KeyFiles::new(config, Arc::clone(&keyring), service_key_digests.clone());
    let store = Arc::new(store(config, &clock, &telemetry)?);
    let mut store_check = StoreCheck::new(Arc::clone(&store), &config.store);
    store_check.first().await?;
    let lifecycle = Lifecycle::default();
    let health = Health { store: Arc::clone(&store), lifecycle: lifecycle.clone() };
    let body = body_limits(http);
    let admission = || Admission::new(lifecycle.clone(), http.max_requests_in_flight.size());
    let refusal_summaries = Arc::new(RefusalSummaries::new(config.rate_limit.ipv6_prefix.get()));
    let request_metrics = Arc::new(RequestMetrics::new(&telemetry.metrics));
    let instrumentation = |listener, scheme| Instrumentation {
        listener,
        scheme,
        trusted_proxies: config.trusted_proxies(),
        telemetry: telemetry.clone(),
        metrics: Arc::clone(&request_metrics),
        refusal_summaries: Arc::clone(&refusal_summaries),
    };
    let event_streams = event_stream_permits(&telemetry, http.max_event_streams.size());
    let carriers = Arc::new(Carriers::new(&config.token));
    let buffered = http.max_buffered_bytes.size();
    let public_base_url = public_base_url(http, public_addr, public_tls.as_ref());
    let public = Public {
        store: Arc::clone(&store),
        store_timeout: config.store.response_timeout_ms.duration(),
        keyring: Arc::clone(&keyring),
        clock,
        base_url: public_base_url.clone(),
        carriers: Arc::clone(&carriers),
        body: BodyLimits { copies: public::CALLBACK_COPIES, ..body },
        authenticated: BodyBudget::new(buffered / 4 * 3),
        anonymous: BodyBudget::new(buffered / 4),
        admission: admission(),
        clients: ClientLimits::new(config),
    };
    let platform = Platform {
        store: Arc::clone(&store),
        keyring,
        carriers,
        public_base_url,
        default_timeout_ms: config.gate.default_timeout_ms.get(),
        max_timeout_ms: config.gate.max_timeout_ms.get(),
        replay_window_ms: config.token.replay_window_ms.get(),
        body,
        bodies: BodyBudget::new(buffered - buffered / 2),
        pages: Pages::new(buffered / 2, body.max_bytes),
        event_streams,
        service_keys: service_key_digests,
        failed_auth_limit: FailedAuthLimit::new(&config.rate_limit),
        admission: admission(),
    };
    let limits = connection_limits(http);
    let app = App {
        public: Bound {
            socket: public_socket,
            address: public_addr,
            router: public::router(
                Arc::new(public),
                instrumentation(Listener::Public, scheme_of(public_tls.as_ref())),
                health.clone(),
            ),
            limits,
            tls: public_tls,
        },
        platform: Bound {
            socket: platform_socket,
            address: platform_addr,
            router: platform::router(
                Arc::new(platform),
                &config.console,
                instrumentation(Listener::Platform, scheme_of(platform_tls.as_ref())),
                health,
            ),
            limits: ConnectionLimits { half_close: false, ..limits },
            tls: platform_tls,
        },
        store,
        store_check,
        telemetry,
        lifecycle,
        generated_service_key,
        check_certificates: Arc::default(),
        key_files,
        drain_grace: http.drain_grace_ms.duration(),
        drain_time: http.drain_timeout_ms.duration().saturating_sub(2 * http.flush_timeout()),
        refusal_summaries,
    };
    app.telemetry.export_initial_counters();
    Ok(app)
}

/// The permits of event streams. A metric counts those in use.
fn event_stream_permits(telemetry: &Telemetry, max: usize) -> Arc<Semaphore> {
    let permits = Arc::new(Semaphore::new(max));
    let observed = Arc::clone(&permits);
    let open = move || max.saturating_sub(observed.available_permits()) as u64;
    telemetry.metrics.observe(names::EVENT_STREAMS, move || [(open(), None)]);
    permits
}

/// Computes the totals of the store at intervals, for the metrics.
async fn compute_totals_periodically(store: Arc<InstrumentedStore>, telemetry: Telemetry) {
    // Whether the store is reachable, and its totals if they could be read. `None` before the first check.
    let (state, read) = watch::channel(None::<(bool, Option<Totals>)>);
    let observed = read.clone();
    telemetry.metrics.observe(names::REACHABLE, move || {
        observed.borrow().map(|(reachable, _)| (u64::from(reachable), None))
    });
    let observe_total = |metric, value: fn(Totals) -> u64| {
        let observed = read.clone();
        telemetry.metrics.observe(metric, move || {
            let totals = observed.borrow().filter(|(reachable, _)| *reachable).and_then(|(_, totals)| totals);
            totals.map(|totals| (value(totals), None))
        });
    };
    observe_total(names::AWAITING, |totals| totals.awaiting);
    observe_total(names::HELD, |totals| totals.held);
    observe_total(names::HELD_BYTES, |totals| totals.held_bytes);
    loop {
        let partitions = store.schedule().known();
        let totals = store.totals(&partitions).await.ok();
        let reachable = !matches!(store.health(), StoreHealth::Unreachable | StoreHealth::Unchecked);
        state.send_replace(Some((reachable, totals)));
        let (least, most) = TOTALS_INTERVAL;
        sleep(
            (TOTALS_INTERVAL_PER_PARTITION * u32::try_from(partitions.len()).unwrap_or(u32::MAX))
                .clamp(least, most),
        )
        .await;
    }
}

impl App {
    /// Address of the provider's listener.
    pub const fn public_addr(&self) -> SocketAddr {
        self.public.address
    }

    /// `http` or `https`.
    pub const fn public_scheme(&self) -> &'static str {
        self.public.scheme()
    }

    /// `http` or `https`.
    pub const fn platform_scheme(&self) -> &'static str {
        self.platform.scheme()
    }

    /// Address of the platform's listener.
    pub const fn platform_addr(&self) -> SocketAddr {
        self.platform.address
    }

    /// The service key that was generated because none is configured.
    pub const fn generated_service_key(&self) -> Option<&SecretString> {
        self.generated_service_key.as_ref()
    }

    /// Notify this to check the certificate files immediately.
    pub fn check_certificates(&self) -> Arc<Notify> {
        Arc::clone(&self.check_certificates)
    }

    /// The files with keys, for reloading.
    pub fn key_files(&self) -> KeyFiles {
        self.key_files.clone()
    }

    /// Limits the connections of both listeners together, for example to the available file descriptors. The public
    /// listener gets at most three quarters of them.
    #[must_use]
    pub fn with_max_connections(mut self, connections: usize) -> Self {
        // The platform's listener also gets what the public one cannot use because of its `http.max_connections`.
        let rest = connections.saturating_sub(self.public.limits.max_connections);
        let platform = (connections / 4).max(rest).max(1);
        for (bound, most) in
            [(&mut self.public, connections.saturating_sub(platform)), (&mut self.platform, platform)]
        {
            bound.limits.max_connections = bound.limits.max_connections.min(most.max(1));
        }
        self
    }

    /// Runs until `shutdown`, then drains: for `http.drain_grace_ms`, health checks and new requests get 503; then the
    /// requests in flight and the shielded calls are completed. Takes at most `http.drain_timeout_ms` after `shutdown`.
    /// Fails if a task ends early, or if the store fails a preflight check.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), AppError> {
        let stop = CancellationToken::new();
        let mut tasks = Tasks::new(stop.clone());
        for (name, bound) in [("public listener", self.public), ("platform listener", self.platform)] {
            let Bound { socket, router, limits, tls, .. } = bound;
            let tls_config = tls.as_ref().map(Tls::current);
            if let Some(tls) = tls {
                let check = Arc::clone(&self.check_certificates);
                tasks.spawn("certificate watcher", tls.watch_and_reload(check, stop.clone()));
            }
            tasks.spawn(name, server::serve(socket, router, limits, tls_config, stop.clone()));
        }
        let store = self.store;
        tasks.spawn("sweeper", sweeper::run(Arc::clone(&store), self.telemetry.clone(), stop.clone()));
        if let Some(watcher) = store.take_watcher() {
            // The watcher must not end, with or without an error.
            tasks.spawn_until_stop("channel watcher", async move { drop(watcher.await) });
        }
        let checked = Arc::clone(&store);
        tasks.spawn_until_stop("health check", async move { checked.run_health_checks().await });
        let refusal_summaries = Arc::clone(&self.refusal_summaries);
        tasks
            .spawn_until_stop("refusal summaries", async move { refusal_summaries.log_periodically().await });
        tasks.spawn_until_stop("totals", compute_totals_periodically(Arc::clone(&store), self.telemetry));
        let (refused, refusal) = oneshot::channel();
        let store_check = self.store_check;
        tasks.spawn_until_stop("store check", async move {
            // The receiver lives as long as the service.
            let _ = refused.send(store_check.check_periodically().await);
            std::future::pending::<()>().await;
        });
        let result = tokio::select! {
            () = shutdown => Ok(()),
            Ok(error) = refusal => Err(error),
            error = tasks.ended() => Err(error.into()),
        };
        self.lifecycle.drain();
        tracing::info!(name: "draining", "draining");
        let drained = timeout(self.drain_time, async {
            sleep(self.drain_grace).await;
            stop.cancel();
            tasks.all_ended().await;
            self.lifecycle.calls.completed().await;
        });
        if drained.await.is_ok() {
            tracing::info!(name: "drained", "drained");
        } else {
            tracing::warn!(
                name: "drain.incomplete",
                "draining took too long; not all requests in flight were completed"
            );
        }
        self.refusal_summaries.log_all();
        stop.cancel();
        result
    }
}
