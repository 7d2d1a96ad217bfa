//! Each refusal of the contract's table whose reason is the token, the item or the conversation.

use callback_ingress::clock::{Clock, ManualClock};
use callback_ingress::domain::time::Timestamp;
use serde_json::json;
use test_support::redis_server::RedisServer;

use super::check;
use crate::service::{CALLBACKS, Kind, Service, on_every_deployment, until};

on_every_deployment!(
    cancelled_item_accepts_no_callback,
    timed_out_item_and_expired_token_are_refused,
    ended_conversation_accepts_only_repetitions,
    result_over_the_held_limit_can_be_retried,
    token_changed_in_any_character_is_refused,
);

const SOON: &str = "{\"kind\":\"tool\",\"timeoutMs\":1}";

async fn cancelled_item_accepts_no_callback(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let item = deployment.any().tool(&conversation).await;
    assert_eq!(deployment.any().platform("DELETE", &item.path()).send().await.status, 200);
    check([
        ("cancelled", deployment.any().callback(&item.token, "1"), (409, "WORK_ITEM_CANCELLED")),
        ("and again", deployment.any().callback(&item.token, "1"), (409, "WORK_ITEM_CANCELLED")),
    ])
    .await;
}

async fn timed_out_item_and_expired_token_are_refused(kind: Kind) {
    let deployment = kind.deploy(&[("token.replay_window_ms", "2000")]).await;
    let conversation = deployment.any().open().await;
    let item = deployment.any().issue(&conversation, &serde_json::from_str(SOON).unwrap()).await;
    until("the deadline has passed", async || deployment.any().state(&item).await == "released").await;
    let late = deployment.any().callback(&item.token, "1");
    check([("timed out", late.clone(), (409, "WORK_ITEM_TIMED_OUT"))]).await;
    until("the token has expired", async || late.clone().send().await.status == 401).await;
    check([("expired", late, (401, "CALLBACK_TOKEN_EXPIRED"))]).await;
}

async fn ended_conversation_accepts_only_repetitions(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let mut items = Vec::new();
    for _ in 0..3 {
        items.push(deployment.any().tool(&conversation).await);
    }
    check([
        ("delivered", deployment.any().callback(&items[0].token, "0"), (202, "delivered")),
        ("held", deployment.any().callback(&items[2].token, "2"), (202, "held")),
    ])
    .await;
    deployment.any().end(&conversation).await;
    check([
        (
            "awaiting when it ended",
            deployment.any().callback(&items[1].token, "1"),
            (409, "CONVERSATION_ENDED"),
        ),
        ("held when it ended", deployment.any().callback(&items[2].token, "2"), (409, "CONVERSATION_ENDED")),
        ("delivered before it ended", deployment.any().callback(&items[0].token, "0"), (200, "delivered")),
        ("with another body", deployment.any().callback(&items[0].token, "7"), (409, "CALLBACK_TOKEN_USED")),
    ])
    .await;
}

async fn result_over_the_held_limit_can_be_retried(kind: Kind) {
    for (limit, value) in [("gate.max_held_items", "1"), ("gate.max_held_bytes", "10")] {
        let deployment = kind.deploy(&[(limit, value)]).await;
        let conversation = deployment.any().open().await;
        let mut items = Vec::new();
        for _ in 0..3 {
            items.push(deployment.any().tool(&conversation).await);
        }
        let [first, second, third] = items.try_into().unwrap();
        check([
            ("room for one", deployment.any().callback(&second.token, "\"1234567\""), (202, "held")),
            ("and no more", deployment.any().callback(&third.token, "\"abcdefg\""), (503, "HELD_LIMIT")),
            (
                "not for a retry either",
                deployment.any().callback(&third.token, "\"abcdefg\""),
                (503, "HELD_LIMIT"),
            ),
            (
                "what is known takes no room",
                deployment.any().callback(&second.token, "\"1234567\""),
                (200, "held"),
            ),
            (
                "what releases takes none",
                deployment.any().callback(&first.token, "\"1234567890\""),
                (202, "delivered"),
            ),
            ("now there is room", deployment.any().callback(&third.token, "\"abcdefg\""), (202, "delivered")),
        ])
        .await;
    }
}

async fn token_changed_in_any_character_is_refused(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let item = deployment.any().tool(&conversation).await;
    let refused = (401, "CALLBACK_TOKEN_INVALID");
    for at in 0..item.token.len() {
        let mut forged = item.token.clone();
        let other = if &forged[at..=at] == "A" { "B" } else { "A" };
        forged.replace_range(at..=at, other);
        check([("one character", deployment.any().callback(&forged, "1"), refused)]).await;
    }
    // The last character's unused bits must be zero, so that a token has one base64 form.
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=";
    for last in alphabet.chars().filter(|&last| !item.token.ends_with(last)) {
        let forged = format!("{}{last}", &item.token[..item.token.len() - 1]);
        check([("trailing bits", deployment.any().callback(&forged, "1"), refused)]).await;
    }
    let escaped = item.token.replacen('c', "%63", 1);
    let post = |path: &str| deployment.any().provider("POST", path).json("1");
    check([
        ("longer", deployment.any().callback(&format!("{}A", item.token), "1"), refused),
        ("shorter", deployment.any().callback(&item.token[..item.token.len() - 1], "1"), refused),
        ("padded", deployment.any().callback(&format!("{}=", item.token), "1"), refused),
        ("in capitals", deployment.any().callback(&item.token.to_uppercase(), "1"), refused),
        ("without its prefix", deployment.any().callback(&item.token[4..], "1"), refused),
        ("not ASCII", deployment.any().callback("cbt_é", "1"), refused),
        ("escaped in the path", post(&format!("{CALLBACKS}/{escaped}")), refused),
        ("a slash in the path", post(&format!("{CALLBACKS}/{}%2F", item.token)), refused),
        ("a NUL in the path", post(&format!("{CALLBACKS}/%00")), refused),
        ("no string in the body", post(CALLBACKS).body("{\"callbackToken\":7}"), refused),
        ("a NUL in the body", post(CALLBACKS).body("{\"callbackToken\":\"\\u0000\"}"), refused),
        ("the token itself", deployment.any().callback(&item.token, "1"), (202, "delivered")),
    ])
    .await;
}

#[tokio::test]
async fn token_without_a_stored_item_is_refused() {
    // Two services with the same keys and separate memory stores.
    let (issuer, other) = (Service::on_memory().await, Service::on_memory().await);
    let item = issuer.fresh_tool().await;
    check([("no conversation", other.callback(&item.token, "1"), (409, "CONVERSATION_ENDED"))]).await;
    other.platform("PUT", &format!("/conversations/{}", item.conversation)).send().await;
    check([("no item", other.callback(&item.token, "1"), (409, "WORK_ITEM_UNKNOWN"))]).await;
}

#[tokio::test]
async fn idle_conversation_accepts_no_callback() {
    let clock = ManualClock::at(Timestamp::from_millis(1_800_000_000_000));
    let service = Service::with_clock(&[], Clock::Manual(clock.clone())).await;
    let call = service.platform("PUT", "/conversations/idle").json("{\"idleTtlMs\":1000}");
    assert_eq!(call.send().await.status, 201);
    let item = service.issue("idle", &json!({"kind": "tool", "timeoutMs": 500})).await;
    clock.advance(999);
    assert_eq!(service.shown("/conversations/idle").await["state"], "live");
    clock.advance(1);
    check([("idle", service.callback(&item.token, "1"), (409, "CONVERSATION_ENDED"))]).await;
}

#[tokio::test]
async fn token_of_a_retired_key_is_refused() {
    let key = |id: &str, letter: &str| format!("{id}:{}=", letter.repeat(43));
    let keys = |keys: &[String]| format!("[\"{}\"]", keys.join("\",\""));
    let redis = RedisServer::start();
    let with = async |ring: &[String]| {
        Service::start(&[("store.url", &redis.url(0)), ("token.keys", &keys(ring))]).await
    };
    let (old, new) = (key("old", "A"), key("new", "A"));
    let before = with(std::slice::from_ref(&old)).await;
    let conversation = before.open().await;
    let (first, second) = (before.tool(&conversation).await, before.tool(&conversation).await);
    let during = with(&[new.clone(), old]).await;
    check([("both keys", during.callback(&first.token, "1"), (202, "delivered"))]).await;
    let after = with(&[new]).await;
    check([
        ("retired", after.callback(&second.token, "2"), (401, "CALLBACK_TOKEN_INVALID")),
        ("not retired elsewhere", during.callback(&second.token, "2"), (202, "delivered")),
    ])
    .await;
}

#[tokio::test]
async fn corrupt_data_is_an_internal_error_without_details() {
    let redis = RedisServer::start();
    let service = Service::on(&redis).await;
    let item = service.fresh_tool().await;
    let mut connection = redis.connection(0);
    let keys: Vec<String> = ::redis::cmd("KEYS").arg("*:conversation:*").query(&mut connection).unwrap();
    ::redis::cmd("SET").arg(&keys[0]).arg("x").exec(&mut connection).unwrap();
    let reply = service.callback(&item.token, "1").send().await;
    assert_eq!(reply.verdict(), (500, "INTERNAL".to_owned()));
    let port = format!(":{}", redis.port());
    for inside in ["WRONGTYPE", "cb:", "redis", &port, &item.token] {
        assert!(!reply.text().contains(inside), "{}", reply.text());
    }
}
