//! Configuration: the compiled-in defaults, a file, variables and flags, in that order, into types that cannot hold a
//! bad value.
//!
//! Own code rather than figment (no release since 2024-05): errors name key and source and never a value, so that no
//! secret reaches a terminal.

mod layers;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
pub use layers::{ConfigError, Loaded, PREFIX, Sources, load};
use secrecy::SecretString;
use serde::Deserialize;
pub use values::{Bounded, Carrier, LogFormat, ServiceKeys, SigningKeys, StoreUrl, TokenHeader};

use crate::domain::gate::Limits;
use crate::http::client_address::{ForwardedHeader, Proxies};
use crate::http::tls::Files;
use crate::store::redis::{self, RedisSettings, Replicas, TlsFiles};

/// The defaults, each documented; compiled in.
pub const DEFAULTS: &str = include_str!("../config/default.toml");

/// Longest time that a conversation may be left untouched, in milliseconds: a week.
pub const MAX_IDLE_TTL_MS: u64 = 604_800_000;

/// All settings. `config/default.toml` documents each.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// Listeners and their limits.
    pub http: Http,
    /// The store.
    pub store: Store,
    /// Tokens.
    pub token: Token,
    /// The platform's credentials.
    pub platform: Platform,
    /// How often a client address may ask.
    pub rate_limit: RateLimit,
    /// Rules of the gate.
    pub gate: Gate,
    /// Logs.
    pub telemetry: Telemetry,
}

/// `[http]`
#[derive(Clone, Debug, Deserialize)]
pub struct Http {
    /// Where providers post.
    pub public_addr: SocketAddr,
    /// Where the platform works.
    pub platform_addr: SocketAddr,
    /// The public listener's certificate chain; without, it speaks clear text.
    pub public_tls_cert: PathBuf,
    /// The private key of it.
    pub public_tls_key: PathBuf,
    /// The platform listener's certificate chain.
    pub platform_tls_cert: PathBuf,
    /// The private key of it.
    pub platform_tls_key: PathBuf,
    /// What callback URLs begin with; without it, the public address.
    #[serde(deserialize_with = "values::base_url")]
    pub public_base_url: Option<String>,
    /// Proxies that are believed for whom they ask.
    #[serde(deserialize_with = "values::networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// Where they say it.
    #[serde(deserialize_with = "values::forwarded_header")]
    pub forwarded_header: ForwardedHeader,
    /// Largest body.
    pub max_body_bytes: Bounded<1, 67_108_864>,
    /// Longest time for a request's head.
    pub head_timeout_ms: Bounded<10, 600_000>,
    /// Longest time for a request's body.
    pub body_timeout_ms: Bounded<10, 600_000>,
    /// Longest time in which nothing of a reply is taken.
    pub write_timeout_ms: Bounded<10, 600_000>,
    /// Longest idle time of a connection.
    pub keep_alive_timeout_ms: Bounded<1_000, 3_600_000>,
    /// Most connections of a listener.
    pub max_connections: Bounded<1, 1_000_000>,
    /// Most requests under way of a listener.
    pub max_requests_in_flight: Bounded<1, 1_000_000>,
    /// Most bytes of bodies that a listener has in memory.
    pub max_buffered_bytes: Bounded<65_536, 68_719_476_736>,
    /// Most event streams.
    pub max_event_streams: Bounded<1, 1_000_000>,
    /// Shortest time of draining.
    pub drain_grace_ms: Bounded<0, 600_000>,
    /// Longest time of draining.
    pub drain_timeout_ms: Bounded<100, 600_000>,
}

impl Http {
    /// How much of the time to drain is kept for telemetry, and once more for the log's last lines.
    pub fn flush_timeout(&self) -> Duration {
        let spare = self.drain_timeout_ms.duration().saturating_sub(self.drain_grace_ms.duration());
        (spare / 5).min(Duration::from_secs(1))
    }
}

/// `[store]`
#[derive(Clone, Debug, Deserialize)]
pub struct Store {
    /// Which store.
    pub url: StoreUrl,
    /// Into how many slots conversations are spread.
    pub partitions: Bounded<1, 16_384>,
    /// Longest time to a connection.
    pub connect_timeout_ms: Bounded<10, 60_000>,
    /// Longest time to an answer.
    pub response_timeout_ms: Bounded<10, 60_000>,
    /// Replicas that must have a write before it is acknowledged.
    pub wait_replicas: Bounded<0, 16>,
    /// Longest time to their confirmation.
    pub wait_timeout_ms: Bounded<10, 60_000>,
    /// Authorities that Redis' certificate is signed by.
    #[serde(deserialize_with = "values::path")]
    pub tls_ca: Option<PathBuf>,
    /// The client's certificate.
    #[serde(deserialize_with = "values::path")]
    pub tls_certificate: Option<PathBuf>,
    /// Its key.
    #[serde(deserialize_with = "values::path")]
    pub tls_key: Option<PathBuf>,
    /// User of the sentinels.
    #[serde(deserialize_with = "values::text")]
    pub sentinel_username: Option<String>,
    /// Password of the sentinels.
    #[serde(deserialize_with = "values::secret")]
    pub sentinel_password: Option<SecretString>,
}

impl Store {
    /// What the URL does not go together with.
    fn contradiction(&self) -> Option<(&'static str, String)> {
        let (tls, sentinels) = match &self.url {
            StoreUrl::Memory => (false, false),
            StoreUrl::Redis(url) => (redis::asks_for_tls(url), redis::names_sentinels(url)),
        };
        for (key, given, asked_for, scheme) in [
            ("store.tls_ca", self.tls_ca.is_some(), tls, "rediss"),
            ("store.tls_certificate", self.tls_certificate.is_some(), tls, "rediss"),
            ("store.tls_key", self.tls_key.is_some(), tls, "rediss"),
            ("store.sentinel_username", self.sentinel_username.is_some(), sentinels, "redis+sentinel"),
            ("store.sentinel_password", self.sentinel_password.is_some(), sentinels, "redis+sentinel"),
        ] {
            if given && !asked_for {
                return Some((key, format!("means nothing unless store.url begins with {scheme}")));
            }
        }
        match (&self.tls_certificate, &self.tls_key) {
            (Some(_), None) => Some(("store.tls_certificate", "needs store.tls_key".into())),
            (None, Some(_)) => Some(("store.tls_key", "needs store.tls_certificate".into())),
            (None, None) | (Some(_), Some(_)) => None,
        }
    }
}

/// `[token]`
#[derive(Clone, Debug, Deserialize)]
pub struct Token {
    /// Signing keys; the first signs.
    pub keys: SigningKeys,
    /// Time from a deadline to the end of the token.
    pub replay_window_ms: Bounded<0, 86_400_000>,
    /// Where a token may travel.
    pub carriers: Vec<Carrier>,
    /// Where it travels by default.
    pub default_carrier: Carrier,
    /// Name of the header.
    pub header_name: TokenHeader,
    /// Name of the query parameter.
    #[serde(deserialize_with = "values::name")]
    pub query_name: String,
    /// Name of the body's field.
    #[serde(deserialize_with = "values::name")]
    pub body_field: String,
}

/// `[platform]`
#[derive(Clone, Debug, Deserialize)]
pub struct Platform {
    /// The platform's keys.
    pub service_keys: ServiceKeys,
}

/// `[rate_limit]`
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct RateLimit {
    /// Most requests of an address in a window; none is no limit.
    pub max: Bounded<0, 1_000_000_000>,
    /// The window.
    pub window_ms: Bounded<1_000, 86_400_000>,
    /// Most failed authentications of an address in a window; none is no limit.
    pub failed_max: Bounded<0, 1_000_000_000>,
    /// The window.
    pub failed_window_ms: Bounded<1_000, 86_400_000>,
    /// How many bits of an IPv6 address count.
    pub ipv6_prefix: Bounded<1, 128>,
}

/// `[gate]`
#[derive(Clone, Debug, Deserialize)]
pub struct Gate {
    /// Time to a deadline by default.
    pub default_timeout_ms: Bounded<1, 86_400_000>,
    /// Longest time to a deadline.
    pub max_timeout_ms: Bounded<1, 86_400_000>,
    /// Idle time after which a conversation counts as ended.
    pub conversation_idle_ttl_ms: Bounded<1, MAX_IDLE_TTL_MS>,
    /// How long an ended conversation can be read.
    pub ended_retention_ms: Bounded<1_000, 604_800_000>,
    /// Most held items.
    pub max_held_items: Bounded<1, 1_000_000>,
    /// Most bytes of held results.
    pub max_held_bytes: Bounded<1, 1_073_741_824>,
    /// Most awaiting items.
    pub max_awaiting_items: Bounded<1, 1_000_000>,
    /// Most envelopes of a channel.
    pub max_channel_length: Bounded<1, 1_000_000>,
    /// Most bytes of results on a channel, or held for it.
    pub max_channel_bytes: Bounded<65_536, 1_099_511_627_776>,
}

/// `[telemetry]`
#[derive(Clone, Debug, Deserialize)]
pub struct Telemetry {
    /// Directives of tracing's `EnvFilter`.
    #[serde(deserialize_with = "values::log_level")]
    pub log_level: String,
    /// How log lines are written.
    pub log_format: LogFormat,
}

impl Config {
    /// What a conversation may take up.
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

    /// The public listener's certificate.
    pub fn public_tls(&self) -> Option<Files> {
        tls(&self.http.public_tls_cert, &self.http.public_tls_key)
    }

    /// The platform listener's certificate.
    pub fn platform_tls(&self) -> Option<Files> {
        tls(&self.http.platform_tls_cert, &self.http.platform_tls_key)
    }

    /// Whose word on a client's address counts.
    pub fn proxies(&self) -> Proxies {
        Proxies { trusted: self.http.trusted_proxies.clone(), header: self.http.forwarded_header }
    }

    /// Rules that no single key can keep, as the key to blame and what is wrong.
    fn contradiction(&self) -> Option<(&'static str, String)> {
        if self.gate.default_timeout_ms.get() > self.gate.max_timeout_ms.get() {
            return Some(("gate.default_timeout_ms", "must not be above gate.max_timeout_ms".into()));
        }
        if ["content", "error"].contains(&self.token.body_field.as_str()) {
            return Some((
                "token.body_field",
                "must not be a field that results have: content, error".into(),
            ));
        }
        if self.http.drain_grace_ms.get() > self.http.drain_timeout_ms.get() {
            return Some(("http.drain_grace_ms", "must not be above http.drain_timeout_ms".into()));
        }
        let http = &self.http;
        for (name, missing, given) in [
            ("http.public_tls_key", &http.public_tls_key, &http.public_tls_cert),
            ("http.public_tls_cert", &http.public_tls_cert, &http.public_tls_key),
            ("http.platform_tls_key", &http.platform_tls_key, &http.platform_tls_cert),
            ("http.platform_tls_cert", &http.platform_tls_cert, &http.platform_tls_key),
        ] {
            if missing.as_os_str().is_empty() && !given.as_os_str().is_empty() {
                return Some((name, "a certificate needs its key, and a key its certificate".into()));
            }
        }
        // A quarter of it is for bodies whose token is not known to be good, and one of them must not fill that.
        if self.http.max_buffered_bytes.get() < 12 * self.http.max_body_bytes.get() {
            return Some(("http.max_buffered_bytes", "must be at least 12 times http.max_body_bytes".into()));
        }
        // An ended conversation must be known as long as a token of it can come again.
        let longest_token = self.gate.max_timeout_ms.get() + self.token.replay_window_ms.get();
        if self.gate.ended_retention_ms.get() < longest_token {
            let message = "must be at least gate.max_timeout_ms + token.replay_window_ms";
            return Some(("gate.ended_retention_ms", message.into()));
        }
        if self.token.carriers.is_empty() {
            return Some(("token.carriers", "must name at least one carrier".into()));
        }
        if !self.token.carriers.contains(&self.token.default_carrier) {
            return Some(("token.default_carrier", "must be one of token.carriers".into()));
        }
        for (key, address) in
            [("http.public_addr", self.http.public_addr), ("http.platform_addr", self.http.platform_addr)]
        {
            let missing = match (self.token.keys.is_empty(), self.platform.service_keys.is_empty()) {
                (true, true) => "token.keys and platform.service_keys",
                (true, false) => "token.keys",
                (false, true) => "platform.service_keys",
                (false, false) => continue,
            };
            if !address.ip().is_loopback() {
                return Some((
                    key,
                    format!("{address} is not a loopback address: that needs {missing} to be configured"),
                ));
            }
        }
        if self.http.public_addr == self.http.platform_addr && self.http.public_addr.port() != 0 {
            return Some(("http.platform_addr", "must not be the public address".into()));
        }
        self.store.contradiction()
    }

    /// The store as Redis settings, when it is Redis.
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

fn tls(chain: &Path, key: &Path) -> Option<Files> {
    (!chain.as_os_str().is_empty()).then(|| Files { chain: chain.to_owned(), key: key.to_owned() })
}

impl<const MIN: u64, const MAX: u64> Bounded<MIN, MAX> {
    /// The number as a duration in milliseconds.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.get())
    }

    /// The number as a size in memory.
    pub fn size(self) -> usize {
        usize::try_from(self.get()).unwrap_or(usize::MAX)
    }
}
