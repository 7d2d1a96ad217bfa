//! The order of checks: method, size, content type, token, JSON, shape, then the store. Only the store spends a token.

use serde_json::json;

use super::check;
use crate::service::{CALLBACKS, Service};

/// More than the service's body limit.
const TOO_LARGE: usize = 1_025;

async fn service() -> Service {
    Service::start(&[("http.max_body_bytes", "1024")]).await
}

#[tokio::test]
async fn checks_run_in_documented_order_and_spend_nothing() {
    let service = service().await;
    let conversation = service.open().await;
    let item = service.issue(&conversation, &json!({"kind": "llm"})).await;
    let good = item.token.as_str();
    let post = || service.provider("POST", CALLBACKS);
    let large = || "x".repeat(TOO_LARGE);
    check([
        ("method before size", service.provider("PUT", CALLBACKS).body(large()), (405, "METHOD_NOT_ALLOWED")),
        (
            "size before content type",
            post().header("content-type", "text/plain").body(large()),
            (413, "BODY_TOO_LARGE"),
        ),
        ("size before token", post().json(large()), (413, "BODY_TOO_LARGE")),
        (
            "content type before token",
            post().header("content-type", "text/plain").body("x"),
            (415, "CONTENT_TYPE_UNSUPPORTED"),
        ),
        (
            "content type before JSON",
            post().header("x-callback-token", good).header("content-type", "text/plain").body("{"),
            (415, "CONTENT_TYPE_UNSUPPORTED"),
        ),
        ("an absent token before JSON", post().json("{"), (401, "CALLBACK_TOKEN_MISSING")),
        ("a forged token before JSON", service.callback("cbt_x", "{"), (401, "CALLBACK_TOKEN_INVALID")),
        ("JSON before shape", service.callback(good, "{\"content\":7"), (400, "BODY_MALFORMED")),
        ("shape", service.callback(good, "{\"content\":7}"), (400, "RESULT_SHAPE_INVALID")),
        ("nothing of this was spent", service.callback(good, "\"hello\""), (202, "delivered")),
    ])
    .await;
}

#[tokio::test]
async fn forged_token_is_refused_before_the_result_is_validated() {
    let service = service().await;
    check([
        ("not an llm result", service.callback("cbt_x", "7"), (401, "CALLBACK_TOKEN_INVALID")),
        ("half a pair", service.callback("cbt_x", "\"\\ud800\""), (401, "CALLBACK_TOKEN_INVALID")),
    ])
    .await;
}

#[tokio::test]
async fn refused_callback_leaves_its_item_awaiting() {
    let service = service().await;
    let item = service.fresh_tool().await;
    for bad in ["", "{", "nul", "[1,]", "{\"a\":\"\\udc00\"}"] {
        check([("a bad body", service.callback(&item.token, bad), (400, "BODY_MALFORMED"))]).await;
        assert_eq!(service.state(&item).await, "awaiting", "{bad:?}");
    }
    check([("a good body", service.callback(&item.token, "null"), (202, "delivered"))]).await;
    assert_eq!(service.state(&item).await, "released");
}

#[tokio::test]
async fn result_is_validated_before_the_store_is_called() {
    let service = service().await;
    let conversation = service.open().await;
    let item = service.issue(&conversation, &json!({"kind": "llm"})).await;
    check([("the first", service.callback(&item.token, "\"hello\""), (202, "delivered"))]).await;
    service.end(&conversation).await;
    check([
        ("a bad shape after all is over", service.callback(&item.token, "7"), (400, "RESULT_SHAPE_INVALID")),
        ("no JSON after all is over", service.callback(&item.token, "{"), (400, "BODY_MALFORMED")),
    ])
    .await;
}
