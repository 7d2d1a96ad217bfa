//! Guarantee 14: cancelling a turn. Also the reasons of cancellations and of the end.

use callback_ingress::domain::gate::{CancelTurnRefused, CancelledTurn};
use callback_ingress::domain::ids::{Sequence, TurnId};
use callback_ingress::domain::reason::Reason;
use callback_ingress::domain::work_item::{Outcome, State, WorkItem};
use callback_ingress::store::Store;

use crate::conversation::{Conversation, Envelope};
use crate::stage::{Backend, on_every_store};

on_every_store!(
    awaiting_items_of_the_turn_are_cancelled_in_one_step,
    turn_without_awaiting_items_changes_nothing,
    overdue_items_of_a_turn_have_timed_out,
    repeated_attempt_lists_what_it_has_cancelled,
    repeated_attempt_whose_items_the_end_dropped_is_refused,
    ended_or_missing_conversation_refuses_a_cancelled_turn,
    turn_larger_than_a_step_is_cancelled_completely,
    end_between_two_steps_keeps_what_the_first_cancelled,
    reason_is_in_the_envelope_and_in_the_inspection,
    first_reason_of_the_end_is_kept,
);

fn turn(name: &str) -> TurnId {
    TurnId::parse(name).unwrap()
}

fn reason(text: &str) -> Reason {
    Reason::parse(text).unwrap()
}

async fn issue(conversation: &Conversation<'_>, name: &str, timeout_ms: u64) -> WorkItem {
    let mut issue = conversation.issuing(timeout_ms);
    issue.turn_id = Some(turn(name));
    conversation.issue_with(issue).await.unwrap().item
}

/// Sequence, state and outcome of each item.
fn listed(cancelled: &CancelledTurn) -> Vec<(u64, State, Option<Outcome>)> {
    let items = cancelled.items.iter();
    items
        .map(|view| (view.item.sequence.get(), view.state, view.settled.map(|(outcome, _)| outcome)))
        .collect()
}

async fn awaiting_items_of_the_turn_are_cancelled_in_one_step(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let done = issue(&conversation, "t", 1_000).await;
    conversation.accept(&done, "1").await.unwrap();
    let second = issue(&conversation, "t", 1_000).await;
    // Ids that begin or end with the turn's are other turns.
    let other = issue(&conversation, "t2", 1_000).await;
    let held = issue(&conversation, "t", 1_000).await;
    conversation.accept(&held, "4").await.unwrap();
    let fifth = issue(&conversation, "t", 1_000).await;
    let without = conversation.issue(1_000).await;
    let cancelled = conversation.cancel_turn("t").await.unwrap();
    let cancelled_in = Some(Outcome::Cancelled);
    assert_eq!(
        listed(&cancelled),
        [
            (2, State::Released, cancelled_in),
            (4, State::Held, Some(Outcome::Succeeded)),
            (5, State::Held, cancelled_in)
        ],
        "what was on the channel before is not listed"
    );
    assert_eq!(cancelled.cancelled, 2);
    let released: Vec<u64> = cancelled.released.iter().map(|released| released.sequence.get()).collect();
    assert_eq!((released, cancelled.unfinished), (vec![2], false));
    for item in [&second, &fifth] {
        let refused = conversation.accept(item, "late").await.unwrap_err();
        assert_eq!(refused, callback_ingress::domain::gate::AcceptRefused::WorkItemCancelled);
    }
    let totals = stage.totals().await;
    assert!(totals.awaiting >= 2 && totals.held >= 2, "{totals:?}");
    conversation.accept(&other, "3").await.unwrap();
    conversation.accept(&without, "6").await.unwrap();
    let (succeeded, cancelled) = (Outcome::Succeeded, Outcome::Cancelled);
    assert_eq!(
        conversation.channel().await,
        [(1, succeeded), (2, cancelled), (3, succeeded), (4, succeeded), (5, cancelled), (6, succeeded)]
    );
}

async fn turn_without_awaiting_items_changes_nothing(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let awaiting = issue(&conversation, "other", 1_000).await;
    let held = issue(&conversation, "t", 1_000).await;
    conversation.accept(&held, "2").await.unwrap();
    stage.clock.advance(10);
    let before = conversation.seen(&[&awaiting, &held]).await;
    let cancelled = conversation.cancel_turn("none").await.unwrap();
    assert_eq!((listed(&cancelled), cancelled.cancelled), (vec![], 0));
    let cancelled = conversation.cancel_turn("t").await.unwrap();
    assert_eq!(listed(&cancelled), [(2, State::Held, Some(Outcome::Succeeded))]);
    assert_eq!((cancelled.cancelled, cancelled.released.len()), (0, 0));
    assert_eq!(conversation.seen(&[&awaiting, &held]).await, before);
}

async fn overdue_items_of_a_turn_have_timed_out(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let overdue = issue(&conversation, "t", 10).await;
    issue(&conversation, "t", 1_000).await;
    stage.wait_until(overdue.deadline);
    let cancelled = conversation.cancel_turn("t").await.unwrap();
    assert_eq!(
        listed(&cancelled),
        [(1, State::Released, Some(Outcome::TimedOut)), (2, State::Released, Some(Outcome::Cancelled))]
    );
    assert_eq!(cancelled.cancelled, 1);
    assert_eq!(conversation.channel().await, [(1, Outcome::TimedOut), (2, Outcome::Cancelled)]);
}

async fn repeated_attempt_lists_what_it_has_cancelled(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    for _ in 0..3 {
        issue(&conversation, "t", 1_000).await;
    }
    let attempt = conversation.withdrawing_turn("t");
    let first = stage.store.cancel_turn(attempt.clone()).await.unwrap().unwrap();
    assert_eq!((first.cancelled, first.released.len()), (3, 3));
    let again = CancelledTurn { released: Vec::new(), ..first };
    assert_eq!(stage.store.cancel_turn(attempt.clone()).await.unwrap(), Ok(again.clone()));
    let other = conversation.cancel_turn("t").await.unwrap();
    assert_eq!((listed(&other), other.cancelled), (vec![], 0), "another attempt finds nothing to do");
    assert_eq!(conversation.channel().await.len(), 3);
    conversation.end().await.unwrap();
    assert_eq!(stage.store.cancel_turn(attempt).await.unwrap(), Ok(again), "it has ended since");
}

async fn repeated_attempt_whose_items_the_end_dropped_is_refused(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    issue(&conversation, "other", 1_000).await;
    issue(&conversation, "t", 1_000).await;
    let attempt = conversation.withdrawing_turn("t");
    let first = stage.store.cancel_turn(attempt.clone()).await.unwrap().unwrap();
    assert_eq!((first.cancelled, first.released.len()), (1, 0));
    conversation.end().await.unwrap();
    assert_eq!(stage.store.cancel_turn(attempt).await.unwrap(), Err(CancelTurnRefused::ConversationEnded));
}

async fn ended_or_missing_conversation_refuses_a_cancelled_turn(backend: Backend) {
    let stage = backend.stage().await;
    let missing = stage.unopened().cancel_turn("t").await;
    assert_eq!(missing, Err(CancelTurnRefused::ConversationNotFound));
    let conversation = stage.conversation().await;
    let item = issue(&conversation, "t", 1_000).await;
    conversation.end().await.unwrap();
    let before = conversation.seen(&[&item]).await;
    assert_eq!(conversation.cancel_turn("t").await, Err(CancelTurnRefused::ConversationEnded));
    assert_eq!(conversation.seen(&[&item]).await, before);
}

async fn turn_larger_than_a_step_is_cancelled_completely(backend: Backend) {
    const ITEMS: u64 = 600;
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    for number in 1..=ITEMS {
        issue(&conversation, if number == 300 { "other" } else { "t" }, 60_000).await;
    }
    let cancelled = conversation.cancel_turn("t").await.unwrap();
    assert_eq!((cancelled.cancelled, cancelled.items.len() as u64), (ITEMS - 1, ITEMS - 1));
    assert!(!cancelled.unfinished);
    for view in &cancelled.items {
        let expected = if view.item.sequence < Sequence::new(300) { State::Released } else { State::Held };
        assert_eq!((view.state, view.settled.unwrap().0), (expected, Outcome::Cancelled), "{view:?}");
    }
    let view = conversation.inspect().await.unwrap();
    assert_eq!((view.waiting_for, view.unreleased.len()), (Sequence::new(300), 301));
    let other = conversation.cancel_turn("other").await.unwrap();
    assert_eq!(listed(&other), [(300, State::Released, Some(Outcome::Cancelled))]);
    let channel = conversation.channel().await;
    let expected: Vec<_> = (1..=ITEMS).map(|sequence| (sequence, Outcome::Cancelled)).collect();
    assert_eq!(channel, expected, "everything behind it is released in the same call");
}

async fn end_between_two_steps_keeps_what_the_first_cancelled(backend: Backend) {
    const ITEMS: u64 = 600;
    let stage = backend.stage().await;
    let conversation = stage.unopened();
    // Loads both scripts, so that they run in the order in which they are sent.
    conversation.cancel_turn("t").await.unwrap_err();
    conversation.end().await.unwrap_err();
    conversation.open(|_| ()).await.unwrap();
    for _ in 0..ITEMS {
        issue(&conversation, "t", 60_000).await;
    }
    // The end is sent before the reply to the first step, on the same connection.
    let (cancelled, ended) = tokio::join!(conversation.cancel_turn("t"), conversation.end());
    let (cancelled, ended) = (cancelled.unwrap(), ended.unwrap());
    if backend != Backend::Memory {
        assert!((1..ITEMS).contains(&cancelled.cancelled), "{}", cancelled.cancelled);
    }
    assert_eq!(cancelled.cancelled + ended.dropped_awaiting, ITEMS);
    assert_eq!(cancelled.items.len() as u64, cancelled.cancelled);
    let expected: Vec<_> = (1..=cancelled.cancelled).map(|number| (number, Outcome::Cancelled)).collect();
    assert_eq!(conversation.channel().await, expected);
}

async fn reason_is_in_the_envelope_and_in_the_inspection(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [one, none] = conversation.issue_many(1_000).await;
    let of_turn = issue(&conversation, "t", 1_000).await;
    let text = r#"the "caller" hung up \ é 😀"#;
    let mut cancel = conversation.withdrawing(&one);
    cancel.reason = Some(reason(text));
    let cancelled = stage.store.cancel(cancel.clone()).await.unwrap().unwrap();
    assert_eq!(cancelled.item.reason, cancel.reason);
    let mut turn = conversation.withdrawing_turn("t");
    turn.reason = Some(reason("barge-in"));
    let cancelled = stage.store.cancel_turn(turn.clone()).await.unwrap().unwrap();
    assert_eq!((&cancelled.items[0].reason, cancelled.items[0].state), (&turn.reason, State::Held));
    assert_eq!(conversation.inspect().await.unwrap().unreleased[1].reason, turn.reason);
    assert_eq!(conversation.cancel(&none).await.unwrap().reason, None);
    let reasons = [cancel.reason, None, turn.reason];
    let page = conversation.read(0, 10).await.unwrap();
    for ((item, reason), envelope) in [&one, &none, &of_turn].into_iter().zip(&reasons).zip(&page.envelopes) {
        assert_eq!(conversation.work_item(item).await.unwrap().reason, *reason);
        let members = Envelope::read(envelope).members;
        assert_eq!(members.reason.as_deref(), reason.as_ref().map(Reason::as_str));
    }
    assert_eq!(page.envelopes.len(), 3);
}

async fn first_reason_of_the_end_is_kept(backend: Backend) {
    let stage = backend.stage().await;
    let shown = async |conversation: &Conversation<'_>| conversation.inspect().await.unwrap().end_reason;
    let conversation = stage.conversation().await;
    conversation.issue(1_000).await;
    assert_eq!(shown(&conversation).await, None);
    let end = |text| stage.store.end(conversation.reference(), None, Some(reason(text)));
    let first = end("\"done\" \\").await.unwrap().unwrap();
    let second = end("another").await.unwrap().unwrap();
    assert_eq!((first.ended, second.repeated), (second.ended, true));
    let kept = Some(reason("\"done\" \\"));
    assert_eq!((&first.reason, &second.reason), (&kept, &kept));
    assert_eq!(conversation.read(0, 10).await.unwrap().end_reason, kept);
    assert_eq!(shown(&conversation).await, kept);
    let silent = stage.conversation().await;
    silent.end().await.unwrap();
    stage.store.end(silent.reference(), None, Some(reason("too late"))).await.unwrap().unwrap();
    assert_eq!(shown(&silent).await, None);
    // One that its idle timeout has ended was not ended by the platform.
    let idle = stage.unopened();
    idle.open(|open| open.idle_ttl_ms = Some(10)).await.unwrap();
    stage.clock.advance(10);
    let ended = stage.store.end(idle.reference(), None, Some(reason("too late"))).await.unwrap().unwrap();
    assert_eq!((ended.repeated, ended.reason, shown(&idle).await), (true, None, None));
}
