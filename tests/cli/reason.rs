//! "From a requestId to the reason": evaluates the documented filters on exported telemetry.

use std::collections::{BTreeMap, BTreeSet};

use callback_ingress::telemetry::names::{self, ATTRIBUTES, METRICS, RESOURCE};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use test_support::redis_server::RedisServer;

use crate::collector::{Collector, Protocol, attributes, hex, text};
use crate::filter::{Fields, Filter};
use crate::service::{Service, eventually};
use crate::wire::{Reply, call};

const OBSERVABILITY: &str = include_str!("../../docs/observability.md");
const RUNBOOK: &str = include_str!("../../docs/runbook.md");

/// Fields of spans and log records that are columns in SigNoz, not attributes.
const COLUMNS: [&str; 4] = ["name", "trace_id", "span_id", "severity_text"];
/// Fields of log lines that are not exported as attributes.
const LOG_FIELDS: [&str; 11] = [
    "trace_id",
    "span_id",
    names::DURATION_US,
    "error",
    "version",
    "public",
    "platform",
    "store",
    "otlp",
    "signal",
    "location",
];

/// The section of the documentation.
fn page() -> &'static str {
    &OBSERVABILITY[OBSERVABILITY.find("## From a requestId to the reason\n").unwrap()..]
}

/// Cells of the section's table rows.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    page()
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect()))
}

/// The row with this first cell.
fn row(beginning: &str) -> Vec<&'static str> {
    rows()
        .find(|cells| cells[0].starts_with(beginning))
        .unwrap_or_else(|| panic!("no row begins with {beginning:?}"))
}

/// The first filter in a cell, with these values inserted.
fn filter(cell: &str, values: &[(&str, &str)]) -> Filter {
    let code = cell.split('`').nth(1);
    let mut code = code.unwrap_or_else(|| panic!("no code: {cell}")).to_owned();
    for (name, value) in values {
        code = code.replace(&format!("{{{name}}}"), value);
    }
    Filter::parse(&code).unwrap_or_else(|| panic!("no filter: {code}"))
}

/// The exported telemetry.
pub(crate) struct Exported {
    pub(crate) spans: Vec<Fields>,
    pub(crate) logs: Vec<Fields>,
}

impl Exported {
    pub(crate) fn of(collector: &Collector) -> Self {
        let received = collector.received();
        let spans = received.spans.iter().map(|span| {
            let mut fields = attributes(&span.attributes);
            fields.insert("name".to_owned(), span.name.clone());
            fields.insert("trace_id".to_owned(), hex(&span.trace_id));
            fields.insert("span_id".to_owned(), hex(&span.span_id));
            fields
        });
        let logs = received.logs.iter().map(|record| {
            let mut fields = attributes(&record.attributes);
            fields.insert("body".to_owned(), text(record.body.as_ref()));
            fields.insert("severity_text".to_owned(), record.severity_text.clone());
            // SigNoz' column, which must agree with the line's own field.
            if !record.trace_id.is_empty() {
                let said = fields.insert("trace_id".to_owned(), hex(&record.trace_id));
                assert!(said.is_none_or(|said| said == hex(&record.trace_id)), "{record:?}");
            }
            fields
        });
        Self { spans: spans.collect(), logs: logs.collect() }
    }

    /// The one line and the one span of a request.
    pub(crate) fn of_request(&self, reply: &Reply) -> (Fields, Fields) {
        let id = header(reply, "x-request-id");
        let of = |all: &[Fields]| {
            let found: Vec<_> =
                all.iter().filter(|fields| fields.get(names::REQUEST_ID) == Some(&id)).cloned().collect();
            let [one] = &found[..] else { panic!("{found:?} of {reply:?}") };
            one.clone()
        };
        (of(&self.logs), of(&self.spans))
    }

    fn spans(&self, filter: &Filter) -> Vec<&Fields> {
        self.spans.iter().filter(|fields| filter.holds(fields)).collect()
    }

    fn logs(&self, filter: &Filter) -> Vec<&Fields> {
        self.logs.iter().filter(|fields| filter.holds(fields)).collect()
    }
}

/// A work item: its id and its token.
pub(crate) struct Item {
    pub(crate) id: String,
    pub(crate) token: String,
}

pub(crate) fn issue(service: &Service, conversation: &str, timeout_ms: u64) -> Item {
    let body = json!({"kind": "tool", "timeoutMs": timeout_ms}).to_string();
    let issued = service.platform("POST", &format!("{conversation}/work-items"), &body);
    assert_eq!(issued.status, 201, "{issued:?}");
    let of = |value: &Value| value.as_str().unwrap().to_owned();
    Item { id: of(&issued.json()["workItemId"]), token: of(&issued.json()["callback"]["token"]) }
}

/// A service with a collector and two conversations.
pub(crate) fn exporting(protocol: Protocol, store: &str, settings: &[&str]) -> (Collector, Service) {
    let collector = Collector::start(protocol);
    let service = Service::start_with(&collector.variables(), &[&["--store", store], settings].concat());
    for conversation in ["call-1", "call-2"] {
        eventually("it works", || service.platform("PUT", conversation, "").status <= 201);
    }
    (collector, service)
}

/// Waits until the log record and span of a reply are exported, and so those of earlier requests.
pub(crate) fn come(collector: &Collector, reply: &Reply) -> Exported {
    let id = header(reply, "x-request-id");
    let mut exported = Exported::of(collector);
    eventually("the last request is exported", || {
        exported = Exported::of(collector);
        let its = |fields: &Fields| fields.get(names::REQUEST_ID) == Some(&id);
        exported.spans.iter().any(its) && exported.logs.iter().any(its)
    });
    exported
}

pub(crate) fn header(reply: &Reply, name: &str) -> String {
    let line = reply.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name}: {reply:?}")).to_owned()
}

fn ids(fields: &[&Fields], name: &str) -> BTreeSet<String> {
    fields.iter().filter_map(|fields| fields.get(name).cloned()).collect()
}

#[test]
fn request_id_finds_log_record_and_span() {
    let (collector, service) = exporting(Protocol::Grpc, "memory:", &[]);
    let item = issue(&service, "call-1", 60_000);
    let (start, last) = item.token.split_at(item.token.len() - 1);
    let forged = format!("{start}{}", if last == "A" { "B" } else { "A" });
    let refusals = [
        (call(&service.public, "POST /api/v1/webhooks/callbacks", &[], "1"), "CALLBACK_TOKEN_MISSING"),
        (service.callback(&forged, "1"), "CALLBACK_TOKEN_INVALID"),
        (service.callback(&item.token, "{"), "BODY_MALFORMED"),
        (service.platform("GET", "call-9", ""), "CONVERSATION_NOT_FOUND"),
    ];
    let taken = service.callback(&item.token, "1");
    assert_eq!(taken.status, 202, "{taken:?}");
    let used = service.callback(&item.token, "2");
    let exported = come(&collector, &used);

    let cells = row("a response's `requestId`");
    let by_trace = row("a response's `traceId`");
    for (reply, code) in refusals.into_iter().chain([(used, "CALLBACK_TOKEN_USED")]) {
        let error = &reply.json()["error"];
        assert_eq!(error["code"], code, "{reply:?}");
        let (request, trace) = (error["requestId"].as_str().unwrap(), error["traceId"].as_str().unwrap());
        let lines = exported.logs(&filter(cells[1], &[("requestId", request)]));
        let spans = exported.spans(&filter(cells[2], &[("requestId", request)]));
        let ([line], [span]) = (&lines[..], &spans[..]) else { panic!("{code}: {lines:?} {spans:?}") };
        for found in [line, span] {
            assert_eq!(found[names::CODE], code, "{found:?}");
            assert_eq!(found["trace_id"], trace, "{found:?}");
        }
        assert_eq!(span[names::HTTP_RESPONSE_STATUS_CODE], reply.status.to_string(), "{span:?}");

        let lines = exported.logs(&filter(by_trace[1], &[("traceId", trace)]));
        let spans = exported.spans(&filter(by_trace[2], &[("traceId", trace)]));
        assert_eq!(ids(&lines, names::REQUEST_ID), BTreeSet::from([request.to_owned()]), "{lines:?}");
        assert_eq!(ids(&spans, names::REQUEST_ID), BTreeSet::from([request.to_owned()]), "{spans:?}");
    }
}

#[test]
fn ids_find_log_records_and_spans() {
    let redis = RedisServer::shared();
    let (collector, service) = exporting(Protocol::Http, &redis.url(5), &[]);
    let first = issue(&service, "call-1", 60_000);
    let second = issue(&service, "call-1", 60_000);
    let other = issue(&service, "call-2", 60_000);
    assert_eq!(service.callback(&second.token, "2").json()["status"], "held");
    assert_eq!(service.callback(&first.token, "1").json()["status"], "delivered");
    service.callback(&other.token, "{").refuses(400, "BODY_MALFORMED");
    assert_eq!(service.callback(&other.token, "1").json()["status"], "delivered");
    assert_eq!(service.callback(&other.token, "2").status, 409);

    let late = issue(&service, "call-1", 1);
    eventually("the timeout is exported", || {
        let exported = Exported::of(&collector);
        let out = |fields: &Fields| fields.contains_key(names::LATE_MS);
        exported.spans.iter().any(out) && exported.logs.iter().any(out)
    });
    let cancelled = issue(&service, "call-1", 60_000);
    let last = service.platform("DELETE", &format!("call-1/work-items/{}", cancelled.id), "");
    assert_eq!(last.status, 200, "{last:?}");
    let exported = come(&collector, &last);

    let cells = row("a conversation");
    for (conversation, items) in [
        ("call-1", BTreeSet::from([&*first.id, &*second.id, &*late.id, &*cancelled.id])),
        ("call-2", BTreeSet::from([&*other.id])),
    ] {
        let values = [("conversationId", conversation)];
        let lines = exported.logs(&filter(cells[1], &values));
        let spans = exported.spans(&filter(cells[2], &values));
        for found in [&lines, &spans] {
            let found = ids(found, names::WORK_ITEM_ID);
            assert_eq!(found.iter().map(|id| &**id).collect::<BTreeSet<_>>(), items, "{conversation}");
        }
        let published = spans.iter().filter(|span| span.contains_key(names::MESSAGING_MESSAGE_ID)).count();
        assert_eq!(published, items.len(), "{conversation}: {spans:?}");
    }

    let cells = row("a conversation whose callbacks are refused");
    let digest = hex(&Sha256::digest("call-2"));
    let values = [("reference", &digest[..32])];
    let lines = exported.logs(&filter(cells[1], &values));
    assert!(
        lines.iter().any(|line| line.get(names::CODE).is_some_and(|code| code == "BODY_MALFORMED")),
        "{lines:?}"
    );
    assert_eq!(ids(&lines, names::WORK_ITEM_ID), BTreeSet::from([other.id.clone()]));

    let cells = row("a work item");
    let values = [("workItemId", &*second.id)];
    for found in [exported.logs(&filter(cells[1], &values)), exported.spans(&filter(cells[2], &values))] {
        assert!(found.len() > 1, "{found:?}");
        assert_eq!(ids(&found, names::WORK_ITEM_ID), BTreeSet::from([second.id.clone()]));
    }

    let cells = row("a token");
    let digest = Sha256::digest(&second.token);
    let values = [("fingerprint", &*hex(&digest[..4]))];
    for found in [exported.logs(&filter(cells[1], &values)), exported.spans(&filter(cells[2], &values))] {
        let [found] = found[..] else { panic!("{found:?}") };
        assert_eq!(found[names::WORK_ITEM_ID], second.id);
    }

    // Number of matches for each filter, with the matched values.
    let answer = |question: &str, item: &Item| {
        let cells = row(question);
        let filter = filter(cells[2], &[("workItemId", &item.id)]);
        let found = if cells[1] == "Traces" { exported.spans(&filter) } else { exported.logs(&filter) };
        found.into_iter().cloned().collect::<Vec<_>>()
    };
    for (question, items) in [
        ("Was it delivered?", &[&first, &second, &other, &late, &cancelled][..]),
        ("Is it held", &[&second]),
        ("How long was it held?", &[&second]),
        ("Did it time out?", &[&late]),
        ("Was it cancelled?", &[&cancelled]),
        ("Was a callback refused?", &[&other, &other]),
    ] {
        for item in [&first, &second, &other, &late, &cancelled] {
            let found = answer(question, item);
            let expected = items.iter().filter(|yes| yes.id == item.id).count();
            assert_eq!(found.len(), expected, "{question} {found:?}");
        }
    }
    let posted = |item| answer("Was it ever posted?", item).len();
    assert_eq!([&first, &second, &other, &late, &cancelled].map(posted), [1, 1, 3, 0, 0]);
    let [delivered] = &answer("Was it delivered?", &second)[..] else { unreachable!() };
    assert_eq!(delivered[names::OUTCOME], "succeeded");
    assert_eq!(delivered[names::HELD_BEHIND], "1");
    assert_eq!(answer("Is it held", &second)[0][names::HELD_BEHIND], "1");
    assert_eq!(answer("How long was it held?", &second)[0][names::HELD_MS], delivered[names::HELD_MS]);
    assert_eq!(answer("Was it delivered?", &late)[0][names::OUTCOME], "timed_out");
    assert_eq!(answer("Was a callback refused?", &other)[1][names::CODE], "CALLBACK_TOKEN_USED");

    documented(&exported, &collector);
}

/// Every exported name is in a table.
fn documented(exported: &Exported, collector: &Collector) {
    let known: BTreeSet<_> = ATTRIBUTES.iter().chain(RESOURCE).map(|(name, _)| *name).collect();
    for span in &exported.spans {
        for name in span.keys().filter(|name| !COLUMNS.contains(&&***name)) {
            assert!(known.contains(&**name), "{name} is in no table: {span:?}");
        }
    }
    for line in &exported.logs {
        for name in line.keys().filter(|name| !COLUMNS.contains(&&***name) && *name != "body") {
            assert!(
                known.contains(&**name) || LOG_FIELDS.contains(&&**name),
                "{name} is in no table: {line:?}"
            );
        }
    }
    let metrics: BTreeMap<_, _> = METRICS.iter().map(|metric| (metric.name, metric)).collect();
    let of_the_sdk = |name: &str| name.starts_with("otel.sdk.");
    let ours = |collector: &Collector| {
        let received = collector.received();
        received.metrics.iter().filter(|metric| !of_the_sdk(&metric.name)).cloned().collect::<Vec<_>>()
    };
    eventually("metrics are exported", || {
        ours(collector).iter().any(|metric| metric.name == names::HOLD_TIME.name)
    });
    for metric in ours(collector) {
        let documented =
            metrics.get(&*metric.name).unwrap_or_else(|| panic!("{} is in no table", metric.name));
        assert_eq!(metric.unit, documented.unit, "{}", metric.name);
    }
}

#[test]
fn documentation_matches_exported_names() {
    let known: BTreeSet<_> =
        ATTRIBUTES.iter().chain(RESOURCE).map(|(name, _)| *name).chain(COLUMNS).collect();
    let mut filters = 0;
    for code in page().split('`').skip(1).step_by(2) {
        let Some(filter) = Filter::parse(code) else { continue };
        filters += 1;
        for name in filter.names() {
            assert!(known.contains(name), "{code}: nothing has {name}");
        }
    }
    assert!(filters >= 17, "{filters}");
    let maps = RUNBOOK.split("attributes_").skip(1).map(|rest| rest.split('\'').nth(1).unwrap());
    let maps: BTreeSet<_> = maps.collect();
    assert_eq!(maps, BTreeSet::from([names::CONVERSATION_ID, names::HELD_BEHIND, names::HELD_MS]));
}

/// The Prometheus name of a metric, by the rule in `config/signoz/README.md`.
fn for_prometheus(metric: &names::Metric) -> String {
    let mut name = metric.name.replace('.', "_");
    match metric.unit {
        "s" => name.push_str("_seconds"),
        "By" => name.push_str("_bytes"),
        _ => {}
    }
    if metric.instrument == "counter" {
        name.push_str("_total");
    }
    name
}

#[test]
fn prometheus_names_follow_the_naming_rule() {
    let service = Service::start(&[]);
    let token = service.token("call-1");
    assert_eq!(service.callback(&token, "1").status, 202);
    let known: BTreeSet<_> = METRICS.iter().map(for_prometheus).collect();
    let shown = call(&service.platform, "GET /metrics", &[], "").body;
    let shown: BTreeSet<_> = shown
        .lines()
        .filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split_once(' ')?.0.to_owned()))
        .filter(|name| {
            !name.starts_with("otel_sdk_")
                && !name.starts_with("process_")
                && !matches!(&**name, "target_info" | "otel_scope_info")
        })
        .collect();
    assert!(shown.is_subset(&known), "{:?}", shown.difference(&known));
    assert!(shown.contains("callback_ingress_result_hold_time_seconds"), "{shown:?}");
    assert!(shown.contains("callback_ingress_work_item_issued_total"), "{shown:?}");
}
