//! Concurrent settlements: exactly one succeeds, and the channel has its result.

use std::collections::HashSet;
use std::sync::Arc;

use callback_ingress::domain::gate::{AcceptRefused, CancelRefused, Delivery};
use callback_ingress::domain::work_item::{Outcome, State};
use callback_ingress::store::{DueConversation, Store};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::conversation::Envelope;
use crate::stage::{Backend, Stage, on_every_store};

on_every_store!(
    one_of_many_concurrent_results_is_accepted,
    one_of_many_concurrent_repetitions_is_first,
    concurrent_settlements_have_one_winner,
    concurrent_callbacks_are_delivered_in_order,
    concurrent_issues_with_one_key_issue_one_item,
);

/// A stage, with its store as seen by two instances.
async fn sides(backend: Backend) -> (Stage, [Arc<callback_ingress::store::InstrumentedStore>; 2]) {
    let stage = backend.stage().await;
    let elsewhere = stage.seen_from_elsewhere().await;
    let stores = [Arc::clone(&stage.store), elsewhere.store];
    (stage, stores)
}

async fn one_of_many_concurrent_results_is_accepted(backend: Backend) {
    const BODIES: usize = 64;
    let (stage, stores) = sides(backend).await;
    for round in 0..200 {
        let conversation = stage.conversation().await;
        let items = [conversation.issue(1_000).await, conversation.issue(1_000).await];
        // In every other round the accepted result is held.
        let item = &items[round % 2];
        let mut attempts = JoinSet::new();
        for body in 0..BODIES {
            let store = Arc::clone(&stores[body % 2]);
            let accept = conversation.bringing(item, body.to_string().as_bytes());
            attempts.spawn(async move { (body, store.accept(accept).await.unwrap()) });
        }
        let answers = attempts.join_all().await;
        let taken: Vec<usize> =
            answers.iter().filter(|(_, answer)| answer.is_ok()).map(|(body, _)| *body).collect();
        let [winner] = taken[..] else { panic!("{taken:?} were taken") };
        for (_, refused) in answers.into_iter().filter(|(body, _)| *body != winner) {
            assert_eq!(refused.map_err(|refused| refused.why), Err(AcceptRefused::TokenUsed));
        }
        if round % 2 == 1 {
            conversation.cancel(&items[0]).await.unwrap();
        }
        let results = conversation.results().await;
        assert_eq!(results.last(), Some(&Some(winner.to_string().into())));
        assert_eq!(results.len(), round % 2 + 1);
    }
}

async fn one_of_many_concurrent_repetitions_is_first(backend: Backend) {
    let (stage, stores) = sides(backend).await;
    for _ in 0..20 {
        let conversation = stage.conversation().await;
        let item = conversation.issue(1_000).await;
        let mut attempts = JoinSet::new();
        for number in 0..32 {
            let store = Arc::clone(&stores[number % 2]);
            let accept = conversation.bringing(&item, b"1");
            attempts.spawn(async move { store.accept(accept).await.unwrap().unwrap() });
        }
        let receipts = attempts.join_all().await;
        assert_eq!(receipts.iter().filter(|receipt| !receipt.replayed).count(), 1);
        assert!(receipts.iter().all(|receipt| receipt.delivery == Delivery::Delivered));
        assert_eq!(conversation.channel().await, [(1, Outcome::Succeeded)]);
    }
}

async fn concurrent_settlements_have_one_winner(backend: Backend) {
    let (stage, stores) = sides(backend).await;
    let mut winners = HashSet::new();
    for round in 0..400 {
        let conversation = stage.conversation().await;
        let item = conversation.issue(1).await;
        let (accept, cancel) = (conversation.bringing(&item, b"1"), conversation.withdrawing(&item));
        let (reference, id) = (conversation.reference(), item.id);
        let start = Arc::new(Barrier::new(4));
        let mut racers = JoinSet::new();
        for racer in 0..4 {
            let (start, clock) = (Arc::clone(&start), stage.clock.clone());
            let (store, accept, cancel) =
                (Arc::clone(&stores[(round + racer) % 2]), accept.clone(), cancel.clone());
            racers.spawn(async move {
                start.wait().await;
                match racer {
                    0 => match store.accept(accept).await.unwrap() {
                        Ok(_) => Some(Outcome::Succeeded),
                        Err(refused) => {
                            assert!(
                                matches!(
                                    refused.why,
                                    AcceptRefused::WorkItemTimedOut
                                        | AcceptRefused::WorkItemCancelled
                                        | AcceptRefused::ConversationEnded
                                ),
                                "{refused:?}"
                            );
                            None
                        }
                    },
                    1 => match store.cancel(cancel).await.unwrap() {
                        Ok(_) => Some(Outcome::Cancelled),
                        Err(CancelRefused::WorkItemSettled(_) | CancelRefused::ConversationEnded) => None,
                        Err(refused) => panic!("{refused:?}"),
                    },
                    2 => {
                        clock.advance(1);
                        let due = DueConversation {
                            conversation: reference,
                            sequences: vec![id.sequence()],
                            whole: false,
                        };
                        let timed_out = store.expire(due, None).await.unwrap().timed_out;
                        (!timed_out.is_empty()).then_some(Outcome::TimedOut)
                    }
                    // Delayed in most rounds; otherwise the end would always win.
                    _ => {
                        for _ in 0..round % 16 {
                            tokio::task::yield_now().await;
                        }
                        store.end(reference, None, None).await.unwrap().unwrap();
                        None
                    }
                }
            });
        }
        let told: Vec<Outcome> = racers.join_all().await.into_iter().flatten().collect();
        let channel: Vec<Outcome> =
            conversation.channel().await.into_iter().map(|(_, outcome)| outcome).collect();
        let view = conversation.work_item(&item).await.unwrap();
        let ended = conversation.end().await.unwrap();
        match (&told[..], &channel[..]) {
            // The channel has exactly the settlement that was reported as successful.
            ([winner], [on_channel]) => assert_eq!(winner, on_channel),
            // The end came first and dropped the item, or came after the deadline and released the timeout.
            ([], []) => assert_eq!((view.state, ended.dropped_awaiting), (State::Dropped, 1)),
            ([], [Outcome::TimedOut]) => {}
            _ => panic!("{told:?} were told so, and the channel has {channel:?}"),
        }
        winners.insert(told.first().copied());
    }
    assert!(winners.len() > 1, "{winners:?} won every time: this was no race");
}

async fn concurrent_callbacks_are_delivered_in_order(backend: Backend) {
    let (stage, stores) = sides(backend).await;
    let conversation = stage.conversation().await;
    let items: [_; 300] = conversation.issue_many(1_000).await;
    let mut attempts = JoinSet::new();
    for (number, item) in items.iter().enumerate() {
        let store = Arc::clone(&stores[number % 2]);
        let sequence = item.sequence.get();
        if number % 7 == 3 {
            let cancel = conversation.withdrawing(item);
            attempts.spawn(async move { drop(store.cancel(cancel).await.unwrap().unwrap()) });
        } else {
            let accept = conversation.bringing(item, sequence.to_string().as_bytes());
            attempts.spawn(async move { drop(store.accept(accept).await.unwrap().unwrap()) });
        }
    }
    attempts.join_all().await;
    let page = conversation.read(0, 1_000).await.unwrap();
    assert_eq!(page.envelopes.len(), items.len());
    for (number, (envelope, item)) in page.envelopes.iter().zip(&items).enumerate() {
        let envelope = Envelope::read(envelope);
        assert_eq!(
            (envelope.sequence, envelope.members.work_item_id),
            (item.sequence.get(), item.id.to_string())
        );
        let expected = (number % 7 != 3).then(|| item.sequence.to_string().into());
        assert_eq!(envelope.payload.map(|payload| payload.bytes().clone()), expected);
    }
}

async fn concurrent_issues_with_one_key_issue_one_item(backend: Backend) {
    use callback_ingress::domain::ids::{Fingerprint, IdempotencyDigest};
    let (stage, stores) = sides(backend).await;
    for round in 0..20 {
        let conversation = stage.conversation().await;
        let mut attempts = JoinSet::new();
        for number in 0..32 {
            let store = Arc::clone(&stores[number % 2]);
            let mut issue = conversation.issuing(1_000);
            let key = IdempotencyDigest::of(&format!("key-{round}")).unwrap();
            issue.idempotency = Some((key, Fingerprint::of(b"body")));
            attempts.spawn(async move { store.issue(issue).await.unwrap().unwrap() });
        }
        let issued = attempts.join_all().await;
        assert_eq!(issued.iter().filter(|issued| !issued.repeated).count(), 1);
        assert!(issued.iter().all(|other| other.item == issued[0].item));
        assert_eq!(conversation.inspect().await.unwrap().next_sequence.get(), 2);
    }
}
