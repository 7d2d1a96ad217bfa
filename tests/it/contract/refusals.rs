//! Guarantee 2: a refusal changes nothing.

use callback_ingress::domain::gate::{CallbackTarget, Limits};
use callback_ingress::domain::ids::{Fingerprint, IdempotencyDigest};
use callback_ingress::domain::work_item::WorkItem;
use callback_ingress::store::Store;

use crate::conversation::succeeded;
use crate::stage::{Backend, ROOMY, on_every_store};

on_every_store!(
    refusals_change_nothing,
    refusals_do_not_extend_the_idle_time,
    refused_callback_names_its_item,
);

async fn refused_callback_names_its_item(backend: Backend) {
    let stage = backend.stage().await;
    let (conversation, other) = (stage.conversation().await, stage.conversation().await);
    let [used, cancelled] = conversation.issue_many(1_000).await;
    let late = conversation.issue(10).await;
    let stranger = other.issue(1_000).await;
    conversation.accept(&used, "1").await.unwrap();
    conversation.cancel(&cancelled).await.unwrap();
    stage.wait_until(late.deadline);
    let refusal = |bringing| {
        let accepted = stage.store.accept(bringing);
        async { accepted.await.unwrap().unwrap_err() }
    };
    let about = |item: Option<&WorkItem>| {
        let conversation_id = conversation.id.clone();
        let times_out_at = item.map(|item| item.deadline);
        Some(Box::new(CallbackTarget { conversation_id, item: item.cloned(), times_out_at }))
    };
    for item in [&used, &cancelled, &late] {
        assert_eq!(refusal(conversation.bringing(item, b"2")).await.target, about(Some(item)));
    }
    assert_eq!(refusal(conversation.bringing(&stranger, b"2")).await.target, about(None));
    let mut expired = conversation.bringing(&used, b"2");
    expired.expires_at = stage.clock.now();
    assert_eq!(refusal(expired).await.target, None, "its conversation may be gone");
    conversation.end().await.unwrap();
    assert_eq!(refusal(conversation.bringing(&late, b"2")).await.target, about(Some(&late)));
}

/// Every refusal on a conversation with items in every state.
async fn refusals_change_nothing(backend: Backend) {
    let limits = Limits { max_held_items: 4, max_awaiting_items: 3, max_channel_length: 8, ..ROOMY };
    let stage = backend.alone(limits).await;
    let conversation = stage.conversation().await;
    let key = IdempotencyDigest::of("key").unwrap();
    let mut keyed = conversation.issuing(1_000);
    keyed.idempotency = Some((key, Fingerprint::of(b"body")));
    let released = conversation.issue_with(keyed).await.unwrap().item;
    conversation.accept(&released, "1").await.unwrap();
    let awaiting = conversation.issue(1_000).await;
    let held = conversation.issue(1_000).await;
    conversation.accept(&held, "3").await.unwrap();
    let cancelled = conversation.issue(1_000).await;
    conversation.cancel(&cancelled).await.unwrap();
    let timed_out = conversation.issue(10).await;
    let overdue = conversation.issue(10).await;
    stage.wait_until(overdue.deadline);
    conversation.expire(&[&timed_out]).await;
    let more = conversation.issue(1_000).await;
    let expired = stage.conversation().await.issue(1_000).await;
    let items = [&released, &awaiting, &held, &cancelled, &timed_out, &overdue, &more];
    let before = conversation.seen(&items).await;
    let totals_before = stage.totals().await;

    let mut conflict = conversation.issuing(1_000);
    conflict.idempotency = Some((key, Fingerprint::of(b"another")));
    let refused = [conversation.issuing(1_000), conflict];
    for (issue, why) in refused.into_iter().zip(["AwaitingLimit", "IdempotencyConflict"]) {
        let refusal = conversation.issue_with(issue).await.unwrap_err();
        assert_eq!(format!("{refusal:?}"), why);
    }
    for (item, why) in [
        (&released, "TokenUsed"),
        (&held, "TokenUsed"),
        (&cancelled, "WorkItemCancelled"),
        (&timed_out, "WorkItemTimedOut"),
        (&overdue, "WorkItemTimedOut"),
        (&expired, "WorkItemUnknown"),
    ] {
        let refusal = conversation.accept(item, "another").await.unwrap_err();
        assert_eq!(format!("{refusal:?}"), why);
        let mut late = conversation.bringing(item, b"another");
        late.expires_at = stage.clock.now();
        assert_eq!(format!("{:?}", conversation.accept_with(late).await.unwrap_err()), "TokenExpired");
    }
    for item in [&released, &held, &cancelled, &timed_out, &overdue] {
        let refusal = conversation.cancel(item).await.unwrap_err();
        assert!(format!("{refusal:?}").starts_with("WorkItemSettled"), "{refusal:?}");
    }
    assert_eq!(format!("{:?}", conversation.cancel(&expired).await.unwrap_err()), "WorkItemNotFound");
    assert_eq!(conversation.seen(&items).await, before);
    assert_eq!(stage.totals().await, totals_before);

    // Four items are held now: a result, a cancellation, a timeout, and another result.
    conversation.accept(&more, "7").await.unwrap();
    let last = conversation.issue(1_000).await;
    let before = conversation.seen(&items).await;
    assert_eq!(format!("{:?}", conversation.accept(&last, "8").await.unwrap_err()), "HeldLimit");
    assert_eq!(conversation.seen(&items).await, before);

    // The result is accepted, so no refusal has spent its token.
    conversation.accept(&awaiting, "2").await.unwrap();
    conversation.accept(&last, "8").await.unwrap();
    let before = conversation.seen(&items).await;
    let issue = conversation.issuing(1_000);
    assert_eq!(format!("{:?}", conversation.issue_with(issue).await.unwrap_err()), "ChannelLimit");
    assert_eq!(conversation.seen(&items).await, before);
    let sequences: Vec<u64> = conversation.channel().await.iter().map(|(sequence, _)| *sequence).collect();
    assert_eq!(sequences, (1..=8).collect::<Vec<u64>>());
}

async fn refusals_do_not_extend_the_idle_time(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.unopened();
    conversation.open(|open| open.idle_ttl_ms = Some(100)).await.unwrap();
    let item = conversation.issue(1_000).await;
    conversation.accept(&item, "1").await.unwrap();
    let idle_at = conversation.inspect().await.unwrap().idle_at;
    for _ in 0..9 {
        stage.clock.advance(10);
        let mut other = conversation.bringing(&item, b"");
        other.result = succeeded(b"2");
        conversation.accept_with(other).await.unwrap_err();
        conversation.cancel(&item).await.unwrap_err();
    }
    assert_eq!(conversation.inspect().await.unwrap().idle_at, idle_at);
}
