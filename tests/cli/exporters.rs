//! A collector that is unreachable or never answers affects no request, and lost telemetry is counted.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use callback_ingress::telemetry::names;
use tokio::time::Instant;

use crate::collector::{Collector, Protocol};
use crate::incidents::counted;
use crate::service::{Service, eventually};
use crate::wire::call;

/// Short export delays and small queues.
const SOON: [(&str, &str); 7] = [
    ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ("OTEL_BLRP_SCHEDULE_DELAY", "20"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "50"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4"),
    ("OTEL_BLRP_MAX_QUEUE_SIZE", "8"),
    ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "4"),
];

fn start(url: &str, protocol: &str, more: &[(&'static str, &str)]) -> Service {
    let endpoint = [("OTEL_EXPORTER_OTLP_ENDPOINT", url), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)];
    // No rate limit, because the test sends many forged tokens.
    let settings = ["--set", "http.drain_grace_ms=0", "--set", "rate_limit.failed_max=0"];
    Service::start_with(&[&endpoint, &SOON[..], more].concat(), &settings)
}

/// The sum of a metric's samples that have all of these labels.
fn sample(service: &Service, metric: &str, labels: &[&str]) -> f64 {
    let shown = call(&service.platform, "GET /metrics", &[], "").body;
    let ours = shown.lines().filter(|line| {
        line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{'))
            && labels.iter().all(|label| line.contains(label))
    });
    ours.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

fn answers_and_ends_in_time(mut service: Service) {
    let token = service.token("call-1");
    assert_eq!(service.callback(&token, "1").status, 202);
    let since = Instant::now();
    service.process.signal("TERM");
    assert_eq!(service.process.exit_code(), Some(0));
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
}

fn an_unreachable_collector(protocol: &str) {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let service = start(&format!("http://{closed}"), protocol, &[]);
    for signal in ["traces", "logs", "metrics"] {
        let label = format!("callback_ingress_signal=\"{signal}\"");
        eventually("the loss is counted", || {
            assert_eq!(service.platform("GET", "nobody", "").status, 404);
            sample(&service, "callback_ingress_telemetry_lost_total", &[&label]) >= 2.0
        });
    }
    let log = service.log.text();
    for signal in ["traces", "logs", "metrics"] {
        let told = log.lines().filter(|line| {
            line.contains("export to the collector failed")
                && line.contains(&format!("\"signal\":\"{signal}\""))
        });
        assert_eq!(told.count(), 1, "once an outage, and not once an export: {log}");
    }
    answers_and_ends_in_time(service);
}

#[test]
fn unreachable_grpc_collector_affects_no_request() {
    an_unreachable_collector("grpc");
}

#[test]
fn unreachable_http_collector_affects_no_request() {
    an_unreachable_collector("http/protobuf");
}

/// The service counts losses from its start, so that a failed export loses none of the count.
#[test]
fn losses_during_an_outage_are_exported_after_it() {
    let collector = Collector::start(Protocol::Http);
    let variables = collector.variables();
    let service = Service::start_with(&variables, &["--set", "http.drain_grace_ms=0"]);
    let of_traces = |of: &BTreeMap<String, String>| of[names::SIGNAL] == "traces";
    let exported = |collector: &Collector| counted(collector, names::LOST.name, of_traces);
    let is_exported =
        |collector: &Collector| collector.received().metrics.iter().any(|of| of.name == names::LOST.name);
    eventually("the count begins at 0", || is_exported(&collector));
    let lost = || sample(&service, "callback_ingress_telemetry_lost_total", &["signal=\"traces\""]);
    let collector = collector.restart_after(|| {
        eventually("spans are lost", || {
            assert_eq!(service.platform("GET", "nobody", "").status, 404);
            lost() >= 2.0
        });
    });
    eventually("the collector has the count", || {
        let exported = exported(&collector);
        exported >= 2 && exported.to_string() == lost().to_string()
    });
}

fn a_collector_that_never_answers(protocol: &str) {
    // The kernel accepts the connections, and nothing reads them.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let service = start(&format!("http://{}", mute.local_addr().unwrap()), protocol, &[]);
    for signal in ["traces", "logs"] {
        let label = format!("callback_ingress_signal=\"{signal}\"");
        eventually("what does not fit the queue is counted", || {
            assert_eq!(service.platform("GET", "nobody", "").status, 404);
            sample(&service, "callback_ingress_telemetry_lost_total", &[&label]) >= 2.0
        });
    }
    answers_and_ends_in_time(service);
}

#[test]
fn silent_grpc_collector_affects_no_request() {
    a_collector_that_never_answers("grpc");
}

#[test]
fn silent_http_collector_affects_no_request() {
    a_collector_that_never_answers("http/protobuf");
}
