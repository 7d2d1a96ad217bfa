//! Rate limits per client address.

use test_support::redis_server::RedisServer;

use super::check;
use crate::service::{CALLBACKS, Call, Item, Raw, Reply, Service, until};

const LIMITED: (u16, &str) = (429, "RATE_LIMITED");

async fn behind_proxies(flags: &[(&str, &str)]) -> Service {
    let proxies = ("http.trusted_proxies", r#"["127.0.0.0/8","10.0.0.0/8"]"#);
    Service::start(&[&[proxies], flags].concat()).await
}

/// A valid callback with this `X-Forwarded-For`.
fn from<'a>(service: &'a Service, item: &Item, address: &str) -> Call<'a> {
    service.callback(&item.token, "1").header("x-forwarded-for", address)
}

/// `Retry-After` in seconds: the rest of a window of one minute.
fn wait(reply: &Reply) -> u64 {
    let seconds = reply.header("retry-after").expect("a time to wait").parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    seconds
}

#[tokio::test]
async fn request_limit_applies_per_address_before_the_store() {
    let redis = RedisServer::start();
    let service = Service::start(&[("store.url", &redis.url(0)), ("rate_limit.max", "3")]).await;
    let item = service.fresh_tool().await;
    check([
        ("a path that is not there counts", service.provider("GET", "/nowhere"), (404, "NOT_FOUND")),
        ("a method too", service.provider("GET", CALLBACKS), (405, "METHOD_NOT_ALLOWED")),
        ("health does not", service.provider("GET", "/health"), (200, "ok")),
        ("a good one is the third", service.callback(&item.token, "1"), (202, "delivered")),
    ])
    .await;
    redis.suspend();
    let reply = service.callback(&item.token, "1").send().await;
    assert_eq!(reply.verdict(), (429, "RATE_LIMITED".to_owned()));
    assert!(reply.json()["error"]["retryable"].as_bool().unwrap());
    wait(&reply);
    check([
        ("whatever it asks", service.provider("GET", "/nowhere"), LIMITED),
        ("life is not counted", service.provider("GET", "/health/live"), (200, "ok")),
    ])
    .await;
    redis.resume();
    assert_eq!(service.state(&item).await, "released", "the platform is not counted");
}

#[tokio::test]
async fn rate_limit_resets_after_the_window() {
    let service = Service::start(&[("rate_limit.max", "1"), ("rate_limit.window_ms", "1000")]).await;
    let item = service.fresh_tool().await;
    check([("the first", service.callback("cbt_x", "1"), (401, "CALLBACK_TOKEN_INVALID"))]).await;
    let reply = service.callback(&item.token, "1").send().await;
    assert_eq!((reply.status.as_u16(), wait(&reply)), (429, 1));
    until("the next window", async || service.callback(&item.token, "1").send().await.status == 202).await;
}

#[tokio::test]
async fn failed_attempts_are_limited_and_valid_tokens_pass() {
    let service = Service::start(&[("rate_limit.failed_max", "3")]).await;
    let conversation = service.open().await;
    let (in_header, in_body) = (service.tool(&conversation).await, service.tool(&conversation).await);
    let none = || service.provider("POST", CALLBACKS).json("1");
    check([
        ("malformed", service.callback("cbt_x", "1"), (401, "CALLBACK_TOKEN_INVALID")),
        ("absent", none(), (401, "CALLBACK_TOKEN_MISSING")),
        ("not a failed authentication", service.callback(&in_header.token, "{"), (400, "BODY_MALFORMED")),
        ("forged", service.callback(&in_header.token[1..], "1"), (401, "CALLBACK_TOKEN_INVALID")),
        ("one too many", service.callback("cbt_x", "1"), LIMITED),
        ("absent, one too many", none(), LIMITED),
        ("too large all the same", none().body("x".repeat(1_048_577)), (413, "BODY_TOO_LARGE")),
    ])
    .await;
    wait(&none().send().await);
    // The refusal does not wait for the body.
    let mut raw = Raw::connect(service.public).await;
    raw.send(format!(
        "POST {CALLBACKS} HTTP/1.1\r\nhost: x\r\nx-callback-token: cbt_x\r\ncontent-length: 10\r\n\r\n"
    ))
    .await;
    assert_eq!(raw.reply().await.verdict(), (429, "RATE_LIMITED".to_owned()));
    let body = format!("{{\"callbackToken\":\"{}\"}}", in_body.token);
    check([
        ("good, in the header", service.callback(&in_header.token, "1"), (202, "delivered")),
        ("good, in the body", service.provider("POST", CALLBACKS).json(body), (202, "delivered")),
        ("good, once more", service.callback(&in_header.token, "1"), (200, "delivered")),
    ])
    .await;
}

#[tokio::test]
async fn trusted_proxy_reports_the_client_address() {
    let service = behind_proxies(&[("rate_limit.max", "1")]).await;
    let item = service.fresh_tool().await;
    check([
        ("one client", from(&service, &item, "192.0.2.1"), (202, "delivered")),
        ("the same again", from(&service, &item, "192.0.2.1"), LIMITED),
        ("through another proxy", from(&service, &item, "192.0.2.1, 10.1.1.1"), LIMITED),
        ("whatever it says of itself", from(&service, &item, "192.0.2.7, 192.0.2.1"), LIMITED),
        ("another client", from(&service, &item, "192.0.2.2"), (200, "delivered")),
        ("nonsense is the proxy's own", from(&service, &item, "nonsense"), (200, "delivered")),
        ("other nonsense too", from(&service, &item, "192.0.2.3, unknown"), LIMITED),
        ("and nothing", service.callback(&item.token, "1"), LIMITED),
        (
            "the other header is not read",
            service.callback(&item.token, "1").header("forwarded", "for=192.0.2.4"),
            LIMITED,
        ),
        ("a network of IPv6", from(&service, &item, "2001:db8::1"), (200, "delivered")),
        ("is one client", from(&service, &item, "2001:db8::ffff:0:0:2"), LIMITED),
        ("another network is not", from(&service, &item, "2001:db8:0:1::1"), (200, "delivered")),
    ])
    .await;
}

#[tokio::test]
async fn untrusted_client_cannot_set_its_address() {
    let flags = [("rate_limit.max", "1"), ("http.trusted_proxies", r#"["10.0.0.0/8"]"#)];
    let service = Service::start(&flags).await;
    let item = service.fresh_tool().await;
    check([
        ("one client", from(&service, &item, "192.0.2.1"), (202, "delivered")),
        ("it is the same", from(&service, &item, "192.0.2.2"), LIMITED),
    ])
    .await;
}

#[tokio::test]
async fn forwarded_header_is_used_if_configured() {
    let service = behind_proxies(&[("rate_limit.max", "1"), ("http.forwarded_header", "Forwarded")]).await;
    let item = service.fresh_tool().await;
    let of = |value: &str| service.callback(&item.token, "1").header("forwarded", value);
    check([
        ("one client", of("for=192.0.2.1;proto=https"), (202, "delivered")),
        ("the same again", of("for=\"192.0.2.1:99\", for=10.0.0.1"), LIMITED),
        ("another client", of("for=192.0.2.2"), (200, "delivered")),
    ])
    .await;
}
