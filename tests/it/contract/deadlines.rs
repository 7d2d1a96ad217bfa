//! Guarantee 8: every operation treats an item as timed out from its deadline on, even before the sweeper.

use callback_ingress::domain::gate::{AcceptRefused, CancelRefused, Ended, Expired, Limits};
use callback_ingress::domain::ids::{ConversationRef, Sequence};
use callback_ingress::domain::work_item::{Outcome, State, WorkItem};
use callback_ingress::store::{CLAIM_MS, Due, DueConversation, Store};

use crate::conversation::Conversation;
use crate::stage::{Backend, ROOMY, Stage, on_every_store};

on_every_store!(
    item_can_be_settled_until_its_deadline,
    overdue_item_is_timed_out_before_the_sweep,
    moving_the_gate_releases_overdue_items,
    timeout_reports_its_lateness,
    early_timer_has_no_effect,
    stale_timer_has_no_effect,
    timer_of_another_conversation_has_no_effect,
    timers_are_due_in_order_of_deadlines,
    due_timers_are_claimed_by_one_caller,
    due_timers_are_returned_in_batches,
    settled_and_ended_items_are_not_due,
    idle_conversation_is_ended_and_later_deleted,
);

async fn item_can_be_settled_until_its_deadline(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second, third, fourth] = conversation.issue_many(1_000).await;
    stage.clock.advance(999);
    conversation.accept(&first, "1").await.unwrap();
    conversation.cancel(&third).await.unwrap();
    stage.wait_until(second.deadline);
    assert_eq!(conversation.accept(&second, "2").await, Err(AcceptRefused::WorkItemTimedOut));
    let settled = CancelRefused::WorkItemSettled(Outcome::TimedOut);
    assert_eq!(conversation.cancel(&fourth).await, Err(settled));
}

async fn overdue_item_is_timed_out_before_the_sweep(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let first = conversation.issue(10).await;
    let second = conversation.issue(1_000).await;
    stage.wait_until(first.deadline);
    let view = conversation.work_item(&first).await.unwrap();
    assert_eq!(view.settled, Some((Outcome::TimedOut, first.deadline)));
    assert_eq!(view.state, State::Held, "not released yet");
    let all = conversation.inspect().await.unwrap();
    assert_eq!(all.waiting_for, second.sequence);
    assert_eq!(all.unreleased[0], view);
}

async fn moving_the_gate_releases_overdue_items(backend: Backend) {
    let stage = backend.stage().await;
    for cancelled in [false, true] {
        let conversation = stage.conversation().await;
        let first = conversation.issue(10).await;
        let second = conversation.issue(1_000).await;
        stage.wait_until(first.deadline);
        let outcome = if cancelled {
            conversation.cancel(&second).await.unwrap();
            Outcome::Cancelled
        } else {
            conversation.accept(&second, "2").await.unwrap();
            Outcome::Succeeded
        };
        assert_eq!(conversation.channel().await, [(1, Outcome::TimedOut), (2, outcome)]);
    }
}

async fn timeout_reports_its_lateness(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    stage.wait_until(first.deadline);
    stage.clock.advance(70);
    let timed_out = conversation.expire(&[&second, &first]).await;
    assert_eq!(timed_out, [&second, &first].map(|item| (item.id, 70)));
    assert_eq!(conversation.channel().await, [(1, Outcome::TimedOut), (2, Outcome::TimedOut)]);
}

async fn early_timer_has_no_effect(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    stage.clock.advance(999);
    let before = conversation.seen(&[&item]).await;
    assert_eq!(conversation.expire(&[&item]).await, []);
    assert_eq!(conversation.seen(&[&item]).await, before);
    stage.wait_until(item.deadline);
    assert_eq!(conversation.expire(&[&item]).await.len(), 1, "the timer still fires at the deadline");
}

async fn stale_timer_has_no_effect(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second, third] = conversation.issue_many(1_000).await;
    conversation.accept(&first, "1").await.unwrap();
    conversation.cancel(&second).await.unwrap();
    stage.wait_until(third.deadline);
    conversation.expire(&[&third]).await;
    let newer = conversation.issue(1_000).await;
    let before = conversation.seen(&[&first, &second, &third, &newer]).await;
    assert_eq!(conversation.expire(&[&first, &second, &third, &newer]).await, [], "settled, or not due");
    assert_eq!(conversation.seen(&[&first, &second, &third, &newer]).await, before);
}

async fn timer_of_another_conversation_has_no_effect(backend: Backend) {
    let stage = backend.stage().await;
    let (ours, theirs) = (stage.conversation().await, stage.conversation().await);
    ours.issue(10).await;
    let [_, their_item] = theirs.issue_many(10).await;
    stage.wait_until(their_item.deadline);
    assert_eq!(ours.expire(&[&their_item]).await, []);
    assert_eq!(stage.unopened().expire(&[&their_item]).await, []);
    assert_eq!(theirs.expire(&[&their_item]).await.len(), 1);
}

fn told(due: &Due) -> Vec<(ConversationRef, Sequence)> {
    let pairs =
        |of: &DueConversation| of.sequences.iter().map(|&item| (of.conversation, item)).collect::<Vec<_>>();
    due.conversations.iter().flat_map(pairs).collect()
}

fn pairs(conversation: &Conversation<'_>, items: &[&WorkItem]) -> Vec<(ConversationRef, Sequence)> {
    items.iter().map(|item| (conversation.reference(), item.sequence)).collect()
}

/// Time to the next timer in milliseconds; 0 if further timers are due.
fn next(due: &Due) -> Option<u64> {
    due.next_in_ms.iter().filter_map(|(_, next)| *next).min()
}

/// Processes all due timers.
async fn sweep(stage: &Stage) {
    for of in stage.due(1_000).await.conversations {
        stage.store.expire(of, None).await.unwrap();
    }
}

async fn timers_are_due_in_order_of_deadlines(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    assert_eq!((told(&stage.due(10).await), next(&stage.due(10).await)), (vec![], None));
    let conversation = stage.conversation().await;
    let late = conversation.issue(30).await;
    let soon = conversation.issue(10).await;
    let due = stage.due(10).await;
    assert_eq!((told(&due), next(&due)), (vec![], Some(10)));
    stage.wait_until(soon.deadline);
    let due = stage.due(10).await;
    assert_eq!((told(&due), next(&due)), (pairs(&conversation, &[&soon]), Some(20)));
    stage.store.expire(due.conversations[0].clone(), None).await.unwrap();
    stage.wait_until(late.deadline);
    let due = stage.due(10).await;
    assert_eq!(told(&due), pairs(&conversation, &[&late]));
    stage.store.expire(due.conversations[0].clone(), None).await.unwrap();
    let due = stage.due(10).await;
    assert_eq!(
        (told(&due), next(&due)),
        (vec![], Some(ROOMY.conversation_idle_ttl_ms - 30)),
        "only the timer of the conversation remains"
    );
    assert_eq!(conversation.channel().await.len(), 2);
}

async fn due_timers_are_claimed_by_one_caller(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let other = stage.seen_from_elsewhere().await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(10).await;
    stage.wait_until(item.deadline);
    assert_eq!(told(&stage.due(10).await), pairs(&conversation, &[&item]));
    stage.clock.advance(CLAIM_MS - 1);
    let due = other.due(10).await;
    assert_eq!((told(&due), next(&due)), (vec![], Some(1)), "claimed by the other caller");
    stage.clock.advance(1);
    assert_eq!(told(&other.due(10).await), pairs(&conversation, &[&item]), "the claim has expired");
}

async fn due_timers_are_returned_in_batches(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let conversation = stage.conversation().await;
    // Keeps the gate closed, so that the other items are not released.
    conversation.issue(100_000).await;
    let [a, b, c] = conversation.issue_many(10).await;
    stage.wait_until(c.deadline);
    let part = stage.due(2).await;
    assert_eq!((told(&part), next(&part)), (pairs(&conversation, &[&a, &b]), Some(0)));
    let rest = stage.due(2).await;
    assert_eq!(told(&rest), pairs(&conversation, &[&c]));
    assert!(next(&rest) > Some(0), "{rest:?}");
    for of in part.conversations.into_iter().chain(rest.conversations) {
        stage.store.expire(of, None).await.unwrap();
    }
    // Timers are grouped by conversation.
    let others = [stage.conversation().await, stage.conversation().await];
    for other in &others {
        other.issue(10).await;
        other.issue(10).await;
    }
    stage.clock.advance(10);
    let all = stage.due(100).await;
    assert_eq!((all.conversations.len(), told(&all).len()), (2, 4));
}

async fn settled_and_ended_items_are_not_due(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let conversation = stage.conversation().await;
    let [first, second, third, fourth] = conversation.issue_many(10).await;
    conversation.accept(&first, "1").await.unwrap();
    conversation.cancel(&second).await.unwrap();
    assert_eq!(next(&stage.due(10).await), Some(10));
    stage.wait_until(third.deadline);
    let last = conversation.issue(10).await;
    assert_eq!(told(&stage.due(10).await), pairs(&conversation, &[&third, &fourth]));
    // Moving the gate settles both items and removes their timers.
    conversation.accept(&last, "5").await.unwrap();
    assert_eq!(conversation.channel().await.len(), 5);
    let only_the_conversation = |due: &Due| next(due) > Some(CLAIM_MS);
    assert!(only_the_conversation(&stage.due(10).await));
    let never = conversation.issue(10).await;
    conversation.end().await.unwrap();
    stage.wait_until(never.deadline);
    let due = stage.due(10).await;
    assert_eq!((told(&due), due.conversations.len()), (vec![], 0));
    assert!(only_the_conversation(&due));
    // A timer of a conversation that does not exist is removed.
    let unknown = DueConversation {
        conversation: stage.unopened().reference(),
        sequences: vec![Sequence::new(7)],
        whole: true,
    };
    assert_eq!(stage.store.expire(unknown, None).await.unwrap(), Expired::default());
}

async fn idle_conversation_is_ended_and_later_deleted(backend: Backend) {
    let stage = backend.alone(Limits { ended_retention_ms: 1_000, ..ROOMY }).await;
    let conversation = stage.unopened();
    conversation.open(|open| open.idle_ttl_ms = Some(50)).await.unwrap();
    stage.clock.advance(20);
    let item = conversation.issue(10).await;
    stage.clock.advance(30);
    sweep(&stage).await;
    assert_eq!(conversation.channel().await, [(1, Outcome::TimedOut)]);
    let idle_at = conversation.inspect().await.unwrap().idle_at;
    assert_eq!(idle_at, item.issued_at.plus_millis(50), "issuing the item was a use");
    stage.wait_until(idle_at);
    stage.clock.advance(5);
    let [due] = &stage.due(10).await.conversations[..] else { panic!("one is due") };
    assert!(due.whole && due.sequences.is_empty(), "{due:?}");
    let expired = stage.store.expire(due.clone(), None).await.unwrap();
    let ended = Ended { ended_at: idle_at, dropped_held: 0, dropped_awaiting: 0 };
    assert_eq!((expired.ended, expired.conversation_id), (Some(ended), Some(conversation.id.clone())));
    assert_eq!(stage.store.expire(due.clone(), None).await.unwrap().ended, None, "reported once");
    assert!(conversation.read(0, 1).await.unwrap().ended);
    stage.wait_until(idle_at.plus_millis(1_000));
    let [gone] = &stage.due(10).await.conversations[..] else { panic!("one is due") };
    assert_eq!(stage.store.expire(gone.clone(), None).await.unwrap(), Expired::default());
    let due = stage.due(10).await;
    assert_eq!((due.conversations.len(), next(&due)), (0, None), "no timer remains");
}
