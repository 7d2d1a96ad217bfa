//! Guarantee 10: a limit is a refusal, never a silent drop.

use callback_ingress::domain::gate::{AcceptRefused, IssueRefused, Limits};
use callback_ingress::domain::work_item::Outcome;

use crate::stage::{Backend, ROOMY, on_every_store};

on_every_store!(
    held_item_limit_is_exact,
    held_byte_limit_is_exact,
    released_result_is_exempt_from_held_limits,
    timeouts_and_cancellations_are_exempt_from_held_limits,
    awaiting_item_limit_is_exact,
    channel_length_limit_is_exact,
    idempotent_repetition_succeeds_at_the_limit,
);

async fn held_item_limit_is_exact(backend: Backend) {
    let stage = backend.limited(Limits { max_held_items: 2, ..ROOMY }).await;
    let conversation = stage.conversation().await;
    let [first, second, third, fourth] = conversation.issue_many(1_000).await;
    conversation.accept(&second, "2").await.unwrap();
    conversation.accept(&third, "3").await.unwrap();
    let before = conversation.seen(&[&first, &fourth]).await;
    assert_eq!(conversation.accept(&fourth, "4").await, Err(AcceptRefused::HeldLimit));
    assert_eq!(conversation.seen(&[&first, &fourth]).await, before);
    assert!(conversation.accept(&third, "3").await.unwrap().replayed, "a held result is recognized");
    conversation.accept(&first, "1").await.unwrap();
    conversation.accept(&fourth, "4").await.unwrap();
    assert_eq!(
        conversation.channel().await,
        [1, 2, 3, 4].map(|n| (n, Outcome::Succeeded)),
        "nothing is lost"
    );
}

async fn held_byte_limit_is_exact(backend: Backend) {
    let stage = backend.limited(Limits { max_held_bytes: 10, ..ROOMY }).await;
    let conversation = stage.conversation().await;
    let [first, second, third, fourth] = conversation.issue_many(1_000).await;
    conversation.accept(&second, "123456").await.unwrap();
    assert_eq!(conversation.accept(&third, "12345").await, Err(AcceptRefused::HeldLimit));
    conversation.accept(&third, "1234").await.unwrap();
    assert_eq!(conversation.accept(&fourth, "1").await, Err(AcceptRefused::HeldLimit));
    conversation.accept_with(conversation.bringing(&fourth, b"")).await.unwrap();
    conversation.accept(&first, "1").await.unwrap();
    let [first, second, third] = conversation.issue_many(1_000).await;
    conversation.accept(&third, "1234567890").await.unwrap();
    assert_eq!(
        conversation.accept(&second, "1").await,
        Err(AcceptRefused::HeldLimit),
        "released bytes are free"
    );
    conversation.cancel(&first).await.unwrap();
    conversation.accept(&second, "1").await.unwrap();
    assert_eq!(conversation.channel().await.len(), 7);
}

async fn released_result_is_exempt_from_held_limits(backend: Backend) {
    let stage = backend.limited(Limits { max_held_items: 1, max_held_bytes: 4, ..ROOMY }).await;
    let conversation = stage.conversation().await;
    let soon = conversation.issue(10).await;
    let [second, third] = conversation.issue_many(1_000).await;
    conversation.accept(&third, "3333").await.unwrap();
    assert_eq!(conversation.accept(&second, "a long result").await, Err(AcceptRefused::HeldLimit));
    stage.wait_until(soon.deadline);
    conversation.accept(&second, "a long result").await.unwrap();
    assert_eq!(conversation.channel().await.len(), 3, "nobody had swept the first, and it was no obstacle");
}

async fn timeouts_and_cancellations_are_exempt_from_held_limits(backend: Backend) {
    let stage = backend.limited(Limits { max_held_items: 1, max_held_bytes: 4, ..ROOMY }).await;
    let conversation = stage.conversation().await;
    let first = conversation.issue(1_000).await;
    let second = conversation.issue(10).await;
    let [third, fourth] = conversation.issue_many(1_000).await;
    conversation.cancel(&third).await.unwrap();
    stage.wait_until(second.deadline);
    assert_eq!(conversation.expire(&[&second]).await.len(), 1);
    assert_eq!(conversation.accept(&fourth, "4").await, Err(AcceptRefused::HeldLimit), "two are held");
    conversation.accept(&first, "1").await.unwrap();
    conversation.accept(&fourth, "4").await.unwrap();
}

async fn awaiting_item_limit_is_exact(backend: Backend) {
    let stage = backend.limited(Limits { max_awaiting_items: 2, ..ROOMY }).await;
    let conversation = stage.conversation().await;
    let [_, second] = conversation.issue_many(1_000).await;
    let before = conversation.seen(&[&second]).await;
    let refused = conversation.issue_with(conversation.issuing(1_000)).await;
    assert_eq!(refused, Err(IssueRefused::AwaitingLimit));
    assert_eq!(conversation.seen(&[&second]).await, before);
    conversation.accept(&second, "2").await.unwrap();
    assert_eq!(conversation.issue(1_000).await.sequence.get(), 3, "a held one is not awaited any more");
}

async fn channel_length_limit_is_exact(backend: Backend) {
    let stage = backend.limited(Limits { max_channel_length: 2, ..ROOMY }).await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    let full = Err(IssueRefused::ChannelLimit);
    assert_eq!(conversation.issue_with(conversation.issuing(1_000)).await, full);
    conversation.accept(&first, "1").await.unwrap();
    conversation.accept(&second, "2").await.unwrap();
    assert_eq!(conversation.issue_with(conversation.issuing(1_000)).await, full);
    assert_eq!(conversation.channel().await.len(), 2, "all that was issued has its place");
}

async fn idempotent_repetition_succeeds_at_the_limit(backend: Backend) {
    let stage = backend.limited(Limits { max_awaiting_items: 1, max_channel_length: 1, ..ROOMY }).await;
    let conversation = stage.conversation().await;
    let issue = conversation.issuing(1_000);
    let first = conversation.issue_with(issue.clone()).await.unwrap();
    assert_eq!(conversation.issue_with(issue).await.unwrap(), first);
}
