//! The view of a conversation and its items.

use callback_ingress::clock::{Clock, ManualClock};
use callback_ingress::domain::time::Timestamp;
use serde_json::{Value, json};
use test_support::redis_server::{DATABASES, RedisServer};

use super::fields;
use crate::service::{Item, Service, millis};

const START: u64 = 1_800_000_000_000;

/// The sequences of a list of items.
fn sequences(items: &Value) -> Vec<u64> {
    items.as_array().unwrap().iter().map(|item| item["sequence"].as_u64().unwrap()).collect()
}

async fn shows_what_is_awaiting_and_what_is_held(service: &Service, clock: &ManualClock) {
    let path = "/conversations/seen";
    assert_eq!(service.platform("PUT", path).send().await.status, 201);
    let shown = service.shown(path).await;
    assert_eq!(
        fields(&shown),
        [
            "awaiting",
            "channel",
            "conversationId",
            "held",
            "heldBytes",
            "idleAt",
            "nextSequence",
            "openedAt",
            "state",
            "waitingFor",
        ]
    );
    assert_eq!((&shown["nextSequence"], &shown["waitingFor"]), (&json!(1), &json!(1)));
    let mut items: Vec<Item> = Vec::new();
    for turn in 1..=4 {
        let asked = json!({"kind": "llm", "turnId": format!("turn-{turn}"), "timeoutMs": 50_000});
        items.push(service.issue("seen", &asked).await);
    }
    for (index, body) in [(2, "\"four\""), (1, "\"é\"")] {
        clock.advance(1_000);
        assert_eq!(service.callback(&items[index].token, body).send().await.status, 202);
    }
    clock.advance(500);
    let shown = service.shown(path).await;
    assert_eq!((&shown["nextSequence"], &shown["waitingFor"]), (&json!(5), &json!(1)));
    assert_eq!(sequences(&shown["awaiting"]), [1, 4]);
    assert_eq!(sequences(&shown["held"]), [2, 3]);
    assert_eq!(shown["heldBytes"], 6 + 4);
    let (second, third) = (&shown["held"][0], &shown["held"][1]);
    assert_eq!((&second["ageMs"], &second["bytes"]), (&json!(500), &json!(4)));
    assert_eq!((&third["ageMs"], &third["bytes"]), (&json!(1_500), &json!(6)));
    assert_eq!(
        fields(second),
        [
            "ageMs",
            "bytes",
            "conversationId",
            "deadline",
            "issuedAt",
            "kind",
            "outcome",
            "receivedAt",
            "sequence",
            "state",
            "turnId",
            "workItemId",
        ]
    );
    let first = &shown["awaiting"][0];
    assert_eq!(
        fields(first),
        ["conversationId", "deadline", "issuedAt", "kind", "sequence", "state", "turnId", "workItemId"]
    );
    assert_eq!(first["turnId"], "turn-1");
    assert_eq!(millis(&first["deadline"]), START + 50_000);
    assert_eq!(second["outcome"], "succeeded");
    assert_eq!(millis(&second["receivedAt"]), START + 2_000);
    assert_eq!(service.shown(&items[1].path()).await["state"], "held");
    assert_eq!(service.callback(&items[0].token, "\"one\"").send().await.status, 202);
    let shown = service.shown(path).await;
    assert_eq!((&shown["nextSequence"], &shown["waitingFor"]), (&json!(5), &json!(4)));
    assert_eq!((sequences(&shown["awaiting"]), sequences(&shown["held"])), (vec![4], vec![]));
    assert_eq!(shown["heldBytes"], 0);
}

#[tokio::test]
async fn inspection_on_memory_shows_awaiting_and_held_items() {
    let clock = ManualClock::at(Timestamp::from_millis(START));
    let service = Service::with_clock(&[], Clock::Manual(clock.clone())).await;
    shows_what_is_awaiting_and_what_is_held(&service, &clock).await;
}

#[tokio::test]
async fn inspection_on_redis_shows_awaiting_and_held_items() {
    // The last database of the shared server, because other tests number the databases from the first.
    let url = RedisServer::shared().url(DATABASES - 1);
    let clock = ManualClock::at(Timestamp::from_millis(START));
    let service = Service::with_clock(&[("store.url", &url)], Clock::Manual(clock.clone())).await;
    shows_what_is_awaiting_and_what_is_held(&service, &clock).await;
}
