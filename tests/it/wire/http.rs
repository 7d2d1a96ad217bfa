//! Malformed and unusual HTTP, byte for byte.

use crate::service::{CALLBACKS, Raw, Service};

/// The head of a callback, without the final empty line.
fn head(token: &str) -> String {
    format!(
        "POST {CALLBACKS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-callback-token: {token}\r\n"
    )
}

/// hyper replies without a body and without ids, and closes the connection.
#[tokio::test]
async fn malformed_head_is_refused_and_closes_the_connection() {
    let service = Service::on_memory().await;
    let head = head("cbt_x");
    for (sentence, bytes) in [
        ("not HTTP", "hello\r\n\r\n".to_owned()),
        ("no version", "GET /health\r\n\r\n".to_owned()),
        ("another protocol", "SSH-2.0-OpenSSH_9.6\r\n\r\n".to_owned()),
        ("the beginning of TLS", "\u{16}\u{3}\u{1}\0\u{7f}\u{1}\0\0{\u{3}\u{3}".to_owned()),
        ("a space in the path", "GET /hea lth HTTP/1.1\r\n\r\n".to_owned()),
        ("a header without a colon", "GET /health HTTP/1.1\r\nhost\r\n\r\n".to_owned()),
        ("a space before the colon", "GET /health HTTP/1.1\r\nhost : x\r\n\r\n".to_owned()),
        ("a NUL in a header", "GET /health HTTP/1.1\r\nx-a: \0\r\n\r\n".to_owned()),
        ("a length that is no number", format!("{head}content-length: x\r\n\r\n1")),
        ("a negative length", format!("{head}content-length: -1\r\n\r\n1")),
        ("a length with a sign", format!("{head}content-length: +1\r\n\r\n1")),
        ("two lengths that conflict", format!("{head}content-length: 1\r\ncontent-length: 2\r\n\r\n12")),
        ("two lengths in one", format!("{head}content-length: 1, 2\r\n\r\n12")),
        ("a folded header", format!("{head}x-a: y\r\n z\r\n\r\n")),
        ("a carriage return alone", "GET /health HTTP/1.1\r\nhost: x\rx-a: y\r\n\r\n".to_owned()),
        ("an encoding that is not chunked", format!("{head}transfer-encoding: gzip\r\n\r\n1")),
        ("chunked, but not last", format!("{head}transfer-encoding: chunked, gzip\r\n\r\n1")),
        (
            "chunks in HTTP/1.0",
            format!("{head}transfer-encoding: chunked\r\n\r\n0\r\n\r\n").replacen("1.1", "1.0", 1),
        ),
    ] {
        for pieces in [1, bytes.len()] {
            let mut raw = Raw::connect(service.public).await;
            for piece in bytes.as_bytes().chunks(bytes.len() / pieces) {
                raw.send(piece).await;
            }
            let said = String::from_utf8(raw.closed().await).unwrap();
            assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{sentence}: {said}");
            assert_eq!(said.matches("HTTP/1.1").count(), 1, "{sentence}: {said}");
        }
    }
}

#[tokio::test]
async fn http2_is_not_supported() {
    let service = Service::on_memory().await;
    let mut raw = Raw::connect(service.public).await;
    raw.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0").await;
    assert_eq!(raw.closed().await, b"");
}

#[tokio::test]
async fn oversized_head_is_refused() {
    let service = Service::on_memory().await;
    for (sentence, bytes) in [
        ("one header", format!("GET /health HTTP/1.1\r\nx-a: {}\r\n\r\n", "x".repeat(200_000))),
        ("more headers than a hundred", format!("GET /health HTTP/1.1\r\n{}\r\n", "x-a: x\r\n".repeat(101))),
        ("many headers", format!("GET /health HTTP/1.1\r\n{}\r\n", "x-a: x\r\n".repeat(30_000))),
        (
            "more than sixteen kibibytes",
            format!(
                "GET /health HTTP/1.1\r\nhost: x\r\n{}\r\n",
                format!("x-a: {}\r\n", "x".repeat(1_000)).repeat(17)
            ),
        ),
        ("a path", format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(200_000))),
    ] {
        let mut raw = Raw::connect(service.public).await;
        raw.send(bytes).await;
        let said = String::from_utf8(raw.closed().await).unwrap();
        let status = said.split(' ').nth(1).unwrap_or_default();
        assert!(matches!(status, "431" | "414"), "{sentence}: {said}");
    }
}

#[tokio::test]
async fn body_with_wrong_framing_is_never_accepted() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let head = head(&item.token);
    let (body, request) = ("BODY_MALFORMED", "REQUEST_MALFORMED");
    for (sentence, code, bytes) in [
        ("shorter than its length", body, format!("{head}content-length: 3\r\n\r\n12")),
        ("a chunk that is cut off", body, format!("{head}transfer-encoding: chunked\r\n\r\n2\r\n1")),
        ("no last chunk", body, format!("{head}transfer-encoding: chunked\r\n\r\n1\r\n1\r\n")),
        (
            "a chunk without a size",
            request,
            format!("{head}transfer-encoding: chunked\r\n\r\nx\r\n1\r\n0\r\n\r\n"),
        ),
        (
            "a chunk's size in C",
            request,
            format!("{head}transfer-encoding: chunked\r\n\r\n0x1\r\n1\r\n0\r\n\r\n"),
        ),
        (
            "a size of more than 64 bits",
            request,
            format!("{head}transfer-encoding: chunked\r\n\r\n10000000000000001\r\n1\r\n0\r\n\r\n"),
        ),
        (
            "a line feed in an extension",
            request,
            format!("{head}transfer-encoding: chunked\r\n\r\n1;a\n1\r\n0\r\n\r\n"),
        ),
        (
            "a line feed after a size",
            request,
            format!("{head}transfer-encoding: chunked\r\n\r\n1\n1\r\n0\r\n\r\n"),
        ),
        (
            "a line feed after a chunk",
            request,
            format!("{head}transfer-encoding: chunked\r\n\r\n1\r\n1\n0\r\n\r\n"),
        ),
        (
            "a trailer that is none",
            request,
            format!("{head}transfer-encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nx\r\n\r\n"),
        ),
        (
            "a chunk longer than its size",
            request,
            format!("{head}transfer-encoding: chunked\r\n\r\n1\r\n12\r\n0\r\n\r\n"),
        ),
    ] {
        let mut raw = Raw::connect(service.public).await;
        raw.send(bytes).await;
        raw.finish().await;
        let reply = raw.reply().await;
        assert_eq!(reply.verdict(), (400, code.to_owned()), "{sentence}");
        assert_eq!(service.state(&item).await, "awaiting", "{sentence}");
    }
    // Bytes after the announced length are parsed as the next request, which is malformed.
    let mut raw = Raw::connect(service.public).await;
    raw.send(format!("{head}content-length: 1\r\n\r\n12")).await;
    assert_eq!(raw.reply().await.verdict(), (202, "delivered".to_owned()));
    raw.send("\r\n\r\n").await;
    assert!(raw.closed().await.starts_with(b"HTTP/1.1 400"));
    assert!(service.channel(&item.conversation, 1).await[0].contains("\"result\":1,"));
}

#[tokio::test]
async fn smuggled_request_is_ignored() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let hidden = format!("{}content-length: 1\r\n\r\n1", head(&item.token));
    let first = "GET /nowhere HTTP/1.1\r\nhost: x\r\n";
    let length = hidden.len();
    for (sentence, bytes) in [
        (
            "behind chunks",
            format!("{first}content-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "behind other chunks",
            format!("{first}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "behind a shorter length",
            format!("{first}content-length: 0\r\ncontent-length: {length}\r\n\r\n{hidden}"),
        ),
        ("behind an extension", format!("{first}transfer-encoding: chunked\r\n\r\n0;a\n\r\n\r\n{hidden}")),
    ] {
        let mut raw = Raw::connect(service.public).await;
        raw.send(bytes).await;
        raw.finish().await;
        let replies = String::from_utf8(raw.closed().await).unwrap();
        assert!(!replies.contains("delivered"), "{sentence}: {replies}");
        assert_eq!(service.state(&item).await, "awaiting", "{sentence}");
    }
}

#[tokio::test]
async fn connection_survives_refused_requests() {
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
    // A malformed request after a good one gets a response of its own.
    raw.send(format!("{get}hello\r\n\r\n")).await;
    assert_eq!(raw.reply().await.verdict(), (404, "NOT_FOUND".to_owned()));
    assert!(raw.closed().await.starts_with(b"HTTP/1.1 400"));
}

#[tokio::test]
async fn request_targets_of_other_forms_are_handled() {
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
async fn http_1_0_is_supported() {
    let service = Service::on_memory().await;
    let mut raw = Raw::connect(service.public).await;
    raw.send("GET /health HTTP/1.0\r\n\r\n").await;
    let text = String::from_utf8(raw.closed().await).unwrap();
    assert!(text.contains(" 200 OK\r\n") && text.ends_with("{\"status\":\"ok\"}"), "{text}");
}

#[tokio::test]
async fn platform_listener_refuses_malformed_http() {
    let service = Service::on_memory().await;
    let mut raw = Raw::connect(service.platform).await;
    raw.send("hello\r\n\r\n").await;
    assert!(raw.closed().await.starts_with(b"HTTP/1.1 400"));
}
