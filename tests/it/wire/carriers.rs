//! The carriers of a token: header, query, body and path.

use super::{Row, Sending, check};
use crate::service::{CALLBACKS, Service};

const IN_HEADER: Sending = |service, token| service.callback(token, "{\"a\":1}");
const IN_QUERY: Sending = |service, token| {
    service.provider("POST", &format!("{CALLBACKS}?x=1&callbackToken={token}&y=2")).json("{\"a\":1}")
};
const IN_BODY: Sending = |service, token| {
    service.provider("POST", CALLBACKS).json(format!("{{\"callbackToken\":\"{token}\",\"a\":1}}"))
};
const IN_PATH: Sending =
    |service, token| service.provider("POST", &format!("{CALLBACKS}/{token}")).json("{\"a\":1}");
const ALL: [(&str, Sending); 4] =
    [("header", IN_HEADER), ("query", IN_QUERY), ("body", IN_BODY), ("path", IN_PATH)];

#[tokio::test]
async fn every_carrier_delivers_the_same_result() {
    let service = Service::on_memory().await;
    for (name, sending) in ALL {
        let item = service.fresh_tool().await;
        check([(name, sending(&service, &item.token), (202, "delivered"))]).await;
        let channel = service.channel(&item.conversation, 1).await;
        assert!(channel[0].contains("\"result\":{\"a\":1},"), "{name}: {}", channel[0]);
    }
}

#[tokio::test]
async fn repetition_through_another_carrier_is_recognized() {
    let service = Service::on_memory().await;
    let item = service.fresh_tool().await;
    check([("the first", IN_HEADER(&service, &item.token), (202, "delivered"))]).await;
    for (name, sending) in ALL {
        check([(name, sending(&service, &item.token), (200, "delivered"))]).await;
    }
}

#[tokio::test]
async fn token_field_is_removed_from_the_result() {
    let service = Service::on_memory().await;
    for (sent, result) in [
        ("{\"callbackToken\":\"$\"}", "{}"),
        (" { \"callbackToken\" : \"$\" , \"a\" : 1.0 } ", " { \"a\" : 1.0 } "),
        ("{\"a\":1,\"callbackToken\":\"$\",\"b\":2}", "{\"a\":1,\"b\":2}"),
        ("{\"a\":1,\"callbackToken\":\"$\"}", "{\"a\":1}"),
        ("{\"callbackToken\":\"$\",\"a\":1,\"callbackToken\":\"$\"}", "{\"a\":1}"),
        ("{\"\\u0063allbackToken\":\"$\",\"a\":1}", "{\"a\":1}"),
        (
            "{\"callbackToken\":\"$\",\"in\":{\"callbackToken\":\"kept\"}}",
            "{\"in\":{\"callbackToken\":\"kept\"}}",
        ),
    ] {
        let item = service.fresh_tool().await;
        let call = service.provider("POST", CALLBACKS).json(sent.replace('$', &item.token));
        check([("in the body", call, (202, "delivered"))]).await;
        let channel = service.channel(&item.conversation, 1).await;
        assert!(channel[0].contains(&format!("\"result\":{result},")), "{sent}: {}", channel[0]);
        assert!(!channel[0].contains(&item.token));
    }
}

#[tokio::test]
async fn null_and_empty_values_are_not_tokens() {
    let service = Service::on_memory().await;
    for (sent, result) in [
        ("{\"callbackToken\":null,\"answer\":42}", "{\"answer\":42}"),
        ("{\"answer\":42, \"callbackToken\" : null }", "{\"answer\":42}"),
        ("{\"callbackToken\":\"\",\"answer\":42}", "{\"answer\":42}"),
        ("{\"callbackToken\":null,\"callbackToken\":\"\"}", "{}"),
    ] {
        let item = service.fresh_tool().await;
        let call = || service.callback(&item.token, sent).header("x-callback-token", "");
        check([("in the header", call(), (202, "delivered")), ("again", call(), (200, "delivered"))]).await;
        let channel = service.channel(&item.conversation, 1).await;
        assert!(channel[0].contains(&format!("\"result\":{result},")), "{sent}: {}", channel[0]);
    }
    let item = service.fresh_tool().await;
    let both = format!("{{\"callbackToken\":null,\"callbackToken\":\"{}\"}}", item.token);
    let missing = (401, "CALLBACK_TOKEN_MISSING");
    check([
        ("null alone", service.provider("POST", CALLBACKS).json("{\"callbackToken\":null}"), missing),
        ("nothing anywhere", service.callback("", "{\"callbackToken\":\"\"}"), missing),
        ("null and a token", service.provider("POST", CALLBACKS).json(both), (202, "delivered")),
    ])
    .await;
}

#[tokio::test]
async fn disabled_carrier_is_ignored() {
    for (on, allowed) in ALL {
        let carriers = format!("[\"{on}\"]");
        let service =
            Service::start(&[("token.carriers", carriers.as_str()), ("token.default_carrier", on)]).await;
        let item = service.fresh_tool().await;
        for (name, sending) in ALL.into_iter().filter(|(name, _)| *name != on) {
            // Without the path carrier, the route does not exist.
            let refused = if name == "path" { (404, "NOT_FOUND") } else { (401, "CALLBACK_TOKEN_MISSING") };
            check([(name, sending(&service, &item.token), refused)]).await;
        }
        check([(on, allowed(&service, &item.token), (202, "delivered"))]).await;
    }
}

#[tokio::test]
async fn disabled_body_carrier_keeps_the_field() {
    let service = Service::start(&[("token.carriers", "[\"header\"]")]).await;
    let item = service.fresh_tool().await;
    let call = service.callback(&item.token, "{\"callbackToken\":\"mine\"}");
    check([("a field of this name", call, (202, "delivered"))]).await;
    let channel = service.channel(&item.conversation, 1).await;
    assert!(channel[0].contains("\"result\":{\"callbackToken\":\"mine\"},"));
}

#[tokio::test]
async fn carrier_names_are_configurable() {
    let service = Service::start(&[
        ("token.header_name", "X-Delphi-Token"),
        ("token.query_name", "delphi.token"),
        ("token.body_field", "_token"),
    ])
    .await;
    let renamed: [(&str, Sending); 3] = [
        ("header", |service, token| {
            service.provider("POST", CALLBACKS).header("x-DELPHI-token", token).json("1")
        }),
        ("query", |service, token| {
            service.provider("POST", &format!("{CALLBACKS}?delphi.token={token}")).json("1")
        }),
        ("body", |service, token| {
            service.provider("POST", CALLBACKS).json(format!("{{\"_token\":\"{token}\"}}"))
        }),
    ];
    for ((name, sending), (_, default)) in renamed.into_iter().zip(ALL) {
        let item = service.fresh_tool().await;
        check([
            (
                "under its default name it is not there",
                default(&service, &item.token),
                (401, "CALLBACK_TOKEN_MISSING"),
            ),
            (name, sending(&service, &item.token), (202, "delivered")),
        ])
        .await;
    }
}

#[tokio::test]
async fn different_tokens_in_one_request_are_refused() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    let (one, other) = (service.tool(&conversation).await, service.tool(&conversation).await);
    let (mine, yours) = (one.token.as_str(), other.token.as_str());
    let disagree = (400, "TOKEN_CARRIERS_DISAGREE");
    let query = |token| service.provider("POST", &format!("{CALLBACKS}?callbackToken={token}"));
    let path = |token| service.provider("POST", &format!("{CALLBACKS}/{token}"));
    let body = |token| format!("{{\"callbackToken\":\"{token}\"}}");
    let twice = format!("{{\"callbackToken\":\"{mine}\",\"callbackToken\":\"{yours}\"}}");
    let rows: Vec<Row<'_>> = vec![
        ("header and query", query(yours).header("x-callback-token", mine).json("1"), disagree),
        ("header and path", path(yours).header("x-callback-token", mine).json("1"), disagree),
        ("header and body", service.callback(mine, body(yours)), disagree),
        ("query and body", query(mine).json(body(yours)), disagree),
        ("path and body", path(mine).json(body(yours)), disagree),
        ("two fields of one name", service.provider("POST", CALLBACKS).json(twice), disagree),
        ("two headers", service.callback(mine, "1").header("x-callback-token", yours), disagree),
        (
            "two parameters",
            service
                .provider("POST", &format!("{CALLBACKS}?callbackToken={mine}&callbackToken={yours}"))
                .json("1"),
            disagree,
        ),
        ("a good and a forged one", service.callback(mine, "1").header("x-callback-token", "x"), disagree),
        (
            "a good one and a field that is no string",
            service.callback(mine, "{\"callbackToken\":7}"),
            disagree,
        ),
        (
            "two that agree and a third that does not",
            query(mine).header("x-callback-token", mine).json(body(yours)),
            disagree,
        ),
        (
            "four that agree",
            service
                .provider("POST", &format!("{CALLBACKS}/{mine}?callbackToken={mine}"))
                .header("x-callback-token", mine)
                .json(body(mine)),
            (202, "delivered"),
        ),
        (
            "two headers that agree, and an empty one",
            service.callback(yours, "1").header("x-callback-token", yours).header("x-callback-token", ""),
            (202, "delivered"),
        ),
    ];
    check(rows).await;
}

#[tokio::test]
async fn issued_callback_instructions_work() {
    let service = Service::start(&[("http.public_base_url", "")]).await;
    for (name, _) in ALL {
        let conversation = service.open().await;
        let asked = serde_json::json!({"kind": "tool", "carrier": name});
        let item = service.issue(&conversation, &asked).await;
        let callback = &item.issued["callback"];
        let text = |field: &str| callback[field].as_str().unwrap();
        assert_eq!(text("carrier"), name);
        let path = text("url").strip_prefix(&format!("http://{}", service.public)).unwrap();
        let mut call = service.provider(text("method"), path);
        for (header, value) in callback["headers"].as_object().unwrap() {
            call = call.header(header, value.as_str().unwrap());
        }
        let body = if name == "body" {
            format!("{{\"{}\":\"{}\"}}", text("name"), item.token)
        } else {
            "{}".to_owned()
        };
        check([("as it was told", call.body(body), (202, "delivered"))]).await;
    }
}
