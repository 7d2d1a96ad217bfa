//! Issuing work items.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{check, fields};
use crate::service::{Kind, Service, issued, millis, on_every_deployment};

on_every_deployment!(
    issued_item_has_all_that_a_provider_needs,
    idempotency_key_returns_the_same_item,
    concurrent_idempotent_requests_issue_one_item,
    requests_over_a_limit_issue_nothing,
    tool_call_and_name_are_given_back,
);

async fn issued_item_has_all_that_a_provider_needs(kind: Kind) {
    let flags =
        [("http.public_base_url", "https://api.example.com/hooks/"), ("token.replay_window_ms", "5000")];
    let deployment = kind.deploy(&flags).await;
    let conversation = deployment.any().open().await;
    let first = deployment.any().issue(&conversation, &json!({"kind": "tool"})).await.issued;
    assert_eq!(
        fields(&first),
        ["callback", "conversationId", "deadline", "issuedAt", "kind", "sequence", "workItemId"]
    );
    let callback = &first["callback"];
    assert_eq!(
        fields(callback),
        ["carrier", "deadline", "expiresAt", "headers", "method", "name", "token", "url"]
    );
    assert_eq!(millis(&first["deadline"]), millis(&first["issuedAt"]) + 60_000, "by default, a minute");
    assert_eq!(callback["deadline"], first["deadline"], "until when the provider retries");
    assert_eq!(millis(&callback["expiresAt"]), millis(&first["deadline"]) + 5_000);
    let token = callback["token"].as_str().unwrap();
    assert!(token.starts_with("cbt_") && token.len() <= 160, "{token}");
    assert!(!token.contains('='));
    let url = "https://api.example.com/hooks/api/v1/webhooks/callbacks";
    for (carrier, name, expected, header) in [
        ("header", "X-Callback-Token", url.to_owned(), true),
        ("query", "callbackToken", format!("{url}?callbackToken=TOKEN"), false),
        ("body", "callbackToken", url.to_owned(), false),
        ("path", "token", format!("{url}/TOKEN"), false),
    ] {
        let asked = json!({"kind": "llm", "carrier": carrier, "turnId": "t:1", "timeoutMs": 1_500});
        let item = deployment.any().issue(&conversation, &asked).await;
        let callback = &item.issued["callback"];
        assert_eq!(callback["carrier"], carrier);
        assert_eq!(callback["name"], name);
        assert_eq!(callback["method"], "POST");
        assert_eq!(callback["url"], expected.replace("TOKEN", &item.token));
        assert_eq!(callback["headers"]["Content-Type"], "application/json");
        assert_eq!(callback["headers"].get("X-Callback-Token"), header.then(|| json!(item.token)).as_ref());
        assert_eq!((&item.issued["turnId"], &item.issued["kind"]), (&json!("t:1"), &json!("llm")));
        assert_eq!(millis(&item.issued["deadline"]), millis(&item.issued["issuedAt"]) + 1_500);
    }
}

async fn tool_call_and_name_are_given_back(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let asked = json!({"kind": "tool", "toolCallId": "toolu_\"01\\", "name": "maps.route", "turnId": "t"});
    let item = deployment.any().issue(&conversation, &asked).await;
    let shown = deployment.any().shown(&item.path()).await;
    let inspected = deployment.any().shown(&format!("/conversations/{conversation}")).await;
    check([("its callback", deployment.any().callback(&item.token, "1"), (202, "delivered"))]).await;
    let envelope: Value = serde_json::from_str(&deployment.any().channel(&conversation, 1).await[0]).unwrap();
    for told in [&item.issued, &shown, &inspected["awaiting"][0], &envelope] {
        assert_eq!((&told["toolCallId"], &told["name"]), (&asked["toolCallId"], &asked["name"]), "{told}");
    }
    let none = json!({"kind": "tool", "toolCallId": null, "name": null});
    let item = deployment.any().issue(&conversation, &none).await;
    let shown = deployment.any().shown(&item.path()).await;
    for told in [&item.issued, &shown] {
        assert!(told.get("toolCallId").is_none() && told.get("name").is_none(), "{told}");
    }
    let longest = json!({"kind": "tool", "toolCallId": "~".repeat(128), "name": "x".repeat(64)});
    assert_eq!(deployment.any().issue(&conversation, &longest).await.issued["name"], longest["name"]);
}

async fn idempotency_key_returns_the_same_item(kind: Kind) {
    let deployment = kind.deploy(&[("http.public_base_url", "https://api.example.com")]).await;
    let conversation = deployment.any().open().await;
    let asked = json!({"kind": "tool", "timeoutMs": 5_000});
    let issue = |key: &str, asked: &Value| {
        deployment.any().issuing(&conversation, asked).header("idempotency-key", key)
    };
    let first = issue("one", &asked).send().await;
    assert_eq!((first.status.as_u16(), first.header("idempotent-replayed")), (201, None));
    let again = issue("one", &json!({"timeoutMs": 5_000, "kind": "tool"})).send().await;
    assert_eq!((again.status.as_u16(), again.header("idempotent-replayed")), (201, Some("true")));
    assert_eq!(again.json(), first.json(), "the same item, the same token");
    let reused = (409, "IDEMPOTENCY_KEY_REUSED");
    check([
        ("another kind", issue("one", &json!({"kind": "llm", "timeoutMs": 5_000})), reused),
        ("another time", issue("one", &json!({"kind": "tool"})), reused),
        ("another name", issue("one", &json!({"kind": "tool", "timeoutMs": 5_000, "name": "n"})), reused),
        (
            "another heartbeat timeout",
            issue("one", &json!({"kind": "tool", "timeoutMs": 5_000, "heartbeatTimeoutMs": 5_000})),
            reused,
        ),
        (
            "another tool call",
            issue("one", &json!({"kind": "tool", "timeoutMs": 5_000, "toolCallId": "c"})),
            reused,
        ),
        ("another turn", issue("one", &json!({"kind": "tool", "timeoutMs": 5_000, "turnId": "t"})), reused),
        (
            "another carrier",
            issue("one", &json!({"kind": "tool", "timeoutMs": 5_000, "carrier": "query"})),
            reused,
        ),
    ])
    .await;
    let quoted = issue("\"one\"", &asked).send().await;
    assert_eq!(quoted.json(), first.json(), "in quotes, it is the same key");
    let escaped = issue(r#""o\"n\\e""#, &asked).send().await;
    let bare = issue(r#"o"n\e"#, &asked).send().await;
    assert_eq!((escaped.status.as_u16(), bare.json()), (201, escaped.json()), "with escapes as well");
    assert_ne!(escaped.json(), first.json());
    assert_eq!(issued(&issue("One", &asked).send().await).sequence, 3, "another key is another item");
    let elsewhere = deployment.any().open().await;
    let call = deployment.any().issuing(&elsewhere, &asked).header("idempotency-key", "one");
    assert_ne!(issued(&call.send().await).id, issued(&first).id, "a key is its conversation's own");
    // Settled or not, it is the same item.
    let item = issued(&first);
    check([("its callback", deployment.any().callback(&item.token, "1"), (202, "delivered"))]).await;
    assert_eq!(issue("one", &asked).send().await.json(), first.json());
    deployment.any().end(&conversation).await;
    check([("after the end", issue("one", &asked), (409, "CONVERSATION_ENDED"))]).await;
}

async fn concurrent_idempotent_requests_issue_one_item(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let asked = json!({"kind": "tool"});
    let calls = (0..32)
        .map(|_| deployment.any().issuing(&conversation, &asked).header("idempotency-key", "the-one").send());
    let replies = join_all(calls).await;
    let first = issued(&replies[0]);
    for reply in &replies {
        assert_eq!(reply.status, 201);
        assert_eq!((&issued(reply).id, &issued(reply).token), (&first.id, &first.token));
    }
    let repeated = replies.iter().filter(|reply| reply.header("idempotent-replayed").is_some());
    assert_eq!(repeated.count(), 31);
    let shown = deployment.any().shown(&format!("/conversations/{conversation}")).await;
    assert_eq!(shown["nextSequence"], 2);
}

async fn requests_over_a_limit_issue_nothing(kind: Kind) {
    let deployment = kind.deploy(&[("gate.max_awaiting_items", "2"), ("gate.max_channel_length", "3")]).await;
    let conversation = deployment.any().open().await;
    let asked = json!({"kind": "tool"});
    let first = deployment.any().issue(&conversation, &asked).await;
    deployment.any().issue(&conversation, &asked).await;
    check([("two are awaiting", deployment.any().issuing(&conversation, &asked), (429, "AWAITING_LIMIT"))])
        .await;
    deployment.any().callback(&first.token, "1").send().await;
    assert_eq!(deployment.any().issue(&conversation, &asked).await.sequence, 3, "nothing was left out");
    check([(
        "the channel is full",
        deployment.any().issuing(&conversation, &asked),
        (429, "AWAITING_LIMIT"),
    )])
    .await;
    deployment
        .any()
        .platform("DELETE", &format!("/conversations/{conversation}/work-items/{}", first.id))
        .send()
        .await;
    let shown = deployment.any().shown(&format!("/conversations/{conversation}")).await;
    for item in shown["awaiting"].as_array().unwrap() {
        let path =
            format!("/conversations/{conversation}/work-items/{}", item["workItemId"].as_str().unwrap());
        assert_eq!(deployment.any().platform("DELETE", &path).send().await.status, 200);
    }
    check([("the channel is full", deployment.any().issuing(&conversation, &asked), (409, "CHANNEL_LIMIT"))])
        .await;
}

#[tokio::test]
async fn metrics_distinguish_a_hundred_names() {
    let service = Service::start(&[]).await;
    let conversation = service.open().await;
    for number in 0..102 {
        let item = service.issue(&conversation, &json!({"kind": "tool", "name": format!("n{number}")})).await;
        assert_eq!(service.callback(&item.token, "1").send().await.status, 202);
    }
    let item = service.tool(&conversation).await;
    assert_eq!(service.callback(&item.token, "1").send().await.status, 202);
    let metrics = service.metrics().await;
    for series in
        ["callback_ingress_result_turnaround_seconds_count", "callback_ingress_work_item_released_total"]
    {
        let value = |name: &str| {
            let label = format!("gen_ai_tool_name=\"{name}\"");
            let is_named = |line: &&str| {
                if name.is_empty() { !line.contains("gen_ai_tool_name") } else { line.contains(&label) }
            };
            let of_series = metrics.lines().filter(|line| line.starts_with(series)).filter(is_named);
            of_series.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum::<u64>()
        };
        let counts = ["n0", "n99", "n100", "n101", "other", ""].map(value);
        assert_eq!(counts, [1, 1, 0, 0, 2, 1], "{series}");
    }
}

#[tokio::test]
async fn invalid_issue_request_names_the_field() {
    let service = Service::start(&[("token.carriers", "[\"header\",\"body\"]")]).await;
    let conversation = service.open().await;
    let too_long_call = json!({"kind": "tool", "toolCallId": "x".repeat(129)}).to_string();
    let too_long_name = json!({"kind": "tool", "name": "x".repeat(65)}).to_string();
    for (asked, named) in [
        ("{}", "kind"),
        ("{\"kind\":\"Tool\"}", "kind"),
        ("{\"kind\":7}", "kind"),
        ("{\"kind\":null}", "kind"),
        ("{\"kind\":\"tool\",\"kind\":\"llm\"}", "kind"),
        ("{\"kind\":\"tool\",\"timeoutMs\":0}", "timeoutMs"),
        ("{\"kind\":\"tool\",\"timeoutMs\":900001}", "timeoutMs"),
        ("{\"kind\":\"tool\",\"timeoutMs\":-1}", "timeoutMs"),
        ("{\"kind\":\"tool\",\"timeoutMs\":1.5}", "timeoutMs"),
        ("{\"kind\":\"tool\",\"timeoutMs\":\"1\"}", "timeoutMs"),
        ("{\"kind\":\"tool\",\"timeoutMs\":true}", "timeoutMs"),
        ("{\"kind\":\"tool\",\"timeoutMs\":[60000]}", "timeoutMs"),
        ("{\"kind\":\"tool\",\"timeoutMs\":18446744073709551616}", "timeoutMs"),
        ("{\"kind\":\"tool\",\"heartbeatTimeoutMs\":0}", "heartbeatTimeoutMs"),
        ("{\"kind\":\"tool\",\"heartbeatTimeoutMs\":60001}", "heartbeatTimeoutMs"),
        ("{\"kind\":\"tool\",\"heartbeatTimeoutMs\":-1}", "heartbeatTimeoutMs"),
        ("{\"kind\":\"tool\",\"heartbeatTimeoutMs\":1.5}", "heartbeatTimeoutMs"),
        ("{\"kind\":\"tool\",\"heartbeatTimeoutMs\":\"\"}", "heartbeatTimeoutMs"),
        ("{\"kind\":\"tool\",\"heartbeatTimeoutMs\":\"cbt_AQJrMQ\"}", "heartbeatTimeoutMs"),
        ("{\"kind\":\"tool\",\"heartbeatTimeoutMs\":[1]}", "heartbeatTimeoutMs"),
        ("{\"kind\":\"tool\",\"heartbeatTimeoutMs\":1,\"heartbeatTimeoutMs\":1}", "heartbeatTimeoutMs"),
        ("{\"kind\":\"tool\",\"heartbeat_timeout_ms\":1}", "heartbeat_timeout_ms"),
        ("{\"kind\":\"tool\",\"carrier\":\"query\"}", "carrier"),
        ("{\"kind\":\"tool\",\"carrier\":\"cookie\"}", "carrier"),
        ("{\"kind\":\"tool\",\"turnId\":\"\"}", "turnId"),
        ("{\"kind\":\"tool\",\"turnId\":\"a b\"}", "turnId"),
        ("{\"kind\":\"tool\",\"turnId\":\"\\u0000\"}", "turnId"),
        ("{\"kind\":\"tool\",\"traceparent\":\"00-1-2-3\"}", "traceparent"),
        ("{\"kind\":\"tool\",\"toolCallId\":\"\"}", "toolCallId"),
        ("{\"kind\":\"tool\",\"toolCallId\":\"a b\"}", "toolCallId"),
        ("{\"kind\":\"tool\",\"toolCallId\":\"a\\u0000\"}", "toolCallId"),
        ("{\"kind\":\"tool\",\"toolCallId\":\"a\\n\"}", "toolCallId"),
        ("{\"kind\":\"tool\",\"toolCallId\":\"é\"}", "toolCallId"),
        ("{\"kind\":\"tool\",\"toolCallId\":7}", "toolCallId"),
        ("{\"kind\":\"tool\",\"toolCallId\":[\"a\"]}", "toolCallId"),
        ("{\"kind\":\"tool\",\"toolCallId\":\"cbt_AQJrMQ\"}", "toolCallId"),
        ("{\"kind\":\"tool\",\"toolCallId\":\"a\",\"toolCallId\":\"a\"}", "toolCallId"),
        ("{\"kind\":\"tool\",\"tool_call_id\":\"a\"}", "tool_call_id"),
        ("{\"kind\":\"tool\",\"name\":\"\"}", "name"),
        ("{\"kind\":\"tool\",\"name\":\"a b\"}", "name"),
        ("{\"kind\":\"tool\",\"name\":\"a/b\"}", "name"),
        ("{\"kind\":\"tool\",\"name\":\"a\\u0007\"}", "name"),
        ("{\"kind\":\"tool\",\"name\":true}", "name"),
        ("{\"kind\":\"tool\",\"name\":\"x:CBT_AQJrMQ\"}", "name"),
        ("{\"kind\":\"tool\",\"Name\":\"a\"}", "Name"),
        (&too_long_call, "toolCallId"),
        (&too_long_name, "name"),
        ("{\"kind\":\"tool\",\"timeout\":5}", "timeout"),
        ("{\"kind\":\"tool\",\"TimeoutMs\":5}", "TimeoutMs"),
        ("[]", "the body"),
        ("7", "the body"),
    ] {
        let call = service
            .platform("POST", &format!("/conversations/{conversation}/work-items"))
            .json(asked.to_owned());
        let reply = call.send().await;
        assert_eq!(reply.verdict(), (400, "REQUEST_INVALID".to_owned()), "{asked}");
        assert!(reply.message().contains(named), "{asked}: {}", reply.message());
        assert!(!reply.text().contains("AQJrMQ"), "{asked}: {}", reply.text());
        if named == "timeoutMs" {
            assert_eq!(
                reply.message(),
                "timeoutMs: must be a whole number of milliseconds from 1 to 900000",
                "{asked}"
            );
        }
    }
    let asked = json!({"kind": "tool", "timeoutMs": 500, "heartbeatTimeoutMs": 501});
    assert_eq!(
        service.issuing(&conversation, &asked).send().await.message(),
        "heartbeatTimeoutMs: must be a whole number of milliseconds from 1 to 500",
        "the item's own timeout"
    );
    for bad in [
        "",
        "\"\"",
        "a b",
        "\"a b\"",
        "\"",
        "\"a",
        "\"a\"b\"",
        r#""a\""#,
        r#""a\b""#,
        r#""a\\\""#,
        &"x".repeat(256),
        "é",
    ] {
        let call = service.issuing(&conversation, &json!({"kind": "tool"})).header("idempotency-key", bad);
        let reply = call.send().await;
        assert_eq!(reply.verdict(), (400, "REQUEST_INVALID".to_owned()), "{bad}");
        assert!(reply.message().contains("Idempotency-Key"));
    }
    let call = service.issuing(&conversation, &json!({"kind": "tool"})).header("idempotency-key", "a");
    check([("two keys", call.header("idempotency-key", "a"), (400, "REQUEST_INVALID"))]).await;
    assert_eq!(service.tool(&conversation).await.sequence, 1, "nothing was issued");
}
