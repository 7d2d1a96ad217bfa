//! How large, how many, how many at once.

use super::check;
use crate::service::{CALLBACKS, Kind, Raw, Service, on_every_deployment, until};

const MEBIBYTE: usize = 1024 * 1024;

on_every_deployment!(a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not);

/// A JSON string of so many bytes.
fn text_of(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes - 2))
}

fn head(token: &str, rest: &str) -> String {
    format!(
        "POST {CALLBACKS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-callback-token: {token}\r\n{rest}\r\n\r\n"
    )
}

fn chunked(token: &str, body: &str) -> String {
    let (one, two) = body.split_at(body.len() / 2);
    let head = head(token, "transfer-encoding: chunked");
    format!("{head}{:x}\r\n{one}\r\n{:X}\r\n{two}\r\n0\r\n\r\n", one.len(), two.len())
}

async fn a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let (exact, more) = (text_of(MEBIBYTE), text_of(MEBIBYTE + 1));
    let refused = (413, "BODY_TOO_LARGE".to_owned());
    for _ in 0..2 {
        let item = deployment.any().tool(&conversation).await;
        check([(
            "a byte more",
            deployment.any().callback(&item.token, more.clone()),
            (413, "BODY_TOO_LARGE"),
        )])
        .await;
        let reply = Raw::say(deployment.any().public, chunked(&item.token, &more)).await;
        assert_eq!(reply.verdict(), refused, "a byte more, in chunks");
        let announced = head(&item.token, "content-length: 1048577\r\nexpect: 100-continue");
        let reply = Raw::say(deployment.any().public, announced).await;
        assert_eq!(reply.verdict(), refused, "announced, and not sent");
        let huge = head(&item.token, "content-length: 9223372036854775807");
        let reply = Raw::say(deployment.any().public, huge).await;
        assert_eq!(reply.verdict(), refused, "announced, and larger than any memory");
        if item.sequence == 1 {
            check([("exactly", deployment.any().callback(&item.token, exact.clone()), (202, "delivered"))])
                .await;
        } else {
            let reply = Raw::say(deployment.any().public, chunked(&item.token, &exact)).await;
            assert_eq!(reply.verdict(), (202, "delivered".to_owned()), "exactly, in chunks");
        }
    }
    for envelope in deployment.any().channel(&conversation, 2).await {
        assert!(envelope.contains(&format!("\"result\":{exact},")));
    }
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_to_go_on_is_told() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let mut raw = Raw::connect(service.public).await;
    raw.send(head(&item.token, "content-length: 1\r\nexpect: 100-continue")).await;
    raw.interim("HTTP/1.1 100 Continue\r\n\r\n").await;
    raw.send("7").await;
    assert_eq!(raw.reply().await.verdict(), (202, "delivered".to_owned()));
}

#[tokio::test]
async fn more_requests_than_allowed_at_once_are_refused_before_they_spend_anything() {
    let service = Service::start(&[("http.max_requests_in_flight", "2")]).await;
    let conversation = service.open().await;
    let mut items = Vec::new();
    for _ in 0..3 {
        items.push(service.tool(&conversation).await);
    }
    let mut slow = Vec::new();
    for item in &items[..2] {
        let mut raw = Raw::connect(service.public).await;
        raw.send(head(&item.token, "content-length: 1")).await;
        slow.push(raw);
    }
    let third = || service.callback(&items[2].token, "3");
    until("two are under way", async || {
        third().send().await.status == 503 || service.state(&items[2]).await == "held"
    })
    .await;
    // The third may have been faster than those before it: then it is known already.
    let refused = third().send().await;
    assert_eq!(refused.verdict(), (503, "OVERLOADED".to_owned()));
    check([("health is no work", service.provider("GET", "/health"), (200, "ok"))]).await;
    assert_eq!(service.state(&items[0]).await, "awaiting", "the platform's listener counts for itself");
    for (number, raw) in slow.iter_mut().enumerate() {
        raw.send(number.to_string()).await;
        assert_eq!(raw.reply().await.verdict(), (202, "delivered".to_owned()));
    }
    until("it is taken now", async || third().send().await.status.is_success()).await;
    let channel = service.channel(&conversation, 3).await;
    assert!(channel[2].contains("\"result\":3,"));
}

#[tokio::test]
async fn more_connections_than_allowed_wait_until_one_is_free() {
    let service = Service::start(&[("http.max_connections", "2")]).await;
    let get = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    let (mut first, mut second) = (Raw::connect(service.public).await, Raw::connect(service.public).await);
    for raw in [&mut first, &mut second] {
        raw.send(get).await;
        assert_eq!(raw.reply().await.verdict(), (200, "ok".to_owned()));
    }
    let mut third = Raw::connect(service.public).await;
    third.send(get).await;
    // Those that are served are served on, while the third waits.
    for raw in [&mut first, &mut second] {
        raw.send(get).await;
        assert_eq!(raw.reply().await.verdict(), (200, "ok".to_owned()));
    }
    assert!(third.is_silent(), "it is not served yet");
    drop(first);
    assert_eq!(third.reply().await.verdict(), (200, "ok".to_owned()));
}
