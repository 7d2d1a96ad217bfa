//! Outages of the store, and recovery.

use std::collections::BTreeSet;

use serde_json::json;
use test_support::redis_server::RedisServer;

use super::check;
use crate::service::{Service, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callback_succeeds_after_a_store_outage() {
    let mut redis = RedisServer::durable();
    let service = Service::on(&redis).await;
    let conversation = service.open().await;
    let (first, second) = (service.tool(&conversation).await, service.tool(&conversation).await);
    check([("before", service.callback(&first.token, "1"), (202, "delivered"))]).await;
    redis.kill();
    until("it is noticed", async || {
        let reply = service.callback(&second.token, "2").send().await;
        let told = reply.verdict();
        assert!(
            told.0 == 503 && ["STORE_UNAVAILABLE", "OUTCOME_UNKNOWN"].contains(&told.1.as_str()),
            "{told:?}"
        );
        told.1 == "STORE_UNAVAILABLE"
    })
    .await;
    let path = format!("/conversations/{conversation}");
    let unavailable = (503, "STORE_UNAVAILABLE");
    check([
        ("a callback", service.callback(&second.token, "2"), unavailable),
        ("a retry", service.callback(&first.token, "1"), unavailable),
        ("a forged token costs no call", service.callback("cbt_x", "2"), (401, "CALLBACK_TOKEN_INVALID")),
        ("life", service.provider("GET", "/health/live"), (200, "ok")),
        ("opening", service.platform("PUT", &path), unavailable),
        ("showing", service.platform("GET", &path), unavailable),
        ("ending", service.platform("DELETE", &path), unavailable),
        ("issuing", service.issuing(&conversation, &serde_json::json!({"kind": "tool"})), unavailable),
        ("an item", service.platform("GET", &second.path()), unavailable),
        ("cancelling", service.platform("DELETE", &second.path()), unavailable),
        ("events", service.platform("GET", &format!("{path}/events")), unavailable),
    ])
    .await;
    until("health tells it", async || service.provider("GET", "/health").send().await.status == 503).await;
    check([("health on the other side", service.health(), unavailable)]).await;
    redis.restart();
    until("it is back", async || service.provider("GET", "/health").send().await.status == 200).await;
    check([
        ("what was delivered", service.callback(&first.token, "1"), (200, "delivered")),
        ("with another body", service.callback(&first.token, "7"), (409, "CALLBACK_TOKEN_USED")),
        ("what was not", service.callback(&second.token, "2"), (202, "delivered")),
    ])
    .await;
    let channel = service.channel(&conversation, 2).await;
    assert!(channel[0].contains("\"result\":1,") && channel[1].contains("\"result\":2,"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_resolves_a_lost_store_reply() {
    let redis = RedisServer::start();
    let timeout = ("store.response_timeout_ms", "500");
    let service = Service::start(&[("store.url", &redis.url(0)), timeout]).await;
    let conversation = service.open().await;
    let item = service.tool(&conversation).await;
    redis.suspend();
    check([("asked, and no answer", service.callback(&item.token, "1"), (503, "OUTCOME_UNKNOWN"))]).await;
    redis.resume();
    until("it is told", async || service.callback(&item.token, "1").send().await.status != 503).await;
    let reply = service.callback(&item.token, "1").send().await;
    assert_eq!(reply.verdict(), (200, "delivered".to_owned()));
    assert_eq!(reply.json()["replayed"], true);
    check([("another body", service.callback(&item.token, "2"), (409, "CALLBACK_TOKEN_USED"))]).await;
    service.end(&conversation).await;
    assert_eq!(service.events(&conversation, "?from=0").await.rest().await.len(), 2, "once, and the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_says_whether_an_issue_of_unknown_outcome_can_be_repeated() {
    let redis = RedisServer::start();
    let timeout = ("store.response_timeout_ms", "500");
    let service = Service::start(&[("store.url", &redis.url(0)), timeout]).await;
    let conversation = service.open().await;
    let work = json!({"kind": "tool"});
    let with_key = service.issuing(&conversation, &work).header("idempotency-key", "one");
    redis.suspend();
    let replies = tokio::join!(service.issuing(&conversation, &work).send(), with_key.send());
    redis.resume();
    for (reply, expected) in [(replies.0, "can issue the work twice"), (replies.1, "this is safe")] {
        assert_eq!(reply.verdict(), (503, "OUTCOME_UNKNOWN".to_owned()));
        assert!(reply.text().contains(expected), "{}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_killed_under_load_loses_and_duplicates_nothing() {
    const ITEMS: usize = 60;
    let mut redis = RedisServer::durable();
    let service = Service::on(&redis).await;
    let conversation = service.open().await;
    let mut items = Vec::new();
    for _ in 0..ITEMS {
        items.push(service.tool(&conversation).await);
    }
    let posts = items.iter().rev().map(|item| {
        let service = &service;
        async move {
            until("it is taken", async || {
                let told = service.callback(&item.token, item.sequence.to_string()).verdict().await;
                let known = [(202, "held"), (202, "delivered"), (200, "held"), (200, "delivered")];
                let lost = [(503, "STORE_UNAVAILABLE"), (503, "OUTCOME_UNKNOWN")];
                let told = (told.0, told.1.as_str());
                assert!(known.contains(&told) || lost.contains(&told), "{told:?}");
                known.contains(&told)
            })
            .await;
        }
    });
    let killed = async {
        until("some are held", async || {
            redis::cmd("DBSIZE").query::<u64>(&mut redis.connection(0)).unwrap() > 5
        })
        .await;
        tokio::task::block_in_place(|| {
            redis.kill();
            redis.restart();
        });
    };
    tokio::join!(futures_util::future::join_all(posts), killed);
    let channel = service.channel(&conversation, ITEMS).await;
    let results: Vec<String> = channel
        .iter()
        .map(|data| serde_json::from_str::<serde_json::Value>(data).unwrap()["result"].to_string())
        .collect();
    assert_eq!(results, (1..=ITEMS).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(results.iter().collect::<BTreeSet<_>>().len(), ITEMS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_starts_before_its_store() {
    let mut redis = RedisServer::durable();
    redis.kill();
    let service = Service::on(&redis).await;
    check([
        ("health", service.provider("GET", "/health"), (503, "STORE_UNAVAILABLE")),
        ("opening", service.platform("PUT", "/conversations/early"), (503, "STORE_UNAVAILABLE")),
    ])
    .await;
    redis.restart();
    until("it is there", async || service.provider("GET", "/health").send().await.status == 200).await;
    let item = service.fresh_tool().await;
    check([("a callback", service.callback(&item.token, "1"), (202, "delivered"))]).await;
}
