//! Receipts of accepted callbacks.

use serde_json::{Value, json};

use super::check;
use crate::service::{Kind, Reply, on_every_deployment};

on_every_deployment!(
    repetition_returns_the_first_receipt,
    repeated_held_receipt_has_the_current_status,
    error_body_is_delivered_as_a_failure,
    each_kind_accepts_its_result_formats,
);

fn keys(reply: &Reply) -> Vec<String> {
    let mut keys: Vec<String> = reply.json().as_object().unwrap().keys().cloned().collect();
    keys.sort_unstable();
    keys
}

/// A receipt without the fields that a repetition may change.
fn facts(reply: &Reply) -> Value {
    let mut facts = reply.json();
    for changing in ["status", "waitingFor", "replayed"] {
        facts.as_object_mut().unwrap().remove(changing);
    }
    facts
}

async fn repetition_returns_the_first_receipt(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let item = deployment.any().tool(&conversation).await;
    let first = deployment.any().callback(&item.token, "{\"n\":1}").send().await;
    assert_eq!(first.verdict(), (202, "delivered".to_owned()));
    let receipt = first.json();
    assert_eq!(
        keys(&first),
        ["conversationId", "outcome", "receivedAt", "replayed", "sequence", "status", "workItemId"]
    );
    assert_eq!(receipt["workItemId"], item.id);
    assert_eq!(receipt["conversationId"], conversation);
    assert_eq!(receipt["sequence"], 1);
    assert_eq!(receipt["outcome"], "succeeded");
    assert_eq!(receipt["replayed"], false);
    let received = receipt["receivedAt"].as_str().unwrap();
    assert!(received.len() == "2026-01-01T00:00:00.000Z".len() && received.ends_with('Z'), "{received}");
    for _ in 0..3 {
        let again = deployment.any().callback(&item.token, "{\"n\":1}").send().await;
        assert_eq!(again.verdict(), (200, "delivered".to_owned()));
        assert_eq!(facts(&again), facts(&first));
        assert_eq!(again.json()["replayed"], true);
    }
    let other = deployment.any().callback(&item.token, "{\"n\":1} ").send().await;
    assert_eq!(other.verdict(), (409, "CALLBACK_TOKEN_USED".to_owned()), "a space more is another body");
    assert_eq!(deployment.any().shown(&format!("/conversations/{conversation}")).await["nextSequence"], 2);
    deployment.any().end(&conversation).await;
    let events = deployment.any().events(&conversation, "?from=0").await.rest().await;
    assert_eq!(events.len(), 2, "one envelope and the end: {events:?}");
}

async fn repeated_held_receipt_has_the_current_status(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let mut items = Vec::new();
    for _ in 0..4 {
        items.push(deployment.any().tool(&conversation).await);
    }
    let post = async |index: usize| {
        let reply = deployment.any().callback(&items[index].token, index.to_string()).send().await;
        (reply.verdict(), reply.json()["waitingFor"].as_u64(), facts(&reply))
    };
    let told = |status: u16, word: &str, waiting_for: Option<u64>| ((status, word.to_owned()), waiting_for);
    let (verdict, waiting_for, fourth) = post(3).await;
    assert_eq!((verdict, waiting_for), told(202, "held", Some(1)));
    let (verdict, waiting_for, _) = post(0).await;
    assert_eq!((verdict, waiting_for), told(202, "delivered", None));
    let (verdict, waiting_for, again) = post(3).await;
    assert_eq!((verdict, waiting_for), told(200, "held", Some(2)), "today it waits for another");
    assert_eq!(again, fourth);
    let (verdict, waiting_for, _) = post(2).await;
    assert_eq!((verdict, waiting_for), told(202, "held", Some(2)));
    let (verdict, waiting_for, _) = post(1).await;
    assert_eq!((verdict, waiting_for), told(202, "delivered", None), "it releases those behind it");
    let (verdict, waiting_for, again) = post(3).await;
    assert_eq!((verdict, waiting_for), told(200, "delivered", None), "today it is delivered");
    assert_eq!(again, fourth);
    let channel = deployment.any().channel(&conversation, 4).await;
    for (index, envelope) in channel.iter().enumerate() {
        assert!(envelope.contains(&format!("\"result\":{index},")), "{envelope}");
    }
}

async fn error_body_is_delivered_as_a_failure(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    for work in ["llm", "tool"] {
        let conversation = deployment.any().open().await;
        let item = deployment.any().issue(&conversation, &json!({"kind": work})).await;
        let error = "{ \"code\":\"LIMIT\",\"message\":\"no\", \"retryable\":true }";
        let call = deployment.any().callback(&item.token, format!(" {{\"error\": {error} }}"));
        let reply = call.send().await;
        assert_eq!(reply.verdict(), (202, "delivered".to_owned()));
        assert_eq!(reply.json()["outcome"], "failed");
        let channel = deployment.any().channel(&conversation, 1).await;
        assert!(channel[0].contains(&format!("\"outcome\":\"failed\",\"error\":{error},")), "{}", channel[0]);
        assert!(!channel[0].contains("\"result\""));
    }
}

async fn each_kind_accepts_its_result_formats(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    for (work, body, status) in [
        ("llm", "\"hello\"", 202),
        ("llm", "{\"content\":\"hello\",\"usage\":{\"tokens\":7}}", 202),
        ("llm", "{\"content\":[{\"type\":\"text\"}]}", 202),
        ("llm", "{}", 400),
        ("llm", "7", 400),
        ("llm", "[\"hello\"]", 400),
        ("llm", "{\"content\":null}", 400),
        ("llm", "{\"error\":{\"code\":7,\"message\":\"\"}}", 400),
        ("tool", "7", 202),
        ("tool", "null", 202),
        ("tool", "[]", 202),
        ("tool", "{\"error\":\"a word\"}", 202),
        ("tool", "{\"error\":{\"code\":7,\"message\":\"\"}}", 400),
    ] {
        let item = deployment.any().issue(&conversation, &json!({"kind": work})).await;
        let reply = deployment.any().callback(&item.token, body).send().await;
        assert_eq!(reply.status, status, "{work}: {body}: {}", reply.text());
        if status == 202 {
            assert_eq!(reply.json()["outcome"], "succeeded", "{work}: {body}");
        } else {
            assert_eq!(reply.verdict(), (400, "RESULT_SHAPE_INVALID".to_owned()));
            check([("corrected", deployment.any().callback(&item.token, "\"x\""), (202, "delivered"))]).await;
        }
    }
}
