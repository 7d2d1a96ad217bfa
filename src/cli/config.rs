//! `config check`.

use url::{Host, Url};

use super::outcome::{Failure, print};
use crate::clock::Clock;
use crate::config::{Config, Exports, HttpConfig, InvalidVariable, LoadedConfig};
use crate::http::tls::Tls;
use crate::store::redis::{PreflightError, RedisStore, diagnosis};

/// The exports that OpenTelemetry's environment variables select.
pub(super) fn exports() -> Result<Exports, InvalidVariable> {
    Exports::from_variables(|name| std::env::var_os(name)?.into_string().ok())
}

/// Settings that are valid but unsuitable for production.
fn notes(config: &Config) -> Vec<String> {
    let shared = config.redis().is_some();
    let mut notes = Vec::new();
    let mut note = |text: &str| notes.push(text.to_owned());
    if !shared {
        note(
            "store.url is memory: conversations are lost when the process exits, and only one instance can run",
        );
    }
    if config.token.keys.is_empty() {
        note("token.keys is empty: a key is generated for each run, and tokens of earlier runs are invalid");
    }
    if config.platform.service_keys.is_empty() {
        note("platform.service_keys is empty: a key is generated for each run and printed by serve");
    }
    notes.extend(public_url_warnings(&config.http));
    notes
}

/// Warnings about the callback URLs that providers get.
pub(super) fn public_url_warnings(http: &HttpConfig) -> Vec<String> {
    let Some(url) = &http.public_base_url else {
        let address = http.public_addr;
        let warning = format!("http.public_base_url is empty: callback URLs contain {address}");
        return match address.ip() {
            ip if ip.is_loopback() => Vec::new(),
            ip if ip.is_unspecified() => vec![format!("{warning}, an address that providers cannot reach")],
            _ => vec![format!("{warning}, which providers must be able to reach")],
        };
    };
    let url = Url::parse(url).ok().filter(|url| url.scheme() == "http");
    let is_local = |url: &Url| match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    };
    let exposed = url.filter(|url| !is_local(url));
    exposed
        .map(|_| "http.public_base_url begins with http://: tokens and results travel unencrypted".to_owned())
        .into_iter()
        .collect()
}

/// Checks the variables of telemetry, the store and the certificates. The configuration itself is already valid.
pub(super) async fn check(loaded: LoadedConfig) -> Result<(), Failure> {
    let exports = exports()?;
    for note in notes(&loaded.config) {
        print(&format!("note: {note}\n"))?;
    }
    if let Some(settings) = loaded.config.redis() {
        let usage = |error: Box<dyn std::error::Error>| Failure::Usage(error);
        let store = RedisStore::new(&settings, Clock::System).map_err(|error| usage(error.into()))?;
        match store.verify().await {
            Ok(()) => {
                for note in store.new_warnings().await {
                    print(&format!("note: {note}\n"))?;
                }
            }
            Err(refused @ PreflightError::Refused(_)) => return Err(usage(refused.into())),
            Err(PreflightError::Unavailable(error)) => {
                let servers = loaded.config.store.servers();
                let message = format!("Redis at {servers} does not respond: {}", diagnosis(&error));
                return Err(Failure::Runtime(message.into()));
            }
        }
    }
    for files in [loaded.config.public_tls(), loaded.config.platform_tls()].into_iter().flatten() {
        Tls::new(files).map_err(|error| Failure::Usage(error.into()))?;
    }
    print(&format!(
        "the configuration is valid; store: {}; OTLP exports: {exports}\n",
        loaded.redacted_store_url()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn warnings(address: &str, url: &str) -> Vec<String> {
        let flags = [
            ("http.public_addr", address),
            ("http.public_base_url", url),
            ("token.keys", r#"["k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]"#),
            ("platform.service_keys", r#"["0123456789abcdef"]"#),
        ];
        let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        public_url_warnings(&load(Sources { flags, ..Sources::default() }).unwrap().config.http)
    }

    #[test]
    fn unsafe_public_url_causes_a_warning() {
        for (address, url, expected) in [
            ("127.0.0.1:8080", "", None),
            ("0.0.0.0:8080", "", Some("an address that providers cannot reach")),
            ("192.0.2.1:8080", "", Some("contain 192.0.2.1:8080, which providers must")),
            ("0.0.0.0:8080", "https://api.example.com", None),
            ("0.0.0.0:8080", "http://api.example.com", Some("travel unencrypted")),
            ("0.0.0.0:8080", "http://192.0.2.1/x", Some("travel unencrypted")),
            ("0.0.0.0:8080", "http://localhost:8080", None),
            ("0.0.0.0:8080", "http://127.0.0.2", None),
            ("0.0.0.0:8080", "http://[::1]:1", None),
        ] {
            let warnings = warnings(address, url);
            assert_eq!(warnings.len(), usize::from(expected.is_some()), "{address} {url}: {warnings:?}");
            assert!(warnings.iter().all(|warning| warning.contains(expected.unwrap())), "{warnings:?}");
        }
    }
}
