//! Tests of the checker for violations that no changed script produces: a recorded valid history is changed in one place
//! into an impossible one.

use serde_json::{Value, json};

use crate::checker::{self, Rule};
use crate::record::{Action, Attempt, Conversation, History, Operation, Outage, Reply, StreamEntry};
use crate::recorded;

/// Changes a conversation; false if it has nothing to change.
type Tampering = fn(&mut Conversation) -> bool;

const TAMPERINGS: [(&str, Tampering, Rule); 23] = [
    ("a forged token is taken", a_forgery_is_taken, Rule::Forged),
    ("a stranger cancels", a_stranger_cancels, Rule::Crossed),
    ("a time-out is told of before the deadline", a_time_out_is_too_early, Rule::Reply),
    ("a cancellation is told of that nobody asked for", nobody_cancelled, Rule::Reply),
    ("an end is told of that nobody asked for", nobody_ended, Rule::Ending),
    ("a repetition is recognised that is none", nothing_was_repeated, Rule::Reply),
    ("a reply bears another request's id", another_request, Rule::Agreement),
    ("a heartbeat is taken after a cancellation", a_heartbeat_is_too_late, Rule::Agreement),
    ("a heartbeat is told another deadline", a_heartbeat_moves_the_deadline, Rule::Agreement),
    ("progress is told of that nobody sent", progress_of_nobody, Rule::Reading),
    ("the Redis stream has other bytes", the_stream_differs, Rule::Agreement),
    ("the Redis stream says nothing of the end", the_stream_does_not_end, Rule::Agreement),
    ("the Redis stream ends, and the conversation lives", the_stream_ends, Rule::Agreement),
    ("an event is of another opening", an_event_of_another_opening, Rule::Order),
    ("a reader sees what is not there", a_reader_sees_more, Rule::Reading),
    ("a reader of the Redis stream sees what is not there", a_stream_reader_sees_other, Rule::Reading),
    ("a reader is told of an end too early", a_reader_is_sent_away, Rule::Reading),
    ("a turn is cancelled in two steps", a_turn_is_cancelled_in_two_steps, Rule::Agreement),
    ("another turn is cancelled", another_turn_is_cancelled, Rule::Uncalled),
    ("a turn is cancelled, and an item of it awaits", an_item_of_a_turn_awaits, Rule::Reply),
    ("an item has another name", an_item_has_another_name, Rule::Agreement),
    ("something is awaiting for ever", something_stays, Rule::Deadline),
    ("the store knows nothing", everything_is_gone, Rule::Lost),
];

fn attempts(conversation: &mut Conversation, of: fn(&Action) -> bool) -> impl Iterator<Item = &mut Attempt> {
    conversation.operations.iter_mut().filter(move |one| of(&one.action)).flat_map(|one| &mut one.attempts)
}

fn is_post(action: &Action) -> bool {
    matches!(action, Action::Post(_))
}

/// The first attempt with this status.
fn answered<'c>(
    conversation: &'c mut Conversation,
    of: fn(&Action) -> bool,
    code: &str,
) -> Option<&'c mut Attempt> {
    attempts(conversation, of)
        .find(|attempt| attempt.reply.as_ref().is_some_and(|reply| reply.code() == code))
}

fn turn_into(attempt: Option<&mut Attempt>, status: u16, body: Value) -> bool {
    let reply = attempt.and_then(|attempt| attempt.reply.as_mut());
    reply.map(|reply| (reply.status, reply.body) = (status, body)).is_some()
}

fn is_beat(action: &Action) -> bool {
    matches!(action, Action::Beat { .. })
}

fn a_heartbeat_is_too_late(conversation: &mut Conversation) -> bool {
    let taken = answered(conversation, is_beat, "").and_then(|attempt| attempt.reply.clone());
    let refused = answered(conversation, is_beat, "WORK_ITEM_CANCELLED");
    taken.is_some_and(|taken| turn_into(refused, 200, taken.body))
}

fn a_heartbeat_moves_the_deadline(conversation: &mut Conversation) -> bool {
    let taken = answered(conversation, is_beat, "").and_then(|attempt| attempt.reply.as_mut());
    taken.map(|reply| reply.body["deadline"] = json!("2027-01-15T08:00:00.000Z")).is_some()
}

fn progress_of_nobody(conversation: &mut Conversation) -> bool {
    let session = conversation.sessions.first_mut();
    let progress = r#"{"workItemId":"01a21f28-0000-7000-8000-000000000001","message":"on it"}"#.to_owned();
    session.map(|session| session.progress.push((session.over, progress))).is_some()
}

fn a_forgery_is_taken(conversation: &mut Conversation) -> bool {
    let forged =
        answered(conversation, |action| matches!(action, Action::Forged { .. }), "CALLBACK_TOKEN_INVALID");
    turn_into(forged, 202, json!({"status": "delivered"}))
}

fn a_stranger_cancels(conversation: &mut Conversation) -> bool {
    let strange =
        answered(conversation, |action| matches!(action, Action::CancelForeign), "WORK_ITEM_NOT_FOUND");
    turn_into(strange, 200, json!({"outcome": "cancelled"}))
}

fn a_time_out_is_too_early(conversation: &mut Conversation) -> bool {
    let timed_out = answered(conversation, is_post, "WORK_ITEM_TIMED_OUT");
    // Before any deadline.
    timed_out.map(|attempt| attempt.returned = 0).is_some()
}

/// Removes the requests that explain a reply.
fn without(conversation: &mut Conversation, code: &str, explains: fn(&Operation) -> bool) -> bool {
    let told = answered(conversation, is_post, code).is_some();
    conversation.operations.retain(|operation| !told || !explains(operation));
    told
}

fn nobody_cancelled(conversation: &mut Conversation) -> bool {
    without(conversation, "WORK_ITEM_CANCELLED", |one| matches!(one.action, Action::Cancel { .. }))
}

fn nobody_ended(conversation: &mut Conversation) -> bool {
    without(conversation, "CONVERSATION_ENDED", |one| matches!(one.action, Action::End))
}

fn nothing_was_repeated(conversation: &mut Conversation) -> bool {
    let item_of = |operation: &Operation| match &operation.action {
        Action::Post(post) => Some(post.work_item.clone()),
        _ => None,
    };
    let replayed = |attempt: &Attempt| attempt.reply.as_ref().is_some_and(|reply| reply.status == 200);
    let mut posts = conversation.operations.iter().filter(|one| is_post(&one.action));
    let Some(mut repeated) = posts.find(|one| one.attempts.iter().any(replayed)).cloned() else {
        return false;
    };
    conversation.operations.retain(|one| item_of(one) != item_of(&repeated));
    repeated.attempts.retain(replayed);
    conversation.operations.push(repeated);
    true
}

fn another_request(conversation: &mut Conversation) -> bool {
    let mut replies = attempts(conversation, is_post).filter_map(|attempt| attempt.reply.as_mut());
    let reply: Option<&mut Reply> = replies.next();
    reply.map(|reply| reply.request_id.push('0')).is_some()
}

fn the_stream_differs(conversation: &mut Conversation) -> bool {
    let entries = conversation.truth.stream.iter_mut().flatten().flat_map(|(_, fields)| fields);
    let mut envelopes = entries.filter(|(name, _)| name == "envelope");
    envelopes.next().map(|(_, bytes)| bytes.push(b' ')).is_some()
}

fn the_stream_does_not_end(conversation: &mut Conversation) -> bool {
    let stream = conversation.truth.stream.as_mut();
    let ends = |(_, fields): &mut StreamEntry| fields[0].0 == "end";
    let ended = stream.and_then(|stream| stream.pop_if(ends)).is_some();
    // No reply reports it either.
    ended && conversation.stream_seen.pop().is_some()
}

fn the_stream_ends(conversation: &mut Conversation) -> bool {
    let live = conversation.truth.view.as_ref().is_some_and(|view| view["state"] == "live");
    let end = format!(r#"{{"conversationId":"{}","state":"ended"}}"#, conversation.id);
    let id = conversation.truth.event_id(conversation.truth.events.len() as u64 + 1);
    let stream = conversation.truth.stream.as_mut().filter(|_| live);
    stream.map(|stream| stream.push((id, vec![("end".to_owned(), end.into_bytes())]))).is_some()
}

fn an_event_of_another_opening(conversation: &mut Conversation) -> bool {
    let event = conversation.truth.events.first_mut();
    event.map(|(id, _)| *id = id.replacen('1', "2", 1)).is_some()
}

fn a_reader_sees_more(conversation: &mut Conversation) -> bool {
    let sessions = conversation.sessions.iter_mut().filter(|session| !session.events.is_empty());
    sessions.map(|session| session.events.push(session.events[0].clone())).next().is_some()
}

fn a_stream_reader_sees_other(conversation: &mut Conversation) -> bool {
    conversation.stream_seen.first_mut().map(|(_, (id, _))| id.push('0')).is_some()
}

fn a_reader_is_sent_away(conversation: &mut Conversation) -> bool {
    let live = conversation.truth.view.as_ref().is_some_and(|view| view["state"] == "live");
    let mut sessions = conversation.sessions.iter_mut().filter(|_| live);
    sessions.next().map(|session| session.ended = true).is_some()
}

/// Replaces a text in the last event that has it, and in the entry of the Redis stream.
fn rewrite(conversation: &mut Conversation, from: &str, to: &str) -> bool {
    let events = conversation.truth.events.iter_mut().rev();
    let Some(data) = events.map(|(_, data)| data).find(|data| data.contains(from)) else { return false };
    let (before, after) = (data.clone(), data.replace(from, to));
    data.clone_from(&after);
    let read = conversation.sessions.iter_mut().flat_map(|session| &mut session.events);
    for (.., data) in read.filter(|(.., data)| *data == before) {
        data.clone_from(&after);
    }
    let entries = conversation.truth.stream.iter_mut().flatten();
    let seen = conversation.stream_seen.iter_mut().map(|(_, entry)| entry);
    for (_, bytes) in entries.chain(seen).flat_map(|(_, fields)| fields) {
        if *bytes == before.as_bytes() {
            *bytes = after.clone().into_bytes();
        }
    }
    true
}

fn cancelled_turn(conversation: &mut Conversation) -> Option<&mut Operation> {
    conversation.operations.iter_mut().find(|one| matches!(one.action, Action::CancelTurn { .. }))
}

fn a_turn_is_cancelled_in_two_steps(conversation: &mut Conversation) -> bool {
    cancelled_turn(conversation).is_some()
        && rewrite(conversation, ".051Z\",\"releasedAt", ".052Z\",\"releasedAt")
}

fn another_turn_is_cancelled(conversation: &mut Conversation) -> bool {
    let operation = cancelled_turn(conversation);
    operation.map(|one| one.action = Action::CancelTurn { turn: "t0".to_owned() }).is_some()
}

fn an_item_of_a_turn_awaits(conversation: &mut Conversation) -> bool {
    let reply = cancelled_turn(conversation).and_then(|one| one.attempts[0].reply.as_mut());
    reply.map(|reply| reply.body["workItems"][1]["state"] = json!("awaiting")).is_some()
}

fn an_item_has_another_name(conversation: &mut Conversation) -> bool {
    rewrite(conversation, "\"name\":\"weather\"", "\"name\":\"route\"")
}

fn something_stays(conversation: &mut Conversation) -> bool {
    let view = conversation.truth.view.as_mut().filter(|view| view["state"] == "live");
    view.map(|view| view["awaiting"] = json!([{}])).is_some()
}

fn everything_is_gone(conversation: &mut Conversation) -> bool {
    conversation.truth.view.take().is_some()
}

/// The violations in a history with one conversation and the loss of a primary this long after its end.
fn found_with_a_failover(conversation: &Conversation, after: u64) -> Vec<Rule> {
    let attempts = conversation.operations.iter().flat_map(|operation| &operation.attempts);
    let sessions = conversation.sessions.iter().map(|session| session.over);
    let over = attempts.map(|attempt| attempt.returned).chain(sessions).max().unwrap();
    let from = over + after;
    let what = "a master is lost".to_owned();
    let outage = Outage { what, excuses: true, from, loses_until: Some(from), until: from };
    let history = History { conversations: vec![conversation.clone()], outages: vec![outage] };
    checker::check(&history).violations.iter().map(|violation| violation.rule).collect()
}

/// The recorded live conversation.
fn living() -> Conversation {
    recorded::history().conversations.swap_remove(0)
}

#[test]
fn recorded_history_has_no_violation() {
    let found = checker::check(&recorded::history()).violations;
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn every_tampering_is_caught() {
    for (name, tamper, rule) in TAMPERINGS {
        let mut tampered = recorded::history()
            .conversations
            .into_iter()
            .filter_map(|mut conversation| tamper(&mut conversation).then_some(conversation));
        let conversation = tampered.next().unwrap_or_else(|| panic!("no place for this: {name}"));
        let history = History { conversations: vec![conversation], outages: Vec::new() };
        let found = checker::check(&history).violations;
        assert!(found.iter().any(|violation| violation.rule == rule), "{name}: {found:?}");
    }
}

#[test]
fn failover_excuses_only_recent_writes() {
    let intact = living();
    assert_eq!(found_with_a_failover(&intact, 0), [], "nothing is lost");
    // A result acknowledged long before the failover.
    let mut lost = intact.clone();
    everything_is_gone(&mut lost);
    assert!(found_with_a_failover(&lost, 5_000_000).contains(&Rule::Replicated));
    // The last event that a reader received, with no later request.
    let mut read_on = intact;
    let session = read_on.sessions.last_mut().unwrap();
    let (other, over) = (session.events[0].clone(), session.over);
    session.events.push((over, other.1, other.2));
    assert!(found_with_a_failover(&read_on, 5_000_000).contains(&Rule::Reading), "a replica had it long ago");
    assert!(!found_with_a_failover(&read_on, 0).contains(&Rule::Reading), "it may have been lost");
    let asked = read_on.operations[0].clone();
    let later = |mut attempt: Attempt| {
        (attempt.invoked, attempt.returned) = (over + 1, over + 2);
        attempt
    };
    let attempts = asked.attempts.into_iter().map(later).collect();
    read_on.operations.push(Operation { action: asked.action, attempts });
    assert!(found_with_a_failover(&read_on, 1).contains(&Rule::Reading), "a later answer vouches for it");
}

#[test]
fn unavailability_without_a_fault_is_caught() {
    let mut history = recorded::history();
    let unfounded = |history: &History| checker::unfounded(std::slice::from_ref(history));
    assert_eq!(unfounded(&history).len(), 0, "nobody was refused");
    let refused = attempts(&mut history.conversations[0], |_| true).next();
    assert!(turn_into(refused, 503, json!({"error": {"code": "STORE_UNAVAILABLE"}})));
    let found = unfounded(&history);
    assert!(matches!(&found[..], [one] if one.rule == Rule::Available), "{found:?}");
    let slow = attempts(&mut history.conversations[1], |_| true).next().unwrap();
    slow.returned = slow.invoked + 1_000_000;
    assert_eq!(unfounded(&history).len(), 0, "on this one the store may have been late");
}
