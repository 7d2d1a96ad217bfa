//! Traces of a conversation, exported over gRPC and HTTP.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::{Value, json};
use test_support::redis_server::RedisServer;

use crate::collector::{Collector, Protocol, attributes, hex};
use crate::reason::exporting;
use crate::service::{Service, eventually};
use crate::wire::{Reply, call};

const CALLBACK: &str = "POST /api/v1/webhooks/callbacks";
const PUBLISH: &str = "publish channel:{conversation}";
/// A service with a short drain time.
const AT_ONCE: [&str; 2] = ["--set", "http.drain_grace_ms=0"];

/// A span as text.
#[derive(Clone, Debug)]
struct Seen {
    name: String,
    kind: SpanKind,
    trace: String,
    id: String,
    parent: String,
    /// Its links: the purpose, the trace and the span.
    links: Vec<(String, String, String)>,
    attributes: BTreeMap<String, String>,
    failed: bool,
    millis: u64,
}

impl From<&Span> for Seen {
    fn from(span: &Span) -> Self {
        let links = span.links.iter().map(|link| {
            let what = attributes(&link.attributes)["callback.link"].clone();
            (what, hex(&link.trace_id), hex(&link.span_id))
        });
        Self {
            name: span.name.clone(),
            kind: span.kind(),
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            links: links.collect(),
            attributes: attributes(&span.attributes),
            failed: span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error),
            millis: (span.end_time_unix_nano - span.start_time_unix_nano) / 1_000_000,
        }
    }
}

impl Seen {
    #[track_caller]
    fn has(&self, attributes: &[(&str, &str)]) {
        for (name, value) in attributes {
            assert_eq!(self.attributes.get(*name).map(String::as_str), Some(*value), "{name} of {self:#?}");
        }
    }
}

/// Waits until the collected spans satisfy the condition; returns all of them.
fn seen(collector: &Collector, enough: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
    let mut spans = Vec::new();
    eventually("the collector is shown enough", || {
        spans = collector.received().spans.iter().map(Seen::from).collect();
        enough(&spans)
    });
    spans
}

fn of_trace<'a>(spans: &'a [Seen], trace: &str) -> Vec<&'a Seen> {
    spans.iter().filter(|span| span.trace == trace).collect()
}

#[track_caller]
fn named<'a>(spans: &[&'a Seen], name: &str) -> &'a Seen {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    let [one] = found[..] else { panic!("{} are named {name:?} of {spans:#?}", found.len()) };
    one
}

fn header(reply: &Reply, name: &str) -> String {
    let line = reply.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name}: {reply:?}")).to_owned()
}

/// The trace and span in which the platform issues a work item.
fn platforms_trace(number: usize) -> (String, String) {
    (format!("{:032x}", 0xa000 + number), format!("{:016x}", 0xb000 + number))
}

/// Opens a conversation and issues a work item in the platform's trace.
fn issue(service: &Service, conversation: &str, number: usize, body: &Value) -> Value {
    let key = format!("authorization: Bearer {}", service.made_key());
    let (trace, span) = platforms_trace(number);
    let traceparent = format!("traceparent: 00-{trace}-{span}-01");
    let path = format!("/platform/v1/conversations/{conversation}");
    assert!(call(&service.platform, &format!("PUT {path}"), &[&key], "").status < 300);
    let issued =
        call(&service.platform, &format!("POST {path}/work-items"), &[&key, &traceparent], &body.to_string());
    assert_eq!(issued.status, 201, "{issued:?}");
    assert_eq!(header(&issued, "x-trace-id"), trace, "the platform's trace goes on");
    issued.json()
}

fn post(service: &Service, issued: &Value, body: &str) -> Reply {
    service.callback(issued["callback"]["token"].as_str().unwrap(), body)
}

/// Posts a result while Redis is suspended for this time.
fn post_while_suspended(redis: &RedisServer, millis: u64, service: &Service, issued: &Value) -> Reply {
    redis.suspend();
    thread::scope(|scope| {
        let posted = scope.spawn(|| post(service, issued, "1"));
        thread::sleep(Duration::from_millis(millis));
        redis.resume();
        posted.join().unwrap()
    })
}

/// The event id and the envelope of each event on the channel, by sequence.
fn channel(service: &Service, conversation: &str) -> BTreeMap<u64, (String, Value)> {
    let ended = service.platform("DELETE", conversation, "");
    assert_eq!(ended.status, 200, "{ended:?}");
    let events = service.platform("GET", &format!("{conversation}/events?from=0"), "").body;
    let field = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(ToOwned::to_owned))
    };
    let envelopes = events.split("\n\n").filter_map(|event| {
        let envelope: Value = serde_json::from_str(&field(event, "data")?).unwrap();
        Some((envelope["sequence"].as_u64()?, (field(event, "id")?, envelope)))
    });
    envelopes.collect()
}

fn shows_three_results_that_come_out_of_order(protocol: Protocol, redis: Option<&RedisServer>) {
    let url = redis.map_or_else(|| "memory:".to_owned(), |redis| redis.url(3));
    let (collector, service) = exporting(protocol, &url, &AT_ONCE);
    let issued: Vec<Value> =
        (1..=3).map(|number| issue(&service, "call-1", number, &json!({"kind": "tool"}))).collect();
    let replies: BTreeMap<usize, Reply> = [2, 3, 1]
        .map(|number| {
            thread::sleep(Duration::from_millis(50));
            (number, post(&service, &issued[number - 1], r#"{"ok":true}"#))
        })
        .into();
    let spans = seen(&collector, |spans| spans.iter().filter(|span| span.name == PUBLISH).count() == 2);
    let trace_of = |number: usize| header(&replies[&number], "x-trace-id");
    let first_server = named(&of_trace(&spans, &trace_of(1)), CALLBACK).clone();
    let mut events = BTreeMap::new();

    for number in 1..=3 {
        let reply = &replies[&number];
        // Leaves out calls to Redis: whether they have a span depends on how long they took.
        let mut own = of_trace(&spans, &trace_of(number));
        own.retain(|span| span.kind != SpanKind::Client);
        let waits = number != 1;
        // A span of the request and, for a held result, `hold` and `publish`.
        assert_eq!(own.len(), if waits { 3 } else { 1 }, "{own:#?}");

        // The request has its own trace, linked to the span that issued the work item.
        let server = named(&own, CALLBACK);
        let (issuing_trace, issuing_span) = platforms_trace(number);
        let issued_in = ("issued_in".to_owned(), issuing_trace, issuing_span);
        assert_eq!((server.kind, server.parent.as_str(), server.failed), (SpanKind::Server, "", false));
        assert_eq!(server.links, std::slice::from_ref(&issued_in));
        assert_eq!(header(reply, "traceresponse"), format!("00-{}-{}-01", server.trace, server.id));
        let item = issued[number - 1]["workItemId"].as_str().unwrap();
        let about = [
            ("conversation.id", "call-1"),
            ("work_item.id", item),
            ("work_item.sequence", &number.to_string()),
            ("work_item.kind", "tool"),
            ("callback.outcome", "succeeded"),
        ];
        server.has(&about);
        server.has(&[
            ("http.request.method", "POST"),
            ("http.route", "/api/v1/webhooks/callbacks"),
            ("url.path", "/api/v1/webhooks/callbacks"),
            ("url.scheme", "http"),
            ("http.response.status_code", "202"),
            ("http.request.body.size", "11"),
            ("request.id", &header(reply, "x-request-id")),
            ("callback.delivery", if waits { "held" } else { "delivered" }),
            ("callback.replayed", "false"),
        ]);
        assert_eq!(server.attributes["callback.token_fingerprint"].len(), 8);

        // The event id is on the request's span or, for a held result, on a `publish` span with a link to the callback
        // that released it.
        let event_of = |span: &Seen| span.attributes.get("messaging.message.id").cloned();
        let event = if waits {
            let publish = named(&own, PUBLISH);
            assert_eq!((publish.kind, &publish.parent), (SpanKind::Producer, &server.id));
            publish.has(&about);
            publish.has(&[
                ("callback.held_behind", "1"),
                ("messaging.operation.name", "publish"),
                ("messaging.operation.type", "send"),
                ("messaging.destination.template", "channel:{conversation}"),
                ("messaging.message.conversation_id", "call-1"),
            ]);
            let releasing = ("released_in".to_owned(), first_server.trace.clone(), first_server.id.clone());
            assert_eq!(publish.links, [issued_in, releasing]);
            server.has(&[("callback.held_behind", "1")]);
            assert_eq!(event_of(server), None);
            let hold = named(&own, "hold");
            assert_eq!(hold.parent, server.id);
            hold.has(&about);
            hold.has(&[("callback.held_behind", "1")]);
            // The span begins `held_ms` before its export and ends with it: on a busy machine, it is a little longer.
            let held_ms: u64 = hold.attributes["callback.held_ms"].parse().unwrap();
            assert!(held_ms >= 50 && (held_ms..held_ms + 500).contains(&hold.millis), "{hold:#?}");
            event_of(publish)
        } else {
            event_of(server)
        };
        events.insert(number, event.unwrap());
    }
    first_server.has(&[("callback.released", "3")]);

    // A consumer continues the trace of the callback.
    for (sequence, (id, envelope)) in channel(&service, "call-1") {
        let number = usize::try_from(sequence).unwrap();
        assert_eq!(envelope["traceparent"], header(&replies[&number], "traceresponse"), "{envelope}");
        assert_eq!(id, events[&number]);
    }
}

#[test]
fn out_of_order_results_are_traced_over_grpc() {
    shows_three_results_that_come_out_of_order(Protocol::Grpc, None);
}

#[test]
fn out_of_order_results_are_traced_over_http() {
    shows_three_results_that_come_out_of_order(Protocol::Http, None);
}

#[test]
fn out_of_order_results_are_traced_on_redis() {
    shows_three_results_that_come_out_of_order(Protocol::Grpc, Some(&RedisServer::start()));
}

#[test]
fn successful_redis_call_has_a_span_only_if_it_is_slow() {
    let redis = RedisServer::start();
    let (collector, service) = exporting(Protocol::Http, &redis.url(3), &AT_ONCE);
    let issued: Vec<Value> =
        (1..=21).map(|number| issue(&service, "call-1", number, &json!({"kind": "tool"}))).collect();
    let slow = post_while_suspended(&redis, 200, &service, &issued[0]);
    assert_eq!(slow.status, 202, "{slow:?}");
    let traces: Vec<_> =
        issued[1..].iter().map(|issued| header(&post(&service, issued, "1"), "x-trace-id")).collect();
    let is_request = |span: &&Seen| span.kind == SpanKind::Server;
    let spans =
        seen(&collector, |spans| traces.iter().all(|trace| of_trace(spans, trace).iter().any(is_request)));
    let own = of_trace(&spans, &header(&slow, "x-trace-id"));
    let (server, store) = (named(&own, CALLBACK), named(&own, "EVALSHA accept"));
    assert_eq!((store.kind, &store.parent, store.failed), (SpanKind::Client, &server.id, false));
    assert!(store.millis >= 10, "{store:#?}");
    store.has(&[
        ("db.system.name", "redis"),
        ("db.operation.name", "EVALSHA"),
        ("db.stored_procedure.name", "accept"),
        ("db.namespace", "3"),
        ("server.address", "127.0.0.1"),
    ]);
    // On a busy machine, some of these are slow too.
    assert!(traces.iter().any(|trace| of_trace(&spans, trace).len() == 1), "{spans:#?}");
}

/// While Redis is suspended, the sweeper cannot time out the overdue item: the next callback does it.
#[test]
fn result_that_is_released_with_an_overdue_item_has_its_event_id() {
    let redis = RedisServer::start();
    let (collector, service) = exporting(Protocol::Http, &redis.url(0), &AT_ONCE);
    let late = issue(&service, "call-1", 1, &json!({"kind": "tool", "timeoutMs": 300}));
    let next = issue(&service, "call-1", 2, &json!({"kind": "tool"}));
    let reply = post_while_suspended(&redis, 600, &service, &next);
    assert_eq!(reply.json()["status"], "delivered", "{reply:?}");
    let with_event = |spans: &[Seen], item: &Value| {
        let id = item["workItemId"].as_str();
        let shows = |span: &&Seen| {
            span.attributes.get("work_item.id").map(String::as_str) == id
                && span.attributes.contains_key("messaging.message.id")
        };
        spans.iter().filter(shows).cloned().collect::<Vec<_>>()
    };
    let spans =
        seen(&collector, |spans| [&late, &next].iter().all(|item| !with_event(spans, item).is_empty()));
    let [published] = &with_event(&spans, &late)[..] else { panic!("{spans:#?}") };
    published.has(&[("callback.outcome", "timed_out")]);
    let [server] = &with_event(&spans, &next)[..] else { panic!("{spans:#?}") };
    assert_eq!((&*server.name, &server.trace), (CALLBACK, &header(&reply, "x-trace-id")));
}

#[test]
fn timeout_and_cancellation_have_spans_and_links() {
    let collector = Collector::start(Protocol::Http);
    let service = Service::start_with(&collector.variables(), &AT_ONCE);
    let late = issue(&service, "call-1", 1, &json!({"kind": "llm", "timeoutMs": 50}));
    let withdrawn = issue(&service, "call-1", 2, &json!({"kind": "tool"}));
    let held = issue(&service, "call-1", 3, &json!({"kind": "tool"}));
    assert_eq!(post(&service, &held, "1").json()["status"], "held");
    seen(&collector, |spans| spans.iter().any(|span| span.name == PUBLISH));
    let withdrawn_id = withdrawn["workItemId"].as_str().unwrap();
    let cancelled = service.platform("DELETE", &format!("call-1/work-items/{withdrawn_id}"), "");
    assert_eq!(cancelled.status, 200, "{cancelled:?}");
    let spans = seen(&collector, |spans| spans.iter().filter(|span| span.name == PUBLISH).count() == 3);
    let publish_of = |item: &Value| {
        let item = item["workItemId"].as_str().unwrap();
        let about = |span: &&Seen| span.name == PUBLISH && span.attributes["work_item.id"] == item;
        spans.iter().find(about).unwrap()
    };
    let issued_in = |number| {
        let (trace, span) = platforms_trace(number);
        ("issued_in".to_owned(), trace, span)
    };

    let timeout = named(&spans.iter().collect::<Vec<_>>(), "time out");
    timeout.has(&[
        ("conversation.id", "call-1"),
        ("work_item.id", late["workItemId"].as_str().unwrap()),
        ("work_item.kind", "llm"),
        ("callback.outcome", "timed_out"),
    ]);
    assert!(timeout.attributes["work_item.late_ms"].parse::<u64>().unwrap() < 10_000);
    assert_eq!(timeout.links, [issued_in(1)]);
    let sweep = named(&of_trace(&spans, &timeout.trace), "sweep");
    assert_eq!((&timeout.parent, sweep.parent.as_str()), (&sweep.id, ""));
    let published = publish_of(&late);
    assert_eq!((&published.trace, &published.parent), (&sweep.trace, &sweep.id));
    published.has(&[("callback.outcome", "timed_out")]);

    let trace = header(&cancelled, "x-trace-id");
    let own = of_trace(&spans, &trace);
    let server = named(&own, "DELETE /platform/v1/conversations/{conversationId}/work-items/{workItemId}");
    assert_eq!(server.links, [issued_in(2)]);
    server.has(&[
        ("callback.outcome", "cancelled"),
        ("callback.released", "2"),
        ("work_item.id", withdrawn_id),
    ]);
    let published = publish_of(&withdrawn);
    assert_eq!((&published.trace, &published.parent), (&trace, &server.id));
    published.has(&[("callback.outcome", "cancelled")]);
    let published = publish_of(&held);
    published.has(&[("callback.held_behind", "2")]);
    assert!(
        published.links.contains(&("released_in".to_owned(), trace, server.id.clone())),
        "{published:#?}"
    );

    let envelopes = channel(&service, "call-1");
    let parent = |span: &Seen| format!("00-{}-{}-01", span.trace, span.id);
    assert_eq!(envelopes[&1].1["traceparent"], parent(sweep));
    assert_eq!(envelopes[&2].1["traceparent"], parent(server));
}

#[test]
fn refused_authentic_token_is_traced_without_error() {
    let collector = Collector::start(Protocol::Http);
    let service = Service::start_with(&collector.variables(), &AT_ONCE);
    let issued = issue(&service, "call-1", 1, &json!({"kind": "tool"}));
    assert_eq!(post(&service, &issued, "1").status, 202);
    let refused = post(&service, &issued, "2");
    refused.refuses(409, "CALLBACK_TOKEN_USED");
    let forged = service.callback("cbt_forged", "1");
    forged.refuses(401, "CALLBACK_TOKEN_INVALID");
    let trace = |reply: &Reply| reply.json()["error"]["traceId"].as_str().unwrap().to_owned();
    let spans = seen(&collector, |spans| {
        [&refused, &forged].into_iter().all(|reply| spans.iter().any(|span| span.trace == trace(reply)))
    });
    let span = named(&of_trace(&spans, &trace(&refused)), CALLBACK);
    span.has(&[
        ("callback.code", "CALLBACK_TOKEN_USED"),
        ("http.response.status_code", "409"),
        ("conversation.id", "call-1"),
        ("work_item.id", issued["workItemId"].as_str().unwrap()),
        ("work_item.sequence", "1"),
        ("request.id", refused.json()["error"]["requestId"].as_str().unwrap()),
    ]);
    let (trace_id, span_id) = platforms_trace(1);
    assert_eq!(span.links, [("issued_in".to_owned(), trace_id, span_id)]);
    assert!(!span.failed && !span.attributes.contains_key("error.type"), "{span:#?}");
    let span = named(&of_trace(&spans, &trace(&forged)), CALLBACK);
    span.has(&[("callback.code", "CALLBACK_TOKEN_INVALID")]);
    assert!(!span.failed && !span.attributes.contains_key("work_item.id"), "{span:#?}");
}

#[test]
fn store_failure_is_an_error_in_both_spans() {
    let redis = RedisServer::start();
    let (collector, service) = exporting(Protocol::Http, &redis.url(0), &AT_ONCE);
    let issued = issue(&service, "call-1", 1, &json!({"kind": "tool"}));
    drop(redis);
    let failed = post(&service, &issued, "1");
    assert_eq!(failed.status, 503, "{failed:?}");
    let code = failed.json()["error"]["code"].as_str().unwrap().to_owned();
    let trace = failed.json()["error"]["traceId"].as_str().unwrap().to_owned();
    let spans = seen(&collector, |spans| of_trace(spans, &trace).len() == 2);
    let own = of_trace(&spans, &trace);
    let server = named(&own, CALLBACK);
    server.has(&[("error.type", &code), ("http.response.status_code", "503"), ("callback.code", &code)]);
    let store = named(&own, "EVALSHA accept");
    assert!(server.failed && store.failed, "{own:#?}");
    let kinds = [("STORE_UNAVAILABLE", "unavailable"), ("OUTCOME_UNKNOWN", "outcome_unknown")];
    let kind = kinds.into_iter().find_map(|(known, kind)| (known == code).then_some(kind)).unwrap();
    store.has(&[("error.type", kind)]);
    let line: Value = serde_json::from_str(&service.log.wait_for(&trace)).unwrap();
    assert_eq!((&line["level"], &line["callback.code"]), (&"WARN".into(), &code.into()), "{line}");
}

#[test]
fn every_request_has_one_log_record_in_its_trace() {
    let collector = Collector::start(Protocol::Grpc);
    let service = Service::start_with(&collector.variables(), &AT_ONCE);
    let refused = service.callback("cbt_forged", "1");
    let (trace, request) = (header(&refused, "x-trace-id"), header(&refused, "x-request-id"));
    eventually("the record comes", || {
        collector.received().logs.iter().any(|record| hex(&record.trace_id) == trace)
    });
    let received = collector.received();
    let own: Vec<_> = received.logs.iter().filter(|record| hex(&record.trace_id) == trace).collect();
    let [record] = own[..] else { panic!("{own:#?}") };
    let span = header(&refused, "traceresponse");
    assert_eq!(format!("00-{trace}-{}-01", hex(&record.span_id)), span);
    assert_eq!(record.severity_text, "INFO", "a refusal is no failure of ours");
    let attributes = attributes(&record.attributes);
    assert_eq!(
        (&attributes["request.id"], attributes["callback.code"].as_str()),
        (&request, "CALLBACK_TOKEN_INVALID")
    );
    assert_eq!(received.resource["service.name"], "callback-ingress");
    drop(received);
    let line: Value = serde_json::from_str(&service.log.wait_for(&request)).unwrap();
    assert_eq!(
        (&line["trace_id"], &line["callback.code"]),
        (&trace.into(), &"CALLBACK_TOKEN_INVALID".into())
    );
}

#[test]
fn opentelemetry_variables_set_sampler_and_resource() {
    let collector = Collector::start(Protocol::Http);
    let mut variables = collector.variables();
    variables.extend([
        ("OTEL_TRACES_SAMPLER", "always_off".to_owned()),
        ("OTEL_SERVICE_NAME", "ingress-of-the-test".to_owned()),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test".to_owned()),
    ]);
    let service = Service::start_with(&variables, &AT_ONCE);
    let refused = service.callback("cbt_forged", "1");
    assert!(header(&refused, "traceresponse").ends_with("-00"), "it is not sampled: {refused:?}");
    let request = header(&refused, "x-request-id");
    eventually("the log record comes", || {
        let received = collector.received();
        let mut ids = received.logs.iter().map(|record| attributes(&record.attributes));
        ids.any(|attributes| attributes.get("request.id") == Some(&request))
    });
    let metrics_resource = || collector.received().resource.clone();
    eventually("the resource comes", || !metrics_resource().is_empty());
    assert_eq!(metrics_resource()["service.name"], "ingress-of-the-test");
    assert_eq!(metrics_resource()["deployment.environment.name"], "test");
    assert!(collector.received().spans.is_empty());
}

#[test]
fn unknown_otlp_protocol_is_refused() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
    let ran = crate::program::run_with(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")], &["serve"]);
    ran.complains(2, &["OTEL_EXPORTER_OTLP_PROTOCOL", "grpc or http/protobuf"]);
    let variables = [endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "zipkin")];
    crate::program::run_with(&variables, &["config", "check"]).complains(2, &["OTEL_EXPORTER_OTLP_PROTOCOL"]);
    let good = crate::program::run_with(&[endpoint, ("OTEL_LOGS_EXPORTER", "none")], &["config", "check"]);
    assert!(good.exits(0).out.ends_with("OTLP exports: traces, metrics\n"));
}

#[test]
fn ending_logs_released_and_dropped_items() {
    let collector = Collector::start(Protocol::Http);
    let service = Service::start_with(&collector.variables(), &AT_ONCE);
    let key = format!("authorization: Bearer {}", service.made_key());
    issue(&service, "call-1", 1, &json!({"kind": "tool"}));
    let held = issue(&service, "call-1", 2, &json!({"kind": "tool"}));
    assert_eq!(post(&service, &held, "1").json()["status"], "held");
    let ended = call(&service.platform, "DELETE /platform/v1/conversations/call-1", &[&key], "");
    assert_eq!((ended.status, &ended.json()["droppedHeld"]), (200, &1.into()), "{ended:?}");
    let again = call(&service.platform, "DELETE /platform/v1/conversations/call-1", &[&key], "");
    let trace = |reply: &Reply| header(reply, "x-trace-id");
    let spans = seen(&collector, |spans| {
        [&ended, &again].into_iter().all(|reply| of_trace(spans, &trace(reply)).len() == 1)
    });
    let name = "DELETE /platform/v1/conversations/{conversationId}";
    let dropped = [("conversation.dropped_held", "1"), ("conversation.dropped_awaiting", "1")];
    named(&of_trace(&spans, &trace(&ended)), name).has(&dropped);
    let repeated = named(&of_trace(&spans, &trace(&again)), name);
    assert!(!repeated.attributes.contains_key("conversation.dropped_held"), "once: {repeated:#?}");
    let line: Value = serde_json::from_str(&service.log.wait_for(&trace(&ended))).unwrap();
    assert_eq!(line["conversation.dropped_held"], 1, "{line}");
    let metrics = call(&service.platform, "GET /metrics", &[], "").body;
    let counted = |state: &str| {
        let sample = format!("callback_ingress_work_item_dropped_total{{work_item_state=\"{state}\"");
        metrics.lines().find(|line| line.starts_with(&sample)).and_then(|line| line.rsplit(' ').next())
    };
    assert_eq!((counted("held"), counted("awaiting")), (Some("1"), Some("1")), "{metrics}");
}

#[test]
fn callback_of_a_disconnected_client_is_completed() {
    let redis = RedisServer::start();
    let url = redis.url(0);
    let service = Service::start_with::<&str>(&[], &[AT_ONCE.as_slice(), &["--store", &url]].concat());
    let token = format!("x-callback-token: {}", service.token("call-1"));
    redis.suspend();
    let headers = [token.as_str(), "content-type: application/json", "content-length: 1"];
    let under_way = crate::wire::begin(&service.public, "POST /api/v1/webhooks/callbacks", &headers, "1");
    thread::sleep(Duration::from_millis(200));
    drop(under_way);
    thread::sleep(Duration::from_millis(200));
    redis.resume();
    let line: Value = serde_json::from_str(&service.log.wait_for("\"callback.outcome\"")).unwrap();
    assert_eq!(
        (&line["callback.outcome"], &line["callback.delivery"]),
        (&"succeeded".into(), &"delivered".into()),
        "{line}"
    );
    assert_eq!(service.callback(&token["x-callback-token: ".len()..], "1").status, 200, "it was taken");
}

#[test]
fn request_of_a_disconnected_client_is_completed() {
    let redis = RedisServer::start();
    let url = redis.url(0);
    let service = Service::start_with::<&str>(&[], &[AT_ONCE.as_slice(), &["--store", &url]].concat());
    assert!(service.platform("PUT", "call-1", "").status < 300);
    let request = "7b2c5f0e-8a53-4c57-9a25-3a1b64ff0d11";
    let headers =
        [format!("authorization: Bearer {}", service.made_key()), format!("x-request-id: {request}")];
    let [key, id] = &headers;
    redis.suspend();
    let (path, body) = ("POST /platform/v1/conversations/call-1/work-items", r#"{"kind":"tool"}"#);
    let length = format!("content-length: {}", body.len());
    let headers = [key, id, &length, "content-type: application/json"];
    let under_way = crate::wire::begin(&service.platform, path, &headers, body);
    // Long enough for the request to reach Redis and for the disconnection to be noticed.
    thread::sleep(Duration::from_millis(200));
    drop(under_way);
    thread::sleep(Duration::from_millis(200));
    redis.resume();
    let line: Value = serde_json::from_str(&service.log.wait_for(request)).unwrap();
    assert_eq!(
        (&line["http.response.status_code"], &line["work_item.sequence"]),
        (&499.into(), &1.into()),
        "{line}"
    );
}
