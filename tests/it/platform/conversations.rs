//! Opening and ending conversations.

use callback_ingress::clock::{Clock, ManualClock};
use callback_ingress::domain::time::Timestamp;
use serde_json::json;

use super::{check, fields};
use crate::service::{Kind, Service, millis, on_every_deployment};

on_every_deployment!(conversation_is_created_once, ending_counts_dropped_items_and_is_idempotent,);

async fn conversation_is_created_once(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let path = "/conversations/A.b_c:d-9";
    let put = || deployment.any().platform("PUT", path);
    let created = put().send().await;
    assert_eq!(created.status, 201);
    let body = created.json();
    assert_eq!(fields(&body), ["channel", "conversationId", "state"]);
    assert_eq!(body["conversationId"], "A.b_c:d-9");
    assert_eq!(body["state"], "live");
    assert_eq!(body["channel"]["events"], format!("/platform/v1{path}/events"));
    assert_eq!(body["channel"].get("redisStream").is_some(), deployment.redis.is_some());
    let again = put().json("{\"idleTtlMs\":1000}").send().await;
    assert_eq!((again.status.as_u16(), again.json()), (200, body));
    assert_eq!(deployment.any().platform("DELETE", path).send().await.status, 200);
    check([("ended", put(), (409, "CONVERSATION_ENDED"))]).await;
}

async fn ending_counts_dropped_items_and_is_idempotent(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let mut items = Vec::new();
    for _ in 0..6 {
        items.push(deployment.any().tool(&conversation).await);
    }
    for index in [0, 2, 3] {
        let reply = deployment.any().callback(&items[index].token, index.to_string()).send().await;
        assert_eq!(reply.status, 202);
    }
    let ended = deployment.any().end(&conversation).await;
    assert_eq!(
        fields(&ended),
        ["channel", "conversationId", "droppedAwaiting", "droppedHeld", "endedAt", "state"]
    );
    assert_eq!(ended["state"], "ended");
    assert_eq!(ended["droppedHeld"], 2);
    assert_eq!(ended["droppedAwaiting"], 3);
    assert_eq!(deployment.any().end(&conversation).await, ended);
    let shown = deployment.any().shown(&format!("/conversations/{conversation}")).await;
    for field in ["state", "endedAt", "droppedHeld", "droppedAwaiting", "channel"] {
        assert_eq!(shown[field], ended[field], "{field}");
    }
    for (item, state) in items.iter().zip(["released", "dropped", "dropped", "dropped", "dropped", "dropped"])
    {
        assert_eq!(deployment.any().state(item).await, state, "{}", item.sequence);
    }
    let ended = (409, "CONVERSATION_ENDED");
    let asked = json!({"kind": "tool"});
    check([
        ("issuing", deployment.any().issuing(&conversation, &asked), ended),
        ("cancelling", deployment.any().platform("DELETE", &items[1].path()), ended),
    ])
    .await;
    let events = deployment.any().events(&conversation, "?from=0").await.rest().await;
    assert_eq!(events.len(), 2, "the channel can be read, and ends: {events:?}");
}

#[tokio::test]
async fn unknown_conversation_is_not_found() {
    let service = Service::on_memory().await;
    let not_found = (404, "CONVERSATION_NOT_FOUND");
    let item = "/conversations/nobody/work-items/0190163d-8694-739b-aea5-966c26f8ad91";
    check([
        ("showing", service.platform("GET", "/conversations/nobody"), not_found),
        ("ending", service.platform("DELETE", "/conversations/nobody"), not_found),
        ("issuing", service.issuing("nobody", &json!({"kind": "tool"})), not_found),
        ("reading", service.platform("GET", "/conversations/nobody/events"), not_found),
        ("an item", service.platform("GET", item), not_found),
        ("cancelling", service.platform("DELETE", item), not_found),
    ])
    .await;
}

#[tokio::test]
async fn idle_conversation_ends_and_activity_keeps_it() {
    let clock = ManualClock::at(Timestamp::from_millis(1_800_000_000_000));
    let service = Service::with_clock(&[], Clock::Manual(clock.clone())).await;
    let path = "/conversations/idle";
    let put = service.platform("PUT", path).json("{\"idleTtlMs\":1000}");
    assert_eq!(put.send().await.status, 201);
    clock.advance(900);
    assert_eq!(service.platform("PUT", path).send().await.status, 200);
    clock.advance(900);
    service.issue("idle", &json!({"kind": "tool", "timeoutMs": 500})).await;
    clock.advance(999);
    let shown = service.shown(path).await;
    assert_eq!(shown["state"], "live");
    assert_eq!(millis(&shown["idleAt"]), 1_800_000_000_000 + 2_800);
    clock.advance(1);
    let shown = service.shown(path).await;
    assert_eq!(shown["state"], "ended");
    check([
        ("opening", service.platform("PUT", path), (409, "CONVERSATION_ENDED")),
        ("issuing", service.issuing("idle", &json!({"kind": "tool"})), (409, "CONVERSATION_ENDED")),
        ("ending", service.platform("DELETE", path), (200, "")),
    ])
    .await;
}
