//! Merges the sources of the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use thiserror::Error;
use toml::{Table, Value};

use super::values::REDACTED_WORD;
use super::{Config, DEFAULTS};
use crate::store::redis::password;

/// Prefix of the environment variables.
pub const VARIABLE_PREFIX: &str = "CALLBACK_INGRESS__";
/// Settings that are lists of secrets.
const SECRET_LISTS: [&str; 2] = ["token.keys", "platform.service_keys"];
const STORE_URL: &str = "store.url";
const SENTINEL_PASSWORD: &str = "store.sentinel_password";
const REDACTED: &str = "[redacted]";

/// The sources that override the defaults, later fields over earlier ones. `Debug` shows names and no values.
#[derive(Clone, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Environment variables as names and values. Those without [`VARIABLE_PREFIX`] are ignored.
    pub variables: Vec<(String, String)>,
    /// Flags as keys (`section.key`) and values, which are written as in a variable.
    pub flags: Vec<(String, String)>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names =
            |pairs: &[(String, String)]| pairs.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("variables", &names(&self.variables))
            .field("flags", &names(&self.flags))
            .finish()
    }
}

/// Why a configuration was refused. Names the setting and its source, and never shows a secret value.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {file}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{origin} is not TOML: line {line}: {message}")]
    NotToml {
        /// The file, the variable or "the command line".
        origin: String,
        /// The line number, from 1.
        line: usize,
        /// The parser's message, which does not quote the text.
        message: String,
    },
    /// There is no such setting.
    #[error("unknown key {key} in {origin}")]
    UnknownKey {
        /// The setting: `section.key`.
        key: String,
        /// The file, the variable or "the command line".
        origin: String,
    },
    /// The value is invalid.
    #[error("{key} (from {origin}): {message}")]
    BadValue {
        /// The setting: `section.key`.
        key: String,
        /// The file, the variable or "the command line".
        origin: String,
        /// What the value must be. Does not show a secret value.
        message: String,
    },
}

/// A valid configuration, and the merged settings for [`LoadedConfig::dump`]. `Debug` shows no secret.
pub struct LoadedConfig {
    /// The configuration.
    pub config: Config,
    settings: Table,
}

impl std::fmt::Debug for LoadedConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.config.fmt(f)
    }
}

struct Layers {
    settings: Table,
    /// By setting; the defaults have none.
    origins: BTreeMap<String, String>,
}

/// Merges the sources over the defaults and validates the result.
pub fn load(sources: Sources) -> Result<LoadedConfig, ConfigError> {
    let defaults = parse(DEFAULTS, "the defaults")?;
    let mut layers = Layers { settings: defaults, origins: BTreeMap::new() };
    if let Some(file) = sources.file {
        let text = std::fs::read_to_string(&file)
            .map_err(|source| ConfigError::Unreadable { file: file.clone(), source })?;
        let origin = file.display().to_string();
        layers.merge_table(parse(&text, &origin)?, &origin)?;
    }
    for (name, value) in sources.variables {
        if let Some(path) = name.strip_prefix(VARIABLE_PREFIX) {
            layers.set_text(&path.to_ascii_lowercase().replace("__", "."), &value, &name)?;
        }
    }
    for (key, value) in sources.flags {
        layers.set_text(&key, &value, "the command line")?;
    }
    layers.finish()
}

fn parse(text: &str, origin: &str) -> Result<Table, ConfigError> {
    text.parse::<Table>().map_err(|error| ConfigError::NotToml {
        origin: origin.to_owned(),
        line: error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1)),
        message: error.message().to_owned(),
    })
}

impl Layers {
    fn setting(&mut self, key: &str, origin: &str) -> Result<&mut Value, ConfigError> {
        let unknown = || ConfigError::UnknownKey { key: key.to_owned(), origin: origin.to_owned() };
        let (section, name) = key.split_once('.').ok_or_else(unknown)?;
        let section = self.settings.get_mut(section).and_then(Value::as_table_mut).ok_or_else(unknown)?;
        section.get_mut(name).ok_or_else(unknown)
    }

    fn set(&mut self, key: &str, value: Value, origin: &str) -> Result<(), ConfigError> {
        *self.setting(key, origin)? = value;
        self.origins.insert(key.to_owned(), origin.to_owned());
        Ok(())
    }

    fn merge_table(&mut self, table: Table, origin: &str) -> Result<(), ConfigError> {
        for (section, settings) in table {
            let Value::Table(settings) = settings else {
                return Err(ConfigError::UnknownKey { key: section, origin: origin.to_owned() });
            };
            if !self.settings.contains_key(&section) {
                return Err(ConfigError::UnknownKey { key: section, origin: origin.to_owned() });
            }
            for (name, value) in settings {
                self.set(&format!("{section}.{name}"), value, origin)?;
            }
        }
        Ok(())
    }

    /// Parses a text as the type of the setting's default.
    fn set_text(&mut self, key: &str, text: &str, origin: &str) -> Result<(), ConfigError> {
        let bad = |message: &str| ConfigError::BadValue {
            key: key.to_owned(),
            origin: origin.to_owned(),
            message: message.to_owned(),
        };
        let value = match self.setting(key, origin)? {
            Value::String(_) => Value::String(text.to_owned()),
            Value::Integer(_) => {
                Value::Integer(text.trim().parse().map_err(|_| bad("must be a whole number"))?)
            }
            Value::Boolean(_) => {
                Value::Boolean(text.trim().parse().map_err(|_| bad("must be true or false"))?)
            }
            Value::Array(_) | Value::Float(_) | Value::Datetime(_) | Value::Table(_) => {
                format!("list = {text}")
                    .parse::<Table>()
                    .ok()
                    .and_then(|mut table| table.remove("list"))
                    .filter(Value::is_array)
                    .ok_or_else(|| bad(r#"must be a list: ["a","b"]"#))?
            }
        };
        self.set(key, value, origin)
    }

    fn finish(self) -> Result<LoadedConfig, ConfigError> {
        let origin = |key: &str| {
            let found = self.origins.iter().find(|(known, _)| key.starts_with(known.as_str()));
            found.map_or_else(|| "the defaults".to_owned(), |(_, origin)| origin.clone())
        };
        let bad = |key: String, message: String| ConfigError::BadValue { origin: origin(&key), key, message };
        let config: Config =
            serde_path_to_error::deserialize(Value::Table(self.settings.clone())).map_err(|error| {
                let message = error.inner().message().trim_end().to_owned();
                bad(error.path().to_string(), message)
            })?;
        config.validate().map_err(|(key, message)| bad(key.to_owned(), message))?;
        Ok(LoadedConfig { config, settings: self.settings })
    }
}

impl LoadedConfig {
    /// The effective settings as TOML, with secrets redacted.
    pub fn dump(&self) -> String {
        let mut settings = self.settings.clone();
        for (section, values) in &mut settings {
            let Value::Table(values) = values else { continue };
            for (name, value) in values {
                redact(&format!("{section}.{name}"), value);
            }
        }
        toml::to_string(&settings).unwrap_or_default()
    }
}

fn redact(key: &str, value: &mut Value) {
    if SECRET_LISTS.contains(&key)
        && let Value::Array(secrets) = value
    {
        for secret in secrets {
            // The id of a signing key is not secret.
            let id = secret.as_str().and_then(|text| text.split_once(':')).filter(|_| key == "token.keys");
            *secret = Value::String(id.map_or_else(|| REDACTED.into(), |(id, _)| format!("{id}:{REDACTED}")));
        }
    } else if key == STORE_URL
        && let Value::String(url) = value
    {
        // An @ after the authority may belong to a password with an unescaped / ? or #.
        let start = url.find("://").map_or(0, |at| at + 3);
        let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
        if url[end..].contains('@') {
            REDACTED.clone_into(url);
        } else if let Some(at) = password(url) {
            url.replace_range(at, REDACTED_WORD);
        }
    } else if key == SENTINEL_PASSWORD
        && let Value::String(secret) = value
        && !secret.is_empty()
    {
        REDACTED_WORD.clone_into(secret);
    }
}

impl LoadedConfig {
    /// `store.url` with its password redacted.
    pub fn redacted_store_url(&self) -> String {
        let mut url = self.settings["store"]["url"].clone();
        redact(STORE_URL, &mut url);
        String::deserialize(url).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;
    use crate::config::StoreUrl;

    const KEY: &str = "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn with(variables: &[(&str, &str)]) -> Result<LoadedConfig, ConfigError> {
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        load(Sources { variables, ..Sources::default() })
    }

    fn error_message(result: Result<LoadedConfig, ConfigError>) -> String {
        result.map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_valid() {
        let loaded = with(&[]).unwrap();
        assert!(matches!(loaded.config.store.url, StoreUrl::Memory));
        assert_eq!(loaded.config.http.max_body_bytes.get(), 1 << 20);
    }

    #[test]
    fn later_sources_override_earlier_ones() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "[http]\nmax_body_bytes = 1\nbody_timeout_ms = 11\nhead_timeout_ms = 12\n")
            .unwrap();
        let loaded = load(Sources {
            file: Some(file.path().to_owned()),
            variables: vec![
                ("CALLBACK_INGRESS__HTTP__MAX_BODY_BYTES".into(), "2".into()),
                ("CALLBACK_INGRESS__HTTP__BODY_TIMEOUT_MS".into(), "22".into()),
                ("PATH".into(), "/bin".into()),
            ],
            flags: vec![("http.max_body_bytes".into(), "3".into())],
        })
        .unwrap();
        let http = loaded.config.http;
        assert_eq!(
            (http.max_body_bytes.get(), http.body_timeout_ms.get(), http.head_timeout_ms.get()),
            (3, 22, 12)
        );
    }

    #[test]
    fn unknown_key_is_reported_with_its_source() {
        assert_eq!(
            error_message(with(&[("CALLBACK_INGRESS__HTTP__PORT", "1")])),
            "unknown key http.port in CALLBACK_INGRESS__HTTP__PORT"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let name = file.path().display().to_string();
        for (text, key) in [("[store]\nuri = 1\n", "store.uri"), ("[x]\n", "x"), ("x = 1\n", "x")] {
            std::fs::write(&file, text).unwrap();
            let result = load(Sources { file: Some(file.path().to_owned()), ..Sources::default() });
            assert_eq!(error_message(result), format!("unknown key {key} in {name}"));
        }
    }

    #[test]
    fn invalid_value_is_reported_and_secret_value_is_not_shown() {
        for (name, value, expected) in [
            ("HTTP__MAX_BODY_BYTES", "0", "a whole number from 1 to 67108864"),
            ("HTTP__MAX_BODY_BYTES", "x", "must be a whole number"),
            ("HTTP__PUBLIC_ADDR", "nonsense", "http.public_addr"),
            ("TOKEN__KEYS", "SECRET", "must be a list"),
            ("TOKEN__KEYS", r#"["SECRET"]"#, "entry 1: must be a key id"),
            ("TOKEN__KEYS", r#"["k1:SECRET"]"#, "entry 1: "),
            ("TOKEN__KEYS", r#"["k1:U0VDUkVU"]"#, "at least 32 bytes"),
            ("PLATFORM__SERVICE_KEYS", r#"["SECRET"]"#, "at least 16"),
            ("STORE__URL", "http://SECRET", "store.url (from CALLBACK_INGRESS__STORE__URL): must be memory:"),
            ("STORE__URL", "redis://:redacted@host", "the password is redacted"),
            ("STORE__URL", "redis+cluster://SECRET/1", "a cluster has only database 0"),
            ("STORE__WAIT_REPLICAS", "17", "a whole number from 0 to 16"),
            ("STORE__TLS_CA", "SECRET", "only valid with a rediss:// URL"),
            ("STORE__SENTINEL_PASSWORD", "SECRET", "only valid with a redis+sentinel:// URL"),
            ("STORE__SENTINEL_PASSWORD", "redacted", "is redacted"),
            ("TOKEN__CARRIERS", r#"["pigeon"]"#, "pigeon"),
            ("TOKEN__CARRIERS", "[]", "at least one carrier"),
            ("TOKEN__HEADER_NAME", "Content-Type", "is a reserved header"),
            ("GATE__DEFAULT_TIMEOUT_MS", "900001", "gate.max_timeout_ms"),
            ("GATE__ENDED_RETENTION_MS", "1499999", "token.replay_window_ms"),
            ("HTTP__DRAIN_GRACE_MS", "10001", "http.drain_timeout_ms"),
            ("TOKEN__BODY_FIELD", "error", "content or error"),
            ("TELEMETRY__LOG_LEVEL", "hyper[span{a=1}]=info", "must not filter by fields"),
            ("HTTP__TRUSTED_PROXIES", r#"["10.0.0.0/33"]"#, "list of networks"),
            ("HTTP__FORWARDED_HEADER", "Via", "X-Forwarded-For or Forwarded"),
            ("HTTP__MAX_BUFFERED_BYTES", "12582911", "12 times http.max_body_bytes"),
            ("RATE_LIMIT__WINDOW_MS", "999", "a whole number from 1000"),
        ] {
            let error = error_message(with(&[(&format!("CALLBACK_INGRESS__{name}"), value)]));
            assert!(error.contains(expected), "{name}={value}: {error}");
            assert!(!error.contains("SECRET") && !error.contains("U0VDUkVU"), "{error}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "[token]\nkeys = [\"k1:SECRET\n").unwrap();
        let error = error_message(load(Sources { file: Some(file.path().to_owned()), ..Sources::default() }));
        assert!(error.contains("line 2") && !error.contains("SECRET"), "{error}");
    }

    #[test]
    fn non_loopback_listener_requires_keys() {
        let open = ("CALLBACK_INGRESS__HTTP__PUBLIC_ADDR", "0.0.0.0:8080");
        let keys = format!("[{KEY:?}]");
        let keys = ("CALLBACK_INGRESS__TOKEN__KEYS", keys.as_str());
        let service = ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", r#"["0123456789abcdef"]"#);
        assert!(error_message(with(&[open])).contains("token.keys and platform.service_keys"));
        assert!(error_message(with(&[open, keys])).contains("so platform.service_keys must be set"));
        assert!(with(&[open, keys, service]).is_ok());
    }

    #[test]
    fn client_certificate_and_key_require_each_other() {
        let tls = ("CALLBACK_INGRESS__STORE__URL", "rediss://127.0.0.1");
        let certificate = ("CALLBACK_INGRESS__STORE__TLS_CERTIFICATE", "a.pem");
        let key = ("CALLBACK_INGRESS__STORE__TLS_KEY", "b.pem");
        assert!(error_message(with(&[tls, certificate])).contains("needs store.tls_key"));
        assert!(error_message(with(&[tls, key])).contains("needs store.tls_certificate"));
        let loaded = with(&[tls, certificate, key]).unwrap();
        let client = loaded.config.redis().unwrap().tls.client;
        assert_eq!(client, Some(("a.pem".into(), "b.pem".into())));
    }

    #[test]
    fn dump_redacts_passwords_of_sentinels() {
        let loaded = with(&[
            ("CALLBACK_INGRESS__STORE__URL", "redis+sentinel://user:hunter2@a:1,b:2/calls/3"),
            ("CALLBACK_INGRESS__STORE__SENTINEL_PASSWORD", "hunter3"),
            ("CALLBACK_INGRESS__STORE__WAIT_REPLICAS", "2"),
        ])
        .unwrap();
        let dump = loaded.dump();
        assert!(dump.contains("redis+sentinel://user:redacted@a:1,b:2/calls/3"), "{dump}");
        assert_eq!(loaded.redacted_store_url(), "redis+sentinel://user:redacted@a:1,b:2/calls/3");
        assert!(!dump.contains("hunter") && !format!("{loaded:?}").contains("hunter"), "{dump}");
        assert_eq!(loaded.config.redis().unwrap().replicas.unwrap().count, 2);
    }

    #[test]
    fn dump_redacts_secrets_and_is_valid_toml() {
        let loaded = with(&[
            ("CALLBACK_INGRESS__TOKEN__KEYS", &format!("[{KEY:?}]")),
            ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", r#"["0123456789abcdef"]"#),
            ("CALLBACK_INGRESS__STORE__URL", "redis://user:hunter2@127.0.0.1:6379/1"),
        ])
        .unwrap();
        let dump = loaded.dump();
        assert!(dump.contains("k1:[redacted]") && dump.contains("user:redacted@127.0.0.1"), "{dump}");
        for secret in ["AAAAAAAA", "0123456789abcdef", "hunter2"] {
            assert!(!dump.contains(secret), "{dump}");
            assert!(!format!("{loaded:?}").contains(secret), "{loaded:?}");
        }
        assert!(dump.parse::<Table>().is_ok());
        for unescaped in ["redis://user:7/hunter2@host", "redis://user:7?hunter2@host"] {
            let shown = match with(&[("CALLBACK_INGRESS__STORE__URL", unescaped)]) {
                Ok(loaded) => loaded.redacted_store_url(),
                Err(refused) => refused.to_string(),
            };
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        let StoreUrl::Redis(url) = &loaded.config.store.url else { panic!("not Redis") };
        assert!(url.expose_secret().contains("hunter2"));
    }
}
