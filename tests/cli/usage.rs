//! Command-line usage.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::program::{PROGRAM, run};

const LEVELS: [&[&str]; 13] = [
    &[],
    &["serve"],
    &["demo"],
    &["config"],
    &["config", "check"],
    &["config", "dump"],
    &["healthcheck"],
    &["probe"],
    &["keys"],
    &["keys", "new"],
    &["waiting"],
    &["show"],
    &["tail"],
];

#[test]
fn every_command_has_help_and_version() {
    for level in LEVELS {
        for flag in ["--help", "-h"] {
            let help = run(&[level, &[flag]].concat()).exits(0);
            let usage = [&["Usage: callback-ingress"], level].concat().join(" ");
            assert!(help.out.contains(&usage), "{help:?}");
            assert!(help.out.contains("--config <FILE>"), "{help:?}");
            assert_eq!(help.err, "");
        }
        for flag in ["--version", "-V"] {
            let version = run(&[level, &[flag]].concat()).exits(0);
            assert!(version.out.starts_with("callback-ingress"), "{version:?}");
            assert!(version.out.ends_with(concat!(" ", env!("CARGO_PKG_VERSION"), "\n")), "{version:?}");
            assert_eq!(version.err, "");
        }
    }
}

#[test]
fn wrong_usage_exits_2_with_a_message() {
    let wrong: [(&[&str], &str); 11] = [
        (&[], "Usage: callback-ingress"),
        (&["config"], "Usage: callback-ingress config"),
        (&["brew"], "'brew'"),
        (&["config", "brew"], "'brew'"),
        (&["--brew"], "'--brew'"),
        (&["serve", "--brew"], "'--brew'"),
        (&["demo", "brew"], "'brew'"),
        (&["healthcheck", "--timeout-ms", "soon"], "'soon'"),
        (&["serve", "--store"], "--store <URL>"),
        (&["config", "dump", "--set", "brew"], "SECTION.KEY=VALUE"),
        (&["serve", "--set", "brew=1"], "unknown key brew (from the command line)"),
    ];
    for (arguments, what) in wrong {
        run(arguments).complains(2, &[what]);
    }
}

#[test]
fn invalid_setting_stops_every_command() {
    for command in &LEVELS[1..] {
        if command[0] != "keys" && *command != ["config"] {
            let operand = matches!(command[0], "show" | "tail").then_some("call-1");
            let arguments = [command, operand.as_slice(), &["--set", "http.port=1"]].concat();
            run(&arguments)
                .complains(2, &["callback-ingress: unknown key http.port (from the command line)"]);
        }
    }
}

#[test]
fn flag_that_a_command_does_not_use_is_refused() {
    let unused: [(&[&str], &str); 11] = [
        (&["demo", "--public-addr", "127.0.0.1:0"], "demo does not use --public-addr"),
        (&["demo", "--platform-addr", "127.0.0.1:0"], "demo does not use --platform-addr"),
        (&["demo", "--set", "http.public_base_url=http://a"], "demo does not use http.public_base_url"),
        (&["--store", "memory:", "healthcheck"], "healthcheck does not use --store"),
        (&["healthcheck", "--platform-addr", "127.0.0.1:0"], "healthcheck does not use --platform-addr"),
        (&["healthcheck", "--log-level", "info"], "healthcheck does not use --log-level"),
        (&["healthcheck", "--url", "http://a", "--public-addr", "127.0.0.1:1"], "does not use --public-addr"),
        (&["healthcheck", "--url", "http://a", "--ready"], "--ready"),
        (&["probe", "--store", "memory:"], "probe does not use --store"),
        (&["keys", "new", "--config", "a.toml"], "keys new does not use --config"),
        (&["keys", "new", "--set", "a.b=hunter2"], "keys new does not use --set"),
    ];
    for (arguments, complaint) in unused {
        let ran = run(arguments).complains(2, &[complaint]);
        assert!(!ran.err.contains("hunter2"), "{ran:?}");
    }
}

#[test]
fn malformed_set_flag_is_not_echoed() {
    for set in ["token.keys:hunter2", r#"token.keys:["k1:hunter2="]"#] {
        let ran = run(&["config", "dump", "--set", set]).complains(2, &["--set", "SECTION.KEY=VALUE"]);
        assert!(!ran.err.contains("hunter2"), "{ran:?}");
    }
}

#[test]
fn failed_output_is_a_failure() {
    for command in [&["config", "dump"], &["config", "check"]] {
        let full = File::create("/dev/full").unwrap();
        let output =
            Command::new(PROGRAM).args(command).env_clear().stdout(full).stderr(Stdio::piped()).output();
        let output = output.unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        assert!(complaint.starts_with("callback-ingress: cannot write"), "{complaint}");
    }
}
