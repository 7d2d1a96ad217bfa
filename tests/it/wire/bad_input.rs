//! Malformed bodies and paths.

use super::check;
use crate::service::{CALLBACKS, Kind, Service, on_every_deployment};

on_every_deployment!(json_body_is_delivered_unchanged);

async fn json_body_is_delivered_unchanged(kind: Kind) {
    let deployment = kind.deploy(&[("http.max_body_bytes", "16777216")]).await;
    let conversation = deployment.any().open().await;
    let digits = "7".repeat(10 * 1024 * 1024);
    let nested = format!("{}{}", "[".repeat(128), "]".repeat(128));
    let bodies = [
        "{\"a\":1,\"a\":2,\"a\":1}",
        "1e999999999",
        "-0.0",
        "123456789012345678901234567890.12345678901234567890",
        "\"\\u0000\"",
        "\"\\ud83d\\ude00 😀 \\/ \\u00e9 é\"",
        "\"\u{7f}\u{feff}\"",
        "{\"\":{\"__proto__\":null}}",
        "{\"outcome\":\"cancelled\",\"sequence\":99}",
        " \t 7 \t ",
        &nested,
        &digits,
    ];
    for body in bodies {
        let item = deployment.any().tool(&conversation).await;
        check([("JSON", deployment.any().callback(&item.token, body.to_owned()), (202, "delivered"))]).await;
    }
    let channel = deployment.any().channel(&conversation, bodies.len()).await;
    for (envelope, body) in channel.iter().zip(bodies) {
        let head = &body[..body.len().min(80)];
        assert!(
            envelope.contains(&format!("\"outcome\":\"succeeded\",\"result\":{body},\"issuedAt\":")),
            "{head}"
        );
    }
}

#[tokio::test]
async fn invalid_json_is_refused_and_spends_nothing() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth)).into_bytes();
    let bodies: [(&str, Vec<u8>); 18] = [
        ("empty", b"".to_vec()),
        ("white space", b" \r\n\t".to_vec()),
        ("cut off", b"{\"a\":".to_vec()),
        ("two values", b"1 2".to_vec()),
        ("a comment", b"1 // one".to_vec()),
        ("single quotes", b"{'a':1}".to_vec()),
        ("NaN", b"NaN".to_vec()),
        ("a leading zero", b"01".to_vec()),
        ("a byte order mark alone", b"\xef\xbb\xbf".to_vec()),
        ("two byte order marks", b"\xef\xbb\xbf\xef\xbb\xbf1".to_vec()),
        ("a NUL", b"\"\0\"".to_vec()),
        ("a NUL after the value", b"1\0".to_vec()),
        ("not UTF-8", b"\"\xff\"".to_vec()),
        ("a surrogate in UTF-8", b"\"\xed\xa0\x80\"".to_vec()),
        ("half a pair, the high one", b"\"\\ud800\"".to_vec()),
        ("half a pair, the low one", b"{\"a\":[\"\\udc00\"]}".to_vec()),
        ("129 levels", nested(129)),
        ("half a million levels", nested(500_000)),
    ];
    for (sentence, body) in bodies {
        check([(sentence, service.callback(&item.token, body), (400, "BODY_MALFORMED"))]).await;
    }
    check([("a good one", service.callback(&item.token, "1"), (202, "delivered"))]).await;
}

#[tokio::test]
async fn other_content_type_is_refused_and_spends_nothing() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let post = || service.provider("POST", CALLBACKS).header("x-callback-token", &item.token).body("1");
    let refused = (415, "CONTENT_TYPE_UNSUPPORTED");
    check([("no type at all", post(), refused)]).await;
    for bad in [
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "application/json; charset=latin1",
        "application/json, text/plain",
        "multipart/form-data; boundary=x",
    ] {
        check([(bad, post().header("content-type", bad), refused)]).await;
    }
    let twice = post().header("content-type", "application/json").header("content-type", "text/plain");
    let packed = post().header("content-type", "application/json").header("content-encoding", "gzip");
    check([("two types", twice, refused), ("compressed", packed, refused)]).await;
    assert_eq!(service.state(&item).await, "awaiting");
}

#[tokio::test]
async fn refused_type_charset_and_coding_are_named() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let json = "application/json";
    for (content_type, coding, named) in [
        ("text/plain; charset=utf-8", "", "the Content-Type is text/plain;"),
        ("application/x-www-form-urlencoded", "", "the Content-Type is application/x-www-form-urlencoded;"),
        ("", "", "no Content-Type"),
        ("application/json; charset=latin1", "", "the charset is latin1; send UTF-8"),
        ("application/json; charset=\"ISO-8859-1\"", "", "the charset is ISO-8859-1;"),
        (json, "gzip", "the Content-Encoding is gzip;"),
        (json, "identity, br", "the Content-Encoding is br;"),
        (&item.token, "", "not a JSON media type"),
        (json, &item.token, "the Content-Encoding is unknown;"),
    ] {
        let call = service.provider("POST", CALLBACKS).header("x-callback-token", &item.token).body("1");
        let reply = call.header("content-type", content_type).header("content-encoding", coding).send().await;
        assert_eq!(reply.verdict(), (415, "CONTENT_TYPE_UNSUPPORTED".to_owned()), "{content_type} {coding}");
        let message = reply.message();
        assert!(message.contains(named) && !message.contains(&item.token), "{message}");
        assert_eq!(reply.header("accept"), Some(json));
    }
    assert_eq!(service.state(&item).await, "awaiting");
}

#[tokio::test]
async fn spellings_of_json_are_accepted() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let post = || service.provider("POST", CALLBACKS).header("x-callback-token", &item.token).body("1");
    let json = |content_type: &str| post().header("content-type", content_type);
    check([("the usual one", json("application/json"), (202, "delivered"))]).await;
    for good in [
        "application/json; charset=UTF-8",
        "application/json; charset=utf8",
        "APPLICATION/JSON ; Charset = \"Utf-8\"",
        "application/json; v=1; profile=\"a;charset=latin1\"",
        "application/json;",
        "application/problem+json",
        "application/json, application/json",
        "application/json,application/json; charset=utf-8",
    ] {
        check([(good, json(good), (200, "delivered"))]).await;
    }
    let twice = json("application/json").header("content-type", "Application/JSON; charset=utf8");
    check([("in two lines", twice, (200, "delivered"))]).await;
    for coding in ["", "identity", "Identity", "identity, IDENTITY"] {
        let call = json("application/json").header("content-encoding", coding);
        check([(coding, call, (200, "delivered"))]).await;
    }
    let platform = service.platform("PUT", "/conversations/spelled").body("{}");
    check([("the platform", platform.header("content-type", "application/json; charset=utf8"), (201, ""))])
        .await;
}

#[tokio::test]
async fn byte_order_mark_is_dropped() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    let marked = "\u{feff}{\"callbackToken\":null,\"a\":1}";
    check([
        ("marked", service.callback(&item.token, marked), (202, "delivered")),
        ("without it, it is the same body", service.callback(&item.token, "{\"a\":1}"), (200, "delivered")),
        ("the platform", service.platform("PUT", "/conversations/marked").json("\u{feff}{}"), (201, "")),
    ])
    .await;
    assert!(service.channel(&item.conversation, 1).await[0].contains("\"result\":{\"a\":1},"));
}

#[tokio::test]
async fn escaped_path_is_a_token_or_not_found() {
    let service = Service::on_memory().await;
    let post = |rest: &str| service.provider("POST", &format!("{CALLBACKS}{rest}")).json("1");
    check([
        ("an escaped slash", post("/a%2Fb"), (401, "CALLBACK_TOKEN_INVALID")),
        ("an escaped NUL", post("/%00"), (401, "CALLBACK_TOKEN_INVALID")),
        ("bytes that are no text", post("/%ff%fe"), (401, "CALLBACK_TOKEN_INVALID")),
        ("half an escape", post("/%f"), (401, "CALLBACK_TOKEN_INVALID")),
        ("dots", post("/..%2f..%2fetc"), (401, "CALLBACK_TOKEN_INVALID")),
        ("a token of 8 KiB", post(&format!("/{}", "x".repeat(8 * 1024))), (401, "CALLBACK_TOKEN_INVALID")),
        ("a slash more", post("/a/b"), (404, "NOT_FOUND")),
        ("a slash at the end", post("/"), (404, "NOT_FOUND")),
        ("an empty parameter", post("?callbackToken="), (401, "CALLBACK_TOKEN_MISSING")),
        ("a parameter that is no text", post("?callbackToken=%ff"), (401, "CALLBACK_TOKEN_INVALID")),
        ("a parameter of another name", post("?callbacktoken=x"), (401, "CALLBACK_TOKEN_MISSING")),
    ])
    .await;
}
