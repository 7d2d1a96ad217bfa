//! Simulated incidents, with a service that exports to a collector. A request id, a trace id or a conversation id is
//! enough to find the log lines, spans and metrics that explain what happened.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use callback_ingress::telemetry::names::{self, REFUSED, REQUEST_DURATION};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, Metric, number_data_point};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::json;
use sha2::{Digest, Sha256};
use test_support::redis_server::RedisServer;

use crate::collector::{Collector, Protocol, attributes, hex};
use crate::reason::{self, Exported, come, header, issue};
use crate::service::{Service, eventually};
use crate::wire::{Reply, begin, call};

const CALLBACKS: &str = "/api/v1/webhooks/callbacks";

fn exporting(store: &str, settings: &[&str]) -> (Collector, Service) {
    reason::exporting(Protocol::Http, store, settings)
}

fn fingerprint(of: &str) -> String {
    hex(&Sha256::digest(of)[..4])
}

/// The log line and the span of every refused request with an authentic token in its head have the same four
/// attributes.
fn refusals_name_the_work_item(store: &str) {
    let settings = ["--set", "http.max_body_bytes=1024", "--set", "http.body_timeout_ms=200"];
    let (collector, service) = exporting(store, &settings);
    let item = issue(&service, "call-1", 60_000);
    let token = format!("x-callback-token: {}", item.token);
    let json_type = "content-type: application/json";
    let post = |headers: &[&str], body: &str| {
        let length = format!("content-length: {}", body.len());
        let headers = [&[&*token, &*length], headers].concat();
        begin(&service.public, &format!("POST {CALLBACKS}"), &headers, body).reply()
    };
    let other = format!("{CALLBACKS}?callbackToken=cbt_forged");
    let refusals = [
        (post(&["content-type: text/plain"], "1"), "CONTENT_TYPE_UNSUPPORTED"),
        (post(&[json_type], &"1".repeat(2_000)), "BODY_TOO_LARGE"),
        (post(&[json_type], "{"), "BODY_MALFORMED"),
        (
            begin(
                &service.public,
                &format!("POST {CALLBACKS}"),
                &[&token, json_type, "content-length: 9"],
                "1",
            )
            .reply(),
            "REQUEST_TIMEOUT",
        ),
        (
            begin(
                &service.public,
                &format!("POST {CALLBACKS}"),
                &[&token, json_type, "transfer-encoding: chunked"],
                "zz\r\n1\r\n0\r\n\r\n",
            )
            .reply(),
            "REQUEST_MALFORMED",
        ),
        (call(&service.public, &format!("GET {CALLBACKS}"), &[&token], ""), "METHOD_NOT_ALLOWED"),
        (call(&service.public, "POST /api/v1/webhooks/nowhere", &[&token], "1"), "NOT_FOUND"),
        (call(&service.public, &format!("POST {other}"), &[&token], "1"), "TOKEN_CARRIERS_DISAGREE"),
    ];
    let accepted = service.callback(&item.token, "1");
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let used = service.callback(&item.token, "2");
    let exported = come(&collector, &used);
    for (reply, code) in
        refusals.iter().map(|(reply, code)| (reply, *code)).chain([(&used, "CALLBACK_TOKEN_USED")])
    {
        assert_eq!(reply.json()["error"]["code"], code, "{reply:?}");
        let (line, span) = exported.of_request(reply);
        for found in [&line, &span] {
            assert_eq!(found[names::CODE], code, "{found:?}");
            assert_eq!(found[names::WORK_ITEM_ID], item.id, "{code} {found:?}");
            assert_eq!(found[names::WORK_ITEM_SEQUENCE], "1", "{code} {found:?}");
            assert_eq!(found[names::CONVERSATION_REFERENCE], hex(&Sha256::digest("call-1")[..16]), "{code}");
            assert_eq!(found[names::TOKEN_FINGERPRINT], fingerprint(&item.token), "{code} {found:?}");
            assert_eq!(found[names::CLIENT_ADDRESS], "127.0.0.1", "{code}");
        }
        assert_eq!(line[names::MESSAGE], reply.json()["error"]["message"], "{code}");
        let head = line["body"].split(' ').collect::<Vec<_>>();
        let route = line.get(names::HTTP_ROUTE).map_or("", String::as_str);
        let (status, id) = (reply.status.to_string(), header(reply, "x-request-id"));
        let expected = [&line[names::HTTP_REQUEST_METHOD], route, &status, code, &id];
        assert_eq!(head, expected, "the body of a record");
    }
    let (line, _) = exported.of_request(&used);
    assert_eq!(line[names::BODY_DIGEST], fingerprint("2"));
    let (line, _) = exported.of_request(&accepted);
    assert_eq!(line[names::BODY_DIGEST], fingerprint("1"));
    assert!(line[names::TURNAROUND_MS].parse::<u64>().is_ok(), "{line:?}");
    records_are_well_formed(&collector);
}

/// Every log record has an event name. Trace ids are in the record's own fields, where SigNoz looks for them, and not
/// in its attributes.
fn records_are_well_formed(collector: &Collector) {
    for record in &collector.received().logs {
        assert!(!record.event_name.starts_with("event "), "{record:?}");
        let fields = attributes(&record.attributes);
        assert!(!fields.contains_key("trace_id") && !fields.contains_key("span_id"), "{record:?}");
    }
}

#[test]
fn every_refusal_names_the_work_item_on_memory() {
    refusals_name_the_work_item("memory:");
}

#[test]
fn every_refusal_names_the_work_item_on_redis() {
    refusals_name_the_work_item(&RedisServer::shared().url(6));
}

#[test]
fn rate_limited_and_draining_requests_name_the_work_item() {
    let settings = ["--set", "rate_limit.max=2", "--set", "http.drain_grace_ms=3000"];
    let (collector, service) = exporting("memory:", &settings);
    let items: Vec<_> = (0..3).map(|_| issue(&service, "call-1", 60_000)).collect();
    let replies: Vec<Reply> = items.iter().map(|item| service.callback(&item.token, "1")).collect();
    replies[2].refuses(429, "RATE_LIMITED");
    service.process.signal("TERM");
    eventually("it drains", || call(&service.public, "GET /health", &[], "").status == 503);
    let draining = service.callback(&items[2].token, "1");
    draining.refuses(503, "DRAINING");
    let exported = come(&collector, &draining);
    for reply in [&replies[2], &draining] {
        let (line, span) = exported.of_request(reply);
        for found in [line, span] {
            assert_eq!(found[names::WORK_ITEM_ID], items[2].id);
            assert_eq!(found[names::WORK_ITEM_SEQUENCE], "3");
        }
    }
}

#[test]
fn late_callback_is_logged_with_its_lateness() {
    let (collector, service) = exporting("memory:", &[]);
    let body = json!({"kind": "tool", "timeoutMs": 50, "turnId": "turn-4", "toolCallId": "call-9",
        "name": "maps"})
    .to_string();
    let issued = service.platform("POST", "call-1/work-items", &body).json();
    thread::sleep(Duration::from_millis(150));
    let late = service.callback(issued["callback"]["token"].as_str().unwrap(), "1");
    late.refuses(409, "WORK_ITEM_TIMED_OUT");
    let exported = come(&collector, &late);
    let (line, span) = exported.of_request(&late);
    for found in [line, span] {
        assert!((90..60_000).contains(&found[names::LATE_MS].parse::<u64>().unwrap()), "{found:?}");
        assert_eq!(found[names::DEADLINE], issued["deadline"].as_str().unwrap());
        assert_eq!((&*found[names::TIMEOUT_MS], &*found[names::TURN_ID]), ("50", "turn-4"));
        assert_eq!((&*found[names::TOOL_CALL_ID], &*found[names::TOOL_NAME]), ("call-9", "maps"));
    }
}

#[test]
fn trace_of_the_call_leads_to_its_callbacks() {
    let (collector, service) = exporting("memory:", &[]);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let traceparent = format!("traceparent: 00-{trace}-b7ad6b7169203331-01");
    let key = format!("authorization: Bearer {}", service.made_key());
    let path = "POST /platform/v1/conversations/call-1/work-items";
    let issued = call(&service.platform, path, &[&key, &traceparent], r#"{"kind":"tool"}"#).json();
    let reply = service.callback(issued["callback"]["token"].as_str().unwrap(), "1");
    assert_eq!(reply.status, 202, "{reply:?}");
    let exported = come(&collector, &reply);
    let (line, span) = exported.of_request(&reply);
    assert_eq!((&*line[names::ISSUED_TRACE], &*span[names::ISSUED_TRACE]), (trace, trace));
    let mut others = exported.spans.iter().filter(|other| other["name"].starts_with("publish "));
    assert_eq!(others.next(), None, "the callback's span shows the publication");
    assert!(span.contains_key(names::MESSAGING_MESSAGE_ID), "{span:?}");
}

#[test]
fn flood_of_forged_tokens_is_logged_in_two_lines_and_hides_no_other_telemetry() {
    const FORGED: usize = 1_000;
    let (collector, mut service) = exporting("memory:", &["--set", "http.drain_grace_ms=0"]);
    let forge = || {
        for _ in 0..FORGED / 4 {
            let status = service.callback("cbt_forged", "1").status;
            assert!(matches!(status, 401 | 429), "{status}");
        }
    };
    let genuine: Vec<Reply> = thread::scope(|threads| {
        let flood: Vec<_> = (0..4).map(|_| threads.spawn(forge)).collect();
        let genuine =
            (0..20).map(|_| service.callback(&issue(&service, "call-1", 60_000).token, "1")).collect();
        for thread in flood {
            thread.join().unwrap();
        }
        genuine
    });
    let exported = come(&collector, genuine.last().unwrap());
    for reply in &genuine {
        assert_eq!(reply.status, 202, "{reply:?}");
        exported.of_request(reply);
    }
    service.process.signal("TERM");
    assert_eq!(service.process.exit_code(), Some(0));
    let exported = Exported::of(&collector);
    let is_unauthenticated = |fields: &&crate::filter::Fields| {
        fields.get(names::CODE).is_some_and(|code| code == "CALLBACK_TOKEN_INVALID" || code == "RATE_LIMITED")
    };
    let lines: Vec<_> = exported.logs.iter().filter(is_unauthenticated).collect();
    let spans = exported.spans.iter().filter(is_unauthenticated).count();
    // Two codes, and a busy machine may take two windows.
    assert!((2..=16).contains(&lines.len()) && spans <= 8, "{} lines, {spans} spans", lines.len());
    assert!(lines.iter().all(|line| line[names::CLIENT_ADDRESS] == "127.0.0.1"), "{lines:?}");
    let told: usize =
        lines.iter().map(|line| line.get(names::REPEATED).map_or(1, |count| count.parse().unwrap())).sum();
    assert_eq!(told, FORGED, "each refusal is in a line or in a sum");
    let log = service.log.text();
    assert!(log.lines().filter(|line| line.contains("CALLBACK_TOKEN_INVALID")).count() <= 8, "{log}");
    assert_eq!(counted(&collector, "telemetry.lost", |_| true), 0);
}

#[test]
fn summary_of_rate_limited_callbacks_names_the_work_item() {
    let mut service = Service::start(&["--set", "rate_limit.max=1", "--set", "http.drain_grace_ms=0"]);
    let token = service.token("call-1");
    let statuses = [(); 4].map(|()| service.callback(&token, "1").status);
    assert_eq!(statuses, [202, 429, 429, 429]);
    service.process.signal("TERM");
    assert_eq!(service.process.exit_code(), Some(0));
    let log = service.log.whole();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let lines: Vec<_> = lines.filter(|line| line[names::CODE] == "RATE_LIMITED").collect();
    let [first, summary] = &lines[..] else { panic!("{log}") };
    assert_eq!(summary[names::REPEATED], 2);
    for name in [
        names::CONVERSATION_REFERENCE,
        names::WORK_ITEM_ID,
        names::WORK_ITEM_SEQUENCE,
        names::TOKEN_FINGERPRINT,
        names::CLIENT_ADDRESS,
    ] {
        assert!(!summary[name].is_null() && summary[name] == first[name], "{name}: {log}");
    }
}

/// A provider that continues to send heartbeats after a cancellation does not flood the log.
#[test]
fn repeated_refusals_of_heartbeats_are_summarized() {
    let mut service = Service::start(&["--set", "http.drain_grace_ms=0"]);
    let token = service.token("call-1");
    assert_eq!(service.platform("DELETE", "call-1", "").status, 200);
    for _ in 0..3 {
        let path = format!("POST /api/v1/webhooks/callbacks/{token}/heartbeat");
        assert_eq!(call(&service.public, &path, &[], "").status, 409);
    }
    service.process.signal("TERM");
    assert_eq!(service.process.exit_code(), Some(0));
    let log = service.log.whole();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let lines: Vec<_> = lines.filter(|line| line[names::CODE] == "CONVERSATION_ENDED").collect();
    let [first, summary] = &lines[..] else { panic!("{log}") };
    assert_eq!(
        (&summary[names::REPEATED], &summary[names::WORK_ITEM_ID]),
        (&json!(2), &first[names::WORK_ITEM_ID])
    );
}

#[test]
fn closed_event_stream_is_logged_with_its_client_position_and_reason() {
    let (_collector, service) = exporting("memory:", &[]);
    let item = issue(&service, "call-1", 60_000);
    assert_eq!(service.callback(&item.token, "1").status, 202);
    let key = format!("authorization: Bearer {}", service.made_key());
    let path = "GET /platform/v1/conversations/call-1/events?from=0";
    let mut stream = begin(&service.platform, path, &[&key, "user-agent: reader/1"], "\r\n");
    stream.read_until(r#""result":1"#);
    assert_eq!(service.platform("DELETE", "call-1", "").status, 200);
    stream.rest();
    let line = service.log.wait_for("event stream closed");
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line[names::CONVERSATION_ID], "call-1");
    assert_eq!((&line[names::EVENTS_SENT], &line[names::LAST_SEQUENCE]), (&json!(1), &json!(1)));
    assert_eq!(line[names::CLOSED_BECAUSE], "the conversation has ended");
    assert_eq!(
        (&line[names::CLIENT_ADDRESS], &line[names::USER_AGENT]),
        (&json!("127.0.0.1"), &json!("reader/1"))
    );
}

/// The increase of a counter, or of a histogram's count, as SigNoz computes it: the sum of delta points, or the
/// difference between a cumulative point and the first point of its series.
pub(crate) fn counted(
    collector: &Collector,
    name: &str,
    wanted: impl Fn(&std::collections::BTreeMap<String, String>) -> bool,
) -> i64 {
    let mut series = std::collections::BTreeMap::<String, Vec<i64>>::new();
    let mut is_delta = false;
    let received = collector.received();
    for metric in received.metrics.iter().filter(|metric| metric.name.ends_with(name)) {
        let mut add = |of: &[opentelemetry_proto::tonic::common::v1::KeyValue], value| {
            let of = attributes(of);
            if wanted(&of) {
                series.entry(format!("{of:?}")).or_default().push(value);
            }
        };
        match metric.data.as_ref().unwrap() {
            Data::Sum(sum) => {
                is_delta = sum.aggregation_temporality == AggregationTemporality::Delta as i32;
                for point in &sum.data_points {
                    let value = match point.value.unwrap() {
                        number_data_point::Value::AsInt(value) => value,
                        number_data_point::Value::AsDouble(_) => unreachable!("{metric:?}"),
                    };
                    add(&point.attributes, value);
                }
            }
            Data::Histogram(histogram) => {
                is_delta = histogram.aggregation_temporality == AggregationTemporality::Delta as i32;
                for point in &histogram.data_points {
                    add(&point.attributes, i64::try_from(point.count).unwrap());
                }
            }
            other @ (Data::Gauge(_) | Data::ExponentialHistogram(_) | Data::Summary(_)) => {
                panic!("{other:?}")
            }
        }
    }
    let increase = |points: &Vec<i64>| {
        if is_delta { points.iter().sum() } else { points.last().unwrap() - points.first().unwrap() }
    };
    series.values().map(increase).sum()
}

/// Every point has a start time and values.
fn points_are_well_formed(metric: &Metric) {
    match metric.data.as_ref().unwrap() {
        Data::Sum(sum) => {
            assert!(sum.data_points.iter().all(|point| point.start_time_unix_nano > 0), "{metric:?}");
        }
        Data::Histogram(histogram) => {
            for point in &histogram.data_points {
                assert!(point.start_time_unix_nano > 0, "{metric:?}");
                assert!(point.count > 0 && point.max() < 1e9 && point.min() >= 0.0, "{metric:?}");
            }
        }
        Data::Gauge(gauge) => {
            assert!(gauge.data_points.iter().all(|point| point.time_unix_nano > 0), "{metric:?}");
        }
        other @ (Data::ExponentialHistogram(_) | Data::Summary(_)) => panic!("{other:?}"),
    }
}

/// A burst of 142 responses with 503 after the start.
fn burst_is_counted(temporality: &str) {
    const BURST: i64 = 142;
    let mut redis = RedisServer::start();
    let collector = Collector::start(Protocol::Http);
    let preference = ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", temporality.to_owned());
    let variables: Vec<_> = collector.variables().into_iter().chain([preference]).collect();
    let service = Service::start_with(&variables, &["--store", &redis.url(0)]);
    let token = service.token("call-1");
    redis.kill();
    for _ in 0..BURST {
        assert_eq!(service.callback(&token, "1").status, 503);
    }
    let failures = |of: &std::collections::BTreeMap<String, String>| of.contains_key(names::ERROR_TYPE);
    eventually("all are counted", || counted(&collector, REFUSED.name, failures) >= BURST);
    assert_eq!(counted(&collector, REFUSED.name, failures), BURST);
    if temporality == "delta" {
        assert_eq!(counted(&collector, REQUEST_DURATION.name, failures), BURST);
    }
    let received = collector.received();
    received.metrics.iter().for_each(points_are_well_formed);
    // Every code begins at 0, before anything has happened.
    let first = received.metrics.iter().find(|metric| metric.name == REFUSED.name).unwrap();
    let Some(Data::Sum(sum)) = &first.data else { panic!("{first:?}") };
    let codes: BTreeSet<String> =
        sum.data_points.iter().map(|point| attributes(&point.attributes)[names::CODE].clone()).collect();
    assert_eq!(codes.len(), callback_ingress::http::code::Code::ALL.len());
    assert!(
        sum.data_points.iter().all(|point| point.value == Some(number_data_point::Value::AsInt(0))),
        "{sum:?}"
    );
}

#[test]
fn burst_after_the_start_is_counted_with_delta() {
    burst_is_counted("delta");
}

#[test]
fn burst_after_the_start_is_counted_with_cumulative() {
    burst_is_counted("Cumulative");
}

#[test]
fn lines_on_a_terminal_contain_no_control_characters_of_a_client() {
    let service = Service::start(&["--set", "telemetry.log_format=text"]);
    let agent = format!("user-agent: \u{9b}31m{}", "x".repeat(300));
    let reply = call(&service.public, &format!("POST {CALLBACKS}"), &[&agent, "x-request-id: no-uuid"], "1");
    reply.refuses(401, "CALLBACK_TOKEN_MISSING");
    let line = service.log.wait_for("401 CALLBACK_TOKEN_MISSING");
    assert!(!line.contains(char::is_control), "{line:?}");
}

/// Whether a span satisfies a condition of the collector's file: comparisons of attributes and of the status, joined by
/// `and` and `or`, of which `and` binds more tightly.
fn satisfies(span: &Span, condition: &str) -> bool {
    let fields = attributes(&span.attributes);
    let is_true = |comparison: &str| {
        let [left, operator, right] = comparison.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{comparison}")
        };
        let name = left.strip_prefix("attributes[\"").and_then(|rest| rest.strip_suffix("\"]"));
        let Some(name) = name else {
            assert_eq!((left, operator, right), ("status.code", "==", "STATUS_CODE_ERROR"));
            return span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error);
        };
        let value = fields.get(name).map(String::as_str);
        let wanted = (right != "nil").then(|| right.trim_matches('"'));
        match operator {
            "==" => value == wanted,
            "!=" => value != wanted,
            ">" => {
                value.is_some_and(|value| value.parse::<i64>().unwrap() > wanted.unwrap().parse().unwrap())
            }
            _ => panic!("{comparison}"),
        }
    };
    condition.split(" or ").any(|all| all.split(" and ").all(is_true))
}

#[test]
fn collector_keeps_each_span_that_explains_something_and_exports_none_twice() {
    const LATE: usize = 40;
    let config: serde_json::Value = serde_saphyr::from_str(crate::signoz::COLLECTOR).unwrap();
    let filter = |name: &str| {
        let [condition] = &config["processors"][name]["traces"]["span"].as_array().unwrap()[..] else {
            panic!("{name}")
        };
        condition.as_str().unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let (not_dropped, relevant) = (filter("filter/relevant"), filter("filter/not-relevant"));
    assert_eq!(not_dropped, format!("not ({relevant})"), "each span passes exactly one of the filters");
    let policies = config["processors"]["tail_sampling"]["policies"].as_array().unwrap();
    let policy = policies.iter().find(|policy| policy["name"] == "relevant").unwrap();
    let conditions = policy["ottl_condition"]["span"].as_array().unwrap().iter();
    let conditions: Vec<_> = conditions.map(|condition| condition.as_str().unwrap()).collect();
    assert_eq!(conditions.join(" or "), relevant, "the policy has the conditions of the filters");
    let pipeline = |name: &str| config["service"]["pipelines"][name]["processors"].to_string();
    let unsampled = pipeline("traces/relevant");
    assert!(unsampled.contains("filter/relevant") && !unsampled.contains("sampling"));
    assert!(pipeline("traces/sampled").contains(r#""tail_sampling","filter/not-relevant""#));

    // Refusals late in the platform's trace, a hold, a release of two, a timeout, and requests that explain nothing.
    let (collector, service) = exporting("memory:", &[]);
    let traceparent = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let key = format!("authorization: Bearer {}", service.made_key());
    let (first, second) = (issue(&service, "call-1", 60_000), issue(&service, "call-1", 60_000));
    let held = service.callback(&second.token, "2");
    let releasing = service.callback(&first.token, "1");
    let plain = service.callback(&issue(&service, "call-1", 60_000).token, "3");
    let forged = service.callback("cbt_forged", "1");
    issue(&service, "call-1", 1);
    let refused: Vec<Reply> = (0..LATE)
        .map(|_| {
            let path = "GET /platform/v1/conversations/nobody";
            call(&service.platform, path, &[&key, traceparent], "")
        })
        .collect();
    eventually("the timeout is exported", || {
        come(&collector, refused.last().unwrap());
        collector.received().spans.iter().any(|span| span.name == "time out")
    });
    let received = collector.received();
    let is_kept = |reply: &Reply| {
        let id = header(reply, "x-request-id");
        let of_request = |span: &&Span| attributes(&span.attributes).get(names::REQUEST_ID) == Some(&id);
        let [span] = received.spans.iter().filter(of_request).collect::<Vec<_>>()[..] else { panic!("{id}") };
        satisfies(span, &relevant)
    };
    assert_eq!(refused.iter().filter(|reply| is_kept(reply)).count(), LATE);
    assert!(is_kept(&held) && is_kept(&releasing));
    assert!(!is_kept(&plain) && !is_kept(&forged));
    for name in ["hold", "time out"] {
        let mut spans = received.spans.iter().filter(|span| span.name == name).peekable();
        assert!(spans.peek().is_some() && spans.all(|span| satisfies(span, &relevant)), "{name}");
    }
}

#[test]
fn failures_of_redis_are_logged_with_their_cause_and_counted() {
    let mut redis = RedisServer::start();
    let (collector, service) = exporting(&redis.url(0), &["--set", "store.response_timeout_ms=300"]);
    let items: Vec<_> = (0..2).map(|_| issue(&service, "call-1", 60_000)).collect();
    // Slow: the reply is lost, and the retry returns the outcome.
    redis.suspend();
    let slow = service.callback(&items[0].token, "1");
    slow.refuses(503, "OUTCOME_UNKNOWN");
    redis.resume();
    eventually("the retry is answered", || service.callback(&items[0].token, "1").status < 300);
    // Down: nothing was changed.
    redis.kill();
    let mut down = service.callback(&items[1].token, "1");
    eventually("the loss is noticed", || {
        down = service.callback(&items[1].token, "1");
        down.json()["error"]["code"] == "STORE_UNAVAILABLE"
    });
    let exported = come(&collector, &down);
    for (reply, item, code) in
        [(&slow, &items[0], "OUTCOME_UNKNOWN"), (&down, &items[1], "STORE_UNAVAILABLE")]
    {
        let (line, span) = exported.of_request(reply);
        assert_eq!((&*line["severity_text"], &*line[names::CODE]), ("WARN", code));
        assert!(!line["error"].is_empty() && line[names::WORK_ITEM_ID] == item.id, "{line:?}");
        assert_eq!((&*span[names::ERROR_TYPE], &span[names::WORK_ITEM_ID]), (code, &item.id));
        let script = |span: &&crate::filter::Fields| {
            span["name"] == "EVALSHA accept" && span["trace_id"] == line["trace_id"]
        };
        let step = exported.spans.iter().find(script).unwrap_or_else(|| panic!("{code}: no step"));
        assert!(step.contains_key(names::ERROR_TYPE), "{step:?}");
    }
    let told = |code: &str| {
        exported.logs.iter().filter(|line| line.get(names::CODE).is_some_and(|told| told == code)).count()
    };
    for code in ["OUTCOME_UNKNOWN", "STORE_UNAVAILABLE"] {
        let of_code = |of: &std::collections::BTreeMap<String, String>| of[names::CODE] == code;
        let expected = i64::try_from(told(code)).unwrap();
        eventually("all are counted", || counted(&collector, REFUSED.name, of_code) >= expected);
        assert_eq!(counted(&collector, REFUSED.name, of_code), expected, "{code}");
    }
}

#[test]
fn result_that_was_held_for_long_is_explained_by_its_conversation() {
    let (collector, service) = exporting("memory:", &[]);
    let (first, second) = (issue(&service, "call-1", 60_000), issue(&service, "call-1", 60_000));
    let held = service.callback(&second.token, "2");
    thread::sleep(Duration::from_millis(1_200));
    let slow = service.callback(&first.token, "1");
    let exported = come(&collector, &slow);
    let (line, _) = exported.of_request(&held);
    assert_eq!((&*line[names::DELIVERY], &*line[names::HELD_BEHIND]), ("held", "1"));
    let (line, _) = exported.of_request(&slow);
    assert!(line[names::TURNAROUND_MS].parse::<u64>().unwrap() >= 1_200, "a slow provider: {line:?}");
    for found in [&exported.logs, &exported.spans] {
        let released = found
            .iter()
            .find(|fields| fields.contains_key(names::HELD_MS) && fields[names::WORK_ITEM_ID] == second.id);
        let released = released.unwrap_or_else(|| panic!("{found:?}"));
        assert_eq!((&*released[names::CONVERSATION_ID], &*released[names::HELD_BEHIND]), ("call-1", "1"));
        assert!(released[names::HELD_MS].parse::<u64>().unwrap() >= 1_200, "{released:?}");
    }
    let published = exported
        .spans
        .iter()
        .find(|span| span["name"].starts_with("publish ") && span[names::WORK_ITEM_ID] == second.id);
    assert_eq!(published.unwrap()[names::RELEASED_TRACE], header(&slow, "x-trace-id"));
    assert_eq!(published.unwrap()[names::ISSUED_TRACE], exported.of_request(&held).0[names::ISSUED_TRACE]);
}
