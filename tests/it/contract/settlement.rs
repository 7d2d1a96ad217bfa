//! Guarantee 3: the first settlement of an item wins.

use callback_ingress::domain::gate::{AcceptRefused, CancelRefused};
use callback_ingress::domain::work_item::{Outcome, State, WorkItem};
use callback_ingress::store::Store;

use crate::conversation::Conversation;
use crate::stage::{Backend, on_every_store};

on_every_store!(
    second_settlement_changes_nothing,
    settled_item_cannot_be_cancelled,
    cancelled_item_refuses_callbacks,
    second_cancellation_is_a_repetition_or_refused,
);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settler {
    Callback,
    Platform,
    Timer,
    End,
}

impl Settler {
    const ALL: [Self; 4] = [Self::Callback, Self::Platform, Self::Timer, Self::End];

    /// Tries to settle the item; true if it was the first.
    async fn settle(self, conversation: &Conversation<'_>, item: &WorkItem) -> bool {
        match self {
            Self::Callback => conversation.accept(item, "1").await.is_ok_and(|receipt| !receipt.replayed),
            Self::Platform => conversation.cancel(item).await.is_ok(),
            Self::Timer => {
                if conversation.stage.clock.now() < item.deadline {
                    conversation.stage.wait_until(item.deadline);
                }
                !conversation.expire(&[item]).await.is_empty()
            }
            Self::End => conversation.end().await.unwrap().dropped_awaiting == 1,
        }
    }
}

async fn second_settlement_changes_nothing(backend: Backend) {
    let stage = backend.stage().await;
    for first in Settler::ALL {
        for second in Settler::ALL {
            let conversation = stage.conversation().await;
            let item = conversation.issue(1_000).await;
            assert!(first.settle(&conversation, &item).await, "{first:?}");
            let channel = conversation.channel().await;
            if (first, second) != (Settler::End, Settler::End) {
                assert!(!second.settle(&conversation, &item).await, "{second:?} after {first:?}");
            }
            assert_eq!(conversation.channel().await, channel, "{second:?} after {first:?}");
            let expected: &[_] = match first {
                Settler::Callback => &[(1, Outcome::Succeeded)],
                Settler::Platform => &[(1, Outcome::Cancelled)],
                Settler::Timer => &[(1, Outcome::TimedOut)],
                Settler::End => &[],
            };
            assert_eq!(channel, expected, "{first:?}");
        }
    }
}

async fn settled_item_cannot_be_cancelled(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    conversation.accept(&second, "2").await.unwrap();
    let refused = CancelRefused::WorkItemSettled(Outcome::Succeeded);
    assert_eq!(conversation.cancel(&second).await, Err(refused), "held");
    conversation.accept(&first, "1").await.unwrap();
    assert_eq!(conversation.cancel(&second).await, Err(refused), "released");
}

async fn cancelled_item_refuses_callbacks(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    let view = conversation.cancel(&second).await.unwrap();
    assert_eq!((view.state, view.held_bytes), (State::Held, 0));
    assert_eq!(view.settled, Some((Outcome::Cancelled, stage.clock.now())));
    assert_eq!(conversation.accept(&second, "2").await, Err(AcceptRefused::WorkItemCancelled), "held");
    conversation.accept(&first, "1").await.unwrap();
    assert_eq!(conversation.accept(&second, "2").await, Err(AcceptRefused::WorkItemCancelled), "released");
    stage.wait_until(second.deadline);
    assert_eq!(
        conversation.accept(&second, "2").await,
        Err(AcceptRefused::WorkItemCancelled),
        "the deadline of a settled item means nothing"
    );
}

async fn second_cancellation_is_a_repetition_or_refused(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    let attempt = conversation.withdrawing(&item);
    let first = stage.store.cancel(attempt.clone()).await.unwrap().unwrap();
    assert_eq!(first.released.len(), 1);
    let again = callback_ingress::domain::gate::Cancelled { released: Vec::new(), ..first };
    assert_eq!(stage.store.cancel(attempt).await.unwrap(), Ok(again), "a repeated attempt knows itself");
    let again = conversation.cancel(&item).await;
    assert_eq!(again, Err(CancelRefused::WorkItemSettled(Outcome::Cancelled)));
    assert_eq!(conversation.channel().await, [(1, Outcome::Cancelled)]);
}
