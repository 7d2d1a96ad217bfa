//! Costs of telemetry on the memory store: with collectors that do not exist or never respond, and with a working one.
//! Ratios are to the first row.

use super::Outcome;
use crate::bench::Bench;
use crate::children::{Process, free_port, this_program};
use crate::field::Competitor;
use crate::options::SectionName;
use crate::point::Figures;
use crate::summary::{Spread, Summary};
use crate::table::{Table, rates, whole};

/// Interval of metric exports, short enough for a short round.
const SOON: (&str, &str) = ("OTEL_METRIC_EXPORT_INTERVAL", "1000");
const NO_LOGS: (&str, &str) = ("OTEL_LOGS_EXPORTER", "none");
const HTTP: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
const GRPC: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TENTH: [(&str, &str); 2] =
    [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.1")];

/// With collectors that do not exist or never respond.
pub(super) fn exporters(bench: &mut Bench) -> Outcome {
    let closed = format!("http://127.0.0.1:{}", free_port());
    let (_collector, mute) = collector("mute");
    let service = on_memory(bench, true);
    let to =
        |endpoint: &str, protocol, name| service.clone().with(&[(ENDPOINT, endpoint), protocol, SOON], name);
    let field = [
        service.clone().with(&[], "no exporter"),
        to(&closed, GRPC, "closed port, gRPC"),
        to(&closed, HTTP, "closed port, HTTP"),
        to(&mute, GRPC, "never answers, gRPC"),
        to(&mute, HTTP, "never answers, HTTP"),
    ];
    compare(
        bench,
        SectionName::Exporters,
        "exporters: memory store, collectors that do not exist or do not respond",
        &field,
    )
}

/// From the service without telemetry to all signals.
pub(super) fn telemetry(bench: &mut Bench) -> Outcome {
    let (_collector, url) = collector("collector");
    let endpoint = (ENDPOINT, url.as_str());
    let (log, silent) = (on_memory(bench, true), on_memory(bench, false));
    let sampled = [&[endpoint, HTTP, SOON, NO_LOGS], TENTH.as_slice()].concat();
    let field = [
        silent.clone().with(&[], "no telemetry"),
        log.clone().with(&[], "log"),
        silent.with(&sampled, "a tenth of traces, metrics"),
        log.clone().with(&sampled, "the same and log"),
        log.clone().with(&[endpoint, HTTP, SOON, NO_LOGS], "all traces, metrics, log"),
        log.with(&[endpoint, HTTP, SOON], "the same and logs by OTLP"),
    ];
    compare(bench, SectionName::Telemetry, "telemetry: memory store, a collector over HTTP", &field)
}

fn collector(role: &str) -> (Process, String) {
    let (process, address) = Process::start_peer(this_program("peer").arg(role));
    (process, format!("http://{address}"))
}

fn on_memory(bench: &Bench, log: bool) -> Competitor {
    bench.services(None, log).swap_remove(0)
}

fn compare(bench: &mut Bench, name: SectionName, title: &str, field: &[Competitor]) -> Outcome {
    let (count, workload) = (bench.options.rounds(5, 2), bench.workload(1.5));
    let mut rounds: Vec<Vec<Figures>> = field.iter().map(|_| Vec::new()).collect();
    for round in 0..count {
        for (competitor, rounds) in field.iter().zip(&mut rounds) {
            let figures = bench.closed(competitor, workload);
            let rate = figures.rate;
            bench.progress(&format!(
                "{name:?} {}/{count}: {}: {rate:.0} requests/s",
                round + 1,
                competitor.name
            ));
            rounds.push(figures);
        }
    }
    let columns = [
        ("requests/s", 12),
        ("min–max", 18),
        ("ratio", 8),
        ("p50 ms", 9),
        ("p99 ms", 9),
        ("server µs", 11),
        ("resident MiB", 14),
    ];
    let mut table = Table::new(title, &columns);
    let mut rows = Vec::new();
    for (competitor, of) in field.iter().zip(&rounds) {
        let row = Summary::of("", &competitor.name, of.clone(), &rounds[0]);
        let resident = Spread::of(of.iter().map(|figures| figures.resident_kib as f64 / 1024.0));
        let mut cells = rates(&row, 3);
        cells.push(whole(resident.median));
        table.row(&competitor.name, cells);
        rows.push(row);
    }
    let unexpected = rows.iter().map(|row| row.unexpected).sum();
    Outcome { name, table, data: serde_json::to_value(&rows).unwrap(), rows: Vec::new(), unexpected }
}
