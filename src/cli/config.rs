//! `config check`.

use super::outcome::{Failure, print};
use super::serve::exports;
use crate::clock::Clock;
use crate::config::{Config, LoadedConfig};
use crate::http::tls::Tls;
use crate::store::redis::{PreflightError, RedisStore};

/// Settings that are valid but unsuitable for production.
fn notes(config: &Config) -> Vec<&'static str> {
    let shared = config.redis().is_some();
    let mut notes = Vec::new();
    if !shared {
        notes.push("store.url is memory: conversations are lost when the process exits, and only one instance can run");
    }
    if config.token.keys.is_empty() {
        notes.push(
            "token.keys is empty: a key is generated for each run, and tokens of earlier runs are invalid",
        );
    }
    if config.platform.service_keys.is_empty() {
        notes.push("platform.service_keys is empty: a key is generated for each run and printed by serve");
    }
    if config.http.public_base_url.is_none() && config.http.public_addr.ip().is_unspecified() {
        notes.push(
            "http.public_base_url is empty: callback URLs contain an address that providers cannot reach",
        );
    }
    notes
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
            Err(PreflightError::Unavailable(error)) => return Err(Failure::Runtime(error.into())),
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
