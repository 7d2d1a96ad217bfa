//! Output of the other commands, and messages about invalid settings.

use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;

use super::in_redis::WatchedRedis;
use super::nothing_leaks;
use super::running::Running;
use super::search::Capture;
use super::tokens::Known;
use crate::program::run_with;
use crate::service::eventually;

/// Runs the program and captures its output.
fn printed(captures: &mut Vec<Capture>, code: i32, variables: &[(&str, &str)], arguments: &[&str]) {
    let ran = run_with(variables, arguments).exits(code);
    captures.push(Capture::new(format!("what {arguments:?} prints"), ran.out + &ran.err));
}

#[test]
fn no_command_prints_a_secret() {
    let known = Known::new();
    let redis = WatchedRedis::start(&known.credential("the password of Redis"));
    let keys = format!("[{:?}, {:?}]", known.signing_key("k1"), known.signing_key("old"));
    let service_keys = format!("[{:?}]", known.credential("the service key"));
    let (url, password) = (redis.url(), known.credential("a wrong password"));
    let wrong = format!("redis://default:{password}@127.0.0.1:{}/0", redis.server.port());
    let nobody = format!("redis://:{password}@127.0.0.1:1/0");
    let sentinel = format!("redis+sentinel://:{password}@127.0.0.1:1,127.0.0.1:2/calls/0");
    let sentinels_own = format!("store.sentinel_password={}", known.credential("the sentinels' password"));
    let variables = [
        ("CALLBACK_INGRESS__TOKEN__KEYS", keys.as_str()),
        ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", service_keys.as_str()),
        ("CALLBACK_INGRESS__TELEMETRY__LOG_LEVEL", "trace"),
    ];
    let mut captures = Vec::new();
    let mut prints = |code, arguments: &[&str]| printed(&mut captures, code, &variables, arguments);
    for store in ["memory:", &url, &wrong, &nobody] {
        prints(0, &["config", "dump", "--store", store]);
    }
    prints(0, &["config", "check", "--store", "memory:"]);
    prints(0, &["config", "check", "--store", &url]);
    prints(1, &["config", "check", "--store", &wrong]);
    prints(1, &["config", "check", "--store", &nobody]);
    for (code, command) in [(0, "dump"), (1, "check")] {
        prints(code, &["config", command, "--store", &sentinel, "--set", &sentinels_own]);
    }
    prints(1, &["healthcheck", "--public-addr", "127.0.0.1:1"]);
    for command in [&["waiting"][..], &["show", "call-1"], &["tail", "call-1"]] {
        prints(1, &[command, &["--url", "http://127.0.0.1:1"]].concat());
    }
    prints(0, &["demo", "--store", &url]);
    prints(0, &["--version"]);
    for command in [&["--help"][..], &["serve", "--help"], &["demo", "--help"], &["config", "--help"]] {
        prints(0, command);
    }
    nothing_leaks(&known, &captures);
}

#[test]
fn invalid_setting_is_reported_without_its_secret() {
    let known = Known::new();
    let key = known.signing_key("k1");
    let text = known.credential("the service key");
    let mut captures = Vec::new();
    let variables = [
        ("CALLBACK_INGRESS__TOKEN__KEYS", format!("{key:?}")),
        ("CALLBACK_INGRESS__TOKEN__KEYS", key.clone()),
        ("CALLBACK_INGRESS__TOKEN__KEYS", format!("[{key:?}")),
        ("CALLBACK_INGRESS__TOKEN__KEYS", format!("[{key:?}, {key:?}]")),
        ("CALLBACK_INGRESS__TOKEN__KEYS", format!("[\"{key}!\"]")),
        ("CALLBACK_INGRESS__TOKEN__KEYS", format!("[\"much-too-long-{key}\"]")),
        ("CALLBACK_INGRESS__TOKEN__KEYS", format!("[{{ k1 = {key:?} }}]")),
        ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", format!("[\"{text} {text}\"]")),
        ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", text.clone()),
        ("CALLBACK_INGRESS__STORE__URL", format!("redis://:{text}@127.0.0.1:port/0")),
        ("CALLBACK_INGRESS__STORE__URL", format!("redis://:{text}@[::1/0")),
        ("CALLBACK_INGRESS__STORE__URL", format!("redis://:{text}@127.0.0.1:6379/database")),
        ("CALLBACK_INGRESS__STORE__URL", format!("redis+sentinel://:{text}@127.0.0.1,127.0.0.2")),
        ("CALLBACK_INGRESS__STORE__URL", format!("redis+cluster://:{text}@127.0.0.1,127.0.0.2/1")),
        ("CALLBACK_INGRESS__STORE__SENTINEL_PASSWORD", text.clone()),
        ("CALLBACK_INGRESS__STORE__URL", format!("default:{text}@127.0.0.1")),
        ("CALLBACK_INGRESS__STORE__URL", text.clone()),
        ("CALLBACK_INGRESS__TOKEN__KEY", key.clone()),
    ];
    for (name, value) in &variables {
        printed(&mut captures, 2, &[(name, value)], &["config", "check"]);
    }
    let setting = |key: &str, value: &str| format!("{key}={value}");
    for flag in [
        text.clone(),
        setting("token.keys", &key),
        setting("token.key", &key),
        setting(&format!("token.keys:{key}"), ""),
        setting("platform.service_keys", &text),
    ] {
        printed(&mut captures, 2, &[], &["config", "check", "--set", &flag]);
    }
    for file in [
        format!("[token]\nkeys = [\"{key}\n"),
        format!("[token]\nkeys = {key}\n"),
        format!("[token]\nkeys = [{{ {key:?} = 1 }}]\n"),
        format!("[platform]\nservice_keys = {text:?}\n"),
        format!("[store]\nurl = [{text:?}]\n"),
        format!("[store]\nurl = {text}\n"),
    ] {
        let mut written = tempfile::NamedTempFile::new().unwrap();
        written.write_all(file.as_bytes()).unwrap();
        let path = written.path().to_str().unwrap();
        printed(&mut captures, 2, &[], &["config", "check", "--config", path]);
    }
    nothing_leaks(&known, &captures);
}

#[test]
fn unreachable_collector_is_reported_without_credentials() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let known = Arc::new(Known::new());
    let mut captures = Vec::new();
    for protocol in ["grpc", "http/protobuf"] {
        let password = known.credential("the password in the collector's URL");
        let header = known.credential("the collector's credential");
        let running = Running::start(&[
            ("CALLBACK_INGRESS__HTTP__PUBLIC_ADDR", "127.0.0.1:0".to_owned()),
            ("CALLBACK_INGRESS__HTTP__PLATFORM_ADDR", "127.0.0.1:0".to_owned()),
            ("CALLBACK_INGRESS__HTTP__DRAIN_GRACE_MS", "0".to_owned()),
            (
                "CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS",
                format!("[{:?}]", known.credential("the service key")),
            ),
            ("CALLBACK_INGRESS__TELEMETRY__LOG_LEVEL", "trace".to_owned()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://user:{password}@{closed}")),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
            ("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer%20{header},x-other={header}")),
            ("OTEL_METRIC_EXPORT_INTERVAL", "50".to_owned()),
        ]);
        eventually("it says that the collector is not there", || {
            running.log().contains("export to the collector failed")
        });
        running.process.signal("TERM");
        captures.extend(running.ended(0));
    }
    nothing_leaks(&known, &captures);
}
