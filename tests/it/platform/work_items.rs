//! Reading and cancelling work items.

use serde_json::json;

use super::{check, fields};
use crate::service::{Kind, millis, on_every_deployment, until};

on_every_deployment!(
    cancellation_releases_held_results,
    cancelling_a_settled_item_returns_its_outcome,
    item_belongs_to_one_conversation,
);

async fn cancellation_releases_held_results(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let mut items = Vec::new();
    for _ in 0..3 {
        items.push(deployment.any().tool(&conversation).await);
    }
    check([("the second is held", deployment.any().callback(&items[1].token, "2"), (202, "held"))]).await;
    let id = "0190163d-8694-739b-aea5-966c26f8ad91";
    let call = deployment.any().platform("DELETE", &items[0].path()).header("x-request-id", id);
    let cancelled = call.send().await;
    assert_eq!(cancelled.status, 200);
    let cancelled = cancelled.json();
    assert_eq!((&cancelled["state"], &cancelled["outcome"]), (&json!("released"), &json!("cancelled")));
    assert_eq!(deployment.any().shown(&items[0].path()).await, cancelled);
    let again = deployment.any().platform("DELETE", &items[0].path()).send().await;
    assert_eq!(again.verdict(), (409, "WORK_ITEM_SETTLED".to_owned()));
    assert_eq!(again.json()["error"]["outcome"], "cancelled");
    let channel = deployment.any().channel(&conversation, 2).await;
    let first: serde_json::Value = serde_json::from_str(&channel[0]).unwrap();
    assert_eq!(
        fields(&first),
        [
            "conversationId",
            "issuedAt",
            "kind",
            "outcome",
            "receivedAt",
            "releasedAt",
            "requestId",
            "sequence",
            "workItemId",
        ]
    );
    assert_eq!((&first["outcome"], &first["requestId"]), (&json!("cancelled"), &json!(id)));
    assert!(channel[1].contains("\"result\":2,"));
    // One that is not at the gate is held until it is.
    let shown = deployment.any().tool(&conversation).await;
    let cancelled = deployment.any().platform("DELETE", &shown.path()).send().await.json();
    assert_eq!((&cancelled["state"], &cancelled["outcome"]), (&json!("held"), &json!("cancelled")));
}

async fn cancelling_a_settled_item_returns_its_outcome(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let succeeded = deployment.any().tool(&conversation).await;
    deployment.any().callback(&succeeded.token, "1").send().await;
    let failed = deployment.any().tool(&conversation).await;
    deployment.any().callback(&failed.token, "{\"error\":{\"code\":\"C\",\"message\":\"m\"}}").send().await;
    let gap = deployment.any().tool(&conversation).await;
    let held = deployment.any().tool(&conversation).await;
    deployment.any().callback(&held.token, "4").send().await;
    let timed_out = deployment.any().issue(&conversation, &json!({"kind": "tool", "timeoutMs": 1})).await;
    until("it timed out", async || deployment.any().state(&timed_out).await == "held").await;
    for (item, outcome) in
        [(&succeeded, "succeeded"), (&failed, "failed"), (&held, "succeeded"), (&timed_out, "timed_out")]
    {
        let reply = deployment.any().platform("DELETE", &item.path()).send().await;
        assert_eq!(reply.verdict(), (409, "WORK_ITEM_SETTLED".to_owned()));
        assert_eq!(reply.json()["error"]["outcome"], outcome);
        assert_eq!(deployment.any().shown(&item.path()).await["outcome"], outcome);
    }
    let shown = deployment.any().shown(&timed_out.path()).await;
    assert_eq!(shown["receivedAt"], shown["deadline"], "it was settled at its deadline, swept or not");
    assert_eq!(millis(&shown["deadline"]), millis(&shown["issuedAt"]) + 1);
    check([("the gap can", deployment.any().platform("DELETE", &gap.path()), (200, ""))]).await;
    deployment.any().end(&conversation).await;
    assert_eq!(deployment.any().events(&conversation, "?from=0").await.rest().await.len(), 6);
}

async fn item_belongs_to_one_conversation(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let item = deployment.any().fresh_tool().await;
    let other = deployment.any().open().await;
    let elsewhere = format!("/conversations/{other}/work-items/{}", item.id);
    let in_capitals = item.path().replace(&item.id, &item.id.to_uppercase());
    let not_found = (404, "WORK_ITEM_NOT_FOUND");
    check([
        ("showing it elsewhere", deployment.any().platform("GET", &elsewhere), not_found),
        ("cancelling it elsewhere", deployment.any().platform("DELETE", &elsewhere), not_found),
        ("in another spelling", deployment.any().platform("GET", &in_capitals), not_found),
    ])
    .await;
    assert_eq!(deployment.any().state(&item).await, "awaiting");
}
