//! Validation of ids and bodies.

use super::check;
use crate::service::{SERVICE_KEY, Service};

#[tokio::test]
async fn id_with_key_syntax_is_refused() {
    let service = Service::on_memory().await;
    let invalid = (400, "REQUEST_INVALID");
    let put = |id: &str| service.platform("PUT", &format!("/conversations/{id}"));
    let long = "x".repeat(129);
    check([
        ("braces", put("%7B%7D"), invalid),
        ("a hash tag", put("a%7Bb%7Dc"), invalid),
        ("an escaped slash", put("a%2Fb"), invalid),
        ("a NUL", put("a%00"), invalid),
        ("a line feed", put("a%0A"), invalid),
        ("a space", put("a%20b"), invalid),
        ("a plus", put("a+b"), invalid),
        ("a star", put("*"), invalid),
        ("a letter beyond ASCII", put("%C3%A9"), invalid),
        ("bytes that are no text", put("%FF"), invalid),
        ("129 characters", put(&long), invalid),
        ("128 characters", put(&long[1..]), (201, "")),
        ("one character", put("x"), (201, "")),
        ("an escaped letter is that letter", put("%78"), (200, "")),
        ("none", put(""), (404, "NOT_FOUND")),
        ("a segment more", put("a/b"), (404, "NOT_FOUND")),
    ])
    .await;
    let item = |id: &str| service.platform("GET", &format!("/conversations/x/work-items/{id}"));
    check([
        ("no such item", item("0190163d-8694-739b-aea5-966c26f8ad91"), (404, "WORK_ITEM_NOT_FOUND")),
        ("not an id that was ever given out", item("one"), (404, "WORK_ITEM_NOT_FOUND")),
        ("braces", item("%7B%7D"), invalid),
        ("a NUL", item("%00"), invalid),
    ])
    .await;
}

#[tokio::test]
async fn body_must_be_json_with_known_fields() {
    let service = Service::on_memory().await;
    let put = || service.platform("PUT", "/conversations/strict");
    for (body, named) in [
        ("{\"idleTtlMs\":1,\"idleTTLMs\":1}", "idleTTLMs"),
        ("{\"ttl\":1}", "ttl"),
        ("{\"idleTtlMs\":0}", "idleTtlMs"),
        ("{\"idleTtlMs\":604800001}", "idleTtlMs"),
        ("{\"idleTtlMs\":\"1\"}", "idleTtlMs"),
        ("{\"traceparent\":7}", "traceparent"),
        ("{\"traceparent\":\"\"}", "traceparent"),
        ("[1]", "the body"),
    ] {
        let reply = put().json(body).send().await;
        assert_eq!(reply.verdict(), (400, "REQUEST_INVALID".to_owned()), "{body}");
        assert!(reply.message().contains(named), "{body}: {}", reply.message());
    }
    let malformed = (400, "BODY_MALFORMED");
    check([
        ("not JSON", put().json("{"), malformed),
        ("two values", put().json("{} {}"), malformed),
        ("not UTF-8", put().json(b"{\"\xff\":1}".to_vec()), malformed),
        (
            "another type",
            put().header("content-type", "text/plain").body("{}"),
            (415, "CONTENT_TYPE_UNSUPPORTED"),
        ),
        ("no type", put().body("{}"), (415, "CONTENT_TYPE_UNSUPPORTED")),
        ("too large", put().json(" ".repeat(1024 * 1024 + 1)), (413, "BODY_TOO_LARGE")),
        (
            "nothing of this opened it",
            service.platform("GET", "/conversations/strict"),
            (404, "CONVERSATION_NOT_FOUND"),
        ),
        ("no body", put(), (201, "")),
        ("an empty object", put().json("{}"), (200, "")),
        ("nulls", put().json("{\"idleTtlMs\":null,\"traceparent\":null}"), (200, "")),
    ])
    .await;
}

#[tokio::test]
async fn service_key_is_never_echoed() {
    let service = Service::on_memory().await;
    for call in [
        service.platform("PUT", "/conversations/%7B%7D"),
        service.platform("GET", "/nowhere"),
        service.platform("PUT", "/conversations/a").json("{"),
    ] {
        let reply = call.send().await;
        assert!(!reply.text().contains(SERVICE_KEY) && reply.status.is_client_error());
    }
}

#[tokio::test]
async fn enum_fields_must_be_strings() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    let issue = |body: &str| {
        let path = format!("/conversations/{conversation}/work-items");
        service.platform("POST", &path).json(body.to_owned())
    };
    for body in [
        r#"{"kind":{"tool":null}}"#,
        r#"{"kind":["tool"]}"#,
        r#"{"kind":null}"#,
        r#"{"kind":1}"#,
        r#"{"kind":"tool","carrier":{"header":null}}"#,
        r#"{"kind":"tool","carrier":["header"]}"#,
    ] {
        assert_eq!(issue(body).verdict().await, (400, "REQUEST_INVALID".to_owned()), "{body}");
    }
    check([("null is no carrier", issue(r#"{"kind":"tool","carrier":null}"#), (201, ""))]).await;
}
