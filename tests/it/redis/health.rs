//! `/health` reports whether callbacks can be accepted, without a request to Redis.

use std::fs;
use std::time::Duration;

use futures_util::future::join_all;
use test_support::redis_commands::ask;
use test_support::redis_server::RedisServer;
use tokio::time::{Instant, sleep};

use super::connections::calls;
use super::replicas::pair;
use crate::service::{Service, until};

/// The status of `/health`, with the body unless it is 200.
async fn health(service: &Service) -> (u16, String) {
    let reply = service.provider("GET", "/health").send().await;
    let status = reply.status.as_u16();
    (status, if status == 200 { String::new() } else { reply.message() })
}

async fn is_unhealthy(service: &Service, word: &str) {
    until(word, async || health(service).await.0 == 503).await;
    let (_, message) = health(service).await;
    assert!(message.contains(word), "{message:?} does not say {word:?}");
    assert!(!message.contains("127.0.0.1"), "{message:?}");
}

async fn is_healthy(service: &Service) {
    until("it is healthy", async || health(service).await.0 == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_requests_do_not_reach_redis() {
    let redis = RedisServer::start();
    let service = Service::on(&redis).await;
    assert_eq!(health(&service).await.0, 200, "from the first request on");
    ask::<()>(&redis, &["CONFIG", "RESETSTAT"]);
    let since = Instant::now();
    for _ in 0..50 {
        let flood = join_all((0..40).map(|_| health(&service))).await;
        assert!(flood.iter().all(|(status, _)| *status == 200), "{flood:?}");
    }
    // Includes idle time, with a check each second.
    sleep(Duration::from_secs(2).saturating_sub(since.elapsed())).await;
    let mut connection = redis.connection(0);
    let asked = calls(&mut connection, "ping") + calls(&mut connection, "set");
    // The full check at startup writes as well.
    let most = usize::try_from(since.elapsed().as_secs()).unwrap() + 8;
    assert!((1..=most).contains(&asked), "{asked} of at most {most}");
    assert_eq!(ask::<Vec<String>>(&redis, &["KEYS", "*probe*"]), [""; 0], "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_503_while_redis_rejects_writes() {
    let redis = RedisServer::start();
    let service = Service::on(&redis).await;
    let item = service.fresh_tool().await;
    let set = |key: &str, value: &str| ask::<()>(&redis, &["CONFIG", "SET", key, value]);
    let is_refused = async || {
        let told = service.callback(&item.token, "1").verdict().await;
        assert_eq!(told, (503, "STORE_UNAVAILABLE".to_owned()));
    };

    set("maxmemory", "1");
    is_unhealthy(&service, "full").await;
    is_refused().await;
    set("maxmemory", "0");
    is_healthy(&service).await;

    ask::<()>(&redis, &["REPLICAOF", "127.0.0.1", "1"]);
    is_unhealthy(&service, "read-only").await;
    is_refused().await;
    ask::<()>(&redis, &["REPLICAOF", "NO", "ONE"]);
    is_healthy(&service).await;

    set("min-replicas-to-write", "1");
    is_unhealthy(&service, "too few replicas").await;
    is_refused().await;
    set("min-replicas-to-write", "0");
    is_healthy(&service).await;

    // Saving a snapshot fails, because a directory has its name.
    let (_, directory): (String, String) = ask(&redis, &["CONFIG", "GET", "dir"]);
    fs::create_dir_all(format!("{directory}/dump.rdb/x")).unwrap();
    set("save", "3600 1");
    ask::<()>(&redis, &["BGSAVE"]);
    is_unhealthy(&service, "save").await;
    is_refused().await;
    set("stop-writes-on-bgsave-error", "no");
    is_healthy(&service).await;

    assert_eq!(service.callback(&item.token, "1").verdict().await, (202, "delivered".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_503_while_redis_is_unreachable() {
    let mut redis = RedisServer::durable();
    let url = redis.url(0);
    let service = Service::start(&[("store.url", &url), ("store.response_timeout_ms", "500")]).await;
    is_healthy(&service).await;
    redis.suspend();
    is_unhealthy(&service, "cannot be reached").await;
    redis.resume();
    is_healthy(&service).await;
    tokio::task::block_in_place(|| redis.kill());
    is_unhealthy(&service, "cannot be reached").await;
    tokio::task::block_in_place(|| redis.restart());
    is_healthy(&service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_503_without_enough_replicas() {
    let (master, replica) = pair().await;
    let url = master.url(0);
    let waiting =
        [("store.url", url.as_str()), ("store.wait_replicas", "1"), ("store.wait_timeout_ms", "500")];
    let service = Service::start(&waiting).await;
    is_healthy(&service).await;
    replica.suspend();
    is_unhealthy(&service, "too few replicas").await;
    replica.resume();
    is_healthy(&service).await;
}
