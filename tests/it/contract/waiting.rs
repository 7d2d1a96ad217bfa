//! Guarantee 16: waiting conversations.

use callback_ingress::domain::gate::{Limits, WaitingConversation};
use callback_ingress::domain::ids::{Sequence, ToolCallId, ToolName, TurnId};
use callback_ingress::store::{DueConversation, Store, Waiting};

use crate::conversation::Conversation;
use crate::stage::{Backend, ROOMY, START, Stage, on_every_store};

on_every_store!(
    conversation_waits_while_something_is_held,
    waiting_time_is_that_of_the_oldest_held_item,
    late_timer_of_an_earlier_deadline_moves_the_waiting_time_back,
    conversations_are_listed_longest_first_and_up_to_the_limit,
    overdue_item_holds_nothing_back,
    item_that_is_alive_holds_back,
    cancelled_items_are_held,
    ended_conversation_does_not_wait,
    idle_conversation_does_not_wait,
    conversation_that_is_opened_again_does_not_wait,
    waiting_conversation_is_described,
);

async fn waiting(stage: &Stage) -> Vec<WaitingConversation> {
    let Waiting { conversations, truncated } = stage.store.waiting(100).await.unwrap();
    assert!(!truncated);
    conversations
}

/// For each waiting conversation: its id, the sequence it waits for, the number of held items, the bytes of their
/// results, and since when in milliseconds from the start.
async fn listed(stage: &Stage) -> Vec<(String, u64, u64, u64, u64)> {
    let of = |waiting: &WaitingConversation| {
        (
            waiting.conversation_id.to_string(),
            waiting.waiting_for.sequence.get(),
            waiting.held,
            waiting.held_bytes,
            START.millis_until(waiting.since),
        )
    };
    waiting(stage).await.iter().map(of).collect()
}

fn id(conversation: &Conversation<'_>) -> String {
    conversation.id.to_string()
}

async fn conversation_waits_while_something_is_held(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let conversation = stage.conversation().await;
    let [first, second, third] = conversation.issue_many(1_000).await;
    assert_eq!(listed(&stage).await, []);
    stage.clock.advance(10);
    conversation.accept(&second, "12").await.unwrap();
    stage.clock.advance(10);
    let expected = [(id(&conversation), 1, 1, 2, 10)];
    assert_eq!(listed(&stage).await, expected);
    conversation.accept(&second, "12").await.unwrap();
    assert_eq!(listed(&stage).await, expected, "a repetition changes nothing");
    conversation.accept(&third, "123").await.unwrap();
    assert_eq!(listed(&stage).await, [(id(&conversation), 1, 2, 5, 10)]);
    conversation.accept(&first, "1").await.unwrap();
    assert_eq!(listed(&stage).await, []);
    let last = conversation.issue(1_000).await;
    conversation.accept(&last, "1").await.unwrap();
    assert_eq!(listed(&stage).await, [], "in order, nothing is held");
}

async fn waiting_time_is_that_of_the_oldest_held_item(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let conversation = stage.conversation().await;
    let [first, second, third, fourth, fifth] = conversation.issue_many(10_000).await;
    for item in [&second, &fifth, &fourth] {
        stage.clock.advance(100);
        conversation.accept(item, "1").await.unwrap();
    }
    assert_eq!(listed(&stage).await, [(id(&conversation), 1, 3, 3, 100)]);
    stage.clock.advance(100);
    conversation.accept(&first, "1").await.unwrap();
    assert_eq!(listed(&stage).await, [(id(&conversation), 3, 2, 2, 200)], "the fifth is the oldest now");
    let [_, seventh] = conversation.issue_many(10_000).await;
    conversation.accept(&seventh, "1").await.unwrap();
    conversation.accept(&third, "1").await.unwrap();
    assert_eq!(listed(&stage).await, [(id(&conversation), 6, 1, 1, 400)]);
}

async fn late_timer_of_an_earlier_deadline_moves_the_waiting_time_back(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let conversation = stage.conversation().await;
    let _first = conversation.issue(10_000).await;
    let second = conversation.issue(100).await;
    let third = conversation.issue(10_000).await;
    stage.clock.advance(150);
    conversation.accept(&third, "1").await.unwrap();
    assert_eq!(listed(&stage).await, [(id(&conversation), 1, 1, 1, 150)]);
    stage.clock.advance(10);
    conversation.expire(&[&second]).await;
    assert_eq!(listed(&stage).await, [(id(&conversation), 1, 2, 1, 100)], "it timed out at its deadline");
}

async fn conversations_are_listed_longest_first_and_up_to_the_limit(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let mut expected = Vec::new();
    for number in 0..60 {
        let conversation = stage.conversation().await;
        let [_, second] = conversation.issue_many(100_000).await;
        conversation.accept(&second, "1").await.unwrap();
        expected.push((id(&conversation), 1, 1, 1, number * 7));
        stage.clock.advance(7);
    }
    assert_eq!(listed(&stage).await, expected);
    for (limit, truncated) in [(1, true), (59, true), (60, false), (61, false)] {
        let some = stage.store.waiting(limit).await.unwrap();
        assert_eq!((some.conversations.len(), some.truncated), (limit.min(60), truncated), "{limit}");
        assert_eq!(some.conversations[0].conversation_id.to_string(), expected[0].0);
    }
}

async fn overdue_item_holds_nothing_back(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let conversation = stage.conversation().await;
    let first = conversation.issue(100).await;
    let second = conversation.issue(1_000).await;
    let third = conversation.issue(1_000).await;
    conversation.accept(&third, "1").await.unwrap();
    stage.clock.advance(99);
    assert_eq!(listed(&stage).await, [(id(&conversation), 1, 1, 1, 0)]);
    stage.clock.advance(1);
    assert_eq!(listed(&stage).await, [], "the next operation moves the gate on");
    conversation.expire(&[&first]).await;
    assert_eq!(listed(&stage).await, [(id(&conversation), 2, 1, 1, 0)]);
    conversation.cancel(&second).await.unwrap();
    assert_eq!(listed(&stage).await, []);
}

async fn item_that_is_alive_holds_back(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let conversation = stage.conversation().await;
    let mut issue = conversation.issuing(10_000);
    issue.heartbeat_timeout_ms = Some(100);
    let first = conversation.issue_with(issue).await.unwrap().item;
    let second = conversation.issue(10_000).await;
    conversation.accept(&second, "1").await.unwrap();
    stage.clock.advance(90);
    conversation.heartbeat(&first, None).await.unwrap();
    stage.clock.advance(99);
    assert_eq!(listed(&stage).await, [(id(&conversation), 1, 1, 1, 0)]);
    stage.clock.advance(1);
    assert_eq!(listed(&stage).await, [], "silent for too long");
    conversation.expire(&[&first]).await;
    assert_eq!((listed(&stage).await, conversation.channel().await.len()), (vec![], 2));
}

async fn cancelled_items_are_held(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let conversation = stage.conversation().await;
    let first = conversation.issue(1_000).await;
    for _ in 0..3 {
        let mut issue = conversation.issuing(1_000);
        issue.turn_id = Some(TurnId::parse("turn").unwrap());
        conversation.issue_with(issue).await.unwrap();
    }
    stage.clock.advance(5);
    conversation.cancel_turn("turn").await.unwrap();
    assert_eq!(listed(&stage).await, [(id(&conversation), 1, 3, 0, 5)]);
    conversation.cancel(&first).await.unwrap();
    assert_eq!(listed(&stage).await, []);
}

async fn ended_conversation_does_not_wait(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let (ending, other) = (stage.conversation().await, stage.conversation().await);
    for conversation in [&ending, &other] {
        let [_, second] = conversation.issue_many(1_000).await;
        conversation.accept(&second, "1").await.unwrap();
    }
    ending.end().await.unwrap();
    let expected = [(id(&other), 1, 1, 1, 0)];
    assert_eq!(listed(&stage).await, expected);
    for _ in 0..2 {
        let look = DueConversation { conversation: ending.reference(), sequences: Vec::new(), whole: true };
        stage.store.expire(look, None).await.unwrap();
        ending.end().await.unwrap();
        assert_eq!(listed(&stage).await, expected);
    }
}

async fn idle_conversation_does_not_wait(backend: Backend) {
    let stage = backend.alone(Limits { conversation_idle_ttl_ms: 100, ..ROOMY }).await;
    let conversation = stage.conversation().await;
    let [_, second] = conversation.issue_many(500).await;
    conversation.accept(&second, "1").await.unwrap();
    stage.clock.advance(499);
    assert_eq!(listed(&stage).await.len(), 1);
    stage.clock.advance(1);
    assert_eq!(listed(&stage).await, [], "swept or not");
    let whole =
        DueConversation { conversation: conversation.reference(), sequences: Vec::new(), whole: true };
    stage.store.expire(whole.clone(), None).await.unwrap();
    assert_eq!(listed(&stage).await, []);
    stage.clock.advance(ROOMY.ended_retention_ms);
    stage.store.expire(whole, None).await.unwrap();
    assert_eq!(listed(&stage).await, []);
}

async fn conversation_that_is_opened_again_does_not_wait(backend: Backend) {
    let stage = backend.alone(Limits { conversation_idle_ttl_ms: 100, ..ROOMY }).await;
    let conversation = stage.conversation().await;
    let [_, second] = conversation.issue_many(500).await;
    conversation.accept(&second, "1").await.unwrap();
    stage.clock.advance(500 + ROOMY.ended_retention_ms);
    assert!(conversation.open(|_| ()).await.unwrap().created);
    assert_eq!(listed(&stage).await, []);
    let [_, second] = conversation.issue_many(500).await;
    conversation.accept(&second, "1").await.unwrap();
    let since = 500 + ROOMY.ended_retention_ms;
    assert_eq!(listed(&stage).await, [(id(&conversation), 1, 1, 1, since)], "not since its former life");
}

async fn waiting_conversation_is_described(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let conversation = stage.conversation().await;
    let mut issue = conversation.issuing(1_000);
    issue.turn_id = Some(TurnId::parse("turn-3").unwrap());
    issue.tool_call_id = Some(ToolCallId::parse("call_\"7\"").unwrap());
    issue.name = Some(ToolName::parse("weather").unwrap());
    issue.heartbeat_timeout_ms = Some(400);
    let item = conversation.issue_with(issue).await.unwrap().item;
    let second = conversation.issue(1_000).await;
    conversation.accept(&second, "{}").await.unwrap();
    let [described] = &waiting(&stage).await[..] else { panic!("one conversation waits") };
    assert_eq!(described.waiting_for, item);
    assert_eq!(described.heartbeat_deadline, Some(START.plus_millis(400)));
    stage.clock.advance(300);
    conversation.heartbeat(&item, None).await.unwrap();
    let [described] = &waiting(&stage).await[..] else { panic!("one conversation waits") };
    assert_eq!(described.heartbeat_deadline, Some(START.plus_millis(700)));
    assert_eq!(item.sequence, Sequence::FIRST);
}
