//! Guarantee 11: an ended conversation accepts nothing more and is readable until its retention ends.

use callback_ingress::domain::gate::{
    AcceptRefused, CancelRefused, ConversationNotFound, Ended, IssueRefused, LookupRefused, OpenRefused,
};
use callback_ingress::domain::ids::Sequence;
use callback_ingress::domain::work_item::{Outcome, State};
use callback_ingress::store::Store;

use crate::stage::{Backend, ROOMY, on_every_store};

on_every_store!(
    opening_reports_whether_it_created_the_conversation,
    repeated_attempt_after_the_end_reports_its_success,
    ending_drops_and_counts_held_and_awaiting_items,
    ending_releases_overdue_items,
    ending_is_idempotent,
    ended_conversation_accepts_nothing,
    ended_conversation_is_readable_during_retention,
    deleted_conversation_can_be_opened_anew,
    idle_conversation_counts_as_ended,
    conversation_is_not_idle_before_its_last_deadline,
    changes_extend_the_idle_time_and_reads_do_not,
    idle_time_is_set_at_opening,
    unknown_conversation_is_not_found,
);

async fn opening_reports_whether_it_created_the_conversation(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.unopened();
    let attempt = callback_ingress::clock::Entropy.attempt_id();
    assert!(conversation.open(|open| open.attempt = attempt).await.unwrap().created);
    let opened_at = stage.clock.now();
    stage.clock.advance(5);
    assert!(
        conversation.open(|open| open.attempt = attempt).await.unwrap().created,
        "its answer was lost, say"
    );
    assert!(!conversation.open(|_| ()).await.unwrap().created);
    let view = conversation.inspect().await.unwrap();
    assert_eq!((view.opened_at, view.now), (opened_at, opened_at.plus_millis(5)));
    assert_eq!((view.next_sequence, view.waiting_for), (Sequence::FIRST, Sequence::FIRST));
    assert_eq!((&view.conversation_id, view.ended), (&conversation.id, None));
}

async fn ending_drops_and_counts_held_and_awaiting_items(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second, third, fourth] = conversation.issue_many(1_000).await;
    conversation.accept(&first, "1").await.unwrap();
    conversation.accept(&third, "3").await.unwrap();
    let ended = conversation.end().await.unwrap();
    assert_eq!(ended, Ended { ended_at: stage.clock.now(), dropped_held: 1, dropped_awaiting: 2 });
    assert_eq!(conversation.channel().await, [(1, Outcome::Succeeded)]);
    let view = conversation.inspect().await.unwrap();
    assert_eq!(view.ended, Some(ended));
    assert!(view.unreleased.iter().all(|item| item.state == State::Dropped && item.held_bytes == 0));
    assert_eq!(view.unreleased.len(), 3);
    stage.wait_until(fourth.deadline);
    for (item, settled) in [(&second, None), (&third, Some(Outcome::Succeeded)), (&fourth, None)] {
        let view = conversation.work_item(item).await.unwrap();
        assert_eq!(view.state, State::Dropped);
        assert_eq!(view.settled.map(|(outcome, _)| outcome), settled, "nothing times out after the end");
    }
}

async fn ending_releases_overdue_items(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let first = conversation.issue(10).await;
    let [second, _] = conversation.issue_many(1_000).await;
    conversation.accept(&second, "2").await.unwrap();
    stage.wait_until(first.deadline);
    let ended = conversation.end().await.unwrap();
    assert_eq!((ended.dropped_held, ended.dropped_awaiting), (0, 1));
    assert_eq!(conversation.channel().await, [(1, Outcome::TimedOut), (2, Outcome::Succeeded)]);
}

async fn ending_is_idempotent(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(10).await;
    let ended = conversation.end().await.unwrap();
    let before = (conversation.work_item(&item).await, conversation.channel().await);
    stage.clock.advance(1_000);
    assert_eq!(conversation.end().await, Ok(ended));
    assert_eq!((conversation.work_item(&item).await, conversation.channel().await), before);
}

async fn ended_conversation_accepts_nothing(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    conversation.end().await.unwrap();
    let before = conversation.seen(&[&first, &second]).await;
    assert_eq!(conversation.open(|_| ()).await, Err(OpenRefused::ConversationEnded));
    let issue = conversation.issuing(1_000);
    assert_eq!(conversation.issue_with(issue).await, Err(IssueRefused::ConversationEnded));
    assert_eq!(conversation.accept(&first, "1").await, Err(AcceptRefused::ConversationEnded));
    assert_eq!(conversation.cancel(&second).await, Err(CancelRefused::ConversationEnded));
    assert_eq!(conversation.expire(&[&first, &second]).await, []);
    assert_eq!(conversation.seen(&[&first, &second]).await, before);
}

async fn repeated_attempt_after_the_end_reports_its_success(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, _, held] = conversation.issue_many(1_000).await;
    let issuing = conversation.issuing(1_000);
    let issued = conversation.issue_with(issuing.clone()).await.unwrap();
    let attempts = [conversation.withdrawing(&first), conversation.withdrawing(&held)];
    for attempt in attempts.clone() {
        stage.store.cancel(attempt).await.unwrap().unwrap();
    }
    conversation.end().await.unwrap();
    let before = conversation.seen(&[&first, &held]).await;
    assert_eq!(conversation.issue_with(issuing).await, Ok(issued), "its answer was lost, say");
    let [released, dropped] = attempts;
    let again = stage.store.cancel(released).await.unwrap().unwrap();
    assert_eq!(again.released, []);
    assert_eq!((again.item.state, again.item.settled.unwrap().0), (State::Released, Outcome::Cancelled));
    assert_eq!(stage.store.cancel(dropped).await.unwrap(), Err(CancelRefused::ConversationEnded));
    assert_eq!(conversation.seen(&[&first, &held]).await, before);
    assert_eq!(conversation.cancel(&held).await, Err(CancelRefused::ConversationEnded), "another attempt");
}

async fn ended_conversation_is_readable_during_retention(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    let mut bringing = conversation.bringing(&item, b"1");
    bringing.expires_at = stage.clock.now().plus_millis(ROOMY.ended_retention_ms * 2);
    conversation.accept_with(bringing.clone()).await.unwrap();
    conversation.end().await.unwrap();
    stage.clock.advance(ROOMY.ended_retention_ms - 1);
    assert_eq!(conversation.channel().await, [(1, Outcome::Succeeded)]);
    assert!(conversation.read(0, 10).await.unwrap().ended);
    assert!(conversation.accept_with(bringing.clone()).await.is_ok(), "its token was used, and lives");
    stage.clock.advance(1);
    assert_eq!(conversation.read(0, 10).await, Err(ConversationNotFound));
    assert_eq!(conversation.inspect().await, Err(ConversationNotFound));
    assert_eq!(conversation.end().await, Err(ConversationNotFound));
    assert_eq!(conversation.work_item(&item).await, Err(LookupRefused::ConversationNotFound));
    assert_eq!(conversation.cancel(&item).await, Err(CancelRefused::ConversationNotFound));
    let issue = conversation.issuing(1_000);
    assert_eq!(conversation.issue_with(issue).await, Err(IssueRefused::ConversationNotFound));
    assert_eq!(conversation.accept_with(bringing).await, Err(AcceptRefused::ConversationEnded));
}

async fn deleted_conversation_can_be_opened_anew(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(10_000_000).await;
    conversation.accept(&first, "1").await.unwrap();
    conversation.accept(&second, "2").await.unwrap();
    conversation.end().await.unwrap();
    stage.clock.advance(ROOMY.ended_retention_ms);
    assert!(conversation.open(|_| ()).await.unwrap().created);
    assert_eq!(conversation.channel().await, []);
    assert_eq!(conversation.work_item(&first).await, Err(LookupRefused::WorkItemNotFound));
    assert_eq!(conversation.accept(&first, "1").await, Err(AcceptRefused::WorkItemUnknown));
    let item = conversation.issue(1_000).await;
    assert_eq!(item.sequence, Sequence::FIRST);
    conversation.accept(&item, "new").await.unwrap();
    assert_eq!(conversation.results().await, [Some("new".into())]);
}

async fn idle_conversation_counts_as_ended(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.unopened();
    conversation.open(|open| open.idle_ttl_ms = Some(1_000)).await.unwrap();
    let [_, second, third] = conversation.issue_many(500).await;
    let late = conversation.issue(900).await;
    conversation.accept(&third, "3").await.unwrap();
    let idle_at = conversation.inspect().await.unwrap().idle_at;
    assert_eq!(idle_at, stage.clock.now().plus_millis(1_000));
    stage.clock.advance(999);
    let page = conversation.read(0, 10).await.unwrap();
    assert_eq!((page.ended, page.idle_in_ms), (false, 1));
    stage.clock.advance(1);
    let page = conversation.read(0, 10).await.unwrap();
    assert_eq!((page.ended, page.idle_in_ms), (true, 0));
    assert_eq!(conversation.accept(&late, "4").await, Err(AcceptRefused::ConversationEnded));
    assert_eq!(conversation.expire(&[&second, &late]).await, [], "an ended conversation has no timers");
    // Items that timed out without a sweep were settled by no step.
    let expected = Ended { ended_at: idle_at, dropped_held: 1, dropped_awaiting: 3 };
    stage.clock.advance(10_000);
    assert_eq!(conversation.end().await, Ok(expected), "late, and the same");
    assert_eq!(conversation.inspect().await.unwrap().ended, Some(expected));
    stage.wait_until(idle_at.plus_millis(ROOMY.ended_retention_ms - 1));
    assert!(conversation.inspect().await.is_ok());
    stage.clock.advance(1);
    assert_eq!(conversation.inspect().await, Err(ConversationNotFound));
}

async fn conversation_is_not_idle_before_its_last_deadline(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.unopened();
    conversation.open(|open| open.idle_ttl_ms = Some(50)).await.unwrap();
    let [slow, quick] = [conversation.issue(5_000).await, conversation.issue(60).await];
    stage.clock.advance(4_999);
    let view = conversation.inspect().await.unwrap();
    assert_eq!((view.idle_at, view.ended), (slow.deadline, None));
    conversation.accept(&slow, "1").await.unwrap();
    assert_eq!(conversation.channel().await, [(1, Outcome::Succeeded), (2, Outcome::TimedOut)], "{quick:?}");
    stage.clock.advance(49);
    assert_eq!(conversation.inspect().await.unwrap().ended, None);
    stage.clock.advance(1);
    assert!(conversation.inspect().await.unwrap().ended.is_some(), "and not for ever after");
}

async fn changes_extend_the_idle_time_and_reads_do_not(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    let last = conversation.issue(1_000).await;
    let touched_now = async || {
        let touched_at = stage.clock.now();
        stage.clock.advance(1);
        conversation.inspect().await.unwrap().idle_at
            == touched_at.plus_millis(ROOMY.conversation_idle_ttl_ms)
    };
    conversation.open(|_| ()).await.unwrap();
    assert!(touched_now().await, "opened");
    conversation.issue(1_000).await;
    assert!(touched_now().await, "issued");
    conversation.accept(&first, "1").await.unwrap();
    assert!(touched_now().await, "taken");
    conversation.cancel(&second).await.unwrap();
    assert!(touched_now().await, "cancelled");
    conversation.accept(&first, "1").await.unwrap();
    assert!(!touched_now().await, "replayed");
    conversation.read(0, 10).await.unwrap();
    conversation.work_item(&last).await.unwrap();
    assert!(!touched_now().await, "looked at");
    stage.wait_until(last.deadline);
    assert_eq!(conversation.expire(&[&last]).await.len(), 1);
    assert!(!touched_now().await, "timed out");
}

async fn idle_time_is_set_at_opening(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.unopened();
    let idle_in = async || conversation.read(0, 1).await.unwrap().idle_in_ms;
    conversation.open(|open| open.idle_ttl_ms = Some(50)).await.unwrap();
    assert_eq!(idle_in().await, 50);
    stage.clock.advance(20);
    assert_eq!(idle_in().await, 30);
    conversation.open(|_| ()).await.unwrap();
    assert_eq!(idle_in().await, 50, "it keeps what it was opened with");
    conversation.open(|open| open.idle_ttl_ms = Some(70)).await.unwrap();
    assert_eq!(idle_in().await, 70);
}

async fn unknown_conversation_is_not_found(backend: Backend) {
    let stage = backend.stage().await;
    let known = stage.conversation().await;
    let item = known.issue(1_000).await;
    let conversation = stage.unopened();
    assert_eq!(conversation.inspect().await, Err(ConversationNotFound));
    assert_eq!(conversation.read(0, 10).await, Err(ConversationNotFound));
    assert_eq!(conversation.end().await, Err(ConversationNotFound));
    assert_eq!(conversation.work_item(&item).await, Err(LookupRefused::ConversationNotFound));
    assert_eq!(conversation.cancel(&item).await, Err(CancelRefused::ConversationNotFound));
    let issue = conversation.issuing(1_000);
    assert_eq!(conversation.issue_with(issue).await, Err(IssueRefused::ConversationNotFound));
    assert_eq!(conversation.accept(&item, "1").await, Err(AcceptRefused::ConversationEnded));
    let other = stage.conversation().await;
    assert_eq!(other.work_item(&item).await, Err(LookupRefused::WorkItemNotFound), "it is another's");
    assert_eq!(other.cancel(&item).await, Err(CancelRefused::WorkItemNotFound));
    assert_eq!(other.accept(&item, "1").await, Err(AcceptRefused::WorkItemUnknown));
}
