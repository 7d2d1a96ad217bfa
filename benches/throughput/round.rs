//! One round: issue work items, then post a result for each.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connection::{Connection, request};
use super::service::{KEY, Service, Variant};

const CONNECTIONS: usize = 64;
/// Of each round.
const CALLBACKS: usize = 20_000;
const ITEMS_PER_CONVERSATION: usize = 8;

/// Callbacks a second, and the 50th and 99th percentile of their duration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) rate: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// Time of processors that the program took for each.
    pub(crate) cpu: Duration,
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

pub(crate) async fn round(variant: &Variant, number: usize) -> Figures {
    let service = Service::start(variant);
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
    let (begin, cpu) = (Instant::now(), service.cpu());
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
    let cpu = service.cpu().saturating_sub(cpu) / u32::try_from(total).unwrap();
    durations.sort();
    Figures { rate, p50: durations[total / 2], p99: durations[total * 99 / 100], cpu }
}

/// Posts the same callbacks again and again, for so long, and tells the resident memory in KiB, each second. The
/// store does not grow.
pub(crate) async fn repeat(variant: &Variant, seconds: usize) -> (f64, Vec<u64>) {
    let service = Service::start(variant);
    let end = Instant::now() + Duration::from_secs(seconds as u64);
    let life = format!("bench-{}-{}", std::process::id(), service.child.id());
    let mut posting = JoinSet::new();
    for worker in 0..CONNECTIONS {
        let (public, platform) = (service.public.clone(), service.platform.clone());
        let name = format!("{life}-{worker}");
        posting.spawn(async move {
            let tokens = conversation(&mut Connection::open(&platform).await, name).await;
            let mut connection = Connection::open(&public).await;
            let mut posted = 0_usize;
            while Instant::now() < end {
                let header = format!("X-Callback-Token: {}\r\n", tokens[posted % tokens.len()]);
                let request = request("POST", "/api/v1/webhooks/callbacks", &header, "1");
                let (status, body) = connection.ask(&request).await;
                assert!(status == 202 || status == 200, "{body}");
                posted += 1;
            }
            posted
        });
    }
    let mut resident = Vec::new();
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(1)).await;
        resident.push(service.resident());
    }
    let posted: usize = posting.join_all().await.into_iter().sum();
    (posted as f64 / seconds as f64, resident)
}
