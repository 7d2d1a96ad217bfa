//! How many callbacks a second the real program takes, in variants compared within one run. Figures are ratios to the
//! first variant; loopback only, bounded in count and time.
//!
//! ```sh
//! cargo bench --bench throughput -- [stores|exporters|telemetry|memory]... [redis://HOST:PORT/DATABASE]
//! ```
//!
//! - `stores`: each store, with and without a log (the default)
//! - `exporters`: without a collector, with one that is not there, and with one that never answers
//! - `telemetry`: with nothing but the service, and with all of it
//! - `memory`: resident memory each second of a minute at full load, with collectors that are not there or never answer
//!
//! Each round starts the program anew, issues work items, and posts a 512-byte result for each over 64 connections.
//! Rounds of all variants alternate, and a variant's median round counts. The log goes to a file. With a Redis, all but
//! `stores` runs on it.
#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark")]

#[path = "throughput/collectors.rs"]
mod collectors;
#[path = "throughput/connection.rs"]
mod connection;
#[path = "throughput/round.rs"]
mod round;
#[path = "throughput/service.rs"]
mod service;

use tokio::runtime::Runtime;

use self::round::{Figures, repeat, round};
use self::service::Variant;

const ROUNDS: usize = 7;
const MINUTE: usize = 60;

/// Says nothing but where it serves.
const SILENT: [&str; 2] = ["--log-level", "off,callback_ingress::cli=info"];
/// Metrics often enough to be seen in a short round.
const SOON: (&str, &str) = ("OTEL_METRIC_EXPORT_INTERVAL", "1000");

fn stores(redis: Option<&str>) -> Vec<Variant> {
    let mut variants = vec![Variant::new("memory, no log", &SILENT), Variant::new("memory", &[])];
    if let Some(redis) = redis {
        let store = ["--store", redis];
        variants.push(Variant::new("redis, no log", &[SILENT, store].concat()));
        variants.push(Variant::new("redis", &store));
    }
    variants
}

/// Bad collectors, over both protocols.
async fn bad_collectors(store: &[&str]) -> Vec<Variant> {
    let (closed, mute) = (collectors::closed().await, collectors::mute().await);
    let to = |name, url: &str, protocol| {
        let endpoint =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", url), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol), SOON];
        Variant::new(name, store).with(&endpoint)
    };
    vec![
        to("closed port, gRPC", &closed, "grpc"),
        to("closed port, HTTP", &closed, "http/protobuf"),
        to("never answers, gRPC", &mute, "grpc"),
        to("never answers, HTTP", &mute, "http/protobuf"),
    ]
}

async fn exporters(store: &[&str]) -> Vec<Variant> {
    let mut variants = vec![Variant::new("no exporter", store)];
    variants.extend(bad_collectors(store).await);
    variants
}

async fn telemetry(store: &[&str]) -> Vec<Variant> {
    let (url, _) = collectors::taking().await;
    let sampled =
        [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.1"), SOON];
    let endpoint = [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str())];
    let no_logs = [("OTEL_LOGS_EXPORTER", "none")];
    let silent = [SILENT.as_slice(), store].concat();
    vec![
        Variant::new("no telemetry", &silent),
        Variant::new("log", store),
        Variant::new("traces, metrics", &silent).with(&endpoint).with(&sampled).with(&no_logs),
        Variant::new("traces, metrics, log", store).with(&endpoint).with(&sampled).with(&no_logs),
        Variant::new("the same, and all traces", store).with(&endpoint).with(&[SOON]).with(&no_logs),
        Variant::new("the same, and logs by OTLP", store).with(&endpoint).with(&[SOON]),
    ]
}

fn compare(runtime: &Runtime, variants: &[Variant]) {
    let mut results: Vec<Vec<Figures>> = variants.iter().map(|_| Vec::new()).collect();
    for number in 0..ROUNDS {
        for (variant, results) in variants.iter().zip(&mut results) {
            results.push(runtime.block_on(round(variant, number)));
        }
    }
    let medians: Vec<Figures> = results
        .iter_mut()
        .map(|rounds| {
            rounds.sort_by(|a, b| a.rate.total_cmp(&b.rate));
            rounds[rounds.len() / 2]
        })
        .collect();
    println!(
        "{:<28} {:>12} {:>8} {:>10} {:>10} {:>10}",
        "variant", "callbacks/s", "ratio", "p50", "p99", "CPU each"
    );
    for (variant, Figures { rate, p50, p99, cpu }) in variants.iter().zip(&medians) {
        let ratio = rate / medians[0].rate;
        println!("{:<28} {rate:>12.0} {ratio:>8.3} {p50:>10.2?} {p99:>10.2?} {cpu:>10.2?}", variant.name);
    }
    println!();
}

fn memory(runtime: &Runtime, store: &[&str]) {
    println!(
        "{:<28} {:>12} {:>10} {:>10} {:>10}",
        "variant", "requests/s", "at 10 s", "at the end", "most (KiB)"
    );
    for variant in runtime.block_on(exporters(store)) {
        let (rate, resident) = runtime.block_on(repeat(&variant, MINUTE));
        let (early, late) = (resident[9], resident[resident.len() - 1]);
        let most = resident.iter().max().unwrap();
        println!("{:<28} {rate:>12.0} {early:>10} {late:>10} {most:>10}", variant.name);
    }
    println!();
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let redis = arguments.iter().find(|argument| argument.starts_with("redis")).map(String::as_str);
    let store: Vec<&str> = redis.map_or_else(Vec::new, |redis| vec!["--store", redis]);
    let asked = |name: &str| arguments.iter().any(|argument| argument == name);
    let others = ["exporters", "telemetry", "memory"];
    let runtime = Runtime::new().unwrap();
    if asked("stores") || !others.into_iter().any(asked) {
        compare(&runtime, &stores(redis));
    }
    if asked("exporters") {
        compare(&runtime, &runtime.block_on(exporters(&store)));
    }
    if asked("telemetry") {
        compare(&runtime, &runtime.block_on(telemetry(&store)));
    }
    if asked("memory") {
        memory(&runtime, &store);
    }
}
