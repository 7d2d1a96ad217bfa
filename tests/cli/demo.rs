//! `demo`, and when output is coloured.

use std::process::Command;

use test_support::redis_server::RedisServer;

use crate::program::{PROGRAM, Ran, path, run, run_with};

const DONE: &str = "Five work items, five envelopes, in order, each exactly once.";
/// The beginnings of the last lines.
const NEXT: [&str; 4] = [
    "Next:",
    "  - callback-ingress serve ",
    "  - callback-ingress keys new ",
    "  - callback-ingress config check ",
];

fn assert_ends_well(demo: &Ran) {
    let (_, end) = demo.out.split_once(DONE).unwrap_or_else(|| panic!("{demo:?}"));
    let lines: Vec<_> = end.trim().lines().collect();
    assert_eq!(lines.len(), NEXT.len(), "{demo:?}");
    assert!(
        lines.iter().zip(NEXT).all(|(line, next)| line.starts_with(next.trim_end_matches('\n'))),
        "{demo:?}"
    );
}

/// Runs the program on a pseudo-terminal.
fn on_a_terminal(variables: &[(&str, &str)], arguments: &str) -> Ran {
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &format!("'{PROGRAM}' {arguments}"), "/dev/null"]);
    script.env_clear().env("PATH", path()).env("TERM", "xterm").envs(variables.iter().copied());
    script.output().expect("script(1), of util-linux, is there").into()
}

fn is_coloured(text: &str) -> bool {
    text.contains('\u{1b}')
}

#[test]
fn demo_runs_on_the_memory_store() {
    let demo = run(&["demo"]).exits(0);
    assert_ends_well(&demo);
    assert!(demo.out.starts_with("callback-ingress ") && demo.out.contains(" on memory:\n"), "{demo:?}");
    for said in ["held succeeded, waiting for 1", "replayed", "CALLBACK_TOKEN_INVALID", "3 timed_out"] {
        assert!(demo.out.contains(said), "{said}: {demo:?}");
    }
    assert!(!demo.out.contains("cbt_A") && !is_coloured(&demo.out), "{demo:?}");
    assert_eq!(demo.err, "");
}

#[test]
fn demo_shows_the_url_and_the_header_once() {
    let demo = run(&["demo"]).exits(0);
    assert_eq!(demo.out.matches("/api/v1/webhooks/callbacks").count(), 1, "{demo:?}");
    assert_eq!(demo.out.matches("X-Callback-Token: cbt_…").count(), 1, "{demo:?}");
}

#[test]
fn demo_fits_into_a_terminal_of_any_width() {
    for columns in [72, 80, 120] {
        let mut script = Command::new("script");
        let command = format!("stty cols {columns}; '{PROGRAM}' demo");
        script.args(["-q", "-e", "-c", &command, "/dev/null"]);
        script.env_clear().env("PATH", path()).env("TERM", "xterm").env("NO_COLOR", "1");
        let demo = Ran::from(script.output().unwrap()).exits(0);
        for line in demo.out.lines() {
            assert!(line.trim_end().chars().count() <= columns, "{columns}: {line}");
        }
    }
}

#[test]
fn demo_runs_repeatedly_on_redis() {
    let redis = RedisServer::shared();
    for _ in 0..2 {
        let demo = run(&["demo", "--store", &redis.url(1)]).exits(0);
        assert!(demo.out.contains(&redis.url(1)), "{demo:?}");
        assert_ends_well(&demo);
    }
}

#[test]
fn demo_without_a_store_fails() {
    let demo = run(&["demo", "--store", "redis://127.0.0.1:1"]).exits(1);
    assert!(demo.out.contains("STORE_UNAVAILABLE"), "{demo:?}");
    assert!(demo.err.contains("the demo failed"), "{demo:?}");
}

#[test]
fn terminal_output_is_coloured() {
    let demo = on_a_terminal(&[], "demo --log-level info").exits(0);
    assert!(is_coloured(&demo.out) && demo.out.contains(DONE), "{demo:?}");
    assert!(demo.out.contains("INFO") && !demo.out.contains(r#"{"timestamp""#), "{demo:?}");
    assert!(is_coloured(&on_a_terminal(&[], "--help").exits(0).out));
}

#[test]
fn no_color_is_honoured_on_a_terminal() {
    for arguments in ["demo --log-level info", "--help", "--brew", "config check --set brew=1"] {
        let ran = on_a_terminal(&[("NO_COLOR", "1")], arguments);
        assert!(!ran.out.is_empty() && !is_coloured(&ran.out), "{ran:?}");
    }
}

#[test]
fn piped_output_is_plain() {
    for arguments in [&["demo", "--log-level", "info"][..], &["--help"], &["--brew"], &["config", "check"]] {
        let ran = run_with(&[("TERM", "xterm")], arguments);
        assert!(!is_coloured(&ran.out) && !is_coloured(&ran.err), "{ran:?}");
        let log = ran.err.lines().filter(|_| arguments[0] == "demo");
        assert!(log.clone().all(|line| line.starts_with(r#"{"timestamp""#)), "{ran:?}");
    }
    let text = ["demo", "--log-level", "info", "--set", "telemetry.log_format=text"];
    let ran = run_with(&[("TERM", "xterm")], &text).exits(0);
    assert!(ran.err.contains("INFO") && !is_coloured(&ran.err), "{ran:?}");
}

#[test]
fn colour_can_be_forced_on_a_pipe() {
    for arguments in [&["demo"][..], &["--help"]] {
        let ran = run_with(&[("CLICOLOR_FORCE", "1")], arguments).exits(0);
        assert!(is_coloured(&ran.out), "{ran:?}");
    }
}
