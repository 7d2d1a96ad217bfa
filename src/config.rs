//! Configuration: compiled-in defaults, a file, environment variables and flags; later sources override earlier ones.
//!
//! Does not use figment (no release since 2024-05), because errors must name the key and its source, and must never
//! show a secret value.

mod exports;
mod layers;
mod secret_files;
mod suggestions;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use exports::{Exports, InvalidVariable};
use ipnet::IpNet;
pub use layers::{ConfigError, ConfigErrors, LoadedConfig, Sources, VARIABLE_PREFIX, load};
use secrecy::{ExposeSecret, SecretString};
pub use secret_files::SecretFileError;
use serde::Deserialize;
pub use values::{
    Bounded, Carrier, LogFormat, ServiceKeys, SigningKeys, StoreUrl, TokenHeader, parse_base_url,
};

use crate::domain::gate::Limits;
use crate::http::client_address::{ForwardedHeader, TrustedProxies};
use crate::http::tls::CertificateFiles;
use crate::store::redis::{self, RedisSettings, Replicas, TlsFiles};

/// The compiled-in default file.
pub const DEFAULTS: &str = include_str!("../config/default.toml");

/// All settings; `config/default.toml` documents each of them.
///
/// A `Config` from [`load`] has passed [`Config::problems`].
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// The two listeners and their limits.
    pub http: HttpConfig,
    /// The store.
    pub store: StoreConfig,
    /// Signing and transport of tokens.
    pub token: TokenConfig,
    /// The platform's credentials.
    pub platform: PlatformConfig,
    /// The page on the platform listener.
    pub console: ConsoleConfig,
    /// Limits per client address.
    pub rate_limit: RateLimitConfig,
    /// Limits and timeouts of conversations.
    pub gate: GateConfig,
    /// The log.
    pub telemetry: TelemetryConfig,
}

/// `[http]`
#[derive(Clone, Debug, Deserialize)]
pub struct HttpConfig {
    /// Address of the public listener.
    #[serde(deserialize_with = "values::listen_address")]
    pub public_addr: SocketAddr,
    /// Address of the platform listener.
    #[serde(deserialize_with = "values::listen_address")]
    pub platform_addr: SocketAddr,
    /// PEM file of the public listener's certificate chain. Empty: no TLS.
    pub public_tls_cert: PathBuf,
    /// PEM file of its private key.
    pub public_tls_key: PathBuf,
    /// PEM file of the platform listener's certificate chain. Empty: no TLS.
    pub platform_tls_cert: PathBuf,
    /// PEM file of its private key.
    pub platform_tls_key: PathBuf,
    /// Base of callback URLs, without a trailing slash. `None`: the public address.
    #[serde(deserialize_with = "values::base_url")]
    pub public_base_url: Option<String>,
    /// Proxies whose [`forwarded_header`](Self::forwarded_header) and `X-Request-Id` are trusted.
    #[serde(deserialize_with = "values::networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which these proxies send the client's address.
    #[serde(deserialize_with = "values::forwarded_header")]
    pub forwarded_header: ForwardedHeader,
    /// Maximum size of a request body.
    pub max_body_bytes: Bounded<1, 67_108_864>,
    /// Time limit for a request's head, from its first byte.
    pub head_timeout_ms: Bounded<10, 600_000>,
    /// Time limit for a request's body.
    pub body_timeout_ms: Bounded<10, 600_000>,
    /// Maximum time for which a client may read nothing of a response.
    pub write_timeout_ms: Bounded<10, 600_000>,
    /// Maximum idle time of a connection.
    pub keep_alive_timeout_ms: Bounded<1_000, 3_600_000>,
    /// Maximum number of connections per listener.
    pub max_connections: Bounded<1, 1_000_000>,
    /// Maximum number of requests in flight per listener.
    pub max_requests_in_flight: Bounded<1, 1_000_000>,
    /// Maximum bytes of bodies in memory per listener.
    pub max_buffered_bytes: Bounded<65_536, 68_719_476_736>,
    /// Maximum number of open event streams.
    pub max_event_streams: Bounded<1, 1_000_000>,
    /// Minimum duration of the drain.
    pub drain_grace_ms: Bounded<0, 600_000>,
    /// Maximum duration of the drain.
    pub drain_timeout_ms: Bounded<100, 600_000>,
}

impl HttpConfig {
    /// The part of the drain timeout that is reserved for the last export of telemetry: a fifth of the time after the
    /// grace period, at most a second. The same time is reserved again for writing the last log lines.
    pub fn flush_timeout(&self) -> Duration {
        let spare = self.drain_timeout_ms.duration().saturating_sub(self.drain_grace_ms.duration());
        (spare / 5).min(Duration::from_secs(1))
    }
}

/// `[store]`
#[derive(Clone, Debug, Deserialize)]
pub struct StoreConfig {
    /// Memory, or the URL of Redis.
    pub url: StoreUrl,
    /// A file with the password, which is added to `url`.
    #[serde(deserialize_with = "values::path")]
    pub password_file: Option<PathBuf>,
    /// Number of partitions of the conversations. Fixed for a deployment.
    pub partitions: Bounded<1, 16_384>,
    /// Time limit for connecting.
    pub connect_timeout_ms: Bounded<10, 60_000>,
    /// Time limit for a response of Redis.
    pub response_timeout_ms: Bounded<10, 60_000>,
    /// Number of replicas that must confirm a write. 0: none.
    pub wait_replicas: Bounded<0, 16>,
    /// Time limit for the replicas' confirmation.
    pub wait_timeout_ms: Bounded<10, 60_000>,
    /// PEM file of the certificate authorities for Redis. `None`: the public ones.
    #[serde(deserialize_with = "values::path")]
    pub tls_ca: Option<PathBuf>,
    /// PEM file of the client certificate.
    #[serde(deserialize_with = "values::path")]
    pub tls_certificate: Option<PathBuf>,
    /// PEM file of its private key.
    #[serde(deserialize_with = "values::path")]
    pub tls_key: Option<PathBuf>,
    /// User name for the sentinels.
    #[serde(deserialize_with = "values::text")]
    pub sentinel_username: Option<String>,
    /// Password for the sentinels.
    #[serde(deserialize_with = "values::secret")]
    pub sentinel_password: Option<SecretString>,
}

impl StoreConfig {
    /// Checks that the settings apply to the URL's scheme.
    fn problems(&self) -> Vec<InvalidSetting> {
        let (tls, sentinels) = match &self.url {
            StoreUrl::Memory => (false, false),
            StoreUrl::Redis(url) => (redis::uses_tls(url), redis::uses_sentinels(url)),
        };
        let mut problems = Vec::new();
        let tls_url =
            "only valid with a rediss:// URL in store.url (or rediss+sentinel://, rediss+cluster://)";
        let sentinel_url = "only valid with a redis+sentinel:// or rediss+sentinel:// URL in store.url";
        for (key, is_set, is_used, needs) in [
            ("store.tls_ca", self.tls_ca.is_some(), tls, tls_url),
            ("store.tls_certificate", self.tls_certificate.is_some(), tls, tls_url),
            ("store.tls_key", self.tls_key.is_some(), tls, tls_url),
            ("store.sentinel_username", self.sentinel_username.is_some(), sentinels, sentinel_url),
            ("store.sentinel_password", self.sentinel_password.is_some(), sentinels, sentinel_url),
        ] {
            if is_set && !is_used {
                problems.push((key, needs.into()));
            }
        }
        match (&self.tls_certificate, &self.tls_key) {
            (Some(_), None) => problems.push(("store.tls_certificate", "needs store.tls_key".into())),
            (None, Some(_)) => problems.push(("store.tls_key", "needs store.tls_certificate".into())),
            (None, None) | (Some(_), Some(_)) => {}
        }
        problems
    }

    /// The addresses of the servers, for messages. Empty for the memory store.
    pub fn servers(&self) -> String {
        match &self.url {
            StoreUrl::Memory => String::new(),
            StoreUrl::Redis(url) => redis::hosts(url.expose_secret()),
        }
    }

    /// Adds the password of [`password_file`](Self::password_file) to the URL.
    fn read_password(&mut self) -> Result<(), String> {
        let Some(file) = &self.password_file else { return Ok(()) };
        let StoreUrl::Redis(url) = &self.url else {
            return Err("only valid with a Redis URL in store.url".into());
        };
        if redis::password_range(url.expose_secret()).is_some() {
            return Err("store.url has a password as well: use one of them".into());
        }
        let password = secret_files::password(file).map_err(|error| error.to_string())?;
        self.url = StoreUrl::Redis(redis::with_password(url, &password));
        Ok(())
    }
}

/// `[token]`
#[derive(Clone, Debug, Deserialize)]
pub struct TokenConfig {
    /// Signing keys: the first one signs, all of them verify.
    pub keys: SigningKeys,
    /// A file with these keys, instead of a list.
    #[serde(deserialize_with = "values::path")]
    pub keys_file: Option<PathBuf>,
    /// Time from the deadline to the expiry of the token.
    pub replay_window_ms: Bounded<0, 86_400_000>,
    /// Where callbacks may carry their token.
    pub carriers: Vec<Carrier>,
    /// Where a callback carries its token unless the work item specifies a carrier.
    pub default_carrier: Carrier,
    /// Name of the header that carries a token.
    pub header_name: TokenHeader,
    /// Name of the query parameter that carries a token.
    #[serde(deserialize_with = "values::name")]
    pub query_name: String,
    /// Name of the top-level body field that carries a token.
    #[serde(deserialize_with = "values::name")]
    pub body_field: String,
}

/// `[platform]`
#[derive(Clone, Debug, Deserialize)]
pub struct PlatformConfig {
    /// Bearer keys of the platform.
    pub service_keys: ServiceKeys,
    /// A file with these keys, instead of a list.
    #[serde(deserialize_with = "values::path")]
    pub service_keys_file: Option<PathBuf>,
}

/// `[console]`
#[derive(Clone, Debug, Deserialize)]
pub struct ConsoleConfig {
    /// Whether the platform listener serves `/console`.
    pub enabled: bool,
    /// The address of a trace in a trace viewer, with `{traceId}` for its id. `None`: trace ids are not links.
    #[serde(deserialize_with = "values::trace_url")]
    pub trace_url: Option<String>,
}

impl TokenConfig {
    /// Rereads the keys in [`keys_file`](Self::keys_file). `None` without a file.
    pub fn keys_in_file(&self) -> Option<Result<SigningKeys, SecretFileError>> {
        self.keys_file.as_deref().map(secret_files::signing_keys)
    }
}

impl PlatformConfig {
    /// Rereads the keys in [`service_keys_file`](Self::service_keys_file). `None` without a file.
    pub fn keys_in_file(&self) -> Option<Result<ServiceKeys, SecretFileError>> {
        self.service_keys_file.as_deref().map(secret_files::service_keys)
    }
}

/// `[rate_limit]`
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct RateLimitConfig {
    /// Maximum requests of an address per window. 0: no limit.
    pub max: Bounded<0, 1_000_000_000>,
    /// Length of that window.
    pub window_ms: Bounded<1_000, 86_400_000>,
    /// Maximum failed authentications of an address per window. 0: no limit.
    pub failed_max: Bounded<0, 1_000_000_000>,
    /// Length of that window.
    pub failed_window_ms: Bounded<1_000, 86_400_000>,
    /// Prefix length in bits by which IPv6 addresses are grouped.
    pub ipv6_prefix: Bounded<1, 128>,
}

/// `[gate]`
#[derive(Clone, Debug, Deserialize)]
pub struct GateConfig {
    /// Default time from issue to deadline.
    pub default_timeout_ms: Bounded<1, { Limits::MAX_TIMEOUT_MS }>,
    /// Maximum time from issue to deadline.
    pub max_timeout_ms: Bounded<1, { Limits::MAX_TIMEOUT_MS }>,
    /// Default idle timeout of a conversation.
    pub conversation_idle_ttl_ms: Bounded<1, { Limits::MAX_IDLE_TTL_MS }>,
    /// Time for which an ended conversation stays readable.
    pub ended_retention_ms: Bounded<1_000, { Limits::MAX_RETENTION_MS }>,
    /// Maximum number of held items per conversation.
    pub max_held_items: Bounded<1, 1_000_000>,
    /// Maximum bytes of held results per conversation.
    pub max_held_bytes: Bounded<1, 1_073_741_824>,
    /// Maximum number of awaiting items per conversation.
    pub max_awaiting_items: Bounded<1, 1_000_000>,
    /// Maximum number of envelopes per channel.
    pub max_channel_length: Bounded<1, 1_000_000>,
    /// Maximum bytes of results per channel, held results included.
    pub max_channel_bytes: Bounded<65_536, 1_099_511_627_776>,
}

/// `[telemetry]`
#[derive(Clone, Debug, Deserialize)]
pub struct TelemetryConfig {
    /// Directives for tracing's `EnvFilter`.
    #[serde(deserialize_with = "values::log_level")]
    pub log_level: String,
    /// Format of log lines.
    pub log_format: LogFormat,
}

/// The key of a setting, and why its value is invalid.
type InvalidSetting = (&'static str, String);

impl Config {
    /// Limits of a conversation.
    pub const fn limits(&self) -> Limits {
        Limits {
            max_held_items: self.gate.max_held_items.get(),
            max_held_bytes: self.gate.max_held_bytes.get(),
            max_awaiting_items: self.gate.max_awaiting_items.get(),
            max_channel_length: self.gate.max_channel_length.get(),
            max_channel_bytes: self.gate.max_channel_bytes.get(),
            conversation_idle_ttl_ms: self.gate.conversation_idle_ttl_ms.get(),
            ended_retention_ms: self.gate.ended_retention_ms.get(),
        }
    }

    /// Certificate and key of the public listener. `None`: no TLS.
    pub fn public_tls(&self) -> Option<CertificateFiles> {
        tls(&self.http.public_tls_cert, &self.http.public_tls_key)
    }

    /// Certificate and key of the platform listener. `None`: no TLS.
    pub fn platform_tls(&self) -> Option<CertificateFiles> {
        tls(&self.http.platform_tls_cert, &self.http.platform_tls_key)
    }

    /// The trusted proxies and their header.
    pub fn trusted_proxies(&self) -> TrustedProxies {
        TrustedProxies { networks: self.http.trusted_proxies.clone(), header: self.http.forwarded_header }
    }

    /// The violated rules that involve more than one setting.
    fn problems(&self) -> Vec<InvalidSetting> {
        let (http, gate, token) = (&self.http, &self.gate, &self.token);
        let certificates = [
            ("http.public_tls_key", &http.public_tls_key, &http.public_tls_cert),
            ("http.public_tls_cert", &http.public_tls_cert, &http.public_tls_key),
            ("http.platform_tls_key", &http.platform_tls_key, &http.platform_tls_cert),
            ("http.platform_tls_cert", &http.platform_tls_cert, &http.platform_tls_key),
        ];
        let incomplete =
            |missing: &Path, given: &Path| missing.as_os_str().is_empty() && !given.as_os_str().is_empty();
        let certificates = certificates.map(|(key, missing, given)| {
            (incomplete(missing, given), key, "a certificate needs its key, and a key its certificate")
        });
        let rules = [
            (
                gate.default_timeout_ms.get() > gate.max_timeout_ms.get(),
                "gate.default_timeout_ms",
                "must not be above gate.max_timeout_ms",
            ),
            (
                ["content", "error"].contains(&token.body_field.as_str()),
                "token.body_field",
                "must not be content or error, which are members of results",
            ),
            (
                http.drain_grace_ms.get() > http.drain_timeout_ms.get(),
                "http.drain_grace_ms",
                "must not be above http.drain_timeout_ms",
            ),
            (
                // Bodies without a valid token in the head share a quarter of the budget, and one body counts three
                // times.
                http.max_buffered_bytes.get() < 12 * http.max_body_bytes.get(),
                "http.max_buffered_bytes",
                "must be at least 12 times http.max_body_bytes",
            ),
            (
                // An ended conversation must be readable until its last token has expired.
                gate.ended_retention_ms.get() < gate.max_timeout_ms.get() + token.replay_window_ms.get(),
                "gate.ended_retention_ms",
                "must be at least gate.max_timeout_ms + token.replay_window_ms",
            ),
            (token.carriers.is_empty(), "token.carriers", "must name at least one carrier"),
            (
                !token.carriers.is_empty() && !token.carriers.contains(&token.default_carrier),
                "token.default_carrier",
                "must be one of token.carriers",
            ),
            (
                http.public_addr == http.platform_addr && http.public_addr.port() != 0,
                "http.platform_addr",
                "must differ from http.public_addr",
            ),
        ];
        let violated = certificates.into_iter().chain(rules).filter(|(is_violated, ..)| *is_violated);
        let mut problems: Vec<_> = violated.map(|(_, key, message)| (key, message.to_owned())).collect();
        problems.extend(self.missing_keys());
        problems.extend(self.store.problems());
        problems
    }

    /// A listener on a non-loopback address requires configured keys.
    fn missing_keys(&self) -> Vec<InvalidSetting> {
        let missing = match (self.token.keys.is_empty(), self.platform.service_keys.is_empty()) {
            (true, true) => "token.keys and platform.service_keys",
            (true, false) => "token.keys",
            (false, true) => "platform.service_keys",
            (false, false) => return Vec::new(),
        };
        [("http.public_addr", self.http.public_addr), ("http.platform_addr", self.http.platform_addr)]
            .into_iter()
            .filter(|(_, address)| !address.ip().is_loopback())
            .map(|(key, address)| {
                let message = format!(
                    "{address} is not a loopback address, so {missing} must be set; callback-ingress keys new \
                     creates keys"
                );
                (key, message)
            })
            .collect()
    }

    /// Reads the keys and the password that are in files.
    fn read_secret_files(&mut self) -> Vec<InvalidSetting> {
        let mut problems = Vec::new();
        if let Some(file) = &self.token.keys_file {
            if self.token.keys.is_empty() {
                match secret_files::signing_keys(file) {
                    Ok(keys) => self.token.keys = keys,
                    Err(error) => problems.push(("token.keys_file", error.to_string())),
                }
            } else {
                problems.push(("token.keys_file", "token.keys is set as well: use one of them".into()));
            }
        }
        if let Some(file) = &self.platform.service_keys_file {
            if self.platform.service_keys.is_empty() {
                match secret_files::service_keys(file) {
                    Ok(keys) => self.platform.service_keys = keys,
                    Err(error) => problems.push(("platform.service_keys_file", error.to_string())),
                }
            } else {
                let message = "platform.service_keys is set as well: use one of them";
                problems.push(("platform.service_keys_file", message.into()));
            }
        }
        if let Err(message) = self.store.read_password() {
            problems.push(("store.password_file", message));
        }
        problems
    }

    /// The settings of the Redis store. `None` for the memory store.
    pub fn redis(&self) -> Option<RedisSettings> {
        let StoreUrl::Redis(url) = &self.store.url else { return None };
        let store = &self.store;
        let replicas =
            Replicas { count: store.wait_replicas.get(), timeout: store.wait_timeout_ms.duration() };
        Some(RedisSettings {
            url: url.clone(),
            tls: TlsFiles {
                ca: store.tls_ca.clone(),
                client: store.tls_certificate.clone().zip(store.tls_key.clone()),
            },
            sentinel_username: store.sentinel_username.clone(),
            sentinel_password: store.sentinel_password.clone(),
            replicas: (replicas.count > 0).then_some(replicas),
            partitions: u16::try_from(store.partitions.get()).unwrap_or(u16::MAX),
            connect_timeout: store.connect_timeout_ms.duration(),
            response_timeout: store.response_timeout_ms.duration(),
            max_requests_in_flight: self.http.max_requests_in_flight.size(),
            limits: self.limits(),
        })
    }
}

fn tls(chain: &Path, key: &Path) -> Option<CertificateFiles> {
    (!chain.as_os_str().is_empty()).then(|| CertificateFiles { chain: chain.to_owned(), key: key.to_owned() })
}

impl<const MIN: u64, const MAX: u64> Bounded<MIN, MAX> {
    /// The number as a duration in milliseconds.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.get())
    }

    /// The number as a size in memory, at most `usize::MAX`.
    pub fn size(self) -> usize {
        usize::try_from(self.get()).unwrap_or(usize::MAX)
    }
}
