//! Paths, methods, and the ids in every reply.

use super::check;
use crate::service::{CALLBACKS, Service};

#[tokio::test]
async fn only_post_changes_state() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"] {
        for path in [
            format!("{CALLBACKS}/{}", item.token),
            format!("{CALLBACKS}?callbackToken={}", item.token),
            CALLBACKS.to_owned(),
        ] {
            let call = service.provider(method, &path).header("x-callback-token", &item.token);
            let reply = call.json("1").send().await;
            assert_eq!(reply.status, 405, "{method}");
            assert_eq!(reply.allowed_methods(), ["POST"], "{method}");
            if method != "HEAD" {
                assert_eq!(reply.verdict(), (405, "METHOD_NOT_ALLOWED".to_owned()), "{method}");
            }
        }
    }
    assert_eq!(service.state(&item).await, "awaiting");
    check([("a post", service.callback(&item.token, "1"), (202, "delivered"))]).await;
}

#[tokio::test]
async fn public_listener_routes_only_callbacks_and_health() {
    let service = Service::on_memory().await;
    let get = |path: &str| service.provider("GET", path);
    check([
        ("health", get("/health"), (200, "ok")),
        ("life", get("/health/live"), (200, "ok")),
        ("the root", get("/"), (404, "NOT_FOUND")),
        ("a path beside", get("/api/v1/webhooks"), (404, "NOT_FOUND")),
        ("the platform's paths", get("/platform/v1/conversations/a"), (404, "NOT_FOUND")),
        (
            "the platform's paths with its key",
            service
                .provider("PUT", "/platform/v1/conversations/a")
                .header("authorization", format!("Bearer {}", crate::service::SERVICE_KEY)),
            (404, "NOT_FOUND"),
        ),
        ("another method on health", service.provider("POST", "/health"), (405, "METHOD_NOT_ALLOWED")),
        ("capitals", service.provider("POST", &CALLBACKS.to_uppercase()), (404, "NOT_FOUND")),
    ])
    .await;
    let reply = service.provider("POST", "/health").send().await;
    assert_eq!(reply.allowed_methods(), ["GET", "HEAD"]);
    assert_eq!(get("/health").send().await.text(), "{\"status\":\"ok\"}");
}

/// Makes the test client a trusted proxy.
const PROXIES: (&str, &str) = ("http.trusted_proxies", r#"["127.0.0.0/8"]"#);

#[tokio::test]
async fn request_id_of_a_trusted_proxy_is_kept() {
    let service = Service::start(&[PROXIES]).await;
    let id = "0190163d-8694-739b-aea5-966c26f8ad91";
    let echoed = service.provider("GET", "/health").header("x-request-id", id).send().await;
    assert_eq!(echoed.header("x-request-id"), Some(id));
    let refused = service.callback("cbt_x", "1").header("x-request-id", id).send().await;
    assert_eq!(refused.verdict(), (401, "CALLBACK_TOKEN_INVALID".to_owned()));
    assert_eq!(refused.json()["error"]["requestId"], id);
    for bad in ["", "7", "0190163d-8694-739b-aea5-966c26f8ad9", "{}", "é", &"x".repeat(4_096)] {
        let made = service.provider("GET", "/health").header("x-request-id", bad).send().await;
        made.verdict();
        assert_ne!(made.header("x-request-id"), Some(bad));
    }
}

#[tokio::test]
async fn request_id_of_an_untrusted_client_is_replaced() {
    let service = Service::on_memory().await;
    let id = "0190163d-8694-739b-aea5-966c26f8ad91";
    let item = service.fresh_tool().await;
    for reply in [
        service.provider("GET", "/health").header("x-request-id", id).send().await,
        service.callback(&item.token, "1").header("x-request-id", id).send().await,
        service.callback("cbt_x", "1").header("x-request-id", id).send().await,
    ] {
        reply.verdict();
        assert_ne!(reply.header("x-request-id"), Some(id));
    }
    assert!(!service.channel(&item.conversation, 1).await[0].contains(id));
    let platform = service.platform("GET", "/conversations/none").header("x-request-id", id).send().await;
    assert_eq!(platform.header("x-request-id"), Some(id));
}

#[tokio::test]
async fn request_id_is_in_the_envelope() {
    let service = Service::start(&[PROXIES]).await;
    let item = service.fresh_tool().await;
    let id = "0190163d-8694-739b-aea5-966c26f8ad91";
    service.callback(&item.token, "1").header("x-request-id", id).send().await;
    service.callback(&item.token, "1").send().await;
    assert!(service.channel(&item.conversation, 1).await[0].contains(&format!("\"requestId\":\"{id}\"")));
}

#[tokio::test]
async fn receipts_and_tokens_are_not_cacheable() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    let reply = service.issuing(&conversation, &serde_json::json!({"kind": "tool"})).send().await;
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let token = reply.json()["callback"]["token"].as_str().unwrap().to_owned();
    let receipt = service.callback(&token, "1").send().await;
    assert_eq!(receipt.header("cache-control"), Some("no-store"));
}
