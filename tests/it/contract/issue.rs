//! Guarantee 9: an idempotency key issues one item. Also the properties of issued items.

use callback_ingress::domain::gate::{Issue, IssueRefused};
use callback_ingress::domain::ids::{
    Fingerprint, IdempotencyDigest, Sequence, ToolCallId, ToolName, TraceParent, TurnId,
};
use callback_ingress::domain::work_item::State;
use callback_ingress::store::{DueConversation, Store};

use crate::conversation::{Conversation, Envelope, REPLAY_WINDOW_MS};
use crate::stage::{Backend, on_every_store};

on_every_store!(
    items_are_numbered_in_order_of_issue,
    item_inherits_the_conversations_trace,
    item_without_a_trace_gets_its_requests,
    repeated_idempotency_key_returns_the_same_item,
    idempotency_key_with_another_body_is_refused,
    idempotency_keys_are_per_conversation,
    repeated_attempt_issues_no_second_item,
    concurrent_issues_get_distinct_sequences,
    tool_call_and_name_are_given_back_everywhere,
);

fn keyed(conversation: &Conversation<'_>, key: &str, body: &str) -> Issue {
    let mut issue = conversation.issuing(1_000);
    issue.idempotency = Some((IdempotencyDigest::of(key).unwrap(), Fingerprint::of(body.as_bytes())));
    issue
}

async fn items_are_numbered_in_order_of_issue(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    for number in 1..=5 {
        let issue = conversation.issuing(1_000);
        let issued = conversation.issue_with(issue.clone()).await.unwrap();
        assert!(!issued.repeated);
        let item = issued.item;
        let id = issue.work_item.with_sequence(item.sequence);
        assert_eq!((item.sequence, item.id, item.kind), (Sequence::new(number), id, issue.kind));
        assert_eq!(item.issued_at, stage.clock.now());
        assert_eq!(item.deadline, item.issued_at.plus_millis(1_000));
        assert_eq!(item.expires_at, item.deadline.plus_millis(REPLAY_WINDOW_MS));
        let view = conversation.work_item(&item).await.unwrap();
        assert_eq!((view.state, view.settled, &view.item), (State::Awaiting, None, &item));
        stage.clock.advance(1);
    }
}

async fn tool_call_and_name_are_given_back_everywhere(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    // If the tool call's id were not escaped, a search for the turn would match it.
    let call = ToolCallId::parse(r#"call"\,"turnId":"t2","kind":"llm"#).unwrap();
    let name = ToolName::parse("maps:route.v2").unwrap();
    let mut issue = conversation.issuing(1_000);
    (issue.turn_id, issue.tool_call_id, issue.name) =
        (Some(TurnId::parse("t1").unwrap()), Some(call.clone()), Some(name.clone()));
    let item = conversation.issue_with(issue.clone()).await.unwrap().item;
    let known = (Some(call.clone()), Some(name.clone()));
    assert_eq!((item.tool_call_id.clone(), item.name.clone()), known);
    assert_eq!(conversation.work_item(&item).await.unwrap().item, item);
    assert_eq!(conversation.inspect().await.unwrap().unreleased[0].item, item);
    let receipt = conversation.accept(&item, "1").await.unwrap();
    assert_eq!(receipt.item, item);
    let released = &receipt.released[0];
    assert_eq!((released.tool_call_id.clone(), released.name.clone()), known);
    assert_eq!(conversation.work_item(&item).await.unwrap().item, item);

    issue.work_item = callback_ingress::clock::Entropy.work_item_id();
    let late = conversation.issue_with(issue).await.unwrap().item;
    stage.wait_until(late.deadline);
    let due = DueConversation {
        conversation: conversation.reference(),
        sequences: vec![late.sequence],
        whole: false,
    };
    let expired = stage.store.expire(due, None).await.unwrap();
    let timed_out = &expired.timed_out[0];
    assert_eq!((timed_out.tool_call_id.clone(), timed_out.name.clone()), known);
    for envelope in &conversation.read(0, 10).await.unwrap().envelopes {
        let members = Envelope::read(envelope).members;
        assert_eq!(members.tool_call_id.as_deref(), Some(call.as_str()));
        assert_eq!((members.name.as_deref(), members.turn_id.as_deref()), (Some(name.as_str()), Some("t1")));
    }
    assert_eq!(conversation.channel().await.len(), 2);
}

async fn item_inherits_the_conversations_trace(backend: Backend) {
    let stage = backend.stage().await;
    let trace = |digit: &str| TraceParent::parse(&format!("00-{}-{}-01", digit.repeat(32), "1".repeat(16)));
    let (first, second, own) = (trace("a").unwrap(), trace("b").unwrap(), trace("c").unwrap());
    let conversation = stage.conversation().await;
    assert_eq!(conversation.issue(1_000).await.traceparent, None);
    conversation.open(|open| open.traceparent = Some(first.clone())).await.unwrap();
    assert_eq!(conversation.issue(1_000).await.traceparent.as_ref(), Some(&first));
    conversation.open(|_| ()).await.unwrap();
    assert_eq!(conversation.issue(1_000).await.traceparent, Some(first), "opening without one keeps it");
    conversation.open(|open| open.traceparent = Some(second.clone())).await.unwrap();
    assert_eq!(conversation.issue(1_000).await.traceparent.as_ref(), Some(&second));
    assert_eq!(conversation.inspect().await.unwrap().traceparent, Some(second));
    let mut issue = conversation.issuing(1_000);
    issue.traceparent = Some(own.clone());
    issue.request_traceparent = Some(trace("d").unwrap());
    assert_eq!(conversation.issue_with(issue).await.unwrap().item.traceparent, Some(own));
}

async fn item_without_a_trace_gets_its_requests(backend: Backend) {
    let stage = backend.stage().await;
    let trace = |digit: &str| TraceParent::parse(&format!("00-{}-{}-01", digit.repeat(32), "1".repeat(16)));
    let (request, whole) = (trace("a").unwrap(), trace("b").unwrap());
    let conversation = stage.conversation().await;
    let issue = |conversation: &Conversation<'_>| {
        let mut issue = conversation.issuing(1_000);
        issue.request_traceparent = Some(request.clone());
        issue
    };
    let issued = conversation.issue_with(issue(&conversation)).await.unwrap().item;
    assert_eq!(issued.traceparent, Some(request.clone()));
    conversation.open(|open| open.traceparent = Some(whole.clone())).await.unwrap();
    let issued = conversation.issue_with(issue(&conversation)).await.unwrap().item;
    assert_eq!(issued.traceparent, Some(whole), "the conversation's comes first");
}

async fn repeated_idempotency_key_returns_the_same_item(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let first = conversation.issue_with(keyed(&conversation, "key", "body")).await.unwrap();
    assert!(!first.repeated);
    stage.clock.advance(10);
    let again = conversation.issue_with(keyed(&conversation, "key", "body")).await.unwrap();
    assert_eq!((again.repeated, &again.item), (true, &first.item));
    conversation.accept(&first.item, "1").await.unwrap();
    let settled = conversation.issue_with(keyed(&conversation, "key", "body")).await.unwrap();
    assert_eq!(settled, again, "settled or not");
    assert_eq!(conversation.inspect().await.unwrap().next_sequence, Sequence::new(2));
    let other = conversation.issue_with(keyed(&conversation, "other", "body")).await.unwrap();
    assert_eq!((other.repeated, other.item.sequence), (false, Sequence::new(2)));
}

async fn idempotency_key_with_another_body_is_refused(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let first = conversation.issue_with(keyed(&conversation, "key", "body")).await.unwrap().item;
    let before = conversation.seen(&[&first]).await;
    let refused = conversation.issue_with(keyed(&conversation, "key", "another")).await;
    assert_eq!(refused, Err(IssueRefused::IdempotencyConflict));
    assert_eq!(conversation.seen(&[&first]).await, before);
}

async fn idempotency_keys_are_per_conversation(backend: Backend) {
    let stage = backend.stage().await;
    let (ours, theirs) = (stage.conversation().await, stage.conversation().await);
    let first = ours.issue_with(keyed(&ours, "key", "body")).await.unwrap();
    let second = theirs.issue_with(keyed(&theirs, "key", "another")).await.unwrap();
    assert!(!first.repeated && !second.repeated);
}

async fn repeated_attempt_issues_no_second_item(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    for attempt in [conversation.issuing(1_000), keyed(&conversation, "key", "body")] {
        let first = conversation.issue_with(attempt.clone()).await.unwrap();
        stage.clock.advance(10);
        let before = conversation.seen(&[&first.item]).await;
        assert_eq!(conversation.issue_with(attempt).await.unwrap(), first, "its answer was lost, say");
        assert_eq!(conversation.seen(&[&first.item]).await, before);
    }
}

async fn concurrent_issues_get_distinct_sequences(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let issues = (0..50).map(|_| conversation.issue(1_000));
    let mut sequences: Vec<u64> =
        futures_util::future::join_all(issues).await.iter().map(|item| item.sequence.get()).collect();
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=50).collect::<Vec<u64>>());
}
