//! How many callbacks a second the real program takes, in variants compared within one run:
//! `cargo bench --bench throughput`. Figures are ratios to the first variant; loopback only, bounded in count.
//!
//! Each round starts the program anew, issues work items, and posts a 512-byte result for each over 64 connections.
//! Rounds of all variants alternate, and a variant's median round counts.
#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark")]

mod program;

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use self::program::{Connection, KEY, Service, request};

const CONNECTIONS: usize = 64;
/// Of each round.
const CALLBACKS: usize = 20_000;
const ROUNDS: usize = 5;
const ITEMS_PER_CONVERSATION: usize = 8;

struct Variant {
    name: &'static str,
    arguments: Vec<String>,
}

/// Opens a conversation and issues its work items; their tokens, in order.
async fn conversation(connection: &mut Connection, name: String) -> Vec<String> {
    let authorization = format!("Authorization: Bearer {KEY}\r\n");
    let path = format!("/platform/v1/conversations/{name}");
    let (status, body) = connection.ask(&request("PUT", &path, &authorization, "{}")).await;
    assert_eq!(status, 201, "{body}");
    let issue = request(
        "POST",
        &format!("{path}/work-items"),
        &authorization,
        r#"{"kind":"tool","timeoutMs":600000}"#,
    );
    let mut tokens = Vec::new();
    for _ in 0..ITEMS_PER_CONVERSATION {
        let (status, body) = connection.ask(&issue).await;
        assert_eq!(status, 201, "{body}");
        let issued: serde_json::Value = serde_json::from_str(&body).unwrap();
        tokens.push(issued["callback"]["token"].as_str().unwrap().to_owned());
    }
    tokens
}

/// Callbacks a second, and the 50th and 99th percentile of their duration.
async fn round(variant: &Variant, number: usize) -> (f64, Duration, Duration) {
    let service = Service::start(&variant.arguments);
    let body = format!(r#"{{"result":"{}"}}"#, "x".repeat(499));
    let life = format!("bench-{}-{}-{number}", std::process::id(), variant.name.replace([' ', ','], "-"));
    let mut issuing = JoinSet::new();
    for worker in 0..CONNECTIONS {
        let (platform, life) = (service.platform.clone(), life.clone());
        issuing.spawn(async move {
            let mut connection = Connection::open(&platform).await;
            let mut tokens = Vec::new();
            while tokens.len() < CALLBACKS / CONNECTIONS {
                let name = format!("{life}-{worker}-{}", tokens.len());
                tokens.extend(conversation(&mut connection, name).await);
            }
            tokens
        });
    }
    let tokens = issuing.join_all().await;
    let total: usize = tokens.iter().map(Vec::len).sum();
    let begin = Instant::now();
    let mut posting = JoinSet::new();
    for tokens in tokens {
        let (public, body) = (service.public.clone(), body.clone());
        posting.spawn(async move {
            let mut connection = Connection::open(&public).await;
            let mut durations = Vec::with_capacity(tokens.len());
            for token in tokens {
                let header = format!("X-Callback-Token: {token}\r\n");
                let request = request("POST", "/api/v1/webhooks/callbacks", &header, &body);
                let sent = Instant::now();
                let (status, body) = connection.ask(&request).await;
                assert_eq!(status, 202, "{body}");
                durations.push(sent.elapsed());
            }
            durations
        });
    }
    let mut durations: Vec<Duration> = posting.join_all().await.into_iter().flatten().collect();
    let rate = total as f64 / begin.elapsed().as_secs_f64();
    durations.sort();
    (rate, durations[total / 2], durations[total * 99 / 100])
}

fn variants(redis: &str) -> Vec<Variant> {
    let variant = |name, arguments: &[&str]| Variant {
        name,
        arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
    };
    vec![
        variant("memory, no log", &["--log-level", "off,callback_ingress::cli=info"]),
        variant("memory", &[]),
        variant("redis, no log", &["--log-level", "off,callback_ingress::cli=info", "--store", redis]),
        variant("redis", &["--store", redis]),
    ]
}

fn main() {
    let redis = std::env::args().find(|argument| argument.starts_with("redis:"));
    let variants = variants(&redis.unwrap_or_default());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut results: Vec<Vec<(f64, Duration, Duration)>> = variants.iter().map(|_| Vec::new()).collect();
    for number in 0..ROUNDS {
        for (variant, results) in variants.iter().zip(&mut results) {
            results.push(runtime.block_on(round(variant, number)));
        }
    }
    let medians: Vec<_> = results
        .iter_mut()
        .map(|rounds| {
            rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
            rounds[rounds.len() / 2]
        })
        .collect();
    println!("{:<24} {:>12} {:>8} {:>10} {:>10}", "variant", "callbacks/s", "ratio", "p50", "p99");
    for (variant, (rate, p50, p99)) in variants.iter().zip(&medians) {
        let ratio = rate / medians[0].0;
        println!("{:<24} {rate:>12.0} {ratio:>8.2} {p50:>10.2?} {p99:>10.2?}", variant.name);
    }
}
