//! Costs of telemetry: with collectors that do not exist or never respond, and with a working one. Ratios are to the
//! first row of the same store.

use super::rates::{Case, Rates};
use crate::bench::Bench;
use crate::children::{Process, free_port, this_program};
use crate::field::Competitor;
use crate::measured_redis::Aof;
use crate::options::SectionName;

/// Length of a measurement, in seconds.
const ROUND: f64 = 0.8;

/// Interval of metric exports in milliseconds, so that a round has several.
const SOON: (&str, &str) = ("OTEL_METRIC_EXPORT_INTERVAL", "200");
const NO_LOGS: (&str, &str) = ("OTEL_LOGS_EXPORTER", "none");
const HTTP: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
const GRPC: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TENTH: [(&str, &str); 2] =
    [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.1")];

/// With collectors that do not exist or never respond.
pub(super) fn exporters(bench: &Bench) -> Rates {
    let closed = format!("http://127.0.0.1:{}", free_port());
    let (process, mute) = collector("mute");
    let workload = bench.workload(ROUND);
    let mut cases = Vec::new();
    for (store, service) in services(bench, true) {
        let to = |endpoint: &str, protocol, name| {
            Case::new(store, service.clone().with(&[(ENDPOINT, endpoint), protocol, SOON], name), workload)
        };
        cases.extend([
            Case::new(store, service.clone().with(&[], "no exporter"), workload).reference(),
            to(&closed, GRPC, "closed port, gRPC"),
            to(&closed, HTTP, "closed port, HTTP"),
            to(&mute, GRPC, "never answers, gRPC"),
            to(&mute, HTTP, "never answers, HTTP"),
        ]);
    }
    let title = "exporters: collectors that do not exist or do not respond";
    Rates::new(bench, SectionName::Exporters, title, cases).with_collector(process)
}

/// From the service without telemetry to all signals.
pub(super) fn telemetry(bench: &Bench) -> Rates {
    let (process, url) = collector("collector");
    let endpoint = (ENDPOINT, url.as_str());
    let sampled = [&[endpoint, HTTP, SOON, NO_LOGS], TENTH.as_slice()].concat();
    let workload = bench.workload(ROUND);
    let mut cases = Vec::new();
    for ((store, log), (_, silent)) in services(bench, true).into_iter().zip(services(bench, false)) {
        let with = |service: &Competitor, variables: &[(&str, &str)], name| {
            Case::new(store, service.clone().with(variables, name), workload)
        };
        cases.extend([
            with(&silent, &[], "no telemetry").reference(),
            with(&log, &[], "log"),
            with(&silent, &sampled, "a tenth of traces, metrics"),
            with(&log, &sampled, "the same and log"),
            with(&log, &[endpoint, HTTP, SOON, NO_LOGS], "all traces, metrics, log"),
            with(&log, &[endpoint, HTTP, SOON], "the same and logs by OTLP"),
        ]);
    }
    let title = "telemetry: a collector over HTTP";
    Rates::new(bench, SectionName::Telemetry, title, cases).with_collector(process)
}

/// Starts a collector, and returns its URL.
fn collector(role: &str) -> (Process, String) {
    let (process, address) = Process::start_peer(this_program("peer").arg(role));
    (process, format!("http://{address}"))
}

/// The service on the memory store and on Redis.
fn services(bench: &Bench, log: bool) -> Vec<(&'static str, Competitor)> {
    let on = |redis| bench.services(redis, log).swap_remove(0);
    vec![("memory store", on(None)), ("Redis", on(Some(Aof::Off)))]
}
