//! Guarantee 15: an item times out without heartbeats and not with them; progress is sent at most every 500 ms.

use std::time::Duration;

use callback_ingress::domain::gate::{Heartbeat, HeartbeatReceipt, HeartbeatRefused, Issue};
use callback_ingress::domain::ids::{ToolCallId, ToolName, TurnId};
use callback_ingress::domain::progress::{PROGRESS_INTERVAL_MS, Progress};
use callback_ingress::domain::work_item::{Outcome, State, TimeoutCause, WorkItem};
use callback_ingress::store::{CLAIM_MS, ChannelListener, DueConversation, Notice, Store};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::conversation::{Conversation, Envelope};
use crate::stage::{Backend, ROOMY, Stage, on_every_store};

on_every_store!(
    silent_item_times_out_and_says_why,
    heartbeats_keep_an_item_alive_until_its_deadline,
    heartbeat_uses_up_nothing_and_changes_no_idle_timeout,
    timers_follow_heartbeats,
    heartbeat_at_the_gate_moves_the_gate,
    refused_heartbeats_name_their_item,
    settled_item_takes_no_heartbeat,
    progress_is_published_to_open_listeners,
    progress_is_limited_for_each_item,
);

/// Far longer than a notification takes.
const PATIENCE: Duration = Duration::from_secs(10);

fn watched(conversation: &Conversation<'_>, timeout_ms: u64, heartbeat_timeout_ms: u64) -> Issue {
    Issue { heartbeat_timeout_ms: Some(heartbeat_timeout_ms), ..conversation.issuing(timeout_ms) }
}

async fn issue(conversation: &Conversation<'_>, timeout_ms: u64, heartbeat_timeout_ms: u64) -> WorkItem {
    conversation.issue_with(watched(conversation, timeout_ms, heartbeat_timeout_ms)).await.unwrap().item
}

async fn sweep(stage: &Stage) {
    for of in stage.due(1_000).await.conversations {
        stage.store.expire(of, None).await.unwrap();
    }
}

fn progress(message: &str) -> Option<Progress> {
    Progress::new(Some(message), Some("{ \"n\": 1.0 }")).unwrap()
}

async fn beat(
    conversation: &Conversation<'_>,
    item: &WorkItem,
) -> Result<HeartbeatReceipt, HeartbeatRefused> {
    conversation.heartbeat(item, None).await
}

async fn silent_item_times_out_and_says_why(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [silent, other] = [issue(&conversation, 1_000, 50).await, issue(&conversation, 1_000, 1_000).await];
    let silent_at = silent.issued_at.plus_millis(50);
    stage.clock.advance(49);
    let view = conversation.work_item(&silent).await.unwrap();
    assert_eq!((view.state, view.heartbeat_deadline()), (State::Awaiting, Some(silent_at)));
    stage.wait_until(silent_at);
    // Before the sweeper has processed it.
    let view = conversation.work_item(&silent).await.unwrap();
    assert_eq!(view.settled, Some((Outcome::TimedOut, silent_at)));
    assert_eq!(
        (view.reason.as_ref().map(ToString::to_string), view.heartbeat_deadline()),
        (Some("heartbeat".into()), None)
    );
    assert_eq!(conversation.inspect().await.unwrap().unreleased[0], view);
    assert_eq!(beat(&conversation, &silent).await, Err(HeartbeatRefused::WorkItemTimedOut));
    conversation.accept(&silent, "1").await.unwrap_err();
    stage.clock.advance(7);
    let due = DueConversation {
        conversation: conversation.reference(),
        sequences: vec![silent.sequence],
        whole: false,
    };
    let expired = stage.store.expire(due, None).await.unwrap();
    let [timed_out] = &expired.timed_out[..] else { panic!("{expired:?}") };
    assert_eq!((timed_out.late_ms, timed_out.cause), (7, TimeoutCause::Heartbeat));
    assert_eq!(conversation.work_item(&silent).await.unwrap().reason, view.reason);
    // The other one's deadline passes.
    stage.wait_until(other.deadline);
    sweep(&stage).await;
    let page = conversation.read(0, 10).await.unwrap();
    let told: Vec<_> = page.envelopes.iter().map(Envelope::read).collect();
    assert_eq!(told[0].members.reason.as_deref(), Some("heartbeat"));
    assert_eq!(told[0].members.received_at, silent_at.to_string());
    assert_eq!((told[1].outcome, &told[1].members.reason), (Outcome::TimedOut, &None));
}

async fn heartbeats_keep_an_item_alive_until_its_deadline(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let item = issue(&conversation, 100, 30).await;
    for at in [20, 40, 60, 80] {
        stage.wait_until(item.issued_at.plus_millis(at));
        let view = beat(&conversation, &item).await.unwrap().item;
        let silent_at = stage.clock.now().plus_millis(30).min(item.deadline);
        assert_eq!((view.state, view.heartbeat_deadline()), (State::Awaiting, Some(silent_at)));
        assert_eq!((view.last_heartbeat_at, view.item.deadline), (Some(stage.clock.now()), item.deadline));
        assert_eq!(conversation.work_item(&item).await.unwrap(), view);
        assert_eq!(conversation.inspect().await.unwrap().unreleased, [view]);
        conversation.expire(&[&item]).await;
    }
    stage.clock.advance(19);
    beat(&conversation, &item).await.unwrap();
    stage.wait_until(item.deadline);
    assert_eq!(beat(&conversation, &item).await, Err(HeartbeatRefused::WorkItemTimedOut));
    assert_eq!(conversation.expire(&[&item]).await.len(), 1);
    let page = conversation.read(0, 10).await.unwrap();
    let envelope = Envelope::read(&page.envelopes[0]);
    assert_eq!((envelope.members.reason, envelope.members.received_at), (None, item.deadline.to_string()));
}

async fn heartbeat_uses_up_nothing_and_changes_no_idle_timeout(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    let key = |bodies: &str| conversation.bringing(&item, bodies.as_bytes());
    let (idle_at, totals) = (conversation.inspect().await.unwrap().idle_at, stage.totals().await);
    stage.clock.advance(10);
    // An item that needs no heartbeats can have some.
    let view = beat(&conversation, &item).await.unwrap().item;
    assert_eq!((view.heartbeat_deadline(), view.last_heartbeat_at), (None, Some(stage.clock.now())));
    assert_eq!(conversation.inspect().await.unwrap().idle_at, idle_at);
    assert_eq!(stage.totals().await, totals);
    let receipt = conversation.accept_with(key("1")).await.unwrap();
    assert!(!receipt.replayed);
    assert_eq!(receipt.item, item);
    assert_eq!(conversation.channel().await, [(1, Outcome::Succeeded)]);
    assert!(conversation.accept_with(key("1")).await.unwrap().replayed);
}

/// Time to the next timer in milliseconds.
fn next(due: &callback_ingress::store::Due) -> Option<u64> {
    due.next_in_ms.iter().filter_map(|(_, next)| *next).min()
}

async fn timers_follow_heartbeats(backend: Backend) {
    let stage = backend.alone(ROOMY).await;
    let conversation = stage.conversation().await;
    let item = issue(&conversation, 1_000, 30).await;
    assert_eq!(next(&stage.due(10).await), Some(30));
    stage.clock.advance(20);
    beat(&conversation, &item).await.unwrap();
    assert_eq!(next(&stage.due(10).await), Some(10), "a heartbeat leaves the timer");
    stage.clock.advance(10);
    let due = stage.due(10).await;
    let [early] = &due.conversations[..] else { panic!("{due:?}") };
    assert_eq!(next(&stage.due(10).await), Some(CLAIM_MS), "it is claimed");
    let expired = stage.store.expire(early.clone(), None).await.unwrap();
    assert_eq!((expired.timed_out.len(), expired.next_in_ms), (0, Some(20)), "the timer is set again");
    assert_eq!(next(&stage.due(10).await), Some(20));
    stage.clock.advance(20);
    let due = stage.due(10).await;
    let [silent] = &due.conversations[..] else { panic!("{due:?}") };
    let expired = stage.store.expire(silent.clone(), None).await.unwrap();
    assert_eq!((expired.timed_out.len(), expired.next_in_ms), (1, None));
    // An old timer does not affect a newer item.
    let newer = issue(&conversation, 1_000, 30).await;
    stage.store.expire(silent.clone(), None).await.unwrap();
    assert_eq!(conversation.work_item(&newer).await.unwrap().state, State::Awaiting);
}

async fn heartbeat_at_the_gate_moves_the_gate(backend: Backend) {
    let stage = backend.limited(callback_ingress::domain::gate::Limits { max_held_items: 1, ..ROOMY }).await;
    let conversation = stage.conversation().await;
    let first = issue(&conversation, 1_000, 30).await;
    let [second, third] = conversation.issue_many(1_000).await;
    conversation.accept(&second, "2").await.unwrap();
    stage.clock.advance(20);
    beat(&conversation, &first).await.unwrap();
    stage.clock.advance(20);
    // The gate still waits, so the limit on held results applies.
    assert_eq!(format!("{:?}", conversation.accept(&third, "3").await.unwrap_err()), "HeldLimit");
    stage.clock.advance(10);
    conversation.accept(&third, "3").await.unwrap();
    let outcomes = [(1, Outcome::TimedOut), (2, Outcome::Succeeded), (3, Outcome::Succeeded)];
    assert_eq!(conversation.channel().await, outcomes);
}

async fn refused_heartbeats_name_their_item(backend: Backend) {
    let stage = backend.stage().await;
    let (conversation, other) = (stage.conversation().await, stage.conversation().await);
    let cancelled = issue(&conversation, 1_000, 500).await;
    let late = issue(&conversation, 1_000, 10).await;
    let stranger = other.issue(1_000).await;
    conversation.cancel(&cancelled).await.unwrap();
    stage.clock.advance(10);
    let before = conversation.seen(&[&cancelled, &late]).await;
    let refusal = async |command: Heartbeat| stage.store.heartbeat(command).await.unwrap().unwrap_err();
    for (item, why) in
        [(&cancelled, HeartbeatRefused::WorkItemCancelled), (&late, HeartbeatRefused::WorkItemTimedOut)]
    {
        let refused = refusal(conversation.beating(item, progress("lost"))).await;
        let target = refused.target.unwrap();
        assert_eq!(
            (refused.why, target.item.as_ref(), target.conversation_id),
            (why, Some(item), conversation.id.clone())
        );
        assert_eq!(target.times_out_at, Some(item.times_out_at(None)));
    }
    let unknown = refusal(conversation.beating(&stranger, None)).await;
    assert_eq!((unknown.why, unknown.target.unwrap().item), (HeartbeatRefused::WorkItemUnknown, None));
    let gone = refusal(stage.unopened().beating(&late, None)).await;
    assert_eq!((gone.why, gone.target), (HeartbeatRefused::ConversationEnded, None));
    let mut expired = conversation.beating(&late, None);
    expired.expires_at = stage.clock.now();
    assert_eq!(refusal(expired).await.why, HeartbeatRefused::TokenExpired);
    assert_eq!(conversation.seen(&[&cancelled, &late]).await, before);
    conversation.end().await.unwrap();
    let ended = refusal(conversation.beating(&late, None)).await;
    assert_eq!((ended.why, ended.target.unwrap().item), (HeartbeatRefused::ConversationEnded, Some(late)));
}

async fn settled_item_takes_no_heartbeat(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second] = [issue(&conversation, 1_000, 100).await, issue(&conversation, 1_000, 100).await];
    conversation.accept(&second, "2").await.unwrap();
    let states = async |item| {
        let receipt = conversation.heartbeat(item, progress("late")).await.unwrap();
        assert_eq!((receipt.published, receipt.item.last_heartbeat_at), (false, None));
        assert_eq!(receipt.item.heartbeat_deadline(), None);
        receipt.item.state
    };
    assert_eq!(states(&second).await, State::Held);
    conversation.accept(&first, "1").await.unwrap();
    assert_eq!(states(&second).await, State::Released);
    let third = issue(&conversation, 1_000, 500).await;
    let fourth = issue(&conversation, 1_000, 500).await;
    conversation.accept(&fourth, "4").await.unwrap();
    conversation.end().await.unwrap();
    assert_eq!(states(&first).await, State::Released);
    for dropped in [&third, &fourth] {
        assert_eq!(beat(&conversation, dropped).await, Err(HeartbeatRefused::ConversationEnded));
    }
}

async fn told(listener: &mut ChannelListener) -> Value {
    loop {
        match timeout(PATIENCE, listener.next()).await.expect("progress was lost") {
            Notice::Progress(progress) => return serde_json::from_slice(progress.bytes()).unwrap(),
            Notice::Changed => {}
        }
    }
}

/// Waits until a listener gets what is published: a new subscription notifies once, the memory store has none.
async fn listening(backend: Backend, listener: &mut ChannelListener) {
    if !matches!(backend, Backend::Memory) {
        timeout(PATIENCE, listener.changed()).await.unwrap();
    }
}

async fn progress_is_published_to_open_listeners(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let mut command = conversation.issuing(10_000);
    command.turn_id = Some(TurnId::parse("turn").unwrap());
    command.tool_call_id = Some(ToolCallId::parse("\"call\"\\").unwrap());
    command.name = Some(ToolName::parse("maps").unwrap());
    let item = conversation.issue_with(command).await.unwrap().item;
    let plain = conversation.issue(10_000).await;
    let nobody = conversation.heartbeat(&item, progress("nobody listens")).await.unwrap();
    assert!(nobody.published);
    stage.clock.advance(PROGRESS_INTERVAL_MS);
    let elsewhere = stage.seen_from_elsewhere().await;
    let mut listeners =
        [stage.store.watch(conversation.reference()), elsewhere.store.watch(conversation.reference())];
    for listener in &mut listeners {
        listening(backend, listener).await;
    }
    let message = "72 °F, \"half\" \\ done";
    assert!(conversation.heartbeat(&item, progress(message)).await.unwrap().published);
    let only_data = Progress::new(None, Some("null\n")).unwrap();
    assert!(conversation.heartbeat(&plain, only_data).await.unwrap().published);
    let at = stage.clock.now().to_string();
    for listener in &mut listeners {
        assert_eq!(
            told(listener).await,
            json!({"sequence": 1, "workItemId": item.id.to_string(), "turnId": "turn", "toolCallId": "\"call\"\\",
                "name": "maps", "kind": "tool", "message": message, "data": {"n": 1.0}, "at": at})
        );
        assert_eq!(
            told(listener).await,
            json!({"sequence": 2, "workItemId": plain.id.to_string(), "kind": "tool", "data": null, "at": at})
        );
    }
    assert_eq!(conversation.channel().await, [], "progress is not on the channel");
}

async fn progress_is_limited_for_each_item(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [one, other] = conversation.issue_many(60_000).await;
    let mut listener = stage.store.watch(conversation.reference());
    listening(backend, &mut listener).await;
    let mut published = Vec::new();
    for (advance, item, message) in [
        (0, &one, Some("1")),
        (0, &one, Some("too soon")),
        (PROGRESS_INTERVAL_MS - 1, &one, Some("too soon")),
        (0, &other, Some("2")),
        (1, &one, None),
        (0, &one, Some("3")),
        (1, &one, Some("too soon")),
    ] {
        stage.clock.advance(advance);
        published.push(conversation.heartbeat(item, message.and_then(progress)).await.unwrap().published);
    }
    assert_eq!(published, [true, false, false, true, false, true, false]);
    for expected in ["1", "2", "3"] {
        assert_eq!(told(&mut listener).await["message"], expected);
    }
}
