//! The configuration: any sources are either accepted, or refused with errors that name the key and show no secret. A dump
//! can be loaded again.

use std::io::Write;

use callback_ingress::config::{
    self, ConfigError, ConfigErrors, DEFAULTS, LoadedConfig, Sources, StoreUrl, VARIABLE_PREFIX,
};
use secrecy::ExposeSecret;
use tempfile::NamedTempFile;
use toml::{Table, Value};

/// The secret in inputs: base64 of `secret-secret-…`, long enough for every kind of key.
const SECRET: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA";
/// Parts of the secret that no output may contain: as written and decoded.
const TRACES: [&str; 2] = ["c2VjcmV0", "secret-secret"];
const MARK: &str = "{S}";
const SECRET_KEYS: [&str; 4] =
    ["token.keys", "platform.service_keys", "store.url", "store.sentinel_password"];

/// The input consists of a file, variables without their prefix, and flags, separated by `---`. In values of secret
/// settings, `{S}` is replaced by a secret.
pub fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return check_unreadable(input) };
    // In a multi-line string, a secret could become part of a setting that is not secret.
    if TRACES.iter().any(|trace| text.contains(trace)) || text.contains("'''") || text.contains("\"\"\"") {
        return;
    }
    let mut parts = text.splitn(3, "---\n");
    let file: String = parts.next().unwrap_or_default().split_inclusive('\n').map(in_file).collect();
    let mut settings = || {
        let lines = parts.next().unwrap_or_default().lines();
        lines.filter_map(|line| line.split_once('=')).map(laid).collect::<Vec<_>>()
    };
    let (variables, flags) = (settings(), settings());
    let written = written(file.as_bytes());
    let prefixed = variables.iter().map(|(name, value)| (format!("{VARIABLE_PREFIX}{name}"), value.clone()));
    let variables: Vec<_> = prefixed.collect();
    let sources =
        Sources { file: Some(written.path().to_owned()), variables: variables.clone(), flags: flags.clone() };
    match config::load(sources) {
        Err(error) => {
            let mut origins: Vec<&str> = variables.iter().map(|(name, _)| name.as_str()).collect();
            let path = written.path().display().to_string();
            origins.extend([path.as_str(), "the command line", "the defaults"]);
            check_refused(&error, &file, &origins);
        }
        Ok(loaded) => {
            check_no_secret(&format!("{loaded:?} {} {}", loaded.dump(), loaded.redacted_store_url()));
            check_last_wins(&loaded, &file, &variables, &flags);
            check_rules(&loaded);
            check_read_again(&loaded);
        }
    }
}

fn check_unreadable(input: &[u8]) {
    let written = written(input);
    let sources = Sources { file: Some(written.path().to_owned()), ..Sources::default() };
    let error = config::load(sources).unwrap_err();
    assert!(matches!(error.all(), [ConfigError::Unreadable { .. }]), "{error}");
}

fn written(text: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text).unwrap();
    file
}

/// A line of the file. Replaces the placeholder if the line sets a secret.
fn in_file(line: &str) -> String {
    let key = line.split_once('=').map_or("", |(key, _)| key.trim());
    match key {
        "keys" | "service_keys" | "sentinel_password" => line.replace(MARK, SECRET),
        "url" => with_password(line),
        _ => line.to_owned(),
    }
}

fn laid((name, value): (&str, &str)) -> (String, String) {
    let value = match path(name).as_str() {
        "token.keys" | "platform.service_keys" | "store.sentinel_password" => value.replace(MARK, SECRET),
        "store.url" => with_password(value),
        _ => value.to_owned(),
    };
    (name.to_owned(), value)
}

/// Replaces the placeholder in the password of a URL, which is its only secret part.
fn with_password(text: &str) -> String {
    text.replace(&format!(":{MARK}@"), &format!(":{SECRET}@"))
}

/// The key that a variable or a flag sets.
fn path(name: &str) -> String {
    name.to_ascii_lowercase().replace("__", ".")
}

fn defaults() -> Table {
    DEFAULTS.parse().unwrap()
}

fn setting<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    let (section, name) = key.split_once('.')?;
    table.get(section)?.as_table()?.get(name)
}

fn check_no_secret(shown: &str) {
    assert!(!TRACES.iter().any(|trace| shown.contains(trace)), "shows a secret: {shown}");
}

/// A refusal has at least one error, and its message contains all of them.
fn check_refused(errors: &ConfigErrors, file: &str, origins: &[&str]) {
    let shown = errors.to_string();
    check_no_secret(&format!("{shown} {errors:?}"));
    assert!(!errors.all().is_empty());
    for error in errors.all() {
        assert!(shown.contains(&error.to_string()), "{shown}");
        check_error(error, file, origins);
    }
}

/// An error names the correct key and source.
fn check_error(error: &ConfigError, file: &str, origins: &[&str]) {
    let shown = error.to_string();
    match error {
        ConfigError::UnknownKey { key, origin, .. } => {
            assert!(setting(&defaults(), key).is_none(), "{key} is known");
            assert!(shown.contains(key.as_str()) && shown.contains(origin.as_str()), "{shown}");
            assert!(origins.contains(&origin.as_str()), "{origin}");
        }
        ConfigError::BadValue { key, origin, message } => {
            let known = defaults();
            let mut steps = key.splitn(2, '.');
            let section = steps.next().and_then(|section| known.get(section)).and_then(Value::as_table);
            let section = section.unwrap_or_else(|| panic!("no section: {shown}"));
            let name = steps.next().unwrap_or_default();
            assert!(section.keys().any(|known| name.starts_with(known.as_str())), "no key: {shown}");
            assert!(shown.contains(key.as_str()) && shown.contains(origin.as_str()), "{shown}");
            assert!(origins.contains(&origin.as_str()) && !message.is_empty(), "{shown}");
        }
        ConfigError::NotToml { line, message, .. } => {
            assert!((1..=file.lines().count().max(1)).contains(line), "line {line} of {file:?}");
            assert!(!message.is_empty() && file.parse::<Table>().is_err(), "{shown}");
        }
        ConfigError::Unreadable { .. } => panic!("the file is there: {shown}"),
        ConfigError::UnknownVariable { .. } => panic!("every variable has the prefix: {shown}"),
    }
}

/// Each setting has the value of the last source that sets it, or the default.
fn check_last_wins(
    loaded: &LoadedConfig,
    file: &str,
    variables: &[(String, String)],
    flags: &[(String, String)],
) {
    let mut expected = defaults();
    let file: Table = file.parse().unwrap();
    for (section, values) in file {
        for (name, value) in values.as_table().unwrap() {
            *expected[&section].get_mut(name).unwrap() = value.clone();
        }
    }
    let variables =
        variables.iter().map(|(name, value)| (path(name.strip_prefix(VARIABLE_PREFIX).unwrap()), value));
    let flags = flags.iter().map(|(key, value)| (key.clone(), value));
    for (key, text) in variables.chain(flags) {
        let (section, name) = key.split_once('.').unwrap();
        let setting = expected[section].get_mut(name).unwrap();
        *setting = match setting {
            Value::String(_) => Value::String(text.clone()),
            Value::Integer(_) => Value::Integer(text.trim().parse().unwrap()),
            Value::Array(_) | Value::Boolean(_) | Value::Float(_) | Value::Datetime(_) | Value::Table(_) => {
                format!("list = {text}").parse::<Table>().unwrap().remove("list").unwrap()
            }
        };
    }
    let mut shown: Table = loaded.dump().parse().unwrap();
    without_secrets(&mut shown);
    without_secrets(&mut expected);
    assert_eq!(shown, expected);
}

fn without_secrets(table: &mut Table) {
    for key in SECRET_KEYS {
        let (section, name) = key.split_once('.').unwrap();
        table[section].as_table_mut().unwrap().remove(name);
    }
}

/// The rules that every accepted configuration obeys.
fn check_rules(loaded: &LoadedConfig) {
    let config = &loaded.config;
    assert!(config.gate.default_timeout_ms.get() <= config.gate.max_timeout_ms.get());
    assert!(config.http.drain_grace_ms.get() <= config.http.drain_timeout_ms.get());
    assert!(config.token.carriers.contains(&config.token.default_carrier));
    let open = [config.http.public_addr, config.http.platform_addr].iter().any(|at| !at.ip().is_loopback());
    assert!(!open || !config.token.keys.is_empty() && !config.platform.service_keys.is_empty());
}

/// A dump without secrets loads as the same configuration. One with redacted secrets is refused until they are set again.
fn check_read_again(loaded: &LoadedConfig) {
    let dump = loaded.dump();
    let table: Table = dump.parse().unwrap();
    let is_empty = |key| setting(&table, key).and_then(Value::as_array).is_some_and(Vec::is_empty);
    let shown_url = setting(&table, "store.url").and_then(Value::as_str).unwrap();
    let store = &loaded.config.store;
    let has_secrets = !is_empty("token.keys")
        || !is_empty("platform.service_keys")
        || shown_url.contains(":redacted@")
        || shown_url == "[redacted]"
        || store.sentinel_password.is_some();
    let written = written(dump.as_bytes());
    let mut sources = Sources { file: Some(written.path().to_owned()), ..Sources::default() };
    let again = config::load(sources.clone());
    if !has_secrets {
        assert_eq!(again.unwrap().dump(), dump);
        return;
    }
    match again {
        Err(errors) => {
            for error in errors.all() {
                let ConfigError::BadValue { key, .. } = error else { panic!("{error}: {dump}") };
                assert!(SECRET_KEYS.iter().any(|secret| key.starts_with(secret)), "{key}: {dump}");
            }
        }
        other => panic!("a dump with its secrets left out was taken: {other:?}"),
    }
    let keys = format!(r#"["k:{SECRET}"]"#);
    let service_keys = format!(r#"["{SECRET}"]"#);
    let url = match &store.url {
        StoreUrl::Memory => "memory:",
        StoreUrl::Redis(url) => url.expose_secret(),
    };
    let sentinel_password = store.sentinel_password.as_ref().map_or("", ExposeSecret::expose_secret);
    let given = [&keys, &service_keys, url, sentinel_password];
    sources.flags = SECRET_KEYS.iter().zip(given).map(|(key, value)| ((*key).into(), value.into())).collect();
    let mut again: Table = config::load(sources).unwrap().dump().parse().unwrap();
    let mut table = table;
    without_secrets(&mut again);
    without_secrets(&mut table);
    assert_eq!(again, table);
}
