//! Replies while the service drains.

use tokio::time::{Duration, Instant};

use super::check;
use crate::service::{CALLBACKS, Kind, Raw, Service, on_every_deployment, until};

on_every_deployment!(draining_refuses_new_requests_and_finishes_others);

fn slow_head(token: &str) -> String {
    format!(
        "POST {CALLBACKS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-callback-token: {token}\r\ncontent-length: 3\r\n\r\n1"
    )
}

async fn draining_refuses_new_requests_and_finishes_others(kind: Kind) {
    let deployment =
        kind.deploy(&[("http.drain_grace_ms", "60000"), ("http.drain_timeout_ms", "60000")]).await;
    let service = deployment.any();
    let item = service.fresh_tool().await;
    let mut under_way = Raw::connect(service.public).await;
    under_way.send(slow_head(&item.token)).await;
    // Once a later request is answered, this one has been read.
    check([("still running", service.provider("GET", "/health"), (200, "ok"))]).await;
    until("the slow one is under way", async || {
        let other = service.fresh_tool().await;
        service.callback(&other.token, "1").send().await.status == 202
    })
    .await;
    let late = service.fresh_tool().await;
    service.drain();
    until("draining", async || service.provider("GET", "/health").send().await.status == 503).await;
    check([
        ("health", service.provider("GET", "/health"), (503, "DRAINING")),
        ("life", service.provider("GET", "/health/live"), (200, "ok")),
        ("a new callback", service.callback(&late.token, "1"), (503, "DRAINING")),
        ("even a forged one", service.callback("cbt_x", "1"), (503, "DRAINING")),
        ("the platform", service.platform("PUT", "/conversations/late"), (503, "DRAINING")),
        ("a stranger there", service.stranger("PUT", "/conversations/late"), (401, "SERVICE_KEY_MISSING")),
    ])
    .await;
    under_way.send("23").await;
    assert_eq!(under_way.reply().await.verdict(), (202, "delivered".to_owned()));
    if let Some(redis) = &deployment.redis {
        let other = Service::on(redis).await;
        check([("it was not spent", other.callback(&late.token, "1"), (202, "delivered"))]).await;
        assert!(other.channel(&item.conversation, 1).await[0].contains("\"result\":123,"));
    }
}

#[tokio::test]
async fn drain_ends_after_the_last_response() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let mut under_way = Raw::connect(service.public).await;
    under_way.send(slow_head(&item.token)).await;
    let mut idle = Raw::connect(service.public).await;
    idle.send("GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(idle.reply().await.verdict(), (200, "ok".to_owned()));
    service.drain();
    assert_eq!(idle.closed().await, b"", "a connection without a request is let go");
    under_way.send("23").await;
    let reply = under_way.reply().await;
    assert_eq!(reply.verdict(), (202, "delivered".to_owned()));
    service.ended().await;
}

#[tokio::test]
async fn drain_has_a_time_limit() {
    let service = Service::start(&[("http.drain_timeout_ms", "200")]).await;
    let item = service.fresh_tool().await;
    let mut stuck = Raw::connect(service.public).await;
    stuck.send(slow_head(&item.token)).await;
    check([("still running", service.provider("GET", "/health"), (200, "ok"))]).await;
    let since = Instant::now();
    service.drain();
    service.ended().await;
    let took = since.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}
