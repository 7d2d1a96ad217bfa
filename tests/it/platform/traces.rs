//! The trace context of an issued item.

use serde_json::{Value, json};

use crate::service::{Kind, on_every_deployment};

on_every_deployment!(item_joins_the_nearest_trace);

fn trace(letter: &str) -> String {
    format!("00-{}-{}-01", letter.repeat(32), letter.repeat(16))
}

async fn item_joins_the_nearest_trace(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let (opened, in_header, in_body) = (trace("a"), trace("b"), trace("c"));
    for (nth, (of_conversation, header, body, expected)) in [
        (None, None, None, None),
        (Some(&opened), None, None, Some(&opened)),
        (Some(&opened), Some(&in_header), None, Some(&in_header)),
        (Some(&opened), Some(&in_header), Some(&in_body), Some(&in_body)),
        (None, Some(&in_header), None, Some(&in_header)),
        (None, None, Some(&in_body), Some(&in_body)),
    ]
    .into_iter()
    .enumerate()
    {
        let conversation = format!("traced-{nth}");
        let path = format!("/conversations/{conversation}");
        let mut open = deployment.any().platform("PUT", &path);
        // On opening, the header and the body have the same effect.
        match of_conversation {
            Some(parent) if nth % 2 == 0 => open = open.header("traceparent", parent),
            Some(parent) => open = open.json(json!({"traceparent": parent}).to_string()),
            None => {}
        }
        assert_eq!(open.send().await.status, 201);
        let mut asked = json!({"kind": "tool"});
        if let Some(parent) = body {
            asked["traceparent"] = json!(parent);
        }
        let mut issue = deployment.any().issuing(&conversation, &asked);
        if let Some(parent) = header {
            issue = issue.header("traceparent", parent);
        }
        let reply = issue.send().await;
        if let Some(parent) = header {
            assert_eq!(reply.header("x-trace-id"), Some(&parent[3..35]), "the platform's trace goes on");
        }
        let item = crate::service::issued(&reply);
        let shown = deployment.any().shown(&item.path()).await;
        assert_eq!(shown.get("traceparent").and_then(Value::as_str), expected.map(String::as_str), "{nth}");
        let ours = trace("d");
        let callback = deployment.any().callback(&item.token, "1").header("traceparent", &ours).send().await;
        assert_ne!(
            callback.header("x-trace-id"),
            Some("d".repeat(32).as_str()),
            "a stranger's trace is its own"
        );
        let channel = deployment.any().channel(&conversation, 1).await;
        let envelope: Value = serde_json::from_str(&channel[0]).unwrap();
        assert_eq!(
            envelope.get("traceparent").and_then(Value::as_str),
            expected.map(String::as_str),
            "{nth}"
        );
    }
}
