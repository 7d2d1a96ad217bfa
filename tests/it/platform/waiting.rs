//! The list of the conversations that hold results.

use callback_ingress::clock::{Clock, ManualClock};
use callback_ingress::domain::time::Timestamp;
use serde_json::{Value, json};
use test_support::redis_server::{DATABASES, RedisServer};

use super::fields;
use crate::service::{Service, millis};

const START: u64 = 1_800_000_000_000;
const LIST: &str = "/conversations?waiting=true";

fn ids(list: &Value) -> Vec<&str> {
    let conversations = list["conversations"].as_array().unwrap();
    conversations.iter().map(|waiting| waiting["conversationId"].as_str().unwrap()).collect()
}

async fn lists_who_blocks(service: &Service, clock: &ManualClock) {
    assert_eq!(service.shown(LIST).await, json!({"conversations": [], "truncated": false}));
    let mut blocking = Vec::new();
    for conversation in ["waiting-1", "waiting-2"] {
        assert_eq!(
            service.platform("PUT", &format!("/conversations/{conversation}")).send().await.status,
            201
        );
        let asked = json!({
            "kind": "tool", "name": "weather", "toolCallId": "call_7", "turnId": "turn-3", "timeoutMs": 50_000,
        });
        blocking.push(service.issue(conversation, &asked).await);
        let second = service.issue(conversation, &json!({"kind": "llm", "timeoutMs": 50_000})).await;
        clock.advance(1_000);
        assert_eq!(service.callback(&second.token, "\"é\"").send().await.status, 202);
    }
    clock.advance(1_000);
    let list = service.shown(LIST).await;
    assert_eq!((ids(&list), &list["truncated"]), (vec!["waiting-1", "waiting-2"], &json!(false)));
    let first = &list["conversations"][0];
    assert_eq!(fields(first), ["conversationId", "held", "since", "waitingFor"]);
    assert_eq!(first["held"], json!({"count": 1, "bytes": 4}));
    assert_eq!(millis(&first["since"]), START + 1_000);
    let waiting_for = &first["waitingFor"];
    assert_eq!(
        fields(waiting_for),
        ["deadline", "issuedAt", "kind", "name", "sequence", "toolCallId", "turnId", "workItemId"]
    );
    for (field, expected) in [
        ("sequence", json!(1)),
        ("workItemId", json!(blocking[0].id)),
        ("kind", json!("tool")),
        ("name", json!("weather")),
        ("toolCallId", json!("call_7")),
        ("turnId", json!("turn-3")),
    ] {
        assert_eq!(waiting_for[field], expected, "{field}");
    }
    assert_eq!((millis(&waiting_for["issuedAt"]), millis(&waiting_for["deadline"])), (START, START + 50_000));

    let one = service.shown(&format!("{LIST}&limit=1")).await;
    assert_eq!((ids(&one), &one["truncated"]), (vec!["waiting-1"], &json!(true)));
    assert_eq!(ids(&service.shown(&format!("{LIST}&limit=100")).await).len(), 2);
    assert_eq!(service.callback(&blocking[0].token, "1").send().await.status, 202);
    assert_eq!(ids(&service.shown(LIST).await), ["waiting-2"]);
    service.end("waiting-2").await;
    assert_eq!(ids(&service.shown(LIST).await), [""; 0]);

    // Only what is known is shown.
    let conversation = service.open().await;
    service.tool(&conversation).await;
    let second = service.tool(&conversation).await;
    assert_eq!(service.callback(&second.token, "1").send().await.status, 202);
    let list = service.shown(LIST).await;
    assert_eq!(
        fields(&list["conversations"][0]["waitingFor"]),
        ["deadline", "issuedAt", "kind", "sequence", "workItemId"]
    );
    service.end(&conversation).await;
}

#[tokio::test]
async fn waiting_conversations_are_listed_on_memory() {
    let clock = ManualClock::at(Timestamp::from_millis(START));
    let service = Service::with_clock(&[], Clock::Manual(clock.clone())).await;
    lists_who_blocks(&service, &clock).await;
}

#[tokio::test]
async fn waiting_conversations_are_listed_on_redis() {
    // The last database but one of the shared server: another test uses the last.
    let url = RedisServer::shared().url(DATABASES - 2);
    let clock = ManualClock::at(Timestamp::from_millis(START));
    let service = Service::with_clock(&[("store.url", &url)], Clock::Manual(clock.clone())).await;
    lists_who_blocks(&service, &clock).await;
}

#[tokio::test]
async fn list_without_a_valid_filter_is_refused() {
    let service = Service::on_memory().await;
    let must_be_true = "waiting: must be `true`: only waiting conversations can be listed";
    let out_of_range = "limit: must be a whole number from 1 to 100";
    for (query, message) in [
        ("", must_be_true),
        ("?limit=5", must_be_true),
        ("?waiting", must_be_true),
        ("?waiting=", must_be_true),
        ("?waiting=false", must_be_true),
        ("?waiting=TRUE", must_be_true),
        ("?waiting=1", must_be_true),
        ("?waiting=cbt_AQJrMQ", must_be_true),
        ("?waiting=true&waiting=true", "waiting: must not be repeated"),
        ("?Waiting=true", "Waiting: unknown query parameter; expected `waiting`, `limit`"),
        ("?waiting=true&state=held", "state: unknown query parameter; expected `waiting`, `limit`"),
        ("?waiting=true&limit=", out_of_range),
        ("?waiting=true&limit=0", out_of_range),
        ("?waiting=true&limit=101", out_of_range),
        ("?waiting=true&limit=-1", out_of_range),
        ("?waiting=true&limit=%2B1", out_of_range),
        ("?waiting=true&limit=1.0", out_of_range),
        ("?waiting=true&limit=ten", out_of_range),
        ("?waiting=true&limit=99999999999999999999", out_of_range),
        ("?waiting=true&limit=%00", out_of_range),
        ("?waiting=true&limit=%FF", "limit: must be UTF-8, percent-encoded"),
    ] {
        let reply = service.platform("GET", &format!("/conversations{query}")).send().await;
        assert_eq!(reply.verdict(), (400, "REQUEST_INVALID".to_owned()), "{query}");
        assert_eq!(reply.message(), message, "{query}");
    }
    let reply = service.platform("POST", LIST).send().await;
    assert_eq!(reply.verdict(), (405, "METHOD_NOT_ALLOWED".to_owned()));
    assert_eq!(reply.allowed_methods(), ["GET", "HEAD"]);
    let reply = service.stranger("GET", LIST).send().await;
    assert_eq!(reply.verdict(), (401, "SERVICE_KEY_MISSING".to_owned()));
}
