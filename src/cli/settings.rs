//! The flags for settings, which all subcommands share.

use std::path::PathBuf;

use clap::Args;

use super::outcome::Failure;
use crate::config::{LoadedConfig, Sources, VARIABLE_PREFIX, load};

#[expect(clippy::doc_markdown, reason = "shown as help on the terminal")]
/// Settings: defaults, file, CALLBACK_INGRESS__SECTION__KEY variables, flags; later ones override earlier ones.
// Does not derive `Debug`, which would show secrets.
#[derive(Args)]
#[command(next_help_heading = "Settings")]
pub(super) struct SettingsArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", global = true)]
    pub(super) config: Option<PathBuf>,
    /// Set any key, for example gate.default_timeout_ms=30000; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE", global = true)]
    pub(super) set: Vec<String>,
    /// URL of the store: "memory:" or a Redis URL, for example redis://HOST:PORT (store.url)
    #[arg(long, value_name = "URL", global = true)]
    pub(super) store: Option<String>,
    /// Address of the public listener (http.public_addr)
    #[arg(long, value_name = "ADDRESS:PORT", global = true)]
    pub(super) public_addr: Option<String>,
    /// Address of the platform listener (http.platform_addr)
    #[arg(long, value_name = "ADDRESS:PORT", global = true)]
    pub(super) platform_addr: Option<String>,
    /// A level, or tracing directives (telemetry.log_level)
    #[arg(long, value_name = "LEVEL", global = true)]
    pub(super) log_level: Option<String>,
}

/// Parses a value of `--set`. Not done by clap, whose error messages repeat the value, which can be a secret.
fn parse_setting(text: &str) -> Result<(String, String), Failure> {
    let is_key = |key: &str| key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
    match text.split_once('=') {
        Some((key, value)) if is_key(key) => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Failure::Usage("--set must be followed by SECTION.KEY=VALUE".into())),
    }
}

impl SettingsArgs {
    /// Refuses the flags that a command does not use.
    pub(super) fn refuse_unused(&self, command: &str, used: &[&str]) -> Result<(), Failure> {
        let given = [
            ("--config", self.config.is_some()),
            ("--set", !self.set.is_empty()),
            ("--store", self.store.is_some()),
            ("--public-addr", self.public_addr.is_some()),
            ("--platform-addr", self.platform_addr.is_some()),
            ("--log-level", self.log_level.is_some()),
        ];
        match given.iter().find(|(flag, given)| *given && !used.contains(flag)) {
            Some((flag, _)) => Err(Failure::Usage(format!("{command} does not use {flag}").into())),
            None => Ok(()),
        }
    }

    /// The keys that `--set` sets.
    pub(super) fn set_keys(&self) -> impl Iterator<Item = &str> {
        self.set.iter().filter_map(|text| Some(text.split_once('=')?.0))
    }

    pub(super) fn load(self) -> Result<LoadedConfig, Failure> {
        let set = self.set.iter().map(|text| parse_setting(text)).collect::<Result<Vec<_>, _>>()?;
        let named = [
            ("store.url", self.store),
            ("http.public_addr", self.public_addr),
            ("http.platform_addr", self.platform_addr),
            ("telemetry.log_level", self.log_level),
        ];
        let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        let mut variables = Vec::new();
        for (name, value) in std::env::vars_os() {
            match (name.into_string(), value.into_string()) {
                (Ok(name), Ok(value)) => variables.push((name, value)),
                (Ok(name), Err(_)) if name.starts_with(VARIABLE_PREFIX) => {
                    return Err(Failure::Usage(format!("{name} is not UTF-8").into()));
                }
                _ => {}
            }
        }
        Ok(load(Sources { file: self.config, variables, flags: set.into_iter().chain(named).collect() })?)
    }
}
