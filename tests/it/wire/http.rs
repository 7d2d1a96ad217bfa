//! Requests that are not HTTP as it should be, byte for byte.

use crate::service::{CALLBACKS, Raw, Service};

/// A callback's head without its last empty line.
fn head(token: &str) -> String {
    format!(
        "POST {CALLBACKS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-callback-token: {token}\r\n"
    )
}

#[tokio::test]
async fn what_is_not_http_gets_the_envelope_of_all_refusals_and_the_end_of_the_connection() {
    let service = Service::on_memory().await;
    let head = head("cbt_x");
    for (sentence, bytes) in [
        ("no words of HTTP", "hello\r\n\r\n".to_owned()),
        ("no version", "GET /health\r\n\r\n".to_owned()),
        ("another protocol", "SSH-2.0-OpenSSH_9.6\r\n\r\n".to_owned()),
        ("the beginning of TLS", "\u{16}\u{3}\u{1}\0\u{7f}\u{1}\0\0{\u{3}\u{3}".to_owned()),
        ("a space in the path", "GET /hea lth HTTP/1.1\r\n\r\n".to_owned()),
        ("a header without a colon", "GET /health HTTP/1.1\r\nhost\r\n\r\n".to_owned()),
        ("a space before the colon", "GET /health HTTP/1.1\r\nhost : x\r\n\r\n".to_owned()),
        ("a NUL in a header", "GET /health HTTP/1.1\r\nx-a: \0\r\n\r\n".to_owned()),
        ("a length that is no number", format!("{head}content-length: x\r\n\r\n1")),
        ("a negative length", format!("{head}content-length: -1\r\n\r\n1")),
        ("two lengths that conflict", format!("{head}content-length: 1\r\ncontent-length: 2\r\n\r\n12")),
        ("two lengths in one", format!("{head}content-length: 1, 2\r\n\r\n12")),
        ("an encoding that is not chunked", format!("{head}transfer-encoding: gzip\r\n\r\n1")),
        ("chunked, but not last", format!("{head}transfer-encoding: chunked, gzip\r\n\r\n1")),
    ] {
        let mut raw = Raw::connect(service.public).await;
        raw.send(bytes).await;
        let reply = raw.reply().await;
        assert_eq!(reply.verdict(), (400, "REQUEST_MALFORMED".to_owned()), "{sentence}");
        assert_eq!(reply.header("connection"), Some("close"), "{sentence}");
        assert_eq!(raw.closed().await, b"", "{sentence}");
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let service = Service::on_memory().await;
    for (sentence, bytes) in [
        ("one header", format!("GET /health HTTP/1.1\r\nx-a: {}\r\n\r\n", "x".repeat(200_000))),
        ("more headers than a hundred", format!("GET /health HTTP/1.1\r\n{}\r\n", "x-a: x\r\n".repeat(101))),
        ("many headers", format!("GET /health HTTP/1.1\r\n{}\r\n", "x-a: x\r\n".repeat(30_000))),
        ("a path", format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(200_000))),
    ] {
        let reply = Raw::say(service.public, bytes).await;
        assert_eq!(reply.verdict(), (431, "HEAD_TOO_LARGE".to_owned()), "{sentence}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_what_its_head_announces_is_never_taken() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let head = head(&item.token);
    for (sentence, bytes) in [
        ("shorter than its length", format!("{head}content-length: 3\r\n\r\n12")),
        ("a chunk that is cut off", format!("{head}transfer-encoding: chunked\r\n\r\n2\r\n1")),
        ("no last chunk", format!("{head}transfer-encoding: chunked\r\n\r\n1\r\n1\r\n")),
        ("a chunk without a size", format!("{head}transfer-encoding: chunked\r\n\r\nx\r\n1\r\n0\r\n\r\n")),
        (
            "a chunk longer than its size",
            format!("{head}transfer-encoding: chunked\r\n\r\n1\r\n12\r\n0\r\n\r\n"),
        ),
    ] {
        let mut raw = Raw::connect(service.public).await;
        raw.send(bytes).await;
        raw.finish().await;
        let reply = raw.reply().await;
        assert_eq!(reply.verdict(), (400, "BODY_MALFORMED".to_owned()), "{sentence}");
        assert_eq!(service.state(&item).await, "awaiting", "{sentence}");
    }
    // Longer than its length: the rest is another request, and not a good one.
    let mut raw = Raw::connect(service.public).await;
    raw.send(format!("{head}content-length: 1\r\n\r\n12")).await;
    assert_eq!(raw.reply().await.verdict(), (202, "delivered".to_owned()));
    raw.send("\r\n\r\n").await;
    assert_eq!(raw.reply().await.verdict(), (400, "REQUEST_MALFORMED".to_owned()));
    assert!(service.channel(&item.conversation, 1).await[0].contains("\"result\":1,"));
}

#[tokio::test]
async fn a_length_beside_chunks_smuggles_nothing() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let head = head(&item.token);
    let mut raw = Raw::connect(service.public).await;
    let second = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    raw.send(format!(
        "{head}content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n1\r\n7\r\n0\r\n\r\n{second}"
    ))
    .await;
    // RFC 9112, 6.3: refused, or the chunks count. Never is the length what separates requests.
    let reply = raw.reply().await;
    match reply.status.as_u16() {
        202 => {
            assert!(service.channel(&item.conversation, 1).await[0].contains("\"result\":7,"));
            assert_eq!(raw.closed().await, b"", "what follows is not trusted");
        }
        status => assert_eq!(status, 400),
    }
}

#[tokio::test]
async fn requests_follow_each_other_on_one_connection_whatever_was_said_before() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let mut raw = Raw::connect(service.public).await;
    let get = "GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n";
    let bad = format!("{}content-length: 1\r\n\r\n{{", head(&item.token));
    let good =
        format!("{}transfer-encoding: chunked\r\n\r\n1\r\n[\r\n1;x=y\r\n]\r\n0\r\n\r\n", head(&item.token));
    raw.send(format!("{get}{bad}{good}{good}")).await;
    assert_eq!(raw.reply().await.verdict(), (404, "NOT_FOUND".to_owned()));
    assert_eq!(raw.reply().await.verdict(), (400, "BODY_MALFORMED".to_owned()));
    assert_eq!(raw.reply().await.verdict(), (202, "delivered".to_owned()));
    assert_eq!(raw.reply().await.verdict(), (200, "delivered".to_owned()));
    // Said in one breath with a good request, nonsense gets an answer of its own.
    raw.send(format!("{get}hello\r\n\r\n")).await;
    assert_eq!(raw.reply().await.verdict(), (404, "NOT_FOUND".to_owned()));
    assert_eq!(raw.reply().await.verdict(), (400, "REQUEST_MALFORMED".to_owned()));
}

#[tokio::test]
async fn a_target_that_is_no_path_is_a_path_or_nothing() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let absolute = head(&item.token).replacen(CALLBACKS, &format!("http://elsewhere{CALLBACKS}"), 1);
    for (sentence, bytes, expected) in [
        ("a tunnel", "CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), (404, "NOT_FOUND")),
        ("the whole server", "OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), (404, "NOT_FOUND")),
        ("as to a proxy", format!("{absolute}content-length: 1\r\n\r\n1"), (202, "delivered")),
    ] {
        let (status, word) = Raw::say(service.public, bytes).await.verdict();
        assert_eq!((status, word.as_str()), expected, "{sentence}");
    }
}

#[tokio::test]
async fn the_first_version_of_http_is_answered_too() {
    let service = Service::on_memory().await;
    let mut raw = Raw::connect(service.public).await;
    raw.send("GET /health HTTP/1.0\r\n\r\n").await;
    let text = String::from_utf8(raw.closed().await).unwrap();
    assert!(text.contains(" 200 OK\r\n") && text.ends_with("{\"status\":\"ok\"}"), "{text}");
}

#[tokio::test]
async fn the_platforms_listener_refuses_what_is_not_http_just_so() {
    let service = Service::on_memory().await;
    let reply = Raw::say(service.platform, "hello\r\n\r\n").await;
    assert_eq!(reply.verdict(), (400, "REQUEST_MALFORMED".to_owned()));
}
