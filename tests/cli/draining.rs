//! Signals: draining, and immediate exit.

use std::time::Duration;

use tokio::time::Instant;

use crate::service::{Service, eventually};
use crate::wire::{UnderWay, begin, health};

const BODY: &str = r#"{"answer":42}"#;

/// Starts a callback and sends half of its body.
fn half_a_callback(service: &Service, token: &str) -> UnderWay {
    let length = format!("content-length: {}", BODY.len());
    let token = format!("x-callback-token: {token}");
    let headers = ["content-type: application/json", "expect: 100-continue", &length, &token];
    let mut callback = begin(&service.public, "POST /api/v1/webhooks/callbacks", &headers, "");
    // The service has sent `100 Continue`, so the request is in flight.
    callback.read_until("HTTP/1.1 100 Continue\r\n\r\n");
    callback.send(&BODY[..5]);
    callback
}

/// An open event stream.
fn events(service: &Service, conversation: &str) -> UnderWay {
    let key = format!("authorization: Bearer {}", service.made_key());
    let path = format!("GET /platform/v1/conversations/{conversation}/events?from=0");
    let mut events = begin(&service.platform, &path, &[&key], "");
    events.read_until("\r\n\r\n");
    events
}

fn a_signal_drains(signal: &str) {
    let mut service =
        Service::start(&["--set", "http.drain_grace_ms=3000", "--set", "http.drain_timeout_ms=15000"]);
    let (first, second) = (service.token("call-1"), service.token("call-1"));
    let events = events(&service, "call-1");
    let mut callback = half_a_callback(&service, &first);

    let since = Instant::now();
    service.process.signal(signal);
    service.log.wait_for(r#""draining""#);
    for address in [&service.public, &service.platform] {
        health(address).refuses(503, "DRAINING");
    }
    let refused = service.callback(&second, BODY);
    refused.refuses(503, "DRAINING");
    assert!(refused.head.contains("\r\nretry-after: "), "{refused:?}");
    service.platform("PUT", "call-2", "").refuses(503, "DRAINING");
    assert!(!events.rest().contains("event: end"), "the conversation goes on elsewhere");

    // The drain waits for the last request, which is answered.
    eventually("the listener closes", || std::net::TcpStream::connect(&service.public).is_err());
    assert!(service.process.0.try_wait().unwrap().is_none());
    callback.send(&BODY[5..]);
    let receipt = callback.reply();
    assert_eq!((receipt.status, &receipt.json()["status"]), (202, &"delivered".into()), "{receipt:?}");
    assert_eq!(service.process.exit_code(), Some(0));
    assert!(since.elapsed() < Duration::from_secs(15));
    service.log.wait_for(r#""drained""#);
}

#[test]
fn sigterm_finishes_requests_and_refuses_new_ones() {
    a_signal_drains("TERM");
}

#[test]
fn sigint_drains_too() {
    a_signal_drains("INT");
}

#[test]
fn unfinished_request_is_aborted_after_the_drain_time() {
    let mut service =
        Service::start(&["--set", "http.drain_grace_ms=0", "--set", "http.drain_timeout_ms=300"]);
    let token = service.token("call-1");
    let _callback = half_a_callback(&service, &token);
    let since = Instant::now();
    service.process.signal("TERM");
    assert_eq!(service.process.exit_code(), Some(0));
    let took = since.elapsed().as_millis();
    assert!((150..5_000).contains(&took), "{took} ms");
    service.log.wait_for("draining took too long");
}

#[test]
fn idle_connections_and_streams_do_not_delay_the_drain() {
    let mut service = Service::start(&["--set", "http.drain_grace_ms=0"]);
    service.token("call-1");
    let _events = events(&service, "call-1");
    let _idle = std::net::TcpStream::connect(&service.public).unwrap();
    service.process.signal("TERM");
    assert_eq!(service.process.exit_code(), Some(0));
    service.log.wait_for(r#""drained""#);
}

#[test]
fn second_signal_exits_immediately() {
    for second in ["TERM", "INT"] {
        let mut service =
            Service::start(&["--set", "http.drain_grace_ms=600000", "--set", "http.drain_timeout_ms=600000"]);
        service.process.signal("TERM");
        service.log.wait_for(r#""draining""#);
        service.process.signal(second);
        assert_eq!(service.process.exit_code(), Some(1));
        service.log.wait_for("terminated by a second signal");
    }
}

#[test]
fn unread_log_does_not_block() {
    let mut child = std::process::Command::new(crate::program::PROGRAM)
        .args(["serve", "--set", "telemetry.log_level=trace"])
        .env_clear()
        .env("CALLBACK_INGRESS__HTTP__PUBLIC_ADDR", "127.0.0.1:0")
        .env("CALLBACK_INGRESS__HTTP__PLATFORM_ADDR", "127.0.0.1:0")
        .env("CALLBACK_INGRESS__HTTP__DRAIN_GRACE_MS", "0")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Up to the line with the addresses.
    let mut log = std::io::BufReader::new(child.stderr.take().unwrap());
    let serving = loop {
        let mut line = String::new();
        assert_ne!(std::io::BufRead::read_line(&mut log, &mut line).unwrap(), 0, "the log ended");
        if line.contains(r#""serving""#) {
            break serde_json::from_str::<serde_json::Value>(&line).unwrap();
        }
    };
    let mut process = crate::service::Process(child);
    let public = serving["public"].as_str().unwrap();
    // Far more than the pipe's capacity.
    for _ in 0..2_000 {
        let answered = Instant::now();
        crate::wire::call(public, "GET /nowhere", &[], "").refuses(404, "NOT_FOUND");
        assert!(answered.elapsed() < Duration::from_secs(5), "{:?}", answered.elapsed());
    }
    let since = Instant::now();
    process.signal("TERM");
    assert_eq!(process.exit_code(), Some(0));
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    drop(log);
}
