//! Types of settings, which hold only valid values. Error messages say what a value must be, and never show
//! a secret.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use axum::http::HeaderName;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ipnet::IpNet;
use secrecy::SecretString;
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use super::suggestions;
use crate::domain::token::{KeyId, SigningKey};
use crate::http::client_address::ForwardedHeader;
use crate::store::redis;

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounded<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Bounded<MIN, MAX> {
    /// The number, from `MIN` to `MAX`.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Bounded<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number<const MIN: u64, const MAX: u64>;
        impl<const MIN: u64, const MAX: u64> Visitor<'_> for Number<MIN, MAX> {
            type Value = u64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<u64, E> {
                u64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
                Ok(number)
            }
        }
        let number = deserializer.deserialize_u64(Number::<MIN, MAX>)?;
        if (MIN..=MAX).contains(&number) {
            Ok(Self(number))
        } else {
            Err(D::Error::invalid_value(Unexpected::Unsigned(number), &Number::<MIN, MAX>))
        }
    }
}

/// The part of a callback that carries the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// A request header.
    Header,
    /// A query parameter.
    Query,
    /// A top-level field of the body.
    Body,
    /// A segment of the path.
    Path,
}

impl Carrier {
    /// The name in the API and in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Query => "query",
            Self::Body => "body",
            Self::Path => "path",
        }
    }
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Text.
    Text,
    /// One JSON object per line.
    Json,
}

/// What a dump shows in place of a password. It is refused as a password, so that a dump cannot be mistaken for a
/// complete configuration.
pub(super) const REDACTED_WORD: &str = "redacted";

/// The value of `store.url`.
#[derive(Clone, Debug)]
pub enum StoreUrl {
    /// The memory store.
    Memory,
    /// A Redis URL, which may hold a password.
    Redis(SecretString),
}

impl<'de> Deserialize<'de> for StoreUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let url = secret_text::<D>(deserializer, "must be a URL (a string)")?;
        if url == "memory:" {
            return Ok(Self::Memory);
        }
        if redis::password_range(&url).is_some_and(|at| &url[at] == REDACTED_WORD) {
            return Err(D::Error::custom("the password is redacted: this is the output of config dump"));
        }
        let url = SecretString::from(url);
        // The message of `check_url` starts with the key, which this error adds as well.
        redis::check_url(&url).map_err(|error| {
            let message = error.to_string();
            D::Error::custom(message.strip_prefix("store.url ").unwrap_or(&message))
        })?;
        Ok(Self::Redis(url))
    }
}

fn secret_text<'de, D: Deserializer<'de>>(deserializer: D, wanted: &str) -> Result<String, D::Error> {
    match toml::Value::deserialize(deserializer) {
        Ok(toml::Value::String(text)) => Ok(text),
        Ok(_) | Err(_) => Err(D::Error::custom(wanted)),
    }
}

fn secret_list<'de, D: Deserializer<'de>>(deserializer: D, wanted: &str) -> Result<Vec<String>, D::Error> {
    let wrong = || D::Error::custom(wanted);
    let Ok(toml::Value::Array(values)) = toml::Value::deserialize(deserializer) else { return Err(wrong()) };
    values.into_iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
}

/// Signing keys with distinct ids; the first one signs. `Debug` shows only the ids.
#[derive(Clone, Debug, Default)]
pub struct SigningKeys(Vec<SigningKey>);

impl SigningKeys {
    /// Whether the list is empty.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys in order.
    pub fn keys(&self) -> &[SigningKey] {
        &self.0
    }
}

/// Standard base64, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Parses keys. Each entry has its position, which error messages name.
pub(super) fn signing_keys(entries: &[(String, &str)]) -> Result<SigningKeys, String> {
    let mut keys = Vec::with_capacity(entries.len());
    let mut ids = Vec::with_capacity(entries.len());
    for (place, text) in entries {
        let wrong = |what: &dyn fmt::Display| format!("{place}: {what}");
        let (id, secret) =
            text.split_once(':').ok_or_else(|| wrong(&"must be a key id, a colon and base64"))?;
        let id = KeyId::parse(id).map_err(|error| wrong(&error))?;
        let secret = BASE64.decode(secret).map_err(|_| wrong(&"the part after the colon is not base64"))?;
        let key = SigningKey::new(id, secret).map_err(|error| wrong(&error))?;
        if ids.contains(&id) {
            return Err(wrong(&"duplicate key id"));
        }
        ids.push(id);
        keys.push(key);
    }
    Ok(SigningKeys(keys))
}

/// The entries of a list with their positions, for error messages.
fn numbered(texts: &[String]) -> Vec<(String, &str)> {
    let places = (1..).map(|number: usize| format!("entry {number}"));
    places.zip(texts.iter().map(String::as_str)).collect()
}

impl<'de> Deserialize<'de> for SigningKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = secret_list::<D>(deserializer, r#"must be a list of strings: ["kid:base64", …]"#)?;
        signing_keys(&numbered(&texts)).map_err(D::Error::custom)
    }
}

/// The platform's keys. `Debug` shows only their number.
#[derive(Clone, Default)]
pub struct ServiceKeys(Vec<SecretString>);

/// Minimum length of a service key in characters.
const MIN_SERVICE_KEY: usize = 16;

impl ServiceKeys {
    /// Whether the list is empty.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys in order.
    pub fn keys(&self) -> &[SecretString] {
        &self.0
    }
}

impl fmt::Debug for ServiceKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceKeys({})", self.0.len())
    }
}

/// Parses keys. Each entry has its position, which error messages name.
pub(super) fn service_keys(entries: &[(String, &str)]) -> Result<ServiceKeys, String> {
    let good = |text: &str| text.len() >= MIN_SERVICE_KEY && text.bytes().all(|b| b.is_ascii_graphic());
    if let Some((place, _)) = entries.iter().find(|(_, text)| !good(text)) {
        return Err(format!(
            "{place}: a service key needs at least {MIN_SERVICE_KEY} visible ASCII characters, without spaces"
        ));
    }
    Ok(ServiceKeys(entries.iter().map(|(_, text)| SecretString::from(*text)).collect()))
}

impl<'de> Deserialize<'de> for ServiceKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = secret_list::<D>(deserializer, r#"must be a list of strings: ["key", …]"#)?;
        service_keys(&numbered(&texts)).map_err(D::Error::custom)
    }
}

/// An address to listen on: an IP address or `localhost`, and a port.
pub(super) fn listen_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    let text = text.trim();
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let wrong = |message| Err(D::Error::custom(message));
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    match (host, port.parse::<u16>()) {
        _ if text.parse::<IpAddr>().is_ok() => {
            wrong("needs a port: 127.0.0.1:8080, or with an IPv6 address [::1]:8080")
        }
        ("", Ok(_)) => wrong(
            "needs an address before the port: 127.0.0.1 for this machine only, 0.0.0.0 or [::] for every address",
        ),
        (host, Ok(port)) if host.eq_ignore_ascii_case("localhost") => {
            Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))
        }
        (_, Ok(_)) => {
            wrong("must be an IP address and a port, such as 127.0.0.1:8080; names are not resolved")
        }
        (_, Err(_)) => wrong("must be an IP address and a port from 0 to 65535, such as 127.0.0.1:8080"),
    }
}

/// An absolute http(s) URL without credentials, query or fragment. Trailing slashes are removed. `None` if empty.
pub(super) fn base_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    parse_base_url(&text).map(Some).map_err(D::Error::custom)
}

/// Parses a URL to which paths are appended. Removes trailing slashes.
pub fn parse_base_url(text: &str) -> Result<String, &'static str> {
    let url = url::Url::parse(text).map_err(|_| "must be an absolute URL")?;
    let plain = matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none();
    if !plain || !url.username().is_empty() || url.password().is_some() {
        return Err("must consist of http:// or https://, a host and optionally a path");
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// A URL with one `{traceId}` after its host. `None` if empty.
pub(super) fn trace_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    const MARK: &str = "{traceId}";
    let Some(text) = text(deserializer)? else { return Ok(None) };
    let mut parts = text.split(MARK);
    let (start, is_single) = (parts.next().unwrap_or_default(), parts.count() == 1);
    let url = url::Url::parse(start).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    // The text before the placeholder must contain a path, so that the placeholder is not in the host.
    let has_path = start.splitn(4, '/').count() == 4;
    match url {
        Some(url) if is_single && has_path && url.username().is_empty() && url.password().is_none() => {
            Ok(Some(text))
        }
        Some(_) | None => {
            Err(D::Error::custom("must be an http:// or https:// URL with {traceId} in its path or query"))
        }
    }
}

/// `None` if empty.
pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok((!text.is_empty()).then_some(text))
}

/// `None` if empty.
pub(super) fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    text(deserializer).map(|path| path.map(PathBuf::from))
}

/// `None` if empty. Refuses [`REDACTED_WORD`].
pub(super) fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    let secret = secret_text::<D>(deserializer, "must be a string")?;
    if secret == REDACTED_WORD {
        return Err(D::Error::custom("is redacted: this is the output of config dump"));
    }
    Ok((!secret.is_empty()).then(|| secret.into()))
}

/// Headers that have another meaning and cannot carry a token.
const RESERVED_HEADERS: [&str; 15] = [
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "cookie",
    "expect",
    "forwarded",
    "te",
    "traceparent",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-request-id",
];

/// The name of a header that carries a token.
#[derive(Clone, Debug)]
pub struct TokenHeader {
    /// For lookups: in lower case.
    pub name: HeaderName,
    /// For the platform: as configured.
    pub text: String,
}

impl<'de> Deserialize<'de> for TokenHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let name = HeaderName::try_from(&text).map_err(|_| D::Error::custom("is not a valid header name"))?;
        if RESERVED_HEADERS.contains(&name.as_str()) {
            return Err(D::Error::custom("is a reserved header"));
        }
        Ok(Self { name, text })
    }
}

/// A parameter or field name.
pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let good = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if good { Ok(text) } else { Err(D::Error::custom("must be 1 to 64 characters of A-Z a-z 0-9 . _ -")) }
}

/// The log levels, from least to most verbose.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Checks the level of a directive. `EnvFilter` would parse an unknown level as a target, and disable all other
/// targets.
fn check_level(level: &str) -> Result<(), String> {
    if LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)) {
        return Ok(());
    }
    let level = level.to_ascii_lowercase();
    let longer = LEVELS.into_iter().find(|known| known.len() > 3 && level.starts_with(known));
    let nearest = longer.or_else(|| suggestions::nearest(&level, LEVELS.into_iter()));
    let meant = nearest.map_or_else(String::new, |nearest| format!("; did you mean {nearest}?"));
    Err(format!(
        "must be a level ({}), or directives of a target and a level, such as callback_ingress=debug,info{meant}",
        LEVELS.join(", ")
    ))
}

/// Directives for `EnvFilter`. Refuses field filters: their values are regular expressions, and compiling one of a
/// hundred characters can take minutes and gigabytes.
pub(super) fn log_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.contains('{') {
        return Err(D::Error::custom("must not filter by fields: {…}"));
    }
    for directive in text.split(',') {
        let level = directive.rsplit('=').next().unwrap_or(directive).trim();
        check_level(level).map_err(D::Error::custom)?;
    }
    tracing_subscriber::EnvFilter::try_new(&text)
        .map(|_| text)
        .map_err(|_| D::Error::custom("must be a level or a list of directives"))
}

/// Networks such as `10.0.0.0/8`, or single addresses.
pub(super) fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let network = |text: &String| text.parse().ok().or_else(|| text.parse().map(IpAddr::into).ok());
    let parsed: Option<Vec<IpNet>> = texts.iter().map(network).collect();
    parsed.ok_or_else(|| D::Error::custom(r#"must be a list of networks or addresses: ["10.0.0.0/8"]"#))
}

pub(super) fn forwarded_header<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<ForwardedHeader, D::Error> {
    match String::deserialize(deserializer)?.to_ascii_lowercase().as_str() {
        "forwarded" => Ok(ForwardedHeader::Forwarded),
        "x-forwarded-for" => Ok(ForwardedHeader::XForwardedFor),
        _ => Err(D::Error::custom("must be X-Forwarded-For or Forwarded")),
    }
}
