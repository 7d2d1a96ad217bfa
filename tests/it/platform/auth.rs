//! Service keys.

use tokio::time::{Duration, Instant};

use super::check;
use crate::service::{SERVICE_KEY, Service};

#[tokio::test]
async fn request_without_a_key_reveals_nothing() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    let item = service.tool(&conversation).await;
    let (missing, invalid) = ((401, "SERVICE_KEY_MISSING"), (401, "SERVICE_KEY_INVALID"));
    let conversation = format!("/conversations/{conversation}");
    for (method, path) in [
        ("PUT", conversation.clone()),
        ("GET", conversation.clone()),
        ("DELETE", conversation.clone()),
        ("POST", format!("{conversation}/work-items")),
        ("GET", format!("{conversation}/events")),
        ("GET", item.path()),
        ("DELETE", item.path()),
        ("GET", "/conversations/nobody".to_owned()),
        ("GET", "/no/such/path".to_owned()),
        ("PATCH", conversation),
        ("GET", "/conversations/{}".replace("{}", "%7B%7D")),
    ] {
        let call =
            |authorization: &str| service.stranger(method, &path).header("authorization", authorization);
        check([
            ("no key", service.stranger(method, &path), missing),
            ("another key", call("Bearer the-platforms-key-of-the-test"), invalid),
            ("a key and more", call(&format!("Bearer {SERVICE_KEY}s")), invalid),
            ("another scheme", call(&format!("Basic {SERVICE_KEY}")), invalid),
            ("no scheme", call(SERVICE_KEY), invalid),
            ("an empty key", call("Bearer "), invalid),
            ("nothing", call(""), invalid),
            ("no text", call("Bearer é"), invalid),
        ])
        .await;
    }
    assert_eq!(service.state(&item).await, "awaiting");
    let reply = service.stranger("GET", "/conversations/nobody").send().await;
    assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    let provider = service.callback("cbt_x", "1").send().await;
    assert_eq!(provider.header("www-authenticate"), Some("CallbackToken"));
}

#[tokio::test]
async fn every_configured_key_is_accepted() {
    let keys = "[\"first-key-of-three\",\"second-key-of-three\",\"third-key-of-three\"]";
    let service = Service::start(&[("platform.service_keys", keys)]).await;
    for key in ["first-key-of-three", "second-key-of-three", "third-key-of-three"] {
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let call = service.stranger("GET", "/conversations/nobody");
            let call = call.header("authorization", format!("{scheme} {key}"));
            check([("a good key", call, (404, "CONVERSATION_NOT_FOUND"))]).await;
        }
    }
    check([("a key of another deployment", service.platform("GET", "/x"), (401, "SERVICE_KEY_INVALID"))])
        .await;
}

#[tokio::test]
async fn health_needs_no_key_and_unknown_paths_do() {
    let service = Service::on_memory().await;
    check([
        ("health", service.health(), (200, "ok")),
        ("an unknown path with a key", service.platform("GET", "/nowhere"), (404, "NOT_FOUND")),
        ("a callback's path", service.platform("POST", "/api/v1/webhooks/callbacks"), (404, "NOT_FOUND")),
        ("another method", service.platform("PATCH", "/conversations/a"), (405, "METHOD_NOT_ALLOWED")),
    ])
    .await;
    let reply = service.platform("PATCH", "/conversations/a").send().await;
    assert_eq!(reply.allowed_methods(), ["DELETE", "GET", "HEAD", "PUT"]);
    let reply = service.platform("GET", "/conversations/a/work-items").send().await;
    assert_eq!(reply.allowed_methods(), ["DELETE", "POST"]);
}

#[tokio::test]
async fn wrong_keys_are_rate_limited_and_valid_keys_pass() {
    let service = Service::start(&[("rate_limit.failed_max", "3")]).await;
    let guess =
        || service.stranger("GET", "/conversations/a").header("authorization", "Bearer guessed-key-16-chars");
    let none = || service.stranger("GET", "/conversations/a");
    check([
        ("first", guess(), (401, "SERVICE_KEY_INVALID")),
        ("second", none(), (401, "SERVICE_KEY_MISSING")),
        ("third", guess(), (401, "SERVICE_KEY_INVALID")),
        ("too many", guess(), (429, "RATE_LIMITED")),
        ("too many without a key", none(), (429, "RATE_LIMITED")),
        ("a valid key", service.platform("GET", "/conversations/a"), (404, "CONVERSATION_NOT_FOUND")),
        ("health checks need none", service.health(), (200, "ok")),
    ])
    .await;
    let sent = Instant::now();
    let reply = guess().send().await;
    assert!(sent.elapsed() >= Duration::from_millis(250), "a connection gets four guesses a second");
    assert!(reply.header("retry-after").is_some_and(|seconds| seconds != "0"));
    let item = service.fresh_tool().await;
    check([("providers are not affected", service.callback(&item.token, "1"), (202, "delivered"))]).await;
}
