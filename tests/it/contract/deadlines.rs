//! Promise 8: from its deadline on an item is timed out for whatever touches it, swept or not.

use callback_ingress::clock::Entropy;
use callback_ingress::domain::gate::{AcceptRefused, CancelRefused, Expired};
use callback_ingress::domain::ids::{ConversationRef, WorkItemId};
use callback_ingress::domain::work_item::{Outcome, State, WorkItem};
use callback_ingress::store::{Due, DueConversation, Store};

use crate::conversation::Conversation;
use crate::stage::{Backend, ROOMY, Stage, on_every_store};

on_every_store!(
    an_item_can_be_settled_until_its_deadline_and_not_at_it,
    an_item_past_its_deadline_is_timed_out_before_anybody_sweeps_it,
    whoever_moves_the_gate_releases_what_is_past_its_deadline,
    a_timer_tells_how_late_it_is,
    a_timer_that_is_early_settles_nothing,
    a_timer_that_is_stale_settles_nothing,
    a_timer_of_another_conversations_item_settles_nothing,
    what_is_due_is_found_in_the_order_of_deadlines_and_looking_changes_nothing,
    what_is_due_is_told_in_parts,
    what_is_settled_or_ended_is_not_due,
);

async fn an_item_can_be_settled_until_its_deadline_and_not_at_it(backend: Backend) {
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

async fn an_item_past_its_deadline_is_timed_out_before_anybody_sweeps_it(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let first = conversation.issue(10).await;
    let second = conversation.issue(1_000).await;
    stage.wait_until(first.deadline);
    let view = conversation.work_item(&first).await.unwrap();
    assert_eq!(view.settled, Some((Outcome::TimedOut, first.deadline)));
    assert_eq!(view.state, State::Held, "nothing has released it yet");
    let all = conversation.inspect().await.unwrap();
    assert_eq!(all.waiting_for, second.sequence);
    assert_eq!(all.unreleased[0], view);
}

async fn whoever_moves_the_gate_releases_what_is_past_its_deadline(backend: Backend) {
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

async fn a_timer_tells_how_late_it_is(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    stage.wait_until(first.deadline);
    stage.clock.advance(70);
    let timed_out = conversation.expire(&[&second, &first]).await;
    assert_eq!(timed_out, [&second, &first].map(|item| (item.id, 70)));
    assert_eq!(conversation.channel().await, [(1, Outcome::TimedOut), (2, Outcome::TimedOut)]);
}

async fn a_timer_that_is_early_settles_nothing(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    stage.clock.advance(999);
    let before = conversation.seen(&[&item]).await;
    assert_eq!(conversation.expire(&[&item]).await, []);
    assert_eq!(conversation.seen(&[&item]).await, before);
    stage.wait_until(item.deadline);
    assert_eq!(
        conversation.expire(&[&item]).await.len(),
        1,
        "the early timer did not take the late one's place"
    );
}

async fn a_timer_that_is_stale_settles_nothing(backend: Backend) {
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

async fn a_timer_of_another_conversations_item_settles_nothing(backend: Backend) {
    let stage = backend.stage().await;
    let (ours, theirs) = (stage.conversation().await, stage.conversation().await);
    let (our_item, their_item) = (ours.issue(10).await, theirs.issue(10).await);
    stage.wait_until(our_item.deadline);
    assert_eq!(ours.expire(&[&their_item]).await, []);
    assert_eq!(stage.unopened().expire(&[&their_item]).await, []);
    assert_eq!(theirs.expire(&[&their_item]).await.len(), 1);
}

fn told(due: &Due) -> Vec<(ConversationRef, WorkItemId)> {
    let pairs =
        |of: &DueConversation| of.work_items.iter().map(|&id| (of.conversation, id)).collect::<Vec<_>>();
    due.conversations.iter().flat_map(pairs).collect()
}

fn pairs(conversation: &Conversation<'_>, items: &[&WorkItem]) -> Vec<(ConversationRef, WorkItemId)> {
    items.iter().map(|item| (conversation.reference(), item.id)).collect()
}

async fn due(stage: &Stage, limit: usize) -> Due {
    stage.store.due(limit).await.unwrap()
}

async fn what_is_due_is_found_in_the_order_of_deadlines_and_looking_changes_nothing(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    assert_eq!(due(&stage, 10).await, Due::default());
    let conversation = stage.conversation().await;
    let late = conversation.issue(30).await;
    let soon = conversation.issue(10).await;
    let next = due(&stage, 10).await;
    assert_eq!((told(&next), next.next_in_ms, next.more), (vec![], Some(10), false));
    stage.wait_until(soon.deadline);
    for _ in 0..2 {
        let now = due(&stage, 10).await;
        assert_eq!(told(&now), pairs(&conversation, &[&soon]), "looking again finds the same");
        assert_eq!((now.next_in_ms, now.more), (Some(20), false));
    }
    stage.wait_until(late.deadline);
    let now = due(&stage, 10).await;
    assert_eq!(told(&now), pairs(&conversation, &[&soon, &late]));
    assert_eq!((now.next_in_ms, now.more), (None, false));
    for of in now.conversations {
        stage.store.expire(of, None).await.unwrap();
    }
    assert_eq!(due(&stage, 10).await, Due::default());
    assert_eq!(conversation.channel().await.len(), 2);
}

async fn what_is_due_is_told_in_parts(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let conversation = stage.conversation().await;
    // The gate waits for this one, and so releases none of the others by the way.
    conversation.issue(1_000).await;
    let [a, b, c] = conversation.issue_many(10).await;
    stage.wait_until(c.deadline);
    let part = due(&stage, 2).await;
    assert_eq!((told(&part).len(), part.more), (2, true));
    assert_eq!((told(&due(&stage, 3).await).len(), due(&stage, 3).await.more), (3, false));
    for of in part.conversations {
        stage.store.expire(of, None).await.unwrap();
    }
    let rest = due(&stage, 2).await;
    assert_eq!((told(&rest).len(), rest.more), (1, false));
    assert!(pairs(&conversation, &[&a, &b, &c]).contains(&told(&rest)[0]));
    // One conversation's items are told together, of however many conversations there are.
    let others = [stage.conversation().await, stage.conversation().await];
    for other in &others {
        other.issue(10).await;
        other.issue(10).await;
    }
    stage.clock.advance(10);
    let all = due(&stage, 100).await;
    assert_eq!((all.conversations.len(), told(&all).len(), all.more), (3, 5, false));
}

async fn what_is_settled_or_ended_is_not_due(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let conversation = stage.conversation().await;
    let [first, second, third, fourth] = conversation.issue_many(10).await;
    conversation.accept(&first, "1").await.unwrap();
    conversation.cancel(&second).await.unwrap();
    assert_eq!(due(&stage, 10).await.next_in_ms, Some(10));
    stage.wait_until(third.deadline);
    let last = conversation.issue(10).await;
    assert_eq!(told(&due(&stage, 10).await), pairs(&conversation, &[&third, &fourth]));
    // Whoever moves the gate settles both, and leaves no reminder behind.
    conversation.accept(&last, "5").await.unwrap();
    assert_eq!(conversation.channel().await.len(), 5);
    assert_eq!(due(&stage, 10).await, Due::default());
    conversation.issue(10).await;
    conversation.end().await.unwrap();
    assert_eq!(due(&stage, 10).await, Due::default());
    // A reminder of what is not there any more goes away when it is followed.
    let idle = stage.unopened();
    idle.open(|open| open.idle_ttl_ms = Some(5)).await.unwrap();
    let left = idle.issue(10).await;
    stage.wait_until(left.deadline);
    assert_eq!(idle.expire(&[&left]).await, []);
    assert_eq!(due(&stage, 10).await, Due::default());
    let unknown =
        DueConversation { conversation: idle.reference(), work_items: vec![Entropy.work_item_id()] };
    assert_eq!(stage.store.expire(unknown, None).await.unwrap(), Expired::default());
}
