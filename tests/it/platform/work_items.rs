//! Reading and cancelling work items.

use serde_json::json;

use super::{check, fields};
use crate::service::{Kind, Service, millis, on_every_deployment, until};

on_every_deployment!(
    cancellation_releases_held_results,
    cancelling_a_settled_item_returns_its_outcome,
    item_belongs_to_one_conversation,
    turn_is_cancelled_in_one_call,
    reasons_are_reported,
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

async fn turn_is_cancelled_in_one_call(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let turn = |turn: &str| json!({"kind": "tool", "turnId": turn, "name": "maps"});
    let first = deployment.any().issue(&conversation, &turn("t:1")).await;
    let second = deployment.any().issue(&conversation, &turn("t:2")).await;
    let third = deployment.any().issue(&conversation, &turn("t:1")).await;
    check([("the third is held", deployment.any().callback(&third.token, "3"), (202, "held"))]).await;
    let path = format!("/conversations/{conversation}/work-items");
    let reply =
        deployment.any().platform("DELETE", &format!("{path}?turnId=t%3A1&reason=barge-in")).send().await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let cancelled = reply.json();
    assert_eq!(fields(&cancelled), ["cancelled", "conversationId", "turnId", "workItems"]);
    assert_eq!((&cancelled["cancelled"], &cancelled["turnId"]), (&json!(1), &json!("t:1")));
    let items = cancelled["workItems"].as_array().unwrap();
    for (item, (shown, outcome, state)) in
        items.iter().zip([(&first, "cancelled", "released"), (&third, "succeeded", "held")])
    {
        assert_eq!((&item["outcome"], &item["state"]), (&json!(outcome), &json!(state)));
        assert_eq!(deployment.any().shown(&shown.path()).await, *item);
    }
    assert_eq!(
        (items.len(), &items[0]["reason"], &items[0]["name"]),
        (2, &json!("barge-in"), &json!("maps"))
    );
    assert_eq!(deployment.any().state(&second).await, "awaiting");
    // Once more: the first is on the channel, the third is not yet.
    let again = deployment.any().platform("DELETE", &format!("{path}?turnId=t:1")).send().await.json();
    assert_eq!((&again["cancelled"], again["workItems"].as_array().unwrap().len()), (&json!(0), 1));
    let none = deployment.any().platform("DELETE", &format!("{path}?turnId=t")).send().await.json();
    assert_eq!((&none["cancelled"], &none["workItems"]), (&json!(0), &json!([])));
    let late = deployment.any().callback(&first.token, "1");
    check([("its callback", late, (409, "WORK_ITEM_CANCELLED"))]).await;
    deployment.any().end(&conversation).await;
    let call = || deployment.any().platform("DELETE", &format!("{path}?turnId=t:1"));
    check([("after the end", call(), (409, "CONVERSATION_ENDED"))]).await;
    let unknown = deployment.any().platform("DELETE", "/conversations/unknown/work-items?turnId=t");
    check([("elsewhere", unknown, (404, "CONVERSATION_NOT_FOUND"))]).await;
}

async fn reasons_are_reported(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let item = deployment.any().tool(&conversation).await;
    let path = format!("{}?reason=the+%22caller%22%20hung%20up%20%5C%20%C3%A9", item.path());
    let cancelled = deployment.any().platform("DELETE", &path).send().await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.text());
    let told = json!("the \"caller\" hung up \\ é");
    assert_eq!(cancelled.json()["reason"], told);
    assert_eq!(deployment.any().shown(&item.path()).await["reason"], told);
    let envelope = &deployment.any().channel(&conversation, 1).await[0];
    assert_eq!(serde_json::from_str::<serde_json::Value>(envelope).unwrap()["reason"], told);
    let path = format!("/conversations/{conversation}");
    assert!(deployment.any().shown(&path).await.get("reason").is_none());
    let longest = "é".repeat(200);
    for given in ["%C3%A9".repeat(200), "another".to_owned()] {
        let ended = deployment.any().platform("DELETE", &format!("{path}?reason={given}")).send().await;
        assert_eq!(
            (ended.status.as_u16(), &ended.json()["reason"]),
            (200, &json!(longest)),
            "the first stays"
        );
    }
    assert_eq!(deployment.any().shown(&path).await["reason"], json!(longest));
    let end = deployment.any().events(&conversation, "").await.rest().await.pop().unwrap();
    let told: serde_json::Value = serde_json::from_str(&end.data).unwrap();
    assert_eq!(told, json!({"conversationId": conversation, "state": "ended", "reason": longest}));
}

#[tokio::test]
async fn invalid_query_names_the_parameter_and_changes_nothing() {
    let service = Service::start(&[]).await;
    let conversation = service.open().await;
    let item = service.issue(&conversation, &json!({"kind": "tool", "turnId": "t"})).await;
    let (whole, all) =
        (format!("/conversations/{conversation}"), format!("/conversations/{conversation}/work-items"));
    let long = format!("reason={}", "x".repeat(201));
    let mut calls: Vec<(String, &str)> = Vec::new();
    for query in [
        "reason=",
        &long,
        "reason=a%0Ab",
        "reason=%00",
        "reason=%E2%80%A8",
        "reason=%FF",
        "reason=a&reason=b",
    ] {
        calls.extend([&whole, &item.path()].map(|path| (format!("{path}?{query}"), "reason")));
        calls.push((format!("{all}?turnId=t&{query}"), "reason"));
    }
    for query in ["reason=cbt_AQJrMQ", "reason=with%20%63BT_AQJrMQ"] {
        calls.extend([&whole, &item.path()].map(|path| (format!("{path}?{query}"), "reason")));
        calls.push((format!("{all}?turnId=t&{query}"), "reason"));
    }
    for (query, named) in [("Reason=a", "Reason"), ("turnId=t", "turnId"), ("cbt_AQJrMQ=1", "not shown")] {
        calls.extend([&whole, &item.path()].map(|path| (format!("{path}?{query}"), named)));
    }
    let long = format!("turnId={}", "x".repeat(129));
    for query in
        ["", "?", "?turnId=", "?turnId=a%20b", "?turnId=%00", "?turnId=t&turnId=t", "?turnId=cbt_AQJrMQ"]
    {
        calls.push((format!("{all}{query}"), "turnId"));
    }
    calls.push((format!("{all}?{long}"), "turnId"));
    calls.push((format!("{all}?turn_id=t"), "turn_id"));
    calls.push((format!("{all}?turnId=t&sequence=1"), "sequence"));
    for (path, named) in calls {
        let reply = service.platform("DELETE", &path).send().await;
        assert_eq!(reply.verdict(), (400, "REQUEST_INVALID".to_owned()), "{path}");
        assert!(reply.message().contains(named), "{path}: {}", reply.message());
        assert!(!reply.text().contains("AQJrMQ"), "{path}: {}", reply.text());
    }
    assert_eq!(service.state(&item).await, "awaiting");
    assert_eq!(service.shown(&whole).await["state"], "live");
}
