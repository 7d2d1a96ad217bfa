//! Rereads files with keys, so that keys can be rotated without a restart.

use std::sync::Arc;

use crate::config::{Config, PlatformConfig, TokenConfig};
use crate::domain::token::Keyring;
use crate::platform::ServiceKeyDigests;

/// The files in `token.keys_file` and `platform.service_keys_file`, and what their keys are used for.
#[derive(Clone, Debug)]
pub struct KeyFiles {
    token: TokenConfig,
    platform: PlatformConfig,
    keyring: Arc<Keyring>,
    service_keys: ServiceKeyDigests,
}

impl KeyFiles {
    pub(super) fn new(config: &Config, keyring: Arc<Keyring>, service_keys: ServiceKeyDigests) -> Self {
        Self { token: config.token.clone(), platform: config.platform.clone(), keyring, service_keys }
    }

    /// Reads the files and logs the result. If a file cannot be used, its previous keys stay in use.
    pub fn reload(&self) {
        match self.token.keys_in_file() {
            Some(Ok(keys)) => {
                if let Some((first, others)) = keys.keys().split_first() {
                    self.keyring.replace(first.clone(), others.to_vec());
                    let ids: Vec<_> = keys.keys().iter().map(|key| key.id().to_string()).collect();
                    tracing::info!(
                        name: "token_keys.reloaded",
                        key_ids = ids.join(" "),
                        "token.keys_file was reloaded; the first key signs"
                    );
                }
            }
            Some(Err(error)) => tracing::error!(
                name: "token_keys.kept",
                %error,
                "token.keys_file cannot be used; the previous keys stay in use"
            ),
            None => {}
        }
        match self.platform.keys_in_file() {
            Some(Ok(keys)) => {
                self.service_keys.replace(keys.keys());
                tracing::info!(
                    name: "service_keys.reloaded",
                    keys = keys.keys().len(),
                    "platform.service_keys_file was reloaded"
                );
            }
            Some(Err(error)) => tracing::error!(
                name: "service_keys.kept",
                %error,
                "platform.service_keys_file cannot be used; the previous keys stay in use"
            ),
            None => {}
        }
    }
}
