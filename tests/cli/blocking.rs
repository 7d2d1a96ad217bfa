//! `waiting`, `show` and `tail`: find the blocking work item from the command line.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use test_support::redis_server::RedisServer;

use crate::program::{PROGRAM, Ran, SERVICE_KEY, keys, path, run, run_with};
use crate::service::{Lines, Process, Service, eventually};
use crate::wire::{Reply, call};

/// A service with the tests' keys.
fn service(store: &str) -> Service {
    let service = Service::start_with(&keys(), &["--store", store]);
    eventually("it works", || platform(&service, "PUT", "/first-of-all", "").status <= 201);
    service
}

/// A request to the platform listener; the path is below `/platform/v1/conversations`.
fn platform(service: &Service, method: &str, path: &str, body: &str) -> Reply {
    let key = format!("authorization: Bearer {SERVICE_KEY}");
    call(&service.platform, &format!("{method} /platform/v1/conversations{path}"), &[&key], body)
}

/// Issues a work item; returns its token.
fn issue(service: &Service, conversation: &str, asked: &Value) -> String {
    let issued = platform(service, "POST", &format!("/{conversation}/work-items"), &asked.to_string());
    assert_eq!(issued.status, 201, "{issued:?}");
    issued.json()["callback"]["token"].as_str().unwrap().to_owned()
}

/// Runs a command against this service.
fn against(service: &Service, arguments: &[&str]) -> Ran {
    at(&format!("http://{}", service.platform), arguments)
}

fn at(url: &str, arguments: &[&str]) -> Ran {
    run_with(&keys(), &[arguments, &["--url", url]].concat())
}

/// Starts a command against this service.
fn started(service: &Service, arguments: &[&str]) -> (Process, Lines) {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).args(["--url", &format!("http://{}", service.platform)]);
    command.env_clear().env("PATH", path()).envs(keys()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process(command.spawn().unwrap());
    let out = Lines::of(process.0.stdout.take().unwrap());
    (process, out)
}

/// A conversation in which the fourth result waits for the tool `weather`, and the second has waited for the first.
/// Returns the token of the blocking item and the reply to the held callback.
fn blocked(service: &Service, conversation: &str) -> (String, Reply) {
    assert_eq!(platform(service, "PUT", &format!("/{conversation}"), "").status, 201);
    let first = issue(service, conversation, &json!({"kind": "llm"}));
    let second = issue(service, conversation, &json!({"kind": "tool", "name": "route"}));
    let third =
        issue(service, conversation, &json!({"kind": "tool", "name": "weather", "timeoutMs": 600_000}));
    let fourth = issue(service, conversation, &json!({"kind": "tool", "name": "hotel"}));
    assert_eq!(service.callback(&second, "[2]").status, 202);
    // Times have milliseconds, so the next callback is sent in a later one.
    thread::sleep(Duration::from_millis(2));
    assert_eq!(service.callback(&first, "\"one\"").status, 202);
    let held = service.callback(&fourth, "{\"rooms\": 4}");
    assert_eq!(held.json()["status"], "held");
    (third, held)
}

fn names_the_blocking_tool(store: &str) {
    let service = service(store);
    let nothing = against(&service, &["waiting"]).exits(0);
    assert_eq!((nothing.out.as_str(), nothing.err.as_str()), ("no conversation is waiting\n", ""));
    let (blocking, held) = blocked(&service, "call-7");

    // "Calls hang": the list names the tool.
    let list = against(&service, &["waiting"]).exits(0);
    let lines: Vec<&str> = list.out.lines().collect();
    let [columns, row] = lines[..] else { panic!("{list:?}") };
    let words = |line: &str| line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>();
    assert_eq!(words(columns), words("CONVERSATION WAITS FOR NAME KIND WAITED TIMES OUT IN HELD"));
    let row = words(row);
    assert_eq!(row[..4], ["call-7", "#3", "weather", "tool"], "{list:?}");
    assert!(list.out.contains(" 9 min ") && list.out.contains("1 (12 B)"), "{list:?}");
    let reply = against(&service, &["waiting", "--json", "--limit", "1"]).exits(0);
    let reply: Value = serde_json::from_str(&reply.out).unwrap();
    assert_eq!(reply, platform(&service, "GET", "?waiting=true&limit=1", "").json());
    assert_eq!(reply["conversations"][0]["waitingFor"]["name"], "weather");

    // A requestId: the line of the log names the conversation, and the timeline of it the tool.
    let request_id = header(&held, "x-request-id");
    let line: Value = serde_json::from_str(&service.log.wait_for(&request_id)).unwrap();
    let conversation = line["conversation.id"].as_str().unwrap();
    assert_eq!((conversation, &line["callback.held_behind"]), ("call-7", &json!(3)), "{line}");
    let shown = against(&service, &["show", conversation]).exits(0);
    let lines: Vec<&str> = shown.out.lines().collect();
    assert_eq!(lines.len(), 7, "{shown:?}");
    for (line, texts) in [
        (0, &["call-7 is live: opened ", "4 items issued, 2 released, 1 held, 1 awaiting"][..]),
        (1, &["it waits for #3 weather (tool), issued ", "; 1 result (12 B) held behind it"]),
        (3, &["#1 (llm)           succeeded  issued ", ", received ", ", released ", " (+0 ms)"]),
        (4, &["#2 route (tool)    succeeded  issued ", ", received ", ", held behind #1, released "]),
        (5, &["#3 weather (tool)  awaiting   issued ", ", deadline in 9 min "]),
        (6, &["#4 hotel (tool)    succeeded  issued ", ", received ", ", held behind #3 for ", " (12 B)"]),
    ] {
        for text in texts {
            assert!(lines[line].contains(text), "{text:?} is not in {:?}", lines[line]);
        }
    }
    assert!(!shown.out.contains("rooms") && !shown.out.contains("cbt_"), "{shown:?}");
    let json: Value =
        serde_json::from_str(&against(&service, &["show", "call-7", "--json"]).exits(0).out).unwrap();
    assert_eq!((&json["waitingFor"], json["released"].as_array().unwrap().len()), (&json!(3), 2));
    assert!(json["released"][0].get("result").is_none(), "{json}");
    let shown = against(&service, &["show", "call-7", "--limit", "1"]).exits(0);
    assert!(shown.out.contains("\n1 released item not shown (see --limit)\n#2 "), "{shown:?}");
    let shown = against(&service, &["show", "call-7", "--limit", "0"]).exits(0);
    assert!(shown.out.contains("\n2 released items not shown (see --limit)\n#3 "), "{shown:?}");

    assert_eq!(service.callback(&blocking, "3").status, 202);
    assert_eq!(against(&service, &["waiting"]).exits(0).out, "no conversation is waiting\n");
    let shown = against(&service, &["show", "call-7"]).exits(0);
    assert!(shown.out.contains("\nit waits for nothing: no work item is awaiting\n"), "{shown:?}");
    assert!(shown.out.lines().last().unwrap().contains("held behind #3, released "), "{shown:?}");
    assert_eq!(platform(&service, "DELETE", "/call-7?reason=hangup", "").status, 200);
    let shown = against(&service, &["show", "call-7"]).exits(0);
    assert!(shown.out.starts_with("call-7 is ended: ") && shown.out.contains("reason: hangup"), "{shown:?}");
    assert!(shown.out.contains("\nit has ended and waits for nothing\n"), "{shown:?}");
}

/// The value of a header of a reply.
fn header(reply: &Reply, name: &str) -> String {
    let line = reply.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name}: {reply:?}")).to_owned()
}

#[test]
fn blocking_tool_is_found_by_name_on_memory() {
    names_the_blocking_tool("memory:");
}

#[test]
fn blocking_tool_is_found_by_name_on_redis() {
    let redis = RedisServer::start();
    names_the_blocking_tool(&redis.url(0));
}

#[test]
fn settled_items_without_a_result_are_shown_with_their_outcome() {
    let service = service("memory:");
    assert_eq!(platform(&service, "PUT", "/call-7", "").status, 201);
    issue(&service, "call-7", &json!({"kind": "tool", "timeoutMs": 1}));
    issue(&service, "call-7", &json!({"kind": "tool", "turnId": "turn-1"}));
    assert_eq!(
        platform(&service, "DELETE", "/call-7/work-items?turnId=turn-1&reason=barge-in", "").status,
        200
    );
    let mut shown = String::new();
    eventually("both are released", || {
        shown = against(&service, &["show", "call-7"]).exits(0).out;
        shown.contains(" 2 released")
    });
    assert!(shown.contains("#1 (tool)  timed_out  issued ") && shown.contains(", timed out "), "{shown}");
    assert!(shown.contains("#2 (tool)  cancelled  issued "), "{shown}");
    assert!(shown.contains(", reason: barge-in"), "{shown}");
}

fn follows_the_channel(store: &str) {
    let service = service(store);
    let (blocking, _) = blocked(&service, "call-7");
    let (mut all, all_out) = started(&service, &["tail", "call-7", "--from", "0", "--results"]);
    let (mut new, new_out) = started(&service, &["tail", "call-7"]);
    let (mut as_json, json_out) = started(&service, &["tail", "call-7", "--json", "--from", "2"]);
    all_out.wait_for("#2 route (tool)  succeeded  3 B  [2]");
    // The streams are open, so that the next envelopes are new to all of them.
    eventually("all follow", || metric(&service, "callback_ingress_event_stream_open") == 3);
    let (mut interrupted, interrupted_out) = started(&service, &["tail", "call-7", "--from", "0"]);
    interrupted_out.wait_for("#2 route");
    interrupted.signal("INT");
    assert_eq!(interrupted.exit_code(), Some(0));
    assert_eq!(service.callback(&blocking, "\"72 °F\\u0007\"").status, 202);
    new_out.wait_for("#4");
    assert_eq!(platform(&service, "DELETE", "/call-7", "").status, 200);
    for process in [&mut all, &mut new, &mut as_json] {
        assert_eq!(process.exit_code(), Some(0));
    }
    let all = all_out.whole();
    let lines: Vec<&str> = all.lines().collect();
    assert_eq!(lines.len(), 5, "{all}");
    for (line, texts) in [
        (0, ["  #1 (llm)  succeeded  5 B", "  \"one\""]),
        (1, ["  #2 route (tool)  succeeded  3 B", "  [2]"]),
        (2, ["  #3 weather (tool)  succeeded  14 B", "  \"72 °F\\u0007\""]),
        (3, ["  #4 hotel (tool)  succeeded  12 B", "  {\"rooms\": 4}"]),
        (4, ["call-7 has ended", ""]),
    ] {
        assert!(texts.iter().all(|text| lines[line].contains(text)), "{texts:?} is not in {:?}", lines[line]);
    }
    let new = new_out.whole();
    let shown: Vec<&str> =
        new.lines().map(|line| line.split_once("  ").map_or(line, |(_, rest)| rest)).collect();
    assert_eq!(
        shown,
        ["#3 weather (tool)  succeeded  14 B", "#4 hotel (tool)  succeeded  12 B", "call-7 has ended"],
        "without the results"
    );
    let lines: Vec<Value> =
        json_out.whole().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!((&lines[0]["sequence"], lines[0].get("result")), (&json!(3), None));
    assert_eq!(lines[2], json!({"conversationId": "call-7", "state": "ended"}));
}

/// The value of a metric without labels.
fn metric(service: &Service, name: &str) -> u64 {
    let metrics = call(&service.platform, "GET /metrics", &[], "").body;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn tail_follows_the_channel_to_its_end_on_memory() {
    follows_the_channel("memory:");
}

#[test]
fn tail_follows_the_channel_to_its_end_on_redis() {
    let redis = RedisServer::start();
    follows_the_channel(&redis.url(0));
}

#[test]
fn tail_ends_when_its_output_is_closed() {
    let service = service("memory:");
    blocked(&service, "call-7");
    let url = format!("http://{}", service.platform);
    let mut command = Command::new(PROGRAM);
    command.args(["tail", "call-7", "--from", "0", "--url", &url]).env_clear().envs(keys());
    let mut tail = Process(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let mut out = BufReader::new(tail.0.stdout.take().unwrap());
    let mut lines = String::new();
    for _ in 0..2 {
        out.read_line(&mut lines).unwrap();
    }
    assert!(lines.contains("#2 route"), "{lines}");
    // As `| head -2`. Nothing comes any more that could be written.
    drop(out);
    assert_eq!(tail.exit_code(), Some(0));
}

/// A server that sends one of these replies to each connection, in order. Returns its URL, and the requests.
fn scripted(replies: Vec<String>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let record = Arc::clone(&requests);
    thread::spawn(move || {
        for reply in replies {
            let (mut client, _) = listener.accept().unwrap();
            let mut head = String::new();
            let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
            while let Some(Ok(line)) =
                lines.next().filter(|line| line.as_ref().is_ok_and(|line| !line.is_empty()))
            {
                writeln!(head, "{line}").unwrap();
            }
            record.lock().unwrap().push(head);
            client.write_all(reply.as_bytes()).unwrap();
        }
    });
    (url, requests)
}

fn reply(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A stream that ends after these events.
fn stream(events: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n:\n\n{events}"
    )
}

fn inspection(next: u64) -> String {
    let text = json!({
        "conversationId": "call-7", "state": "live", "openedAt": "2026-11-18T11:06:40.007Z", "nextSequence": next,
        "waitingFor": next, "awaiting": [], "held": [], "heldBytes": 0,
    });
    reply("200 OK", &text.to_string())
}

fn envelope(sequence: u64, name: &str) -> String {
    let envelope = json!({
        "sequence": sequence, "conversationId": "call-7", "workItemId": "w", "name": name, "kind": "tool",
        "outcome": "succeeded", "result": "\u{9b}31m", "issuedAt": "2026-11-18T11:06:41.000Z",
        "receivedAt": "2026-11-18T11:06:42.000Z", "releasedAt": "2026-11-18T11:06:42.000Z",
    });
    format!("id: 1795000000007-{sequence}\ndata: {envelope}\n\n")
}

#[test]
fn tail_resumes_after_the_last_event() {
    let end = "event: end\ndata: {\"conversationId\":\"call-7\",\"state\":\"ended\"}\n\n";
    let draining = r#"{"error":{"code":"DRAINING","message":"draining","requestId":"r","retryable":true}}"#;
    let (url, requests) = scripted(vec![
        inspection(3),
        stream(""),
        stream(&envelope(3, "a")),
        reply("503 Service Unavailable", draining),
        stream(&format!("event: progress\ndata: {{}}\n\n{}{end}", envelope(4, "b"))),
    ]);
    let tail = at(&url, &["tail", "call-7"]).exits(0);
    assert_eq!(
        tail.out,
        "2026-11-18 11:06:42.000  #3 a (tool)  succeeded  7 B\n\
         2026-11-18 11:06:42.000  #4 b (tool)  succeeded  7 B\ncall-7 has ended\n"
    );
    assert!(tail.err.contains("the event stream was closed; reconnecting"), "{tail:?}");
    let requests = requests.lock().unwrap();
    let begins = |at: usize, text: &str| assert!(requests[at].starts_with(text), "{text}: {}", requests[at]);
    begins(0, "GET /platform/v1/conversations/call-7 HTTP/1.1\n");
    let last_event_id = |at: usize| {
        let mut lines = requests[at].lines();
        lines.find_map(|line| line.strip_prefix("last-event-id: ")).map(ToOwned::to_owned)
    };
    for at in 1..5 {
        begins(at, "GET /platform/v1/conversations/call-7/events?from=1795000000007-2 HTTP/1.1\n");
    }
    let resumed = Some("1795000000007-3".to_owned());
    assert_eq!([1, 2, 3, 4].map(last_event_id), [None, None, resumed.clone(), resumed]);
}

#[test]
fn tail_stops_when_the_conversation_is_gone() {
    let gone = r#"{"error":{"code":"CONVERSATION_NOT_FOUND","message":"there is no such conversation","requestId":"r"}}"#;
    let (url, _) = scripted(vec![inspection(1), stream(""), reply("404 Not Found", gone)]);
    let tail = at(&url, &["tail", "call-7"]).exits(1);
    assert!(tail.err.contains("CONVERSATION_NOT_FOUND") && tail.out.is_empty(), "{tail:?}");
}

#[test]
fn control_characters_never_reach_the_terminal() {
    let evil = "\u{1b}]0;x\u{7}\u{9b}2J\u{202e}\r\n";
    let list = json!({"truncated": true, "conversations": [{
        "conversationId": evil, "held": {"count": 1, "bytes": 1}, "since": "2026-11-18T11:06:40.007Z",
        "waitingFor": {"sequence": 1, "kind": evil, "name": evil, "deadline": "2026-11-18T11:06:40.007Z"},
    }]});
    let refusal = json!({"error": {"code": evil, "message": evil, "requestId": evil}});
    let held = json!({
        "sequence": 1, "workItemId": "w", "kind": evil, "name": evil, "outcome": evil, "reason": evil,
        "issuedAt": "2026-11-18T11:06:40.007Z", "receivedAt": "2026-11-18T11:06:40.007Z",
    });
    let shown = json!({
        "conversationId": evil, "state": evil, "openedAt": "2026-11-18T11:06:40.007Z", "nextSequence": 2,
        "reason": evil, "waitingFor": 2, "awaiting": [], "held": [held], "heldBytes": 0,
    });
    let ok = |body: &Value| reply("200 OK", &body.to_string());
    let end = format!("event: end\ndata: {{\"state\":\"{}\"}}\n\n", "\u{9b}2J");
    let events = || stream(&format!("{}{end}", envelope(1, evil)));
    let mut outputs = Vec::new();
    for (replies, arguments) in [
        (vec![ok(&list)], &["waiting"][..]),
        (vec![ok(&list)], &["waiting", "--json"]),
        (vec![reply("500 Internal Server Error", &refusal.to_string())], &["waiting"]),
        (vec![reply("200 OK", evil)], &["waiting"]),
        (vec![ok(&shown)], &["show", "call-7"]),
        (vec![ok(&shown)], &["show", "call-7", "--json"]),
        (vec![inspection(1), events()], &["tail", "call-7"]),
        (vec![inspection(1), events()], &["tail", "call-7", "--results"]),
        (vec![inspection(1), events()], &["tail", "call-7", "--results", "--json"]),
    ] {
        let ran = at(&scripted(replies).0, arguments);
        outputs.push(ran.out.clone() + &ran.err);
        let shown = outputs.last().unwrap();
        assert!(shown.len() > 20, "{arguments:?}: {ran:?}");
        let unsafe_character = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!shown.contains(unsafe_character), "{arguments:?}: {shown:?}");
    }
    assert!(outputs[0].contains("\\u{1b}]0;x\\u{7}\\u{9b}2J\\u{202e}\\u{d}\\u{a}"), "{}", outputs[0]);
    assert!(outputs[0].contains("more conversations may be waiting"), "{}", outputs[0]);
}

#[test]
fn failures_are_reported_in_one_line() {
    let service = service("memory:");
    for command in [&["waiting"][..], &["show", "nobody"], &["tail", "nobody"]] {
        let one_line = |ran: Ran| {
            assert_eq!(ran.err.lines().count(), 1, "{ran:?}");
            assert!(!ran.err.contains(SERVICE_KEY), "{ran:?}");
        };
        let url = format!("http://{}", service.platform);
        if command.len() > 1 {
            let unknown = at(&url, command).complains(1, &["CONVERSATION_NOT_FOUND", "no such conversation"]);
            one_line(unknown);
        }
        let wrong_key = [("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", r#"["another-key-of-the-tests"]"#)];
        let arguments = [command, &["--url", &url]].concat();
        one_line(run_with(&wrong_key, &arguments).complains(1, &["401 SERVICE_KEY_INVALID", &url]));
        one_line(run(&arguments).complains(2, &["no service key", "--service-key-file"]));
        one_line(
            at("http://127.0.0.1:1", command).complains(1, &["the request to http://127.0.0.1:1 failed: "]),
        );
        let public = format!("http://{}", service.public);
        one_line(at(&public, command).complains(1, &["404 NOT_FOUND", "platform listener"]));
        let (url, _) = scripted(vec![reply("200 OK", "<html>")]);
        one_line(at(&url, command).complains(1, &["cannot be read by callback-ingress"]));
        let (url, _) = scripted(vec![reply("302 Found", "")]);
        one_line(at(&url, command).complains(1, &["302", "is it the platform listener"]));
        for url in ["127.0.0.1:8081", "https", "ftp://a", "http://user:hunter2@a", "http://a?b"] {
            let ran = at(url, command).complains(2, &["--url must be http://HOST:PORT"]);
            assert!(!ran.err.contains("hunter2"), "{ran:?}");
            one_line(ran);
        }
    }
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    at(&url, &["waiting", "--timeout-ms", "50"]).complains(1, &["the request to", "elapsed"]);
}

#[test]
fn wrong_arguments_exit_2() {
    for arguments in [
        &["waiting", "--limit", "0"][..],
        &["waiting", "--limit", "101"],
        &["waiting", "--limit", "many"],
        &["waiting", "call-7"],
        &["show"],
        &["show", "a/b"],
        &["show", "cbt_AQJrMQ"],
        &["show", ""],
        &["show", "call-7", "--limit", "1001"],
        &["tail"],
        &["tail", "a b"],
        &["tail", "call-7", "--from", "-1"],
        &["tail", "call-7", "--from", "1-1"],
        &["waiting", "--ca", "ca.pem"],
        &["waiting", "--platform-addr", "127.0.0.1:1"],
        &["show", "call-7", "--store", "memory:"],
    ] {
        let url = ["--url", "http://127.0.0.1:1"];
        let url = if arguments.contains(&"--ca") { &url[..0] } else { &url[..] };
        run_with(&keys(), &[arguments, url].concat()).complains(2, &[]);
    }
}

#[test]
fn service_key_is_read_from_a_file() {
    let service = service("memory:");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key");
    fs::write(&file, format!("# the platform's\n{SERVICE_KEY}\n")).unwrap();
    let file = file.to_str().unwrap();
    let arguments = ["waiting", "--platform-addr", &service.platform, "--service-key-file", file];
    assert_eq!(run(&arguments).exits(0).out, "no conversation is waiting\n");
    let wrong = [("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", r#"["another-key-of-the-tests"]"#)];
    run_with(&wrong, &arguments).exits(0);
    fs::write(file, "").unwrap();
    run(&arguments).complains(2, &[file, "contains no key"]);
    fs::remove_file(file).unwrap();
    run(&arguments).complains(2, &[file, "cannot read"]);
}

#[test]
fn listener_with_tls_is_trusted_by_its_own_configuration_or_an_authority() {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = ["chain.pem", "key.pem"].map(|name| directory.path().join(name));
    fs::write(&files[0], made.cert.pem()).unwrap();
    fs::write(&files[1], made.signing_key.serialize_pem()).unwrap();
    let [chain, key] = files.map(|file| file.display().to_string());
    let flags = [format!("http.platform_tls_cert={chain}"), format!("http.platform_tls_key={key}")];
    let flags = ["--set", &flags[0], "--set", &flags[1]];
    let service = Service::start_with(&keys(), &flags);
    let own = [&["waiting", "--platform-addr", &service.platform], &flags[..]].concat();
    assert_eq!(run_with(&keys(), &own).exits(0).out, "no conversation is waiting\n");
    let (_, port) = service.platform.rsplit_once(':').unwrap();
    let url = format!("https://localhost:{port}");
    let with_ca = |url: &str| run_with(&keys(), &["waiting", "--url", url, "--ca", &chain]);
    assert_eq!(with_ca(&url).exits(0).out, "no conversation is waiting\n");
    at(&url, &["waiting"]).complains(1, &["the request to", "certificate"]);
    with_ca(&format!("https://127.0.0.1:{port}")).complains(1, &["certificate"]);
    with_ca("http://127.0.0.1:1").complains(2, &["--ca is only valid with an https:// URL"]);
    run_with(&keys(), &["waiting", "--url", &url, "--ca", &key]).complains(2, &["certificate", &key]);
}

#[test]
fn output_fits_into_a_narrow_terminal() {
    let service = service("memory:");
    blocked(&service, "call-with-a-longer-id");
    blocked(&service, "call-with-a-longer-name");
    issue(&service, "call-with-a-longer-name", &json!({"kind": "tool", "name": "long-".repeat(10)}));
    let shows = [(60, "show call-with-a-longer-id"), (60, "show call-with-a-longer-name")];
    for (columns, arguments) in [(60, "waiting"), (100, "waiting")].into_iter().chain(shows) {
        let line = format!("stty cols {columns}; '{PROGRAM}' {arguments} --url http://{}", service.platform);
        let mut script = Command::new("script");
        script.args(["-q", "-e", "-c", &line, "/dev/null"]);
        let ran = script.env_clear().env("PATH", path()).env("TERM", "xterm").envs(keys()).output().unwrap();
        let ran = Ran::from(ran).exits(0);
        assert!(ran.out.lines().all(|line| line.chars().count() <= columns), "{columns}: {ran:?}");
        assert!(ran.out.replace("\r\n  ", " ").contains("weather"), "{ran:?}");
        if arguments == "waiting" {
            assert_eq!(ran.out.contains("CONVERSATION"), columns == 100, "{ran:?}");
        }
    }
}
