//! Limits on size, number and concurrency.

use test_support::redis_server::RedisServer;
use tokio::time::{Duration, Instant};

use super::check;
use crate::service::{CALLBACKS, Kind, Raw, Service, on_every_deployment, until};

const MEBIBYTE: usize = 1024 * 1024;

on_every_deployment!(body_limit_is_exact);

/// A JSON string of this many bytes.
fn text_of(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes - 2))
}

fn head(token: &str, rest: &str) -> String {
    format!(
        "POST {CALLBACKS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-callback-token: {token}\r\n{rest}\r\n\r\n"
    )
}

fn chunked(token: &str, body: &str) -> String {
    let (one, two) = body.split_at(body.len() / 2);
    let head = head(token, "transfer-encoding: chunked");
    format!("{head}{:x}\r\n{one}\r\n{:X}\r\n{two}\r\n0\r\n\r\n", one.len(), two.len())
}

async fn body_limit_is_exact(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let (exact, more) = (text_of(MEBIBYTE), text_of(MEBIBYTE + 1));
    let refused = (413, "BODY_TOO_LARGE".to_owned());
    for _ in 0..2 {
        let item = deployment.any().tool(&conversation).await;
        check([(
            "a byte more",
            deployment.any().callback(&item.token, more.clone()),
            (413, "BODY_TOO_LARGE"),
        )])
        .await;
        let reply = Raw::say(deployment.any().public, chunked(&item.token, &more)).await;
        assert_eq!(reply.verdict(), refused, "a byte more, in chunks");
        let announced = head(&item.token, "content-length: 1048577\r\nexpect: 100-continue");
        let reply = Raw::say(deployment.any().public, announced).await;
        assert_eq!(reply.verdict(), refused, "announced, and not sent");
        let huge = head(&item.token, "content-length: 9223372036854775807");
        let reply = Raw::say(deployment.any().public, huge).await;
        assert_eq!(reply.verdict(), refused, "announced, and larger than any memory");
        if item.sequence == 1 {
            check([("exactly", deployment.any().callback(&item.token, exact.clone()), (202, "delivered"))])
                .await;
        } else {
            let reply = Raw::say(deployment.any().public, chunked(&item.token, &exact)).await;
            assert_eq!(reply.verdict(), (202, "delivered".to_owned()), "exactly, in chunks");
        }
    }
    for envelope in deployment.any().channel(&conversation, 2).await {
        assert!(envelope.contains(&format!("\"result\":{exact},")));
    }
}

#[tokio::test]
async fn expect_100_continue_is_answered() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let mut raw = Raw::connect(service.public).await;
    raw.send(head(&item.token, "content-length: 1\r\nexpect: 100-continue")).await;
    raw.interim("HTTP/1.1 100 Continue\r\n\r\n").await;
    raw.send("7").await;
    assert_eq!(raw.reply().await.verdict(), (202, "delivered".to_owned()));
}

/// A service with this `http.max_requests_in_flight`.
async fn narrow(redis: &RedisServer, at_once: &str) -> Service {
    let url = redis.url(0);
    Service::start(&[("store.url", &url), ("http.max_requests_in_flight", at_once)]).await
}

#[tokio::test]
async fn requests_over_the_in_flight_limit_are_refused() {
    let redis = RedisServer::start();
    let service = narrow(&redis, "2").await;
    let conversation = service.open().await;
    let mut items = Vec::new();
    for _ in 0..3 {
        items.push(service.tool(&conversation).await);
    }
    redis.suspend();
    let first_two = async {
        let (first, second) =
            (service.callback(&items[0].token, "0"), service.callback(&items[1].token, "1"));
        tokio::join!(first.verdict(), second.verdict())
    };
    let refused = async {
        until("two are under way", async || {
            // Without a valid token, the store is not called.
            service.callback("cbt_x", "3").verdict().await == (503, "OVERLOADED".to_owned())
        })
        .await;
        let third = service.callback(&items[2].token, "3").verdict().await;
        assert_eq!(third, (503, "OVERLOADED".to_owned()));
        check([("life is no work", service.provider("GET", "/health/live"), (200, "ok"))]).await;
        redis.resume();
    };
    let (taken, ()) = tokio::join!(first_two, refused);
    assert_eq!((taken.0.0, taken.1.0), (202, 202), "{taken:?}");
    assert_eq!(service.state(&items[2]).await, "awaiting");
    check([("it is taken now", service.callback(&items[2].token, "2"), (202, "delivered"))]).await;
    assert!(service.channel(&conversation, 3).await[2].contains("\"result\":2,"));
}

#[tokio::test]
async fn overload_refusal_is_delayed_and_delays_no_other() {
    let redis = RedisServer::start();
    let service = narrow(&redis, "1").await;
    let item = service.fresh_tool().await;
    redis.suspend();
    let mut first = Raw::connect(service.public).await;
    first.send(head(&item.token, "content-length: 1") + "1").await;
    until("it is in flight", async || {
        service.callback("cbt_x", "3").verdict().await == (503, "OVERLOADED".to_owned())
    })
    .await;
    let sent = Instant::now();
    let mut refused = Raw::connect(service.public).await;
    refused.send(head("cbt_x", "content-length: 1") + "3").await;
    check([("health checks are not delayed", service.provider("GET", "/health/live"), (200, "ok"))]).await;
    assert_eq!(refused.reply().await.verdict(), (503, "OVERLOADED".to_owned()));
    assert!(sent.elapsed() >= Duration::from_millis(100), "{:?}", sent.elapsed());
    redis.resume();
    assert_eq!(first.reply().await.verdict(), (202, "delivered".to_owned()));
}

/// Starts a callback and leaves its body unfinished.
async fn slow(service: &Service, token: &str) -> Raw {
    let mut raw = Raw::connect(service.public).await;
    raw.send(head(token, "content-length: 10") + "[").await;
    raw
}

#[tokio::test]
async fn unfinished_bodies_hold_no_in_flight_permit() {
    let service = Service::start(&[("http.max_requests_in_flight", "1")]).await;
    let item = service.fresh_tool().await;
    let mut others = Vec::new();
    for _ in 0..50 {
        others.extend([slow(&service, "").await, slow(&service, "cbt_x").await]);
        others.push(slow(&service, &item.token).await);
    }
    check([("it does not wait for them", service.callback(&item.token, "1"), (202, "delivered"))]).await;
    assert!(others.iter().all(Raw::is_silent), "none of them is refused for being slow");
}

#[tokio::test]
async fn anonymous_bodies_have_a_separate_budget() {
    let flags = [("http.max_body_bytes", "8192"), ("http.max_buffered_bytes", "98304")];
    let service = Service::start(&flags).await;
    let (item, other) = (service.fresh_tool().await, service.fresh_tool().await);
    let mut anonymous = Vec::new();
    for _ in 0..6 {
        anonymous.push(slow(&service, "").await);
    }
    let in_body = format!("{{\"callbackToken\":\"{}\"}}", item.token);
    let late = || service.provider("POST", CALLBACKS).json(in_body.clone());
    until("the budget is used up", async || late().verdict().await == (503, "OVERLOADED".to_owned())).await;
    check([("a token in the head", service.callback(&other.token, "1"), (202, "delivered"))]).await;
    for raw in &mut anonymous {
        let reply = raw.reply().await;
        assert_eq!(
            reply.verdict(),
            (408, "REQUEST_TIMEOUT".to_owned()),
            "they are slower than the minimum rate"
        );
        assert_eq!(reply.header("connection"), Some("close"));
    }
    check([("the budget is free again", late(), (202, "delivered"))]).await;
}

#[tokio::test]
async fn large_bodies_over_the_budget_are_refused() {
    let flags = [("http.max_body_bytes", "32768"), ("http.max_buffered_bytes", "393216")];
    let service = Service::start(&flags).await;
    let item = service.fresh_tool().await;
    let almost_all = head("cbt_x", "content-length: 30000") + &"x".repeat(29_999);
    let mut others = Vec::new();
    for _ in 0..8 {
        let mut raw = Raw::connect(service.public).await;
        raw.send(&almost_all).await;
        others.push(raw);
    }
    let refused = others.iter_mut().map(Raw::reply);
    let (first, ..) = futures_util::future::select_all(refused.map(Box::pin)).await;
    assert_eq!(first.verdict(), (503, "OVERLOADED".to_owned()));
    check([("who is known has other room", service.callback(&item.token, "1"), (202, "delivered"))]).await;
}

#[tokio::test]
async fn idle_connection_is_closed_for_a_new_one() {
    let service = Service::start(&[("http.max_connections", "3")]).await;
    let get = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    let item = service.fresh_tool().await;
    let mut busy = slow(&service, &item.token).await;
    let mut silent = Raw::connect(service.public).await;
    let mut idle = Raw::connect(service.public).await;
    idle.send(get).await;
    assert_eq!(idle.reply().await.verdict(), (200, "ok".to_owned()));
    let mut new = Raw::connect(service.public).await;
    new.send(get).await;
    assert_eq!(new.reply().await.verdict(), (200, "ok".to_owned()));
    for raw in [&mut silent, &mut idle] {
        assert_eq!(raw.closed().await, b"");
    }
    busy.send("1,2,3,45]").await;
    assert_eq!(busy.reply().await.verdict().0, 202, "a request in flight is not disturbed");
}

#[tokio::test]
async fn busy_connections_stay_and_new_ones_wait() {
    let service = Service::start(&[("http.max_connections", "1")]).await;
    let item = service.fresh_tool().await;
    let mut busy = slow(&service, &item.token).await;
    let mut new = Raw::connect(service.public).await;
    new.send("GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert!(new.is_silent(), "it is not served yet");
    busy.send("1,2,3,45]").await;
    assert_eq!(busy.reply().await.verdict().0, 202);
    assert_eq!(new.reply().await.verdict(), (200, "ok".to_owned()));
}
