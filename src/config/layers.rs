//! Merges the sources of the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use thiserror::Error;
use toml::{Table, Value};

use super::values::REDACTED_WORD;
use super::{Config, DEFAULTS, suggestions};
use crate::store::redis::password_range;

/// Prefix of the environment variables.
pub const VARIABLE_PREFIX: &str = "CALLBACK_INGRESS__";
/// Settings that are lists of secrets.
const SECRET_LISTS: [&str; 2] = ["token.keys", "platform.service_keys"];
const STORE_URL: &str = "store.url";
const SENTINEL_PASSWORD: &str = "store.sentinel_password";
const REDACTED: &str = "[redacted]";
const COMMAND_LINE: &str = "the command line";

/// The sources that override the defaults, later fields over earlier ones. `Debug` shows names and no values.
#[derive(Clone, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Environment variables as names and values. Those without [`VARIABLE_PREFIX`] are ignored, unless they
    /// look like a misspelled one.
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

/// An error of the configuration. Names the setting and its source, and never shows a secret value.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {file}: {source}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{origin} is not TOML: line {line}: {message}")]
    NotToml {
        /// The file, or "the defaults".
        origin: String,
        /// The line number, from 1.
        line: usize,
        /// The parser's message, which does not quote the text.
        message: String,
    },
    /// There is no such setting.
    #[error("unknown key {key} (from {origin}){}", did_you_mean(.nearest.as_deref()))]
    UnknownKey {
        /// The setting: `section.key`.
        key: String,
        /// The file, the variable or "the command line".
        origin: String,
        /// The setting that may be meant, spelled as in this source.
        nearest: Option<String>,
    },
    /// A variable that looks like one of this service's, but has one underscore where there must be two.
    #[error(
        "unknown variable {name}: two underscores must precede the section and the key{}",
        did_you_mean(.nearest.as_deref())
    )]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The variable that may be meant.
        nearest: Option<String>,
    },
    /// The value is invalid.
    #[error("{key} (from {origin}): {message}")]
    BadValue {
        /// The setting: `section.key`.
        key: String,
        /// The file, the variable, "the command line" or "the defaults".
        origin: String,
        /// What the value must be. Does not show a secret value.
        message: String,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |nearest| format!("; did you mean {nearest}?"))
}

/// All errors of a configuration, at least one.
#[derive(Debug)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// The errors: those of the sources in their order, then those of the settings.
    pub fn all(&self) -> &[ConfigError] {
        &self.0
    }
}

impl std::fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let [only] = &self.0[..] {
            return only.fmt(f);
        }
        write!(f, "the configuration has {} errors:", self.0.len())?;
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for ConfigErrors {}

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
    defaults: Table,
    settings: Table,
    /// The source of each setting. Settings that keep their default are missing.
    origins: BTreeMap<String, String>,
    errors: Vec<ConfigError>,
}

/// Merges the sources over the defaults and validates the result.
pub fn load(sources: Sources) -> Result<LoadedConfig, ConfigErrors> {
    let defaults = parse(DEFAULTS, "the defaults").map_err(|error| ConfigErrors(vec![error]))?;
    let mut layers =
        Layers { settings: defaults.clone(), defaults, origins: BTreeMap::new(), errors: Vec::new() };
    if let Some(file) = sources.file {
        layers.merge_file(file);
    }
    for (name, value) in sources.variables {
        if let Some(path) = name.strip_prefix(VARIABLE_PREFIX) {
            layers.set_text(&path.to_ascii_lowercase().replace("__", "."), &value, &name);
        } else if is_misspelled_variable(&name, &layers.defaults) {
            let nearest = suggestions::variable(&name, &layers.defaults);
            layers.errors.push(ConfigError::UnknownVariable { name, nearest });
        }
    }
    for (key, value) in sources.flags {
        layers.set_text(&key, &value, COMMAND_LINE);
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

/// Whether a variable has the form `CALLBACK_INGRESS_SECTION_…`, with one underscore. Kubernetes sets such variables
/// for a service called `callback-ingress` or, for example, `callback-ingress-platform`.
fn is_misspelled_variable(name: &str, defaults: &Table) -> bool {
    let Some(rest) = name.strip_prefix("CALLBACK_INGRESS_") else { return false };
    let after_section = defaults
        .keys()
        .find_map(|section| rest.strip_prefix(section.to_ascii_uppercase().as_str())?.strip_prefix('_'));
    let of_kubernetes = |rest: &str| {
        let padded = format!("_{rest}_");
        ["_SERVICE_HOST_", "_SERVICE_PORT_"].iter().any(|part| padded.contains(part))
            || rest.split('_').any(|word| word == "PORT")
    };
    after_section.is_some_and(|rest| !of_kubernetes(rest))
}

/// The setting of a path in the configuration: `token.carriers[0]` is in `token.carriers`.
fn setting_of(path: &str) -> &str {
    path.split_once('[').map_or(path, |(setting, _)| setting)
}

impl Layers {
    fn setting(&mut self, key: &str) -> Option<&mut Value> {
        let (section, name) = key.split_once('.')?;
        self.settings.get_mut(section)?.as_table_mut()?.get_mut(name)
    }

    fn set(&mut self, key: &str, value: Value, origin: &str) {
        match self.setting(key) {
            Some(setting) => {
                *setting = value;
                self.origins.insert(key.to_owned(), origin.to_owned());
            }
            None => self.unknown_key(key, origin),
        }
    }

    fn unknown_key(&mut self, key: &str, origin: &str) {
        let nearest = if origin.starts_with(VARIABLE_PREFIX) {
            suggestions::variable(origin, &self.defaults)
        } else {
            suggestions::key(key, &self.defaults)
        };
        self.errors.push(ConfigError::UnknownKey { key: key.to_owned(), origin: origin.to_owned(), nearest });
    }

    fn bad_value(&mut self, key: String, message: String) {
        let known = self.origins.get(setting_of(&key));
        let origin = known.map_or_else(|| "the defaults".to_owned(), Clone::clone);
        self.errors.push(ConfigError::BadValue { key, origin, message });
    }

    fn merge_file(&mut self, file: PathBuf) {
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(source) => return self.errors.push(ConfigError::Unreadable { file, source }),
        };
        let origin = file.display().to_string();
        match parse(&text, &origin) {
            Ok(table) => self.merge_table(table, &origin),
            Err(error) => self.errors.push(error),
        }
    }

    fn merge_table(&mut self, table: Table, origin: &str) {
        for (section, settings) in table {
            if let Value::Table(settings) = settings
                && self.defaults.contains_key(&section)
            {
                for (name, value) in settings {
                    self.set(&format!("{section}.{name}"), value, origin);
                }
            } else {
                self.unknown_key(&section, origin);
            }
        }
    }

    /// Parses a text as the type of the setting's default.
    fn set_text(&mut self, key: &str, text: &str, origin: &str) {
        let Some((section, name)) = key.split_once('.') else { return self.unknown_key(key, origin) };
        let default = self.defaults.get(section).and_then(|settings| settings.get(name));
        let parsed = match default {
            None => return self.unknown_key(key, origin),
            Some(Value::String(_)) => Ok(Value::String(text.to_owned())),
            Some(Value::Integer(_)) => {
                text.trim().parse().map(Value::Integer).map_err(|_| "must be a whole number")
            }
            Some(Value::Boolean(_)) => {
                text.trim().parse().map(Value::Boolean).map_err(|_| "must be true or false")
            }
            Some(Value::Array(_) | Value::Float(_) | Value::Datetime(_) | Value::Table(_)) => {
                format!("list = {text}")
                    .parse::<Table>()
                    .ok()
                    .and_then(|mut table| table.remove("list"))
                    .filter(Value::is_array)
                    .ok_or(r#"must be a list: ["a","b"]"#)
            }
        };
        match parsed {
            Ok(value) => self.set(key, value, origin),
            Err(message) => {
                self.origins.insert(key.to_owned(), origin.to_owned());
                self.bad_value(key.to_owned(), message.to_owned());
            }
        }
    }

    /// Deserializes the settings. Replaces an invalid value with its default, to find the errors of the others.
    fn deserialize(&mut self) -> Option<Config> {
        let mut settings = self.settings.clone();
        loop {
            let error = match serde_path_to_error::deserialize(Value::Table(settings.clone())) {
                Ok(config) => return Some(config),
                Err(error) => error,
            };
            let path = error.path().to_string();
            let (section, name) = setting_of(&path).split_once('.').unwrap_or_default();
            let default = self.defaults.get(section).and_then(|defaults| defaults.get(name)).cloned();
            let setting = settings.get_mut(section).and_then(|settings| settings.get_mut(name));
            let replaced = setting.zip(default).is_some_and(|(setting, default)| {
                let differs = *setting != default;
                *setting = default;
                differs
            });
            self.bad_value(path, error.inner().message().trim_end().to_owned());
            if !replaced {
                return None;
            }
        }
    }

    /// Adds the errors that [`Config::problems`] finds, unless they may follow from another error.
    fn check_rules(&mut self, config: &Config) {
        let mut invalid = Vec::new();
        for error in &self.errors {
            match error {
                ConfigError::Unreadable { .. } | ConfigError::NotToml { .. } => return,
                // An invalid `…_file` counts as an invalid value of the setting that it replaces.
                ConfigError::BadValue { key, .. } => {
                    invalid.push(setting_of(key).trim_end_matches("_file").to_owned());
                }
                ConfigError::UnknownKey { .. } | ConfigError::UnknownVariable { .. } => {}
            }
        }
        for (key, message) in config.problems() {
            if !invalid.iter().any(|invalid| *invalid == key || message.contains(invalid.as_str())) {
                self.bad_value(key.to_owned(), message);
            }
        }
    }

    fn finish(mut self) -> Result<LoadedConfig, ConfigErrors> {
        let mut config = self.deserialize();
        if let Some(config) = &mut config {
            for (key, message) in config.read_secret_files() {
                self.bad_value(key.to_owned(), message);
            }
            self.check_rules(config);
        }
        match config {
            Some(config) if self.errors.is_empty() => Ok(LoadedConfig { config, settings: self.settings }),
            _ => Err(ConfigErrors(self.errors)),
        }
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
        } else if let Some(at) = password_range(url) {
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

    fn with(variables: &[(&str, &str)]) -> Result<LoadedConfig, ConfigErrors> {
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        load(Sources { variables, ..Sources::default() })
    }

    fn error_message(result: Result<LoadedConfig, ConfigErrors>) -> String {
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
            "unknown key http.port (from CALLBACK_INGRESS__HTTP__PORT)"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let name = file.path().display().to_string();
        for (text, key) in [("[store]\nport = 1\n", "store.port"), ("[x]\n", "x"), ("x = 1\n", "x")] {
            std::fs::write(&file, text).unwrap();
            let result = load(Sources { file: Some(file.path().to_owned()), ..Sources::default() });
            assert_eq!(error_message(result), format!("unknown key {key} (from {name})"));
        }
    }

    #[test]
    fn nearest_name_is_suggested_as_its_source_spells_it() {
        let flags = vec![("store.uri".to_owned(), "memory:".to_owned())];
        assert_eq!(
            error_message(load(Sources { flags, ..Sources::default() })),
            "unknown key store.uri (from the command line); did you mean store.url?"
        );
        assert_eq!(
            error_message(with(&[("CALLBACK_INGRESS__STORE__URI", "memory:")])),
            "unknown key store.uri (from CALLBACK_INGRESS__STORE__URI); did you mean CALLBACK_INGRESS__STORE__URL?"
        );
    }

    #[test]
    fn variable_with_single_underscores_is_an_error() {
        for name in ["CALLBACK_INGRESS_HTTP_PUBLIC_ADDR", "CALLBACK_INGRESS_HTTP__PUBLIC_ADDR"] {
            let error = error_message(with(&[(name, "127.0.0.1:0")]));
            assert!(error.contains(&format!("unknown variable {name}: two underscores")), "{error}");
            assert!(error.ends_with("did you mean CALLBACK_INGRESS__HTTP__PUBLIC_ADDR?"), "{error}");
        }
        let error = error_message(with(&[("CALLBACK_INGRESS_PLATFORM_SERVICE_KEYS", "[]")]));
        assert!(error.ends_with("did you mean CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS?"), "{error}");
    }

    #[test]
    fn variables_of_kubernetes_services_are_ignored() {
        for service in ["CALLBACK_INGRESS", "CALLBACK_INGRESS_PLATFORM", "CALLBACK_INGRESS_HTTP"] {
            for of_service in [
                "SERVICE_HOST",
                "SERVICE_PORT",
                "SERVICE_PORT_PUBLIC",
                "PORT",
                "PORT_8080_TCP",
                "PORT_8080_TCP_ADDR",
            ] {
                assert!(with(&[(&format!("{service}_{of_service}"), "10.0.0.1")]).is_ok(), "{of_service}");
            }
        }
    }

    #[test]
    fn all_errors_are_reported_at_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "[http]\npublic_addr = 8080\nport = 1\n[gate]\nmax_timeout_ms = -1\n").unwrap();
        let error = load(Sources {
            file: Some(file.path().to_owned()),
            variables: vec![
                ("CALLBACK_INGRESS__STORE__PARTITIONS".into(), "many".into()),
                ("CALLBACK_INGRESS__STORE__URL".into(), "redis://:SECRET@host?x".into()),
                ("CALLBACK_INGRESS_TOKEN_KEYS".into(), "SECRET".into()),
            ],
            flags: vec![
                ("telemetry.log_level".into(), "warning".into()),
                ("token.carriers".into(), r#"["body","pigeon"]"#.into()),
                ("http.drain_grace_ms".into(), "600000".into()),
                ("token.default_carrier".into(), "path".into()),
            ],
        });
        let error = error_message(error);
        for named in [
            "the configuration has 9 errors:\n  ",
            "\n  unknown key http.port (from ",
            "\n  store.partitions (from CALLBACK_INGRESS__STORE__PARTITIONS): must be a whole number",
            "\n  unknown variable CALLBACK_INGRESS_TOKEN_KEYS: ",
            "\n  http.public_addr (from /",
            "\n  store.url (from CALLBACK_INGRESS__STORE__URL): must have neither a query",
            "\n  gate.max_timeout_ms (from /",
            "\n  token.carriers[1] (from the command line): unknown variant `pigeon`",
            "\n  telemetry.log_level (from the command line): must be a level",
            "\n  http.drain_grace_ms (from the command line): must not be above http.drain_timeout_ms",
        ] {
            assert!(error.contains(named), "{named:?} is not in {error}");
        }
        assert!(!error.contains("SECRET"), "{error}");
    }

    #[test]
    fn unknown_log_level_is_an_error_that_names_the_levels() {
        for (level, meant) in [
            ("warning", "; did you mean warn?"),
            ("erorr", "; did you mean error?"),
            ("verbose", ""),
            ("callback_ingress=debugging,info", "; did you mean debug?"),
            ("info,hyper", ""),
            ("", ""),
            ("info,,debug", ""),
        ] {
            let error = error_message(with(&[("CALLBACK_INGRESS__TELEMETRY__LOG_LEVEL", level)]));
            let levels = "must be a level (off, error, warn, info, debug, trace), or directives";
            assert!(error.contains(levels) && error.ends_with(&format!("debug,info{meant}")), "{error}");
        }
        for level in ["warn", "INFO", "callback_ingress=debug,info", "off", "hyper[span]=trace, info"] {
            assert!(with(&[("CALLBACK_INGRESS__TELEMETRY__LOG_LEVEL", level)]).is_ok(), "{level}");
        }
    }

    #[test]
    fn listen_address_is_an_ip_address_or_localhost_with_a_port() {
        let public = |address: &str| {
            with(&[("CALLBACK_INGRESS__HTTP__PUBLIC_ADDR", address)])
                .map(|loaded| loaded.config.http.public_addr)
        };
        for (address, expected) in [
            ("localhost:8088", "127.0.0.1:8088"),
            ("LocalHost:8088", "127.0.0.1:8088"),
            (" 127.0.0.2:1 ", "127.0.0.2:1"),
            ("[::1]:8088", "[::1]:8088"),
        ] {
            assert_eq!(public(address).unwrap(), expected.parse().unwrap(), "{address}");
        }
        for (address, expected) in [
            (":8080", "needs an address before the port: 127.0.0.1 for this machine only, 0.0.0.0"),
            ("127.0.0.1", "needs a port: 127.0.0.1:8080"),
            ("::1", "needs a port: "),
            ("example.com:8080", "names are not resolved"),
            ("localhost", "such as 127.0.0.1:8080"),
            ("8080", "such as 127.0.0.1:8080"),
            ("127.0.0.1:65536", "a port from 0 to 65535"),
            ("", "such as 127.0.0.1:8080"),
        ] {
            let error = public(address).unwrap_err().to_string();
            assert!(error.contains(expected), "{address}: {error}");
        }
    }

    /// A file with this content, and its path.
    fn secret_file(content: &str) -> (tempfile::NamedTempFile, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, content).unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        (file, path)
    }

    #[test]
    fn keys_and_password_are_read_from_files() {
        let (_keys, keys) = secret_file(&format!("# rotated in May\n\nk2{}\r\n  {KEY}\n", &KEY[2..]));
        let (_service, service) = secret_file("0123456789abcdef\nfedcba9876543210");
        let (_password, password) = secret_file("hunter 2/@\n");
        let loaded = with(&[
            ("CALLBACK_INGRESS__TOKEN__KEYS_FILE", &keys),
            ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS_FILE", &service),
            ("CALLBACK_INGRESS__STORE__URL", "redis://operator@127.0.0.1:1"),
            ("CALLBACK_INGRESS__STORE__PASSWORD_FILE", &password),
            ("CALLBACK_INGRESS__HTTP__PUBLIC_ADDR", "0.0.0.0:8080"),
        ])
        .unwrap();
        assert_eq!(
            format!("{:?}", loaded.config.token.keys),
            "SigningKeys([SigningKey(k2), SigningKey(k1)])"
        );
        assert_eq!(loaded.config.platform.service_keys.keys().len(), 2);
        let url = loaded.config.redis().unwrap().url;
        assert_eq!(url.expose_secret(), "redis://operator:%68%75%6E%74%65%72%20%32%2F%40@127.0.0.1:1");
        let dump = loaded.dump();
        assert!(dump.contains(&keys) && !dump.contains("hunter") && !dump.contains("0123456789"), "{dump}");
        assert_eq!(loaded.redacted_store_url(), "redis://operator@127.0.0.1:1");
    }

    #[test]
    fn unusable_secret_file_is_named_and_not_shown() {
        let list = format!("[{KEY:?}]");
        let empty = "# nothing yet\n";
        for (name, content, others, expected) in [
            ("TOKEN__KEYS_FILE", KEY, &[("TOKEN__KEYS", list.as_str())][..], "token.keys is set as well"),
            ("TOKEN__KEYS_FILE", empty, &[("HTTP__PUBLIC_ADDR", "0.0.0.0:0")], "contains no key"),
            ("TOKEN__KEYS_FILE", "\nk1:SECRET\n", &[], "line 2: "),
            ("TOKEN__KEYS_FILE", "k1:AAAA\n", &[], "line 1: a signing key needs at least 32 bytes"),
            ("PLATFORM__SERVICE_KEYS_FILE", "SECRET", &[], "line 1: a service key needs at least 16"),
            (
                "PLATFORM__SERVICE_KEYS_FILE",
                "0123456789abcdef",
                &[("PLATFORM__SERVICE_KEYS", r#"["0123456789abcdef"]"#)],
                "platform.service_keys is set as well: use one of them",
            ),
            ("STORE__PASSWORD_FILE", "SECRET", &[], "only valid with a Redis URL"),
            ("STORE__PASSWORD_FILE", "", &[("STORE__URL", "redis://a")], "one line, the password"),
            ("STORE__PASSWORD_FILE", "SECRET\nb", &[("STORE__URL", "redis://a")], "one line, the password"),
            ("STORE__PASSWORD_FILE", "SECRET", &[("STORE__URL", "redis://:x@a")], "has a password as well"),
        ] {
            let (_file, path) = secret_file(content);
            let variables: Vec<_> = [&[(name, path.as_str())][..], others]
                .concat()
                .iter()
                .map(|(name, value)| (format!("{VARIABLE_PREFIX}{name}"), *value))
                .collect();
            let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            let error = error_message(with(&variables));
            assert!(
                error.contains(expected) && error.contains(&format!("(from {VARIABLE_PREFIX}{name})")),
                "{error}"
            );
            assert!(!error.contains("SECRET"), "{error}");
        }
        let missing = [("CALLBACK_INGRESS__TOKEN__KEYS_FILE", "/nowhere/keys")];
        let error = error_message(with(&missing));
        assert!(
            error.contains("token.keys_file (from") && error.contains("cannot read /nowhere/keys"),
            "{error}"
        );
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
            ("STORE__SENTINEL_PASSWORD", "SECRET", "only valid with a redis+sentinel:// or"),
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
