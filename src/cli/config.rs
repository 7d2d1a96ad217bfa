//! `config check`.

use super::serve::exports;
use super::{Failure, say};
use crate::clock::Clock;
use crate::config::{Config, LoadedConfig};
use crate::http::tls::Tls;
use crate::store::redis::{NotUsable, RedisStore};

/// What an operator may want to know before this configuration is used.
fn remarks(config: &Config) -> Vec<&'static str> {
    let shared = config.redis().is_some();
    let mut remarks = Vec::new();
    if !shared {
        remarks.push("store.url is memory: conversations are gone when the process ends, and one instance must take all requests");
    }
    if config.token.keys.is_empty() {
        remarks.push(
            "token.keys is empty: a key is made for each run, and tokens end with the run that issued them",
        );
    }
    if config.platform.service_keys.is_empty() {
        remarks.push("platform.service_keys is empty: a key is made for each run and printed by serve");
    }
    if config.http.public_base_url.is_none() && config.http.public_addr.ip().is_unspecified() {
        remarks.push(
            "http.public_base_url is empty: callback URLs would begin with an address that nobody can reach",
        );
    }
    remarks
}

/// The configuration was read, or we would not be here; whether its store can be used is asked now.
pub(super) async fn check(loaded: LoadedConfig) -> Result<(), Failure> {
    let exports = exports()?;
    for remark in remarks(&loaded.config) {
        say(&format!("note: {remark}\n"))?;
    }
    if let Some(settings) = loaded.config.redis() {
        let wrong = |error: Box<dyn std::error::Error>| Failure::Wrong(error);
        let store = RedisStore::new(&settings, Clock::System).map_err(|error| wrong(error.into()))?;
        match store.verify().await {
            Ok(()) => {
                for remark in store.new_remarks().await {
                    say(&format!("note: {remark}\n"))?;
                }
            }
            Err(refused @ NotUsable::Refused(_)) => return Err(wrong(refused.into())),
            Err(NotUsable::NotThere(error)) => return Err(Failure::Failed(error.into())),
        }
    }
    for files in [loaded.config.public_tls(), loaded.config.platform_tls()].into_iter().flatten() {
        Tls::new(files).map_err(|error| Failure::Wrong(error.into()))?;
    }
    say(&format!(
        "the configuration is good; the store is {}; sent by OTLP: {exports}\n",
        loaded.redacted_store_url()
    ))
}
