//! The runbook's commands and filters find what they should in a real log.

use std::fs;
use std::process::Command;

use serde_json::json;
use test_support::redis_server::RedisServer;

use crate::collector::{Collector, Protocol};
use crate::filter::Filter;
use crate::program::path;
use crate::reason::{Exported, issue};
use crate::service::{Service, eventually};
use crate::wire::{Reply, begin};

const RUNBOOK: &str = include_str!("../../docs/runbook.md");

/// Heading and text of each section.
fn sections() -> impl Iterator<Item = (&'static str, &'static str)> {
    RUNBOOK.split("\n## ").skip(1).map(|section| section.split_once('\n').unwrap())
}

/// The shell commands in a text, each with its continuation lines.
fn commands(text: &str) -> Vec<String> {
    let blocks = text.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    let mut commands: Vec<String> = Vec::new();
    for line in blocks.flat_map(str::lines) {
        match commands.last_mut() {
            Some(command) if line.starts_with("  ") => command.extend(["\n", line]),
            _ => commands.push(line.to_owned()),
        }
    }
    commands
}

/// The filters behind `SigNoz:`, with these values inserted.
fn filters(text: &str, values: &[(&str, String)]) -> Vec<Filter> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("SigNoz: "));
    let codes = lines.flat_map(|line| line.split('`').skip(1).step_by(2));
    let inserted = codes.map(|code| {
        values.iter().fold(code.to_owned(), |code, (name, value)| code.replace(&format!("{{{name}}}"), value))
    });
    // The names that results are grouped by are no filters.
    inserted.filter(|code| code.contains(' ')).map(|code| Filter::parse(&code).expect("a filter")).collect()
}

fn request_id(reply: &Reply) -> String {
    reply.json()["error"]["requestId"].as_str().unwrap().to_owned()
}

#[test]
fn runbook_commands_and_filters_find_the_incidents() {
    let redis = RedisServer::start();
    let collector = Collector::start(Protocol::Http);
    // Of the signals, the metrics get lost.
    let dead = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://127.0.0.1:1/v1/metrics".to_owned());
    let variables: Vec<_> = collector.variables().into_iter().chain([dead]).collect();
    let service =
        Service::start_with(&variables, &["--store", &redis.url(0), "--set", "rate_limit.failed_max=2"]);
    for conversation in ["call-1", "call-2"] {
        eventually("it works", || service.platform("PUT", conversation, "").status <= 201);
    }

    let forged = service.callback("cbt_forged", "1");
    forged.refuses(401, "CALLBACK_TOKEN_INVALID");
    let work = json!({"kind": "tool", "timeoutMs": 1, "name": "slow-tool"}).to_string();
    let slow = service.platform("POST", "call-1/work-items", &work).json();
    service.log.wait_for("a work item timed out");
    let late = service.callback(slow["callback"]["token"].as_str().unwrap(), "1");
    late.refuses(409, "WORK_ITEM_TIMED_OUT");
    let (waited_for, held) = (issue(&service, "call-1", 60_000), issue(&service, "call-1", 60_000));
    assert_eq!(service.callback(&held.token, "1").json()["status"], "held");
    let delivered = issue(&service, "call-2", 60_000);
    assert_eq!(service.callback(&delivered.token, "1").json()["status"], "delivered");
    let key = format!("authorization: Bearer {}", service.made_key());
    let mut events =
        begin(&service.platform, "GET /platform/v1/conversations/call-2/events?from=0", &[&key], "\r\n");
    events.read_until("\"sequence\":1");
    assert_eq!(service.platform("DELETE", "call-2", "").status, 200);
    events.rest();
    service.log.wait_for("event stream closed");
    for _ in 0..2 {
        service.callback("cbt_forged", "1");
    }
    service.log.wait_for("RATE_LIMITED");
    redis.suspend();
    service.callback(&waited_for.token, "1").refuses(503, "OUTCOME_UNKNOWN");
    redis.resume();
    let _: () = redis::cmd("FLUSHALL").query(&mut redis.connection(0)).unwrap();
    eventually("the loss is noticed", || service.callback(&waited_for.token, "1").status == 409);
    service.log.wait_for("export to the collector failed");

    let values = [("requestId", request_id(&late)), ("workItemId", delivered.id.clone())];
    eventually("all is exported", || {
        let exported = Exported::of(&collector);
        exported
            .logs
            .iter()
            .any(|line| line.get("callback.code").is_some_and(|code| code == "CONVERSATION_ENDED"))
            && exported.logs.iter().any(|line| line.contains_key("event_stream.closed_because"))
    });
    let exported = Exported::of(&collector);
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("service.log"), service.log.text()).unwrap();
    let run = |command: &str, item: &str| {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", command]).current_dir(directory.path()).env_clear();
        shell.env("PATH", path()).env("REQUEST_ID", &values[0].1).env("WORK_ITEM_ID", item);
        shell.env("CONVERSATION_ID", "call-1").env("SEQUENCE", "2");
        let ran = shell.output().unwrap();
        let (out, err) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
        assert!(ran.status.success() && err.is_empty(), "{command}: {err}");
        out
    };
    assert_eq!(sections().count(), 10);
    for (heading, text) in sections() {
        // No bug is known.
        let finds = heading != "The service has a bug";
        let item = if heading.starts_with("Work times out") {
            slow["workItemId"].as_str().unwrap()
        } else {
            &values[1].1
        };
        let commands = commands(text);
        assert!(!commands.is_empty(), "{heading}");
        for command in commands {
            let out = run(&command, item);
            assert_eq!(!out.trim().is_empty(), finds, "{heading}: {command}\n{out}\n{}", service.log.text());
            // A misspelt field would be null in every line.
            let lines = out.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let lines: Vec<_> = lines.filter(serde_json::Value::is_object).collect();
            for field in lines.first().into_iter().flat_map(|line| line.as_object().unwrap().keys()) {
                let is_known = lines.iter().any(|line| !line[field].is_null())
                    || service.log.text().contains(&format!("{field:?}:"));
                assert!(is_known, "{heading}: {field}\n{out}");
            }
        }
        for filter in filters(text, &values) {
            assert_eq!(exported.logs.iter().any(|line| filter.holds(line)), finds, "{heading}: {filter:?}");
        }
    }
}
