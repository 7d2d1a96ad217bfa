//! Guarantee 13: totals are the sums over all live conversations.

use callback_ingress::domain::gate::{Limits, Totals};

use callback_ingress::store::{DueConversation, Store};

use crate::stage::{Backend, ROOMY, Stage, on_every_store};

on_every_store!(
    totals_follow_every_change,
    ending_removes_dropped_items_from_totals,
    reading_an_ended_conversation_keeps_totals,
    idle_conversation_is_not_counted,
);

/// Awaiting items, held items, and bytes of held results.
async fn totals(stage: &Stage) -> (u64, u64, u64) {
    let Totals { awaiting, held, held_bytes } = stage.totals().await;
    (awaiting, held, held_bytes)
}

async fn totals_follow_every_change(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    assert_eq!(totals(&stage).await, (0, 0, 0));
    let (one, other) = (stage.conversation().await, stage.conversation().await);
    let [first, second, third] = one.issue_many(1_000).await;
    let [early, late] = other.issue_many(2_000).await;
    assert_eq!(totals(&stage).await, (5, 0, 0));
    one.accept(&second, "12").await.unwrap();
    other.accept(&late, "1234").await.unwrap();
    assert_eq!(totals(&stage).await, (3, 2, 6));
    one.accept(&second, "12").await.unwrap();
    assert_eq!(totals(&stage).await, (3, 2, 6), "a repetition changes nothing");
    one.cancel(&third).await.unwrap();
    assert_eq!(totals(&stage).await, (2, 3, 6), "what is cancelled is held as well, without bytes");
    one.accept(&first, "1").await.unwrap();
    assert_eq!(totals(&stage).await, (1, 1, 4));
    stage.wait_until(early.deadline);
    other.expire(&[&early]).await;
    assert_eq!(totals(&stage).await, (0, 0, 0));
}

async fn ending_removes_dropped_items_from_totals(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let (one, other) = (stage.conversation().await, stage.conversation().await);
    let [_, second] = one.issue_many(1_000).await;
    let [_, held] = other.issue_many(1_000).await;
    one.accept(&second, "12").await.unwrap();
    other.accept(&held, "1").await.unwrap();
    one.end().await.unwrap();
    assert_eq!(totals(&stage).await, (1, 1, 1));
    one.end().await.unwrap();
    assert_eq!(totals(&stage).await, (1, 1, 1), "an end is counted once");
}

async fn idle_conversation_is_not_counted(backend: Backend) {
    let stage = backend.alone(Limits { conversation_idle_ttl_ms: 100, ..ROOMY }).await;
    let conversation = stage.conversation().await;
    let [first, second, third] = conversation.issue_many(500).await;
    conversation.accept(&second, "12").await.unwrap();
    stage.wait_until(first.deadline);
    conversation.expire(&[&first]).await;
    conversation.expire(&[&third]).await;
    assert_eq!(totals(&stage).await, (0, 0, 0));
    conversation.end().await.unwrap();
    assert_eq!(totals(&stage).await, (0, 0, 0), "not once more");
}

async fn reading_an_ended_conversation_keeps_totals(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let (ending, other) = (stage.conversation().await, stage.conversation().await);
    for conversation in [&ending, &other] {
        let [_, second, third] = conversation.issue_many(1_000).await;
        conversation.accept(&second, "12").await.unwrap();
        conversation.accept(&third, "12").await.unwrap();
    }
    ending.end().await.unwrap();
    assert_eq!(totals(&stage).await, (1, 2, 4));
    for _ in 0..3 {
        let look = DueConversation { conversation: ending.reference(), sequences: Vec::new(), whole: true };
        stage.store.expire(look, None).await.unwrap();
        assert_eq!(totals(&stage).await, (1, 2, 4));
    }
}
