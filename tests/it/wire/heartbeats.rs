//! Heartbeats: replies, carriers, bad input, and the progress that event streams get.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{Row, check};
use crate::service::{CALLBACKS, Call, Event, Item, Kind, Service, millis, on_every_deployment, until};

on_every_deployment!(
    heartbeat_returns_the_state_and_spends_nothing,
    heartbeats_are_refused_as_callbacks_are,
    progress_reaches_open_event_streams,
    missed_heartbeat_is_reported_on_the_channel_and_by_inspection,
);

/// The path of heartbeats whose token is not in the path.
fn path() -> String {
    format!("{CALLBACKS}/heartbeat")
}

/// A heartbeat with its token in the header; an empty body has no type.
fn beat<'a>(service: &'a Service, token: &str, body: &str) -> Call<'a> {
    let call = service.provider("POST", &path()).header("x-callback-token", token);
    if body.is_empty() { call } else { call.json(body.to_owned()) }
}

/// Issues an item with this heartbeat timeout.
async fn watched(service: &Service, conversation: &str, heartbeat_timeout_ms: u64) -> Item {
    let asked = json!({"kind": "tool", "timeoutMs": 600_000, "heartbeatTimeoutMs": heartbeat_timeout_ms});
    service.issue(conversation, &asked).await
}

async fn heartbeat_returns_the_state_and_spends_nothing(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let plain = deployment.any().tool(&conversation).await;
    let item = watched(deployment.any(), &conversation, 100_000).await;
    let reply = beat(deployment.any(), &plain.token, "").send().await;
    assert_eq!(reply.verdict(), (200, String::new()));
    let deadline = &plain.issued["deadline"];
    assert_eq!(reply.json(), json!({"state": "awaiting", "deadline": deadline, "cancelRequested": false}));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let reply =
        beat(deployment.any(), &item.token, "{\"message\":\"half\",\"data\":[1]}").send().await.json();
    assert_eq!((&reply["state"], &reply["deadline"]), (&json!("awaiting"), &item.issued["deadline"]));
    let shown = deployment.any().shown(&item.path()).await;
    assert_eq!(shown["heartbeatDeadline"], reply["heartbeatDeadline"]);
    assert_eq!(millis(&shown["heartbeatDeadline"]), millis(&shown["lastHeartbeatAt"]) + 100_000);
    assert!(millis(&shown["lastHeartbeatAt"]) >= millis(&item.issued["issuedAt"]));
    check([("its callback", deployment.any().callback(&item.token, "1"), (202, "held"))]).await;
    let state = async |item: &Item| beat(deployment.any(), &item.token, "{}").send().await.json();
    let settled = json!({"state": "held", "deadline": item.issued["deadline"], "cancelRequested": false});
    assert_eq!(state(&item).await, settled, "it has an outcome, and nothing is wrong");
    check([("the first one's callback", deployment.any().callback(&plain.token, "1"), (202, "delivered"))])
        .await;
    assert_eq!(state(&item).await["state"], "released");
    deployment.any().end(&conversation).await;
    assert_eq!(state(&item).await["state"], "released");
}

async fn heartbeats_are_refused_as_callbacks_are(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let service = deployment.any();
    let conversation = service.open().await;
    let cancelled = watched(service, &conversation, 100_000).await;
    assert_eq!(service.platform("DELETE", &cancelled.path()).send().await.status, 200);
    let silent = watched(service, &conversation, 1).await;
    until("it is silent", async || beat(service, &silent.token, "").send().await.status == 409).await;
    let dropped = service.tool(&conversation).await;
    check([
        ("cancelled", beat(service, &cancelled.token, ""), (409, "WORK_ITEM_CANCELLED")),
        ("silent", beat(service, &silent.token, ""), (409, "WORK_ITEM_TIMED_OUT")),
        ("its callback", service.callback(&silent.token, "1"), (409, "WORK_ITEM_TIMED_OUT")),
    ])
    .await;
    for call in [beat(service, &silent.token, ""), service.callback(&silent.token, "1")] {
        let message = call.send().await.message();
        assert!(message.contains("heartbeat"), "{message}");
    }
    service.end(&conversation).await;
    for item in [&cancelled, &silent, &dropped] {
        check([("ended", beat(service, &item.token, ""), (409, "CONVERSATION_ENDED"))]).await;
    }
}

fn progress(event: &Event) -> Value {
    assert_eq!((event.name.as_str(), event.id.as_str()), ("progress", ""), "{event:?}");
    serde_json::from_str(&event.data).unwrap()
}

async fn progress_reaches_open_event_streams(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let service = deployment.any();
    let conversation = service.open().await;
    let asked = json!({"kind": "tool", "turnId": "t", "toolCallId": "\"c\"", "name": "maps"});
    let item = service.issue(&conversation, &asked).await;
    let mut readers = Vec::new();
    for _ in 0..2 {
        readers.push(deployment.any().events(&conversation, "?from=0").await);
    }
    let body = "{\"data\":{\"at\" :\r\n 1.50},\"message\":\"72 °F\"}";
    let message = |event: &Event| progress(event)["message"].clone();
    for reader in &mut readers {
        // Sent again, at most every 500 ms, until the subscription is there.
        let next = reader.next();
        tokio::pin!(next);
        let event = loop {
            tokio::select! {
                event = &mut next => break event.unwrap(),
                () = tokio::time::sleep(std::time::Duration::from_millis(100)) => {
                    beat(deployment.any(), &item.token, body).send().await;
                }
            }
        };
        let told = progress(&event);
        let at = millis(&told["at"]);
        assert!(at >= millis(&item.issued["issuedAt"]));
        let expected = json!({"sequence": item.sequence, "workItemId": item.id, "turnId": "t", "toolCallId": "\"c\"",
            "name": "maps", "kind": "tool", "message": "72 °F", "data": {"at": 1.5}, "at": told["at"]});
        assert_eq!(told, expected);
        assert!(event.data.contains("{\"at\" :\n 1.50}"), "{}", event.data);
    }
    check([("the result", deployment.any().callback(&item.token, "1"), (202, "delivered"))]).await;
    for reader in &mut readers {
        let event = loop {
            let event = reader.next().await.unwrap();
            if event.name.is_empty() {
                break event;
            }
            assert_eq!(message(&event), "72 °F");
        };
        assert_eq!(event.sequence(), 1, "progress has no sequence");
    }
    let mut again = deployment.any().events(&conversation, "?from=0").await;
    assert_eq!(again.next().await.unwrap().name, "", "progress is not kept");
}

async fn missed_heartbeat_is_reported_on_the_channel_and_by_inspection(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let service = deployment.any();
    let conversation = service.open().await;
    // Far enough apart to see the second one held on a busy machine.
    let [first, second] =
        [watched(service, &conversation, 5_000).await, watched(service, &conversation, 300).await];
    assert_eq!(first.issued["heartbeatTimeoutMs"], 5_000);
    assert_eq!(millis(&first.issued["heartbeatDeadline"]), millis(&first.issued["issuedAt"]) + 5_000);
    beat(service, &first.token, "").send().await;
    let mut shown = Value::Null;
    until("it is silent", async || {
        shown = service.shown(&second.path()).await;
        shown["outcome"] == "timed_out"
    })
    .await;
    assert_eq!(
        (&shown["reason"], &shown["receivedAt"]),
        (&json!("heartbeat"), &second.issued["heartbeatDeadline"])
    );
    assert_eq!((shown.get("heartbeatDeadline"), shown.get("lastHeartbeatAt")), (None, None));
    let listed = service.shown(&format!("/conversations/{conversation}")).await;
    assert_eq!(listed["awaiting"][0]["heartbeatTimeoutMs"], 5_000);
    assert_eq!(listed["held"][0]["reason"], "heartbeat");
    // Without heartbeats, the first item also times out before its deadline.
    let channel = service.channel(&conversation, 2).await;
    for envelope in &channel {
        let envelope: Value = serde_json::from_str(envelope).unwrap();
        assert_eq!((&envelope["outcome"], &envelope["reason"]), (&json!("timed_out"), &json!("heartbeat")));
        let late = millis(&envelope["releasedAt"]) - millis(&envelope["receivedAt"]);
        assert!(late < 10_000, "{late} ms late");
    }
}

#[tokio::test]
async fn every_carrier_carries_a_heartbeat() {
    let service = Service::on_memory().await;
    for carrier in ["header", "query", "body", "path"] {
        let conversation = service.open().await;
        let asked = json!({"kind": "tool", "carrier": carrier, "heartbeatTimeoutMs": 60_000});
        let item = service.issue(&conversation, &asked).await;
        let callback = &item.issued["callback"];
        let url = callback["heartbeatUrl"].as_str().unwrap();
        let mut call =
            service.provider("POST", url.strip_prefix(&format!("http://{}", service.public)).unwrap());
        for (name, value) in callback["headers"].as_object().unwrap() {
            call = call.header(name, value.as_str().unwrap());
        }
        let body = json!({"message": "half", callback["name"].as_str().unwrap(): item.token});
        let body = if carrier == "body" { body.to_string() } else { String::new() };
        check([(carrier, call.body(body), (200, ""))]).await;
        assert!(service.shown(&item.path()).await["lastHeartbeatAt"].is_string(), "{carrier}");
    }
    let none = service.fresh_tool().await;
    assert!(none.issued["callback"].get("heartbeatUrl").is_none(), "none is asked for");
}

#[tokio::test]
async fn disabled_carrier_carries_no_heartbeat() {
    let service = Service::start(&[("token.carriers", r#"["header"]"#)]).await;
    let item = service.fresh_tool().await;
    let token = &item.token;
    let post = |path: &str| service.provider("POST", path);
    check([
        ("the path", post(&format!("{CALLBACKS}/{token}/heartbeat")), (404, "NOT_FOUND")),
        ("the query", post(&format!("{}?callbackToken={token}", path())), (401, "CALLBACK_TOKEN_MISSING")),
        (
            "the body",
            post(&path()).json(format!("{{\"callbackToken\":\"{token}\"}}")),
            (401, "CALLBACK_TOKEN_MISSING"),
        ),
        ("the header", beat(&service, token, ""), (200, "")),
    ])
    .await;
}

fn text(call: Call<'_>) -> Call<'_> {
    call.header("content-type", "text/plain")
}

#[tokio::test]
async fn checks_of_a_heartbeat_run_in_the_order_of_a_callback() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let (token, post) = (item.token.as_str(), || service.provider("POST", &path()));
    let large = || "x".repeat(32 * 1024 + 1);
    check([
        ("method before size", service.provider("PUT", &path()).body(large()), (405, "METHOD_NOT_ALLOWED")),
        (
            "another method",
            service.provider("GET", &format!("{CALLBACKS}/{token}/heartbeat")),
            (405, "METHOD_NOT_ALLOWED"),
        ),
        ("size before type", text(post()).body(large()), (413, "BODY_TOO_LARGE")),
        ("type before token", text(post()).body("x"), (415, "CONTENT_TYPE_UNSUPPORTED")),
        ("an absent token before JSON", post().json("{"), (401, "CALLBACK_TOKEN_MISSING")),
        ("an absent token", post(), (401, "CALLBACK_TOKEN_MISSING")),
        ("a forged token before JSON", beat(&service, "cbt_x", "{"), (401, "CALLBACK_TOKEN_INVALID")),
        (
            "no token at all in the path",
            service.provider("POST", &format!("{CALLBACKS}/heartbeat/heartbeat")),
            (401, "CALLBACK_TOKEN_INVALID"),
        ),
        ("a slash at the end", service.provider("POST", &format!("{}/", path())), (404, "NOT_FOUND")),
        (
            "two tokens",
            post().header("x-callback-token", token).json("{\"callbackToken\":\"cbt_x\"}"),
            (400, "TOKEN_CARRIERS_DISAGREE"),
        ),
        ("JSON before shape", beat(&service, token, "{\"message\":7"), (400, "BODY_MALFORMED")),
        ("shape", beat(&service, token, "{\"message\":7}"), (400, "REQUEST_INVALID")),
    ])
    .await;
    assert!(service.shown(&item.path()).await.get("lastHeartbeatAt").is_none(), "none of these counts");
    let empty = [text(post()).header("x-callback-token", token), beat(&service, token, " \r\n")];
    for call in empty {
        check([("an empty body needs no type", call, (200, ""))]).await;
    }
}

#[tokio::test]
async fn invalid_heartbeat_is_refused_with_its_bounds_and_changes_nothing() {
    let service = Service::on_memory().await;
    let item = watched(&service, &service.open().await, 500_000).await;
    let (long, wide) = ("x".repeat(1_001), format!("\"{}\"", "x".repeat(4_095)));
    let deep = format!("{}{}", "[".repeat(128), "]".repeat(128));
    for (body, told) in [
        ("null".to_owned(), "a JSON object"),
        ("[]".into(), "a JSON object"),
        ("\"half\"".into(), "a JSON object"),
        (json!({"message": 7}).to_string(), "message: must be a string"),
        (json!({"message": ["x"]}).to_string(), "message: must be a string"),
        (json!({ "message": long }).to_string(), "at most 1000 characters"),
        (json!({"message": "a\nb"}).to_string(), "without control characters"),
        (json!({"message": "\0"}).to_string(), "without control characters"),
        (json!({"message": "\u{2028}"}).to_string(), "without control characters"),
        (json!({ "message": item.token }).to_string(), "must not contain a token"),
        (format!("{{\"data\":{wide}}}"), "at most 4096 bytes"),
        (json!({"data": {"token": item.token}}).to_string(), "data: must not contain a token"),
        (json!({"mesage": "x"}).to_string(), "post a result to callback.url"),
        (json!({"answer": 42}).to_string(), "post a result to callback.url"),
        ("{\"message\":\"a\",\"message\":\"b\"}".into(), "message: must not be repeated"),
        ("{\"data\":1,\"data\":1}".into(), "data: must not be repeated"),
    ] {
        let reply = beat(&service, &item.token, &body).send().await;
        assert_eq!(reply.verdict(), (400, "REQUEST_INVALID".to_owned()), "{body}");
        let message = reply.message();
        assert!(message.contains(told) && !message.contains(&item.token), "{body}: {message}");
    }
    for body in ["{", "{\"message\":\"\\ud800\"}", &format!("{{\"data\":{deep}}}"), "{\"data\":nul}"] {
        check([("no JSON", beat(&service, &item.token, body), (400, "BODY_MALFORMED"))]).await;
    }
    assert!(service.shown(&item.path()).await.get("lastHeartbeatAt").is_none());
    let (most, widest) = ("😀".repeat(1_000), format!("\"{}\"", "x".repeat(4_094)));
    for body in [
        "{}".to_owned(),
        "{\"message\":null,\"data\":null,\"callbackToken\":null}".into(),
        "{\"message\":\"\"}".into(),
        format!("{{\"message\":\"{most}\",\"data\":{widest}}}"),
        format!("{{\"message\":\"{}\"}}", "\\ud83d\\ude00".repeat(1_000)),
        "\u{feff}{\"data\":1e999}".into(),
    ] {
        check([("a good one", beat(&service, &item.token, &body), (200, ""))]).await;
    }
    check([("the token is unspent", service.callback(&item.token, "1"), (202, "delivered"))]).await;
}

#[tokio::test]
async fn bad_tokens_of_heartbeats_count_and_draining_refuses_them() {
    let service = Service::start(&[("rate_limit.failed_max", "3")]).await;
    let item = service.fresh_tool().await;
    for _ in 0..3 {
        check([("forged", beat(&service, "cbt_x", ""), (401, "CALLBACK_TOKEN_INVALID"))]).await;
    }
    let rows: [Row<'_>; 3] = [
        ("forged once more", beat(&service, "cbt_x", ""), (429, "RATE_LIMITED")),
        ("a callback", service.callback("cbt_x", "1"), (429, "RATE_LIMITED")),
        ("a good one", beat(&service, &item.token, ""), (200, "")),
    ];
    check(rows).await;
    let service =
        Service::start(&[("http.drain_grace_ms", "60000"), ("http.drain_timeout_ms", "60000")]).await;
    let item = service.fresh_tool().await;
    service.drain();
    until("it drains", async || {
        beat(&service, &item.token, "").verdict().await == (503, "DRAINING".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_heartbeats_of_one_item_do_not_affect_others() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    let [item, other] = [watched(&service, &conversation, 60_000).await, service.tool(&conversation).await];
    for _ in 0..10 {
        let beats = (0..100).map(|_| beat(&service, &item.token, "{\"message\":\"on it\"}").verdict());
        for verdict in join_all(beats).await {
            assert_eq!(verdict, (200, String::new()));
        }
        check([("another item", beat(&service, &other.token, ""), (200, ""))]).await;
    }
    check([
        ("another item's result", service.callback(&other.token, "2"), (202, "held")),
        ("its own result", service.callback(&item.token, "1"), (202, "delivered")),
    ])
    .await;
}
