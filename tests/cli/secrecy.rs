//! Credentials and results leave the process only where the contract says so.
//!
//! The program runs at log level `trace` and gets every request of the contract, valid and invalid, with tokens and
//! similar texts in every part of a request (`places`). All output is captured: standard output and error, OTLP,
//! replies, Redis' keys, values and commands, `/metrics`, the output of the other commands, and `Debug`. `search` then
//! looks for any 12 characters of each token, key, password and result, in several encodings.
//!
//! `planted` tests the search. `tests/secrecy-mutations` puts leaks into a copy of the source, which this suite must
//! find.
//!
//! Allowed are a token in the reply that issues its work item, and results in event streams, on the channel, among held
//! results, and in Redis' records of commands (`MONITOR`, `SLOWLOG`), whose arguments they are. A token that a provider
//! writes into its result, outside the removed field, is part of the result.

mod commands;
mod in_redis;
mod over_tls;
mod panics;
mod places;
mod planted;
mod prints;
mod refusals;
mod running;
mod search;
mod session;
mod tokens;
mod wire;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use callback_ingress::domain::ids::ConversationId;
use callback_ingress::domain::progress::PROGRESS_INTERVAL_MS;
use callback_ingress::http::code::Code;
use serde_json::json;
use test_support::proxy::Cut;
use tokio::time::Instant;

use self::in_redis::WatchedRedis;
use self::refusals::LIMITS;
use self::running::Running;
use self::search::{Capture, Searcher};
use self::session::Session;
use self::tokens::Known;
use self::wire::{Wire, request};
use crate::collector::{Collector, Protocol};
use crate::service::eventually;
use crate::wire::{UnderWay, begin};

/// Searches all captures for every known secret.
#[track_caller]
#[expect(clippy::print_stdout, reason = "with --nocapture: how much was searched, for how much")]
pub(crate) fn nothing_leaks(known: &Known, captures: &[Capture]) {
    let since = Instant::now();
    let secrets = known.all();
    let searcher = Searcher::new(&secrets);
    let leaks: Vec<_> = captures.iter().flat_map(|capture| searcher.find(capture)).collect();
    let bytes: usize = captures.iter().map(|capture| capture.bytes.len()).sum();
    let needles: usize = secrets.iter().map(search::Secret::needles).sum();
    println!(
        "{} secrets ({needles} needles), {} captures, {bytes} bytes, searched in {:?}",
        secrets.len(),
        captures.len(),
        since.elapsed()
    );
    let shown = &leaks[..leaks.len().min(30)];
    assert!(leaks.is_empty(), "{} leaks, of which the first are:{shown:?}", leaks.len());
}

/// A service with fresh secrets in every setting, and everything that captures its output.
struct Watched {
    known: Arc<Known>,
    signing_key: String,
    collector: Collector,
    running: Running,
    session: Session,
}

impl Watched {
    fn start(known: Arc<Known>, store: &str, protocol: Protocol, log_format: &str) -> Self {
        let keys = ["k1", "old"].map(|id| known.signing_key(id));
        let service_keys = ["the service key", "the next service key"].map(|name| known.credential(name));
        let header = known.credential("the collector's credential");
        let collector = Collector::start(protocol);
        let mut variables: Vec<(&str, String)> = collector.variables();
        variables.extend(LIMITS.map(|(name, value)| (name, value.to_owned())));
        variables.extend([
            ("CALLBACK_INGRESS__HTTP__PUBLIC_ADDR", "127.0.0.1:0".to_owned()),
            ("CALLBACK_INGRESS__HTTP__PLATFORM_ADDR", "127.0.0.1:0".to_owned()),
            ("CALLBACK_INGRESS__STORE__URL", store.to_owned()),
            ("CALLBACK_INGRESS__TOKEN__KEYS", format!("{keys:?}")),
            ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", format!("{service_keys:?}")),
            ("CALLBACK_INGRESS__TELEMETRY__LOG_LEVEL", "trace".to_owned()),
            ("CALLBACK_INGRESS__TELEMETRY__LOG_FORMAT", log_format.to_owned()),
            ("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer%20{header}")),
            ("RUST_BACKTRACE", "full".to_owned()),
        ]);
        let running = Running::start(&variables);
        let wire = Wire::to(&running, &known);
        let session = Session::new(wire, &service_keys[0]);
        let [signing_key, _] = keys;
        let watched = Self { known, signing_key, collector, running, session };
        eventually("the collector is sent its credential", || {
            watched.collector.received().credentials.contains(&format!("Bearer {header}"))
        });
        watched
    }

    /// Requests that run on any store.
    fn every_request(&mut self) {
        let (_, item) = self.session.tool();
        // First, because the others exceed the rate limit for requests without a service key.
        self.session.refuse_the_platform(&item.token);
        self.session.every_text_in_every_place();
        self.session.say_nonsense();
        self.session.refuse_providers(&self.signing_key);
        self.session.refuse_what_is_late_or_too_much();
    }

    /// Opens event streams up to their limit.
    fn follow(&mut self, conversation: &str) -> [UnderWay; 2] {
        let line = format!("GET /platform/v1/conversations/{conversation}/events?from=0");
        let key = format!("authorization: Bearer {}", self.session.service_key);
        let streams = [(); 2].map(|()| {
            let mut stream = begin(&self.running.platform, &line, &[&key, ""], "");
            stream.read_until("text/event-stream");
            stream
        });
        let refused = self.session.platform("GET", &format!("{conversation}/events"), "");
        assert_eq!(refused.code(), "OVERLOADED");
        // Progress, which the streams may hold.
        let item = self.session.issue(conversation, &json!({"kind": "tool", "heartbeatTimeoutMs": 60_000}));
        for _ in 0..3 {
            assert_eq!(self.session.heartbeat(&item.token).status, 200);
            thread::sleep(Duration::from_millis(PROGRESS_INTERVAL_MS));
        }
        streams
    }

    #[expect(clippy::print_stdout, reason = "with --nocapture: how much was captured")]
    /// Drains it, with refused requests meanwhile; returns all captures.
    fn end(mut self, streams: [UnderWay; 2]) -> (Arc<Known>, Vec<Capture>, BTreeSet<String>) {
        let metrics = request("GET /metrics\n\n", &[]);
        let address = self.running.platform.clone();
        self.session.wire.say("/metrics", &address, &metrics);
        let (_, item) = self.session.tool();
        self.running.process.signal("TERM");
        eventually("it drains", || self.session.callback(&item.token).code() == "DRAINING");
        let Wire { mut captures, codes, sent, .. } = self.session.wire;
        captures.extend(streams.map(|stream| Capture::with_results("an event stream", stream.rest())));
        captures.extend(self.running.ended(0));
        let received = self.collector.received();
        let (spans, logs, metrics) = (received.spans.len(), received.logs.len(), received.metrics.len());
        assert!(spans > 100 && logs > 100 && metrics > 0, "{spans} {logs} {metrics}");
        println!("{sent} requests; {spans} spans, {logs} log records, {metrics} metrics");
        captures.extend(received.raw.iter().map(|raw| Capture::new("what was exported", raw.clone())));
        drop(received);
        (self.known, captures, codes)
    }
}

/// Captures that are allowed to contain results, and do. This shows that the search finds them.
fn holding_results(known: &Known, captures: &[Capture]) -> BTreeSet<String> {
    let secrets = known.all();
    let searcher = Searcher::new(&secrets);
    let may_hold = captures.iter().filter(|capture| capture.may_hold_results);
    let strict = may_hold.map(|capture| Capture { may_hold_results: false, ..capture.clone() });
    strict
        .filter(|capture| !searcher.find(capture).is_empty())
        .map(|capture| kind_of(&capture.name))
        .collect()
}

/// The kind of a key; any other name unchanged.
fn kind_of(name: &str) -> String {
    name.split(':').nth(2).unwrap_or(name).to_owned()
}

/// Codes that no request provoked.
fn missing(codes: &BTreeSet<String>) -> Vec<&'static str> {
    Code::ALL.iter().map(|code| code.as_str()).filter(|code| !codes.contains(*code)).collect()
}

#[test]
fn nothing_leaks_on_the_memory_store() {
    let mut watched = Watched::start(Arc::new(Known::new()), "memory:", Protocol::Http, "text");
    watched.every_request();
    let conversation = watched.session.open();
    let streams = watched.follow(&conversation);
    let (known, captures, codes) = watched.end(streams);
    // The memory store has no connection and no data that another program could corrupt.
    assert_eq!(missing(&codes), ["STORE_UNAVAILABLE", "OUTCOME_UNKNOWN", "INTERNAL"]);
    nothing_leaks(&known, &captures);
}

#[test]
fn nothing_leaks_on_a_failing_redis() {
    let known = Arc::new(Known::new());
    let mut redis = WatchedRedis::start(&known.credential("the password of Redis"));
    let mut watched = Watched::start(Arc::clone(&known), &redis.url(), Protocol::Grpc, "json");
    watched.every_request();

    // An event stream with a held item, open during all failures.
    let (conversation, first) = watched.session.tool();
    let [second, third] = [(); 2].map(|()| watched.session.issue(&conversation, &json!({"kind": "tool"})));
    assert_eq!(watched.session.callback(&second.token).status, 202);
    let mut streams = watched.follow(&conversation);
    eventually("an answer is lost, and that of the second try", || {
        redis.proxy.cut(Cut::Answer, 4);
        watched.session.callback(&third.token).code() == "OUTCOME_UNKNOWN"
    });
    redis.proxy.cut(Cut::Answer, 0);
    let mut captures = redis.content();
    captures.extend(redis.heard());

    redis.kill();
    let down = watched.session.callback(&first.token);
    assert!(["STORE_UNAVAILABLE", "OUTCOME_UNKNOWN"].contains(&down.code()), "{down:?}");
    eventually("it is known to be down", || {
        watched.session.callback(&first.token).code() == "STORE_UNAVAILABLE"
    });
    for path in [conversation.clone(), format!("{conversation}/work-items/{}", first.id)] {
        for method in ["PUT", "GET", "DELETE"] {
            let answer = watched.session.platform(method, &path, "");
            assert!(answer.status == 503 || answer.status == 405, "{method} {path} {answer:?}");
        }
    }
    redis.restart();
    let mut answer = down;
    eventually("it is back", || {
        answer = watched.session.callback(&first.token);
        answer.status < 500
    });
    // Accepted now, or by an attempt whose reply was lost.
    assert!([200, 202].contains(&answer.status), "{answer:?}");
    for stream in &mut streams {
        // The first event has started; its result has not been read.
        stream.read_until("\nid: ");
    }

    // Each key of a conversation, corrupted.
    for what in ["conversation", "held", "channel", "used"] {
        let (conversation, released) = watched.session.tool();
        let [item, held] = [(); 2].map(|()| watched.session.issue(&conversation, &json!({"kind": "tool"})));
        for other in [released, held] {
            assert_eq!(watched.session.callback(&other.token).status, 202);
        }
        let reference = ConversationId::parse(&conversation).unwrap().reference();
        let keys = redis.keys(&format!("*:{what}:{reference}*"));
        assert!(!keys.is_empty(), "{what}");
        for key in &keys {
            redis.corrupt(key);
        }
        let answers = [
            watched.session.callback(&item.token),
            watched.session.another(&item.token),
            watched.session.platform("GET", &conversation, ""),
            watched.session.platform("GET", &format!("{conversation}/work-items/{}", item.id), ""),
            watched.session.platform("POST", &format!("{conversation}/work-items"), r#"{"kind":"tool"}"#),
            watched.session.platform("DELETE", &format!("{conversation}/work-items/{}", item.id), ""),
            watched.session.platform("DELETE", &conversation, ""),
        ];
        let codes: Vec<_> = answers.iter().map(|answer| (answer.status, answer.code())).collect();
        // The marker of a used token is a string anyway.
        assert!(what == "used" || codes.iter().any(|(_, code)| *code == "INTERNAL"), "{what}: {codes:?}");
    }
    captures.extend(redis.content());
    captures.extend(redis.heard());
    let (known, rest, codes) = watched.end(streams);
    captures.extend(rest);
    assert_eq!(missing(&codes), [""; 0]);
    let holding = holding_results(&known, &captures);
    for expected in ["channel", "held", "an event stream", "the commands that Redis got"] {
        assert!(holding.contains(expected), "{expected} is not among {holding:?}");
    }
    nothing_leaks(&known, &captures);
}

/// The long run of `tests/secrecy-mutations` is not part of the suite.
#[test]
fn secrecy_mutations_fit_the_source() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/secrecy-mutations");
    let ran = std::process::Command::new(script).arg("--check").output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}
