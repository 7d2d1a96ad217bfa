//! Sources of settings, error messages, and `config dump`.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::program::{SERVICE_KEY, TOKEN_KEY, keys, run, run_with};
use crate::service::Service;

const PASSWORD: &str = "password-of-the-tests-alone";

/// A configuration file in a temporary directory.
fn file(text: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("settings.toml");
    std::fs::write(&path, text).unwrap();
    let name = path.to_str().unwrap().to_owned();
    (directory, name)
}

/// The value of a key in a dump.
fn dumped(dump: &str, section: &str, key: &str) -> String {
    let table: toml::Table = dump.parse().unwrap();
    table[section][key].to_string()
}

#[test]
fn unknown_key_is_named_with_its_file() {
    for (text, key) in [("[http]\nport = 80\n", "http.port"), ("[htpp]\n", "htpp"), ("port = 80\n", "port")] {
        let (_directory, name) = file(text);
        let meant = if key == "htpp" { "; did you mean http?" } else { "" };
        let expected = format!("callback-ingress: unknown key {key} (from {name}){meant}\n");
        assert_eq!(run(&["config", "check", "--config", &name]).complains(2, &[]).err, expected);
    }
}

#[test]
fn unknown_key_is_named_with_its_variable() {
    let name = "CALLBACK_INGRESS__HTTP__PORT";
    run_with(&[(name, "80")], &["config", "check"]).complains(2, &["unknown key http.port (from", name]);
}

#[test]
fn unusable_file_is_named() {
    let (directory, name) = file("[http]\nmax_body_bytes = 1\n[http\n");
    run(&["config", "dump", "--config", &name]).complains(2, &[&name, "is not TOML: line 3"]);
    let missing = Path::new(directory.path()).join("missing.toml");
    let missing = missing.to_str().unwrap();
    run(&["serve", "--config", missing]).complains(2, &["cannot read", missing, "No such file"]);
    run(&["demo", "--config", directory.path().to_str().unwrap()]).complains(2, &["cannot read"]);
}

#[test]
fn invalid_value_is_named_with_its_bounds() {
    for (setting, complaint) in [
        ("http.max_body_bytes=0", "http.max_body_bytes (from the command line): "),
        ("http.max_body_bytes=0", "a whole number from 1 to 67108864"),
        (
            "http.drain_timeout_ms=soon",
            "http.drain_timeout_ms (from the command line): must be a whole number",
        ),
        ("http.public_addr=localhost", "http.public_addr (from the command line): "),
        ("http.public_base_url=example.com", "must be an absolute URL"),
        ("console.trace_url=https://signoz.example.com/trace", "with {traceId} in its path or query"),
        ("console.trace_url=https://{traceId}.example.com/", "with {traceId} in its path or query"),
        ("console.trace_url=javascript:alert(1)//{traceId}", "console.trace_url (from the command line): "),
        (
            "http.platform_addr=127.0.0.1:8080",
            "http.platform_addr (from the command line): must differ from http.public_addr",
        ),
        (
            "store.url=sqlite:x",
            "must be memory:, or begin with redis://, redis+sentinel:// or redis+cluster://",
        ),
        ("store.url=redis+cluster://127.0.0.1/1", "names a database: a cluster has only database 0"),
        ("token.carriers=header", r#"must be a list: ["a","b"]"#),
        ("token.carriers=[]", "must name at least one carrier"),
        ("token.default_carrier=pigeon", "pigeon"),
        ("gate.default_timeout_ms=900001", "must not be above gate.max_timeout_ms"),
        ("telemetry.log_level=a=b=c", "must be a level (off, error, warn, info, debug, trace)"),
        ("telemetry.log_level=warning", "did you mean warn?"),
        ("telemetry.log_format=xml", "xml"),
    ] {
        run(&["config", "check", "--set", setting]).complains(2, &[complaint]);
    }
}

#[test]
fn all_errors_are_reported_at_once() {
    let variables = [
        ("CALLBACK_INGRESS_HTTP_PUBLIC_ADDR", "127.0.0.1:1"),
        ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", r#"["hunter2"]"#),
    ];
    let flags = ["--log-level", "warning", "--public-addr", ":8080", "--set", "gate.max_held_item=1"];
    for command in [&["serve"][..], &["config", "check"]] {
        let ran = run_with(&variables, &[command, &flags[..]].concat());
        let ran = ran.complains(
            2,
            &[
                "callback-ingress: the configuration has 5 errors:\n",
                "did you mean CALLBACK_INGRESS__HTTP__PUBLIC_ADDR?",
                "platform.service_keys (from CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS): entry 1",
                "did you mean gate.max_held_items?",
                "http.public_addr (from the command line): needs an address before the port",
                "telemetry.log_level (from the command line): must be a level",
            ],
        );
        assert!(!ran.err.contains("hunter2"), "{ran:?}");
    }
}

#[test]
fn localhost_is_an_address_to_listen_on() {
    let addresses = ["--public-addr", "localhost:0", "--platform-addr", "localhost:0"];
    let service = Service::start(&addresses);
    assert!(service.public.starts_with("127.0.0.1:") && service.platform.starts_with("127.0.0.1:"));
}

#[test]
fn public_url_that_providers_cannot_use_causes_a_warning() {
    let service = Service::start_with(&keys(), &["--public-addr", "0.0.0.0:0"]);
    service.log.wait_for("http.public_base_url is empty: callback URLs contain 0.0.0.0:0");
    let plain = ["--set", "http.public_base_url=http://api.example.com"];
    Service::start(&plain).log.wait_for("tokens and results travel unencrypted");
    let check = run(&[&["config", "check"], &plain[..]].concat()).exits(0);
    assert!(check.out.contains("note: http.public_base_url begins with http://"), "{check:?}");
}

#[test]
fn unreachable_redis_is_named_once_with_a_hint() {
    let check = run(&["config", "check", "--store", "redis://:hunter2@127.0.0.1:1"]).exits(1);
    let expected = "callback-ingress: Redis at 127.0.0.1:1 does not respond: ";
    assert!(check.err.starts_with(expected) && check.err.ends_with("the port in store.url\n"), "{check:?}");
    assert_eq!(check.err.matches("refused").count(), 1, "{check:?}");
    assert!(!check.err.contains("hunter2"), "{check:?}");
}

#[test]
fn outage_of_redis_is_logged_with_growing_pauses() {
    let service = Service::start(&["--store", "redis://127.0.0.1:1"]);
    std::thread::sleep(Duration::from_millis(3_700));
    let lines = service.log.text().matches("Redis at 127.0.0.1:1 does not respond; retrying").count();
    assert!((2..=3).contains(&lines), "{lines} in {}", service.log.text());
}

#[test]
fn flag_overrides_variable_overrides_file_overrides_default() {
    let (_directory, name) =
        file("[gate]\nmax_held_items = 11\nmax_held_bytes = 12\nmax_awaiting_items = 13\n");
    let variables =
        [("CALLBACK_INGRESS__GATE__MAX_HELD_ITEMS", "21"), ("CALLBACK_INGRESS__GATE__MAX_HELD_BYTES", "22")];
    let arguments = ["config", "dump", "--config", &name, "--set", "gate.max_held_items=31"];
    let dump = run_with(&variables, &arguments).exits(0).out;
    let of = |key| dumped(&dump, "gate", key);
    assert_eq!(
        ["max_held_items", "max_held_bytes", "max_awaiting_items", "max_channel_length"].map(of),
        ["31", "22", "13", "65536"]
    );
}

#[test]
fn flags_work_before_and_after_the_command() {
    let address = "127.0.0.1:18080";
    for arguments in [
        ["--public-addr", address, "config", "dump"],
        ["config", "--public-addr", address, "dump"],
        ["config", "dump", "--public-addr", address],
    ] {
        let dump = run(&arguments).exits(0).out;
        assert_eq!(dumped(&dump, "http", "public_addr"), format!("{address:?}"));
    }
}

#[test]
fn dump_shows_no_secret() {
    let url = format!("redis://operator:{PASSWORD}@127.0.0.1:1/0");
    let mut variables = keys().to_vec();
    variables.push(("CALLBACK_INGRESS__STORE__URL", url));
    let broken = ["--set", "http.max_body_bytes=0"];
    for arguments in [
        vec!["config", "dump"],
        vec!["config", "check"],
        vec!["config", "dump", "--help"],
        vec!["serve", "--help"],
        [&["config", "check"], &broken[..]].concat(),
        [&["serve"], &broken[..]].concat(),
        vec!["demo"],
        vec!["healthcheck", "--public-addr", "127.0.0.1:1"],
    ] {
        let ran = run_with(&variables, &arguments);
        let secret = TOKEN_KEY.split_once(':').unwrap().1;
        for secret in [secret, SERVICE_KEY, PASSWORD] {
            assert!(!ran.out.contains(secret) && !ran.err.contains(secret), "{arguments:?}: {ran:?}");
        }
    }
}

#[test]
fn invalid_secret_is_named_and_not_shown() {
    for (name, value, complaint) in [
        ("TOKEN__KEYS", "k1:hunter2", "token.keys (from CALLBACK_INGRESS__TOKEN__KEYS): must be a list"),
        ("TOKEN__KEYS", r#"["k1:hunter2"]"#, "token.keys (from CALLBACK_INGRESS__TOKEN__KEYS): entry 1"),
        ("PLATFORM__SERVICE_KEYS", r#"["hunter2"]"#, "platform.service_keys"),
        ("STORE__URL", "redis://:hunter2@/x/y", "store.url (from CALLBACK_INGRESS__STORE__URL)"),
        ("STORE__URL", "postgres://:hunter2@db", "store.url (from CALLBACK_INGRESS__STORE__URL)"),
    ] {
        let name = format!("CALLBACK_INGRESS__{name}");
        for command in [&["config", "check"][..], &["config", "dump"], &["serve"], &["demo"]] {
            let ran = run_with(&[(&name, value)], command).complains(2, &[complaint]);
            assert!(!ran.err.contains("hunter2"), "{ran:?}");
        }
    }
}

#[test]
fn dump_without_secrets_can_be_read_back() {
    let arguments =
        ["config", "dump", "--store", "redis://127.0.0.1:6379/3", "--set", "gate.max_held_items=5"];
    let dump = run(&arguments).exits(0).out;
    let (_directory, name) = file(&dump);
    assert_eq!(run(&["config", "dump", "--config", &name]).exits(0).out, dump);
}

#[test]
fn dump_with_redacted_secrets_is_refused() {
    let dump = run_with(&keys(), &["config", "dump"]).exits(0).out;
    let (_directory, name) = file(&dump);
    let check = ["config", "check", "--config", &name];
    run_with(&keys()[..1], &check).complains(2, &["platform.service_keys (from ", &name, "entry 1"]);
    run_with(&keys()[1..], &check).complains(2, &["token.keys (from ", &name, "entry 1"]);
    run_with(&keys(), &check).exits(0);

    let url = format!("redis://operator:{PASSWORD}@127.0.0.1:6379/0");
    let dump = run(&["config", "dump", "--store", &url]).exits(0).out;
    let (_directory, name) = file(&dump);
    run(&["config", "check", "--config", &name]).complains(2, &["store.url (from ", &name, "redacted"]);
}

#[test]
fn config_check_warns_the_operator() {
    let check = run(&["config", "check"]).exits(0);
    for remark in ["store.url is memory", "token.keys is empty", "platform.service_keys is empty"] {
        assert!(check.out.contains(&format!("note: {remark}")), "{check:?}");
    }
    assert!(
        check.out.ends_with("the configuration is valid; store: memory:; OTLP exports: none\n"),
        "{check:?}"
    );
    assert_eq!(check.err, "");

    let open = ["config", "check", "--public-addr", "0.0.0.0:8080"];
    let check = run_with(&keys(), &open).exits(0);
    assert!(check.out.contains("note: http.public_base_url is empty"), "{check:?}");
    assert!(!check.out.contains("keys is empty"), "{check:?}");
}

#[test]
fn open_listener_without_keys_is_refused() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8080"] {
        for flag in ["--public-addr", "--platform-addr"] {
            let complaint = [
                if flag == "--public-addr" { "http.public_addr" } else { "http.platform_addr" },
                "is not a loopback address",
                "token.keys and platform.service_keys",
            ];
            run(&["serve", flag, address]).complains(2, &complaint);
            run(&["config", "check", flag, address]).complains(2, &complaint);
        }
    }
    let token_key = &keys()[..1];
    run_with(token_key, &["serve", "--public-addr", "0.0.0.0:0"]).complains(2, &["platform.service_keys"]);
}
