//! `serve`: its output, and failures at startup.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::program::{keys, path, run};
use crate::service::{Lines, Process, Service, eventually};

/// What it prints.
fn printed(service: &Service) -> String {
    service.out.wait_for("config check");
    service.out.text()
}

/// The lines to paste among them.
fn lines_to_paste(printed: &str) -> &str {
    let start = printed.find("KEY=").expect("lines to paste");
    printed[start..].split("\n\nNext:").next().unwrap()
}

/// Runs the lines in a shell and returns its output.
fn paste(shell: &mut Command, lines: &str) -> String {
    shell.env_clear().env("PATH", path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut shell = Process(shell.spawn().unwrap());
    let (out, err) = (Lines::of(shell.0.stdout.take().unwrap()), Lines::of(shell.0.stderr.take().unwrap()));
    writeln!(shell.0.stdin.take().unwrap(), "{lines}").unwrap();
    assert_eq!(shell.exit_code(), Some(0), "{}", err.text());
    assert_eq!(err.whole(), "");
    out.whole()
}

#[test]
fn first_start_prints_working_commands() {
    let service = Service::start(&[]);
    let lines = printed(&service);
    let shown = paste(&mut Command::new("bash"), lines_to_paste(&lines));
    let mut shown = shown.lines();
    let mut next = |wanted: &str| {
        let line = shown.next().unwrap_or_default();
        assert!(line.contains(wanted), "{wanted:?} is not in {line:?}");
    };
    next(r#"{"conversationId":"call-1","state":"live""#);
    next(r#""sequence":1,"#);
    next(r#"{"status":"delivered","#);
    assert!(shown.any(|line| line.contains(r#""outcome":"succeeded","result":{"answer":42},"#)));
}

#[test]
fn printed_commands_work_in_bash_and_zsh() {
    let service = Service::start(&[]);
    let printed = printed(&service);
    let lines = lines_to_paste(&printed);
    // An interactive zsh has no comments, and an apostrophe would begin a quotation.
    assert!(!lines.contains('#'), "{lines}");
    for line in lines.lines() {
        assert!(!line.is_empty() && line.chars().count() <= 80, "{line}");
        assert_eq!(line.matches('\'').count() % 2, 0, "{line}");
        assert_eq!(line.matches('"').count() % 2, 0, "{line}");
    }
    assert_eq!(lines.matches(&service.public).count(), 1, "the URL is there once: {lines}");
    assert_eq!(lines.matches("X-Callback-Token").count(), 1, "the header is there once: {lines}");
    let (_, next) = printed.split_once("Next:\n").unwrap();
    assert_eq!(next.lines().filter(|line| line.starts_with("  - ")).count(), 3, "{next}");
    if Command::new("zsh").arg("--version").output().is_ok() {
        let shown = paste(Command::new("zsh").arg("-f"), lines);
        assert!(shown.contains(r#""outcome":"succeeded","result":{"answer":42},"#), "{shown}");
    }
}

#[test]
fn printed_commands_use_the_configured_carrier() {
    for carrier in ["header", "query", "body", "path"] {
        let service = Service::start(&[
            "--set",
            &format!("token.default_carrier={carrier}"),
            "--set",
            &format!("token.carriers=[{carrier:?}]"),
            "--set",
            "token.header_name=X-Other-Token",
            "--set",
            "token.query_name=other_token",
            "--set",
            "token.body_field=other_token",
        ]);
        let shown = paste(&mut Command::new("bash"), lines_to_paste(&printed(&service)));
        assert!(shown.contains(r#"{"status":"delivered","#), "{carrier}: {shown}");
    }
}

#[test]
fn configured_keys_print_no_commands() {
    let mut service = Service::start_with(&keys(), &["--set", "http.drain_grace_ms=0"]);
    service.process.signal("TERM");
    assert_eq!(service.process.exit_code(), Some(0));
    assert_eq!(service.out.whole(), "");
}

#[test]
fn memory_store_causes_a_warning() {
    let service = Service::start(&[]);
    service.log.wait_for("store.url is memory: conversations are lost when this process exits");
}

#[test]
fn port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (flag, other) in [("--public-addr", "--platform-addr"), ("--platform-addr", "--public-addr")] {
        let ran = run(&["serve", flag, &taken, other, "127.0.0.1:0"]);
        ran.complains(1, &[&format!("cannot listen on {taken}: Address already in use")]);
    }
}

#[test]
fn log_line_is_json_without_the_token() {
    let service = Service::start(&["--log-level", "debug"]);
    let token = service.token("call-1");
    assert_eq!(service.callback(&token, "1").status, 202);
    assert_eq!(service.callback(&format!("{token}x"), "1").status, 401);
    let path = format!("POST /api/v1/webhooks/callbacks/{token}");
    assert_eq!(crate::wire::call(&service.public, &path, &[], "1").status, 200);
    eventually("three callbacks are logged", || {
        service.log.text().matches("/api/v1/webhooks/callbacks").count() >= 3
    });
    for line in service.log.text().lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
        assert!(!line.contains("cbt_"), "{line}");
        assert!(!line.contains(&service.made_key()), "{line}");
    }
}

#[test]
fn rate_limit_log_line_has_the_client_address() {
    let service = Service::start(&[
        "--set",
        "rate_limit.max=1",
        "--set",
        r#"http.trusted_proxies=["127.0.0.1"]"#,
        "--log-level",
        "info",
    ]);
    let token = service.token("call-1");
    let call = |number: &str| {
        let headers = [&format!("x-callback-token: {token}"), "x-forwarded-for: 203.0.113.9"];
        crate::wire::call(&service.public, "POST /api/v1/webhooks/callbacks", &headers, number)
    };
    assert_eq!(call("1").status, 202);
    call("1").refuses(429, "RATE_LIMITED");
    let line_with = |status: &str| {
        let lines = service.log.text();
        lines.lines().find(|line| line.contains(status)).map(str::to_owned)
    };
    eventually("both are logged", || {
        ["202", "429"].iter().all(|status| line_with(&format!("code\":{status}")).is_some())
    });
    let said = |status: &str| {
        let line = line_with(&format!("code\":{status}")).unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        line["client.address"].as_str().map(str::to_owned)
    };
    assert_eq!(said("429").as_deref(), Some("203.0.113.9"));
    assert_eq!(said("202"), None);
}
