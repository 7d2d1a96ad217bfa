//! Command-line usage.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::program::{PROGRAM, run};

const LEVELS: [&[&str]; 7] =
    [&[], &["serve"], &["demo"], &["config"], &["config", "check"], &["config", "dump"], &["healthcheck"]];

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
        (&["serve", "--set", "brew=1"], "unknown key brew in the command line"),
    ];
    for (arguments, what) in wrong {
        run(arguments).complains(2, &[what]);
    }
}

#[test]
fn invalid_setting_stops_every_command() {
    for command in &LEVELS[1..] {
        if *command != ["config"] {
            let arguments = [command, &["--set", "http.port=1"][..]].concat();
            run(&arguments).complains(2, &["callback-ingress: unknown key http.port in the command line"]);
        }
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
