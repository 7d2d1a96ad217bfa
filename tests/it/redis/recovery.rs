//! Time until a recovered Redis is used again.

use std::time::Duration;

use callback_ingress::store::Store;
use test_support::proxy::Proxy;
use test_support::redis_commands::words;
use test_support::redis_server::RedisServer;
use tokio::time::{Instant, sleep, timeout};

use crate::service::{Service, until};
use crate::stage::{ROOMY, START, Stage, settings};

/// Longest time from Redis' first reply to the first accepted callback.
const RECOVERY: Duration = Duration::from_secs(2);

/// Kills and restarts Redis while a provider retries. Returns the time from Redis' first reply to the first 202, for each
/// round.
async fn recoveries(rounds: usize) -> Vec<Duration> {
    let mut redis = RedisServer::durable();
    let url = redis.url(0);
    // The defaults, since the tests use longer timeouts.
    let flags = [
        ("store.url", url.as_str()),
        ("store.connect_timeout_ms", "1000"),
        ("store.response_timeout_ms", "1000"),
    ];
    let service = Service::start(&flags).await;
    let conversation = service.open().await;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let item = service.tool(&conversation).await;
        redis.kill();
        let post = async {
            loop {
                if service.callback(&item.token, "1").send().await.status == 202 {
                    return Instant::now();
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let restart = async {
            // Long enough for several failed reconnections.
            sleep(Duration::from_millis(700)).await;
            tokio::task::block_in_place(|| redis.restart());
            until("Redis answers", async || words(&["PING"]).exec(&mut redis.connection(0)).is_ok()).await;
            Instant::now()
        };
        let (taken, answers) = tokio::join!(post, restart);
        times.push(taken.saturating_duration_since(answers));
    }
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_redis_is_used_within_2_s() {
    let times = recoveries(3).await;
    assert!(times.iter().all(|time| *time < RECOVERY), "{times:?}");
}

#[tokio::test]
async fn dead_connection_does_not_block_requests() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port());
    let mut impatient = settings(format!("redis://127.0.0.1:{}/0", proxy.port()), ROOMY);
    impatient.connect_timeout = Duration::from_millis(300);
    impatient.response_timeout = Duration::from_millis(300);
    let stage = Stage::in_redis(impatient, callback_ingress::clock::ManualClock::at(START)).await;
    let conversation = stage.conversation().await;
    // As with a firewall that drops the packets of a connection silently.
    proxy.swallow(true);
    let since = Instant::now();
    for _ in 0..10 {
        let asked = Instant::now();
        assert!(stage.store.end(stage.unopened().reference(), None, None).await.is_err());
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    }
    assert!(since.elapsed() < Duration::from_secs(8));
    proxy.swallow(false);
    let since = Instant::now();
    timeout(RECOVERY, async {
        while stage.store.open(conversation.opening()).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("new connections lead somewhere");
    assert!(since.elapsed() < RECOVERY);
}
