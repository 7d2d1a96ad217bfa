//! Guarantee 4: the same token again, with the same body or another.

use callback_ingress::domain::gate::{AcceptRefused, Delivery, Receipt};
use callback_ingress::domain::ids::Sequence;
use callback_ingress::domain::work_item::Outcome;

use crate::conversation::{REPLAY_WINDOW_MS, failed, succeeded};
use crate::stage::{Backend, on_every_store};

on_every_store!(
    repetition_returns_the_first_receipt_and_current_status,
    repeated_attempt_is_reported_as_the_first,
    used_token_with_another_body_is_refused,
    repetition_is_recognized_until_the_token_expires,
    token_expires_by_the_stores_clock,
    released_result_is_recognized_after_the_end,
);

async fn repetition_returns_the_first_receipt_and_current_status(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    let receipt = conversation.accept(&second, "2").await.unwrap();
    assert_eq!(receipt.delivery, Delivery::Held { waiting_for: Sequence::new(1) });
    stage.clock.advance(10);
    let mut expected = receipt;
    expected.replayed = true;
    assert_eq!(conversation.accept(&second, "2").await.unwrap(), expected, "still held");
    conversation.accept(&first, "1").await.unwrap();
    let before = conversation.seen(&[&first, &second]).await;
    expected.delivery = Delivery::Delivered;
    assert_eq!(conversation.accept(&second, "2").await.unwrap(), expected, "released since");
    assert_eq!(conversation.seen(&[&first, &second]).await, before, "nothing is released twice");
    let error = conversation.issue(1_000).await;
    let mut bringing = conversation.bringing(&error, b"");
    bringing.result = failed(b"{\"code\":\"X\",\"message\":\"m\"}");
    conversation.accept_with(bringing.clone()).await.unwrap();
    bringing.attempt = callback_ingress::clock::Entropy.attempt_id();
    let again = conversation.accept_with(bringing).await.unwrap();
    assert_eq!((again.outcome, again.replayed), (Outcome::Failed, true));
}

async fn repeated_attempt_is_reported_as_the_first(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    let attempt = conversation.bringing(&item, b"1");
    let receipt = conversation.accept_with(attempt.clone()).await.unwrap();
    assert!(!receipt.replayed);
    assert_eq!(receipt.released.len(), 1);
    let told_again = Receipt { released: Vec::new(), ..receipt };
    assert_eq!(conversation.accept_with(attempt).await.unwrap(), told_again, "its answer was lost, say");
    assert_eq!(conversation.channel().await.len(), 1);
}

async fn used_token_with_another_body_is_refused(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    conversation.accept(&second, "2").await.unwrap();
    assert_eq!(conversation.accept(&second, "3").await, Err(AcceptRefused::TokenUsed), "held");
    conversation.accept(&first, "1").await.unwrap();
    assert_eq!(conversation.accept(&second, "3").await, Err(AcceptRefused::TokenUsed), "released");
    let mut same_attempt = conversation.bringing(&first, b"1");
    conversation.accept_with(same_attempt.clone()).await.unwrap();
    same_attempt.result = succeeded(b"other");
    assert_eq!(conversation.accept_with(same_attempt).await, Err(AcceptRefused::TokenUsed));
    assert_eq!(conversation.results().await, ["1", "2"].map(|body| Some(body.into())));
}

async fn repetition_is_recognized_until_the_token_expires(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    assert_eq!(item.expires_at, item.deadline.plus_millis(REPLAY_WINDOW_MS));
    conversation.accept(&item, "1").await.unwrap();
    stage.wait_until(item.deadline);
    assert!(conversation.accept(&item, "1").await.unwrap().replayed, "past the deadline");
    stage.wait_until(item.expires_at);
    stage.clock.advance(0);
    assert_eq!(conversation.accept(&item, "1").await, Err(AcceptRefused::TokenExpired));
    assert_eq!(conversation.accept(&item, "2").await, Err(AcceptRefused::TokenExpired));
}

async fn token_expires_by_the_stores_clock(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    let mut bringing = conversation.bringing(&item, b"1");
    bringing.expires_at = stage.clock.now();
    assert_eq!(conversation.accept_with(bringing.clone()).await, Err(AcceptRefused::TokenExpired), "at it");
    bringing.expires_at = stage.clock.now().plus_millis(1);
    conversation.accept_with(bringing).await.unwrap();
    let unopened = stage.unopened();
    let mut bringing = unopened.bringing(&item, b"1");
    bringing.expires_at = stage.clock.now();
    assert_eq!(unopened.accept_with(bringing).await, Err(AcceptRefused::TokenExpired), "before all else");
}

async fn released_result_is_recognized_after_the_end(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second, _, fourth] = conversation.issue_many(1_000).await;
    conversation.accept(&first, "1").await.unwrap();
    conversation.cancel(&second).await.unwrap();
    conversation.accept(&fourth, "4").await.unwrap();
    conversation.end().await.unwrap();
    let again = conversation.accept(&first, "1").await.unwrap();
    assert_eq!((again.delivery, again.replayed), (Delivery::Delivered, true));
    assert_eq!(conversation.accept(&first, "2").await, Err(AcceptRefused::TokenUsed));
    let ended = Err(AcceptRefused::ConversationEnded);
    assert_eq!(conversation.accept(&second, "2").await, ended, "no callback ever settled it");
    assert_eq!(conversation.accept(&fourth, "4").await, ended, "its result was dropped");
}
