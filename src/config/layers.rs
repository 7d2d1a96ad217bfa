//! The sources of the configuration, laid over each other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use thiserror::Error;
use toml::{Table, Value};

use super::values::REDACTED_WORD;
use super::{Config, DEFAULTS};
use crate::store::redis::password;

/// What variables begin with.
pub const PREFIX: &str = "CALLBACK_INGRESS__";
/// Keys whose values are never shown.
const SECRET_KEYS: [&str; 2] = ["token.keys", "platform.service_keys"];
const STORE_URL: &str = "store.url";
const SENTINEL_PASSWORD: &str = "store.sentinel_password";
const REDACTED: &str = "[redacted]";

/// What is laid over the defaults. Its `Debug` shows the names of settings, and no value.
#[derive(Clone, Default)]
pub struct Sources {
    /// A file.
    pub file: Option<PathBuf>,
    /// Variables, as the process was given them; those of others are left alone.
    pub variables: Vec<(String, String)>,
    /// Flags: the path of a key, and its value written as in a variable.
    pub flags: Vec<(String, String)>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = |of: &[(String, String)]| of.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("variables", &names(&self.variables))
            .field("flags", &names(&self.flags))
            .finish()
    }
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {file}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{origin} is not TOML: line {line}: {message}")]
    NotToml {
        /// Where it was read.
        origin: String,
        /// The line.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// There is no such key.
    #[error("unknown key {key} in {origin}")]
    UnknownKey {
        /// The key's path.
        key: String,
        /// Where it was read.
        origin: String,
    },
    /// A value that the key cannot hold.
    #[error("{key} (from {origin}): {message}")]
    BadValue {
        /// The key's path.
        key: String,
        /// Where it was read.
        origin: String,
        /// What is wrong, without the value where it is secret.
        message: String,
    },
}

/// A configuration and the settings that it was made of. Its `Debug` shows no secret.
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    settings: Table,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.config.fmt(f)
    }
}

struct Layers {
    settings: Table,
    origins: BTreeMap<String, String>,
}

/// Lays the sources over the defaults.
pub fn load(sources: Sources) -> Result<Loaded, ConfigError> {
    let defaults = parse(DEFAULTS, "the defaults")?;
    let mut layers = Layers { settings: defaults, origins: BTreeMap::new() };
    if let Some(file) = sources.file {
        let text = std::fs::read_to_string(&file)
            .map_err(|source| ConfigError::Unreadable { file: file.clone(), source })?;
        let origin = file.display().to_string();
        layers.lay_table(parse(&text, &origin)?, &origin)?;
    }
    for (name, value) in sources.variables {
        if let Some(path) = name.strip_prefix(PREFIX) {
            layers.lay_text(&path.to_ascii_lowercase().replace("__", "."), &value, &name)?;
        }
    }
    for (key, value) in sources.flags {
        layers.lay_text(&key, &value, "the command line")?;
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

    fn lay(&mut self, key: &str, value: Value, origin: &str) -> Result<(), ConfigError> {
        *self.setting(key, origin)? = value;
        self.origins.insert(key.to_owned(), origin.to_owned());
        Ok(())
    }

    fn lay_table(&mut self, table: Table, origin: &str) -> Result<(), ConfigError> {
        for (section, settings) in table {
            let Value::Table(settings) = settings else {
                return Err(ConfigError::UnknownKey { key: section, origin: origin.to_owned() });
            };
            if !self.settings.contains_key(&section) {
                return Err(ConfigError::UnknownKey { key: section, origin: origin.to_owned() });
            }
            for (name, value) in settings {
                self.lay(&format!("{section}.{name}"), value, origin)?;
            }
        }
        Ok(())
    }

    /// A text becomes what the key's default is.
    fn lay_text(&mut self, key: &str, text: &str, origin: &str) -> Result<(), ConfigError> {
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
        self.lay(key, value, origin)
    }

    fn finish(self) -> Result<Loaded, ConfigError> {
        let origin = |key: &str| {
            let known = self.origins.iter().find(|(known, _)| key.starts_with(known.as_str()));
            known.map_or_else(|| "the defaults".to_owned(), |(_, origin)| origin.clone())
        };
        let bad = |key: String, message: String| ConfigError::BadValue { origin: origin(&key), key, message };
        let config: Config =
            serde_path_to_error::deserialize(Value::Table(self.settings.clone())).map_err(|error| {
                let message = error.inner().message().trim_end().to_owned();
                bad(error.path().to_string(), message)
            })?;
        if let Some((key, message)) = config.contradiction() {
            return Err(bad(key.to_owned(), message));
        }
        Ok(Loaded { config, settings: self.settings })
    }
}

impl Loaded {
    /// The settings in force as TOML, without secrets.
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
    if SECRET_KEYS.contains(&key)
        && let Value::Array(secrets) = value
    {
        for secret in secrets {
            // A signing key's id is no secret, and tells which keys are in force.
            let id = secret.as_str().and_then(|text| text.split_once(':')).filter(|_| key == "token.keys");
            *secret = Value::String(id.map_or_else(|| REDACTED.into(), |(id, _)| format!("{id}:{REDACTED}")));
        }
    } else if key == STORE_URL
        && let Value::String(url) = value
    {
        // An @ further on may be a password's: what stands before it was not escaped, and is read as a port or path.
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

impl Loaded {
    /// Where the store is, without its password.
    pub fn store_shown(&self) -> String {
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

    fn with(variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        load(Sources { variables, ..Sources::default() })
    }

    fn message(result: Result<Loaded, ConfigError>) -> String {
        result.map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_a_configuration() {
        let loaded = with(&[]).unwrap();
        assert!(matches!(loaded.config.store.url, StoreUrl::Memory));
        assert_eq!(loaded.config.http.max_body_bytes.get(), 1 << 20);
    }

    #[test]
    fn what_is_laid_later_wins() {
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
    fn an_unknown_key_is_named_with_its_source() {
        assert_eq!(
            message(with(&[("CALLBACK_INGRESS__HTTP__PORT", "1")])),
            "unknown key http.port in CALLBACK_INGRESS__HTTP__PORT"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let name = file.path().display().to_string();
        for (text, key) in [("[store]\nuri = 1\n", "store.uri"), ("[x]\n", "x"), ("x = 1\n", "x")] {
            std::fs::write(&file, text).unwrap();
            let result = load(Sources { file: Some(file.path().to_owned()), ..Sources::default() });
            assert_eq!(message(result), format!("unknown key {key} in {name}"));
        }
    }

    #[test]
    fn a_bad_value_is_named_and_a_secret_one_is_not_shown() {
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
            ("STORE__URL", "redis+cluster://SECRET/1", "a cluster has only one"),
            ("STORE__WAIT_REPLICAS", "17", "a whole number from 0 to 16"),
            ("STORE__TLS_CA", "SECRET", "means nothing unless store.url begins with rediss"),
            (
                "STORE__SENTINEL_PASSWORD",
                "SECRET",
                "means nothing unless store.url begins with redis+sentinel",
            ),
            ("STORE__SENTINEL_PASSWORD", "redacted", "is redacted"),
            ("TOKEN__CARRIERS", r#"["pigeon"]"#, "pigeon"),
            ("TOKEN__CARRIERS", "[]", "at least one carrier"),
            ("TOKEN__HEADER_NAME", "Content-Type", "means something else"),
            ("GATE__DEFAULT_TIMEOUT_MS", "900001", "gate.max_timeout_ms"),
            ("GATE__ENDED_RETENTION_MS", "1499999", "token.replay_window_ms"),
            ("HTTP__DRAIN_GRACE_MS", "10001", "http.drain_timeout_ms"),
            ("TOKEN__BODY_FIELD", "error", "content, error"),
            ("TELEMETRY__LOG_LEVEL", "hyper[span{a=1}]=info", "must not choose by fields"),
            ("HTTP__TRUSTED_PROXIES", r#"["10.0.0.0/33"]"#, "list of networks"),
            ("HTTP__FORWARDED_HEADER", "Via", "X-Forwarded-For or Forwarded"),
            ("HTTP__MAX_BUFFERED_BYTES", "12582911", "12 times http.max_body_bytes"),
            ("RATE_LIMIT__WINDOW_MS", "999", "a whole number from 1000"),
        ] {
            let error = message(with(&[(&format!("CALLBACK_INGRESS__{name}"), value)]));
            assert!(error.contains(expected), "{name}={value}: {error}");
            assert!(!error.contains("SECRET") && !error.contains("U0VDUkVU"), "{error}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "[token]\nkeys = [\"k1:SECRET\n").unwrap();
        let error = message(load(Sources { file: Some(file.path().to_owned()), ..Sources::default() }));
        assert!(error.contains("line 2") && !error.contains("SECRET"), "{error}");
    }

    #[test]
    fn an_open_listener_needs_configured_keys() {
        let open = ("CALLBACK_INGRESS__HTTP__PUBLIC_ADDR", "0.0.0.0:8080");
        let keys = format!("[{KEY:?}]");
        let keys = ("CALLBACK_INGRESS__TOKEN__KEYS", keys.as_str());
        let service = ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", r#"["0123456789abcdef"]"#);
        assert!(message(with(&[open])).contains("token.keys and platform.service_keys"));
        assert!(message(with(&[open, keys])).contains("needs platform.service_keys"));
        assert!(with(&[open, keys, service]).is_ok());
    }

    #[test]
    fn a_certificate_and_its_key_go_together() {
        let tls = ("CALLBACK_INGRESS__STORE__URL", "rediss://127.0.0.1");
        let certificate = ("CALLBACK_INGRESS__STORE__TLS_CERTIFICATE", "a.pem");
        let key = ("CALLBACK_INGRESS__STORE__TLS_KEY", "b.pem");
        assert!(message(with(&[tls, certificate])).contains("needs store.tls_key"));
        assert!(message(with(&[tls, key])).contains("needs store.tls_certificate"));
        let loaded = with(&[tls, certificate, key]).unwrap();
        let client = loaded.config.redis().unwrap().tls.client;
        assert_eq!(client, Some(("a.pem".into(), "b.pem".into())));
    }

    #[test]
    fn passwords_of_several_servers_and_of_sentinels_are_not_shown() {
        let loaded = with(&[
            ("CALLBACK_INGRESS__STORE__URL", "redis+sentinel://user:hunter2@a:1,b:2/calls/3"),
            ("CALLBACK_INGRESS__STORE__SENTINEL_PASSWORD", "hunter3"),
            ("CALLBACK_INGRESS__STORE__WAIT_REPLICAS", "2"),
        ])
        .unwrap();
        let dump = loaded.dump();
        assert!(dump.contains("redis+sentinel://user:redacted@a:1,b:2/calls/3"), "{dump}");
        assert_eq!(loaded.store_shown(), "redis+sentinel://user:redacted@a:1,b:2/calls/3");
        assert!(!dump.contains("hunter") && !format!("{loaded:?}").contains("hunter"), "{dump}");
        assert_eq!(loaded.config.redis().unwrap().replicas.unwrap().count, 2);
    }

    #[test]
    fn a_dump_shows_no_secret_and_can_be_read_again() {
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
            let said = match with(&[("CALLBACK_INGRESS__STORE__URL", unescaped)]) {
                Ok(loaded) => loaded.store_shown(),
                Err(refused) => refused.to_string(),
            };
            assert!(!said.contains("hunter2"), "{said}");
        }
        let StoreUrl::Redis(url) = &loaded.config.store.url else { panic!("not Redis") };
        assert!(url.expose_secret().contains("hunter2"));
    }
}
