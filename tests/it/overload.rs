//! A short overload. `cargo bench --bench overload` runs longer and with more clients.

use test_support::redis_server::RedisServer;
use tokio::time::{Duration, Instant};

use crate::service::{CALLBACKS, Raw, Service, until};

/// Far less time than a request that waits for another one needs, even on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_refused_quickly_and_recovers() {
    let redis = RedisServer::start();
    let flags = [("store.url", redis.url(0)), ("http.max_requests_in_flight", "8".to_owned())];
    let service = Service::start(&flags.each_ref().map(|(key, value)| (*key, value.as_str()))).await;
    let conversation = service.open().await;
    let mut items = Vec::new();
    for _ in 0..32 {
        items.push(service.tool(&conversation).await);
    }
    let (mut taken, mut refused, mut slowest) = (0, 0, Duration::ZERO);
    let until_then = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until_then {
        let posts = items.iter().map(async |item| {
            let sent = Instant::now();
            let verdict = service.callback(&item.token, item.sequence.to_string()).verdict().await;
            (verdict, sent.elapsed())
        });
        for ((status, word), took) in futures_util::future::join_all(posts).await {
            slowest = slowest.max(took);
            match status {
                200 | 202 => taken += 1,
                _ => {
                    assert_eq!((status, word.as_str()), (503, "OVERLOADED"));
                    refused += 1;
                }
            }
        }
    }
    assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
    assert!(slowest < AT_ONCE, "{slowest:?}");
    for item in &items {
        let status = service.callback(&item.token, item.sequence.to_string()).send().await.status;
        assert!(status.is_success(), "it has recovered: {status}");
    }
    let channel = service.channel(&conversation, items.len()).await;
    for (envelope, item) in channel.iter().zip(&items) {
        assert!(
            envelope.contains(&format!("\"result\":{},", item.sequence)),
            "once, and in order: {envelope}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_and_slow_connections_delay_no_other() {
    let service = Service::on_memory().await;
    let mut crowd = Vec::new();
    for number in 0..600 {
        let mut raw = Raw::connect(service.public).await;
        if number % 3 == 0 {
            raw.send(format!("POST {CALLBACKS} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n1")).await;
        }
        crowd.push(raw);
    }
    for _ in 0..20 {
        let item = service.fresh_tool().await;
        let sent = Instant::now();
        assert_eq!(service.callback(&item.token, "1").verdict().await, (202, "delivered".to_owned()));
        assert!(sent.elapsed() < AT_ONCE, "{:?}", sent.elapsed());
    }
    assert!(crowd.iter().all(Raw::is_silent));
    drop(crowd);
    until("all is as before", async || service.health().send().await.status == 200).await;
}
