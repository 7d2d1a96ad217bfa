use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::result::CallbackResult;
use crate::domain::token::KeyId;
use crate::domain::work_item::Kind;

const LIMITS: Limits = Limits {
    max_held_items: 3,
    max_held_bytes: 64,
    max_awaiting_items: 8,
    max_channel_length: 8,
    max_channel_bytes: 1_000,
    conversation_idle_ttl_ms: 1_000_000,
    ended_retention_ms: 1_000,
};

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// The id of an item that attempt `number` issued as item `number`.
fn id(number: u64) -> WorkItemId {
    WorkItemId::from_uuid(Uuid::from_u128(u128::from(number) << 32)).with_sequence(Sequence::new(number))
}

fn opened() -> Conversation {
    let command = Open {
        conversation: ConversationId::parse("c").unwrap(),
        idle_ttl_ms: None,
        traceparent: None,
        attempt: AttemptId::from_random(0),
    };
    Conversation::open(&command, at(0), &LIMITS)
}

fn issue(
    conversation: &mut Conversation,
    number: u64,
    now: u64,
    timeout_ms: u64,
) -> Result<Issued, IssueRefused> {
    let command = Issue {
        conversation: conversation.id.reference(),
        work_item: id(number),
        kind: Kind::Tool,
        turn_id: None,
        tool_call_id: None,
        name: None,
        timeout_ms,
        heartbeat_timeout_ms: None,
        replay_window_ms: 100,
        key_id: KeyId::parse("k").unwrap(),
        traceparent: None,
        request_traceparent: None,
        idempotency: None,
    };
    conversation.issue(&command, at(now), &LIMITS)
}

/// The effects of timers that are not due.
fn no_effects(conversation: &Conversation) -> Expired {
    Expired { conversation_id: Some(conversation.id.clone()), ..Expired::default() }
}

fn accept(
    conversation: &mut Conversation,
    number: u64,
    now: u64,
    body: &str,
) -> Result<Receipt, AcceptRefused> {
    let body = Bytes::copy_from_slice(body.as_bytes());
    let command = Accept {
        conversation: conversation.id.reference(),
        work_item: conversation.slots.get(&Sequence::new(number)).map_or(id(number), |slot| slot.item.id),
        sequence: Sequence::new(number),
        expires_at: at(u64::MAX),
        result: CallbackResult::of(Kind::Tool, &body).unwrap(),
        request_id: RequestId::from_uuid(Uuid::nil()),
        traceparent: None,
        attempt: AttemptId::from_random(now),
    };
    conversation.accept(&command, at(now), &LIMITS)
}

fn released(conversation: &Conversation) -> Vec<(u64, Outcome)> {
    let read = |json: &EnvelopeJson| {
        let envelope: serde_json::Value = serde_json::from_slice(json.bytes()).unwrap();
        (
            envelope["sequence"].as_u64().unwrap(),
            Outcome::parse(envelope["outcome"].as_str().unwrap()).unwrap(),
        )
    };
    conversation.read(None, 100).iter().map(read).collect()
}

#[test]
fn held_results_are_released_in_order() {
    let mut c = opened();
    (1..=3).for_each(|n| drop(issue(&mut c, n, 0, 1_000)));
    let held = Delivery::Held { waiting_for: Sequence::new(1) };
    assert_eq!(accept(&mut c, 3, 1, "3").unwrap().delivery, held);
    assert_eq!(accept(&mut c, 2, 2, "2").unwrap().delivery, held);
    assert_eq!(released(&c), []);
    assert_eq!(accept(&mut c, 1, 3, "1").unwrap().delivery, Delivery::Delivered);
    assert_eq!(released(&c), [1, 2, 3].map(|n| (n, Outcome::Succeeded)));
    assert_eq!(c.held_bytes, 0);
}

#[test]
fn overdue_item_does_not_block_the_gate() {
    let mut c = opened();
    issue(&mut c, 1, 0, 10).unwrap();
    issue(&mut c, 2, 0, 1_000).unwrap();
    assert_eq!(accept(&mut c, 1, 10, "1"), Err(AcceptRefused::WorkItemTimedOut));
    assert_eq!(accept(&mut c, 2, 11, "2").unwrap().delivery, Delivery::Delivered);
    assert_eq!(released(&c), [(1, Outcome::TimedOut), (2, Outcome::Succeeded)]);
    let first = String::from_utf8_lossy(c.channel[0].bytes());
    assert!(
        first.contains(&format!("\"receivedAt\":\"{}\"", at(10))),
        "settled at its deadline, not at the next operation: {first}"
    );
    assert_eq!(c.expire(&[Sequence::new(1)], None, at(12)), no_effects(&c), "the item is already settled");
}

#[test]
fn early_timer_is_set_again_and_stale_timer_is_ignored() {
    let mut c = opened();
    issue(&mut c, 1, 0, 10).unwrap();
    let set_again = Expired { next_in_ms: Some(1), ..no_effects(&c) };
    assert_eq!(c.expire(&[Sequence::new(1), Sequence::new(9)], None, at(9)), set_again);
    let expired = c.expire(&[Sequence::new(1)], None, at(15));
    assert_eq!(expired.timed_out.iter().map(|t| (t.work_item, t.late_ms)).collect::<Vec<_>>(), [(id(1), 5)]);
    assert_eq!(
        expired.released.iter().map(|r| (r.work_item, r.outcome)).collect::<Vec<_>>(),
        [(id(1), Outcome::TimedOut)]
    );
    assert_eq!(c.expire(&[Sequence::new(1)], None, at(15)), no_effects(&c));
}

#[test]
fn held_limit_applies_only_behind_an_awaiting_item() {
    let mut c = opened();
    (1..=6).for_each(|n| drop(issue(&mut c, n, 0, 1_000)));
    for n in 2..=4 {
        accept(&mut c, n, 1, "0").unwrap();
    }
    assert_eq!(accept(&mut c, 5, 1, "0"), Err(AcceptRefused::HeldLimit));
    accept(&mut c, 1, 1, &format!("\"{}\"", "x".repeat(100))).unwrap();
    assert_eq!(accept(&mut c, 6, 1, &format!("\"{}\"", "x".repeat(100))), Err(AcceptRefused::HeldLimit));
    accept(&mut c, 5, 1, "0").unwrap();
    accept(&mut c, 6, 1, "0").unwrap();
    assert_eq!(released(&c).len(), 6);
}

#[test]
fn issue_limits_awaiting_items_and_channel_length() {
    let mut c = opened();
    (1..=8).for_each(|n| drop(issue(&mut c, n, 0, 1_000).unwrap()));
    assert_eq!(issue(&mut c, 9, 0, 1_000), Err(IssueRefused::AwaitingLimit));
    accept(&mut c, 1, 0, "1").unwrap();
    assert_eq!(issue(&mut c, 9, 0, 1_000), Err(IssueRefused::ChannelLimit));
}

#[test]
fn end_counts_dropped_items_once() {
    let mut c = opened();
    (1..=4).for_each(|n| drop(issue(&mut c, n, 0, 1_000)));
    accept(&mut c, 1, 1, "1").unwrap();
    accept(&mut c, 3, 1, "3").unwrap();
    let ended = c.end(None, None, at(5)).ended;
    assert_eq!(ended, Ended { ended_at: at(5), dropped_held: 1, dropped_awaiting: 2 });
    assert_eq!(c.end(None, None, at(900)).ended, ended);
    assert_eq!(accept(&mut c, 2, 6, "2"), Err(AcceptRefused::ConversationEnded));
    assert_eq!(accept(&mut c, 3, 6, "3"), Err(AcceptRefused::ConversationEnded), "its result was dropped");
    assert!(accept(&mut c, 1, 6, "1").unwrap().replayed, "its result was delivered");
    assert_eq!(accept(&mut c, 1, 6, "9"), Err(AcceptRefused::TokenUsed));
    assert!(!c.is_gone(at(1_004), &LIMITS) && c.is_gone(at(1_005), &LIMITS));
}

#[test]
fn idle_conversation_counts_as_ended() {
    let mut c = opened();
    issue(&mut c, 1, 0, 10).unwrap();
    assert_eq!(issue(&mut c, 2, 1_000_000, 10), Err(IssueRefused::ConversationEnded));
    assert_eq!(c.ended_at(at(2_000_000)), Some(at(1_000_000)));
    assert_eq!(
        c.end(None, None, at(2_000_000)).ended,
        Ended { ended_at: at(1_000_000), dropped_held: 0, dropped_awaiting: 1 }
    );
}

#[test]
fn idle_timeout_waits_for_the_last_deadline() {
    let mut c = opened();
    issue(&mut c, 1, 0, 2_000_000).unwrap();
    issue(&mut c, 2, 0, 10).unwrap();
    assert_eq!((c.idle_at(), c.ended_at(at(1_999_999))), (at(2_000_000), None));
    accept(&mut c, 1, 1, "1").unwrap();
    assert_eq!(c.expire(&[Sequence::new(2)], None, at(10)).timed_out.len(), 1);
    assert_eq!(c.idle_at(), at(2_000_000), "a timeout does not shorten the idle timeout");
    issue(&mut c, 3, 20, 10).unwrap();
    accept(&mut c, 3, 21, "3").unwrap();
    assert_eq!(c.idle_at(), at(1_000_021), "no item is awaiting");
}

#[test]
fn channel_bytes_are_limited() {
    let mut c = opened();
    let large = format!("\"{}\"", "x".repeat(498));
    (1..=3).for_each(|n| drop(issue(&mut c, n, 0, 1_000).unwrap()));
    accept(&mut c, 1, 1, &large).unwrap();
    accept(&mut c, 2, 1, &large).unwrap();
    assert_eq!(accept(&mut c, 3, 1, "3"), Err(AcceptRefused::ChannelLimit));
    assert_eq!(issue(&mut c, 4, 1, 1_000), Err(IssueRefused::ChannelLimit));
}

proptest! {
    /// After any commands in any order, the channel contains 1, 2, 3 … without gaps or duplicates.
    #[test]
    fn channel_is_always_in_order(steps in prop::collection::vec((0u8..5, 1u64..9, 0u64..30), 1..60)) {
        let mut c = opened();
        let mut now = 0;
        for (what, number, wait) in steps {
            now += wait;
            match what {
                0 => drop(issue(&mut c, number, now, 40)),
                1 | 2 => drop(accept(&mut c, number, now, &number.to_string())),
                3 => drop(c.expire(&[Sequence::new(number)], None, at(now))),
                _ => drop(c.cancel(
                    &Cancel {
                        conversation: c.id.reference(),
                        work_item: c.slots.get(&Sequence::new(number)).map_or(id(number), |slot| slot.item.id),
                        reason: None,
                        request_id: RequestId::from_uuid(Uuid::nil()),
                        traceparent: None,
                        attempt: AttemptId::from_random(now),
                    },
                    at(now),
                )),
            }
            let sequences: Vec<u64> = released(&c).into_iter().map(|(sequence, _)| sequence).collect();
            prop_assert_eq!(&sequences, &(1..=sequences.len() as u64).collect::<Vec<_>>());
            let held: u64 = c.unreleased().filter_map(|s| s.settlement.as_ref()).map(Settlement::held_bytes).sum();
            prop_assert_eq!(c.held_bytes, held);
            prop_assert_eq!(c.awaiting, c.slots.values().filter(|s| s.settlement.is_none()).count() as u64);
        }
    }
}
