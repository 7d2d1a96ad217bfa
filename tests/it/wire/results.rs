//! Failures, and bodies that look like one.

use serde_json::{Value, json};

use super::check;
use crate::service::{CALLBACKS, Service};

#[tokio::test]
async fn near_miss_of_a_failure_is_refused_and_spends_nothing() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    for kind in ["tool", "llm"] {
        let item = service.issue(&conversation, &json!({"kind": kind})).await;
        for (body, wrong) in [
            (r#"{"error":{}}"#, "error.code is missing"),
            (r#"{"error":{"message":"m"}}"#, "error.code is missing"),
            (r#"{"error":{"code":"X"}}"#, "error.message is missing"),
            (r#"{"error":{"code":500,"message":"m"}}"#, "error.code must be a string"),
            (r#"{"error":{"code":"X","message":null}}"#, "error.message must be a string"),
            (r#"{"error":{"code":"X","message":"m"},"details":{}}"#, "error must be the only member"),
            (r#"{"content":"half","error":{"code":"X","message":"m"}}"#, "error must be the only member"),
        ] {
            let reply = service.callback(&item.token, body).send().await;
            assert_eq!(reply.verdict(), (400, "RESULT_SHAPE_INVALID".to_owned()), "{body}");
            let message = reply.message();
            assert!(message.contains(wrong) && message.contains("details inside error"), "{message}");
        }
        assert_eq!(service.state(&item).await, "awaiting");
        let corrected = r#"{"error":{"code":"X","message":"m","details":{"n":1}}}"#;
        check([("details inside error", service.callback(&item.token, corrected), (202, "delivered"))]).await;
    }
    for envelope in service.channel(&conversation, 2).await {
        let envelope: Value = serde_json::from_str(&envelope).unwrap();
        assert_eq!(envelope["outcome"], "failed");
        assert_eq!(envelope["error"]["details"]["n"], 1);
    }
}

#[tokio::test]
async fn token_field_is_allowed_beside_an_error() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let body = format!(r#"{{"callbackToken":"{}","error":{{"code":"X","message":"m"}}}}"#, item.token);
    let reply = service.provider("POST", CALLBACKS).json(body).send().await;
    assert_eq!((reply.status.as_u16(), &reply.json()["outcome"]), (202, &json!("failed")));
}

#[tokio::test]
async fn error_that_is_not_an_object_is_part_of_a_result() {
    let service = Service::on_memory().await;
    for body in [
        r#"{"error":null,"answer":42}"#,
        r#"{"error":"text"}"#,
        r#"{"error":false}"#,
        r#"{"error":[{"code":"X"}]}"#,
        r#"{"result":{"error":{"code":7}}}"#,
    ] {
        let item = service.fresh_tool().await;
        let reply = service.callback(&item.token, body).send().await;
        assert_eq!((reply.status.as_u16(), &reply.json()["outcome"]), (202, &json!("succeeded")), "{body}");
        assert!(service.channel(&item.conversation, 1).await[0].contains(&format!("\"result\":{body},")));
    }
}
