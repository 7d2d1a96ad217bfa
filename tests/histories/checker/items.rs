//! One work item: its settlement, and whether every reply is consistent with it.

use super::{Case, Item, Rule, SAME_MOMENT};
use crate::record::{Attempt, Envelope, Operation, Post, Reply, Says, Time, millis};

/// A reply to a callback, with its request.
pub(super) struct Answered<'a> {
    post: &'a Post,
    pub(super) attempt: &'a Attempt,
    pub(super) reply: &'a Reply,
}

impl Answered<'_> {
    fn acknowledges(&self) -> bool {
        self.reply.status < 300
    }
}

/// The outcome that a body stands for.
const fn outcome_of(says: Says) -> Option<&'static str> {
    match says {
        Says::Succeeded => Some("succeeded"),
        Says::Failed => Some("failed"),
        Says::Nonsense | Says::TwoTokens => None,
    }
}

impl<'a> Case<'a> {
    pub(super) fn check_item(&mut self, item: &Item<'a>) {
        let envelope = item.envelope.map(|place| self.envelopes[place].clone());
        let answered: Vec<Answered<'a>> = item
            .posts
            .iter()
            .flat_map(|&(operation, post)| {
                operation.answers().map(move |(attempt, reply)| Answered { post, attempt, reply })
            })
            .collect();
        match &envelope {
            Some(envelope) => {
                self.check_envelope(item, envelope);
                self.check_undone(&answered, envelope);
            }
            None => self.check_missing(item, &answered),
        }
        self.check_winner(item, &answered);
        for one in &answered {
            self.check_answer(item, envelope.as_ref(), one);
            if one.reply.status == 202 {
                self.check_receipt(item, envelope.as_ref(), one);
            }
            if one.acknowledges() {
                self.check_delivery(item, envelope.as_ref(), one);
            }
        }
        let settled = self.settled_by(item, &answered);
        for one in answered.iter().filter(|one| one.reply.status == 202 && one.attempt.invoked > settled) {
            self.told(item, Rule::OneWinner, format!("taken after it was settled: {:?}", one.reply.body));
        }
        self.check_cancels(item, envelope.as_ref());
        self.check_beats(item, envelope.as_ref(), settled);
        self.check_looks(item, envelope.as_ref(), settled);
    }

    pub(super) fn told(&mut self, item: &Item<'_>, rule: Rule, what: impl std::fmt::Display) {
        self.violated(rule, format!("{} ({}): {what}", item.sequence, item.id));
    }

    /// An envelope on the channel was caused by an attempt.
    fn check_envelope(&mut self, item: &Item<'a>, envelope: &Envelope) {
        let request = envelope.request_id.as_deref().unwrap_or_default();
        let of = |operation: &Operation| {
            operation.attempts.iter().find(|attempt| attempt.request_id == request).cloned()
        };
        let settled_by = match envelope.outcome.as_str() {
            "timed_out" => {
                self.check_timeout(item, envelope);
                if envelope.payload().is_some() || envelope.request_id.is_some() {
                    self.told(item, Rule::Bytes, "a time-out with a result");
                }
                return;
            }
            "cancelled" => item.all_cancels().find_map(of),
            outcome => {
                let found = item.posts.iter().find_map(|(operation, post)| Some((of(operation)?, *post)));
                if let Some((_, post)) = &found
                    && (outcome_of(post.says) != Some(outcome)
                        || envelope.payload().map(str::as_bytes) != Some(&post.result[..]))
                {
                    let what = format!("{outcome} {:?} is not what {request} brought", envelope.payload());
                    self.told(item, Rule::Bytes, what);
                }
                found.map(|(attempt, _)| attempt)
            }
        };
        match settled_by {
            None => {
                let what = format!("{} by a request that nobody made for it: {request}", envelope.outcome);
                self.told(item, Rule::Uncalled, what);
            }
            Some(attempt) if !attempt.may_count() => {
                let reply = attempt.reply.map(|reply| reply.code().to_owned());
                self.told(item, Rule::Uncalled, format!("settled by an attempt that was answered {reply:?}"));
            }
            Some(attempt) => {
                let received = millis(&envelope.received_at).unwrap_or_default();
                if !item.may_be_alive(received) {
                    self.told(item, Rule::Deadline, "settled after its deadline, or after silence");
                }
                // Without a reply, the time of acceptance is unknown.
                let until = if attempt.answer().is_some() { attempt.returned } else { Time::MAX };
                if !is_between(received, attempt.invoked, until) {
                    self.told(item, Rule::Agreement, "received at another time than that of its request");
                }
            }
        }
    }

    /// The channel has another envelope than the acknowledged one. Other rules report that; here the result counts as
    /// lost.
    fn check_undone(&mut self, answered: &[Answered<'a>], envelope: &Envelope) {
        let mut acknowledged = answered.iter().filter(|one| one.acknowledges()).peekable();
        let Some(first) = acknowledged.peek().map(|one| one.attempt.returned) else { return };
        let payload = envelope.payload().map(str::as_bytes);
        if acknowledged.all(|one| payload != Some(&one.post.result[..])) {
            self.lose(first);
        }
    }

    /// The item is not on the channel: correct only if the conversation ended before its release.
    fn check_missing(&mut self, item: &Item<'a>, answered: &[Answered<'a>]) {
        let first = answered.iter().find(|one| one.acknowledges()).map(|one| one.attempt.returned);
        let acknowledged = first.is_some();
        if self.has_ended() {
            // The item that the gate was waiting for at the end cannot have been settled; it would have been released.
            let was_next = item.sequence == self.envelopes.len() as u64 + 1;
            let delivered = answered.iter().any(|one| one.reply.text("status") == "delivered");
            if (acknowledged && was_next) || delivered || item.sequence <= self.envelopes.len() as u64 {
                if let Some(first) = first {
                    self.lose(first);
                }
                self.told(item, Rule::Lost, "acknowledged as delivered, or next, and not on the channel");
            }
            if was_next && let Some(why) = self.over_at_the_end(item) {
                self.told(item, Rule::Ending, format!("it was next, and {why}, and an end dropped it"));
            }
        } else if let Some(first) = first {
            self.lose(first);
            self.told(item, Rule::Lost, "acknowledged, and not on the channel");
        } else {
            self.told(item, Rule::Lost, "issued, and not on the channel");
        }
    }

    /// The outcome without a result that settled it before the end, if any.
    fn over_at_the_end(&self, item: &Item<'a>) -> Option<&'static str> {
        let mut cancels = item.cancels.iter().flat_map(|cancel| cancel.answers());
        let cancelled =
            cancels.any(|(attempt, reply)| reply.status == 200 && !self.is_after_the_end(attempt));
        let with_its_turn =
            item.told_by_turn_cancels().any(|(_, told)| told["outcome"].as_str() == Some("cancelled"));
        if cancelled || with_its_turn {
            return Some("cancelled");
        }
        let timed_out = self.ended_at().is_some_and(|ended_at| item.is_over_by(ended_at));
        timed_out.then_some("past its deadline, or silent")
    }

    /// Whether it was sent after an acknowledged end.
    pub(super) fn is_after_the_end(&self, attempt: &Attempt) -> bool {
        self.ended_by().is_some_and(|ended| ended < attempt.invoked)
    }

    /// One body is acknowledged, by one attempt.
    fn check_winner(&mut self, item: &Item<'a>, answered: &[Answered<'a>]) {
        let mut acknowledged = answered.iter().filter(|one| one.acknowledges());
        if let Some(first) = acknowledged.next()
            && let Some(other) = acknowledged.find(|one| one.post.result != first.post.result)
        {
            let what =
                format!("two bodies were acknowledged: {:?}, {:?}", first.post.result, other.post.result);
            self.told(item, Rule::OneWinner, what);
        }
        if answered.iter().filter(|one| one.reply.status == 202).count() > 1 {
            self.told(item, Rule::OneWinner, "it was taken twice");
        }
    }

    /// Whether a reply is consistent with earlier events and the final state.
    fn check_answer(&mut self, item: &Item<'a>, envelope: Option<&Envelope>, one: &Answered<'a>) {
        let Answered { post, attempt, reply } = *one;
        let outcome = envelope.map(|envelope| envelope.outcome.as_str());
        let gone = envelope.is_none();
        let has_result = matches!(outcome, Some("succeeded" | "failed"));
        let is_winner =
            has_result && envelope.and_then(Envelope::payload).map(str::as_bytes) == Some(&post.result[..]);
        let by_other = |same: bool| {
            item.posts.iter().any(|(operation, other)| {
                (other.result == post.result) == same
                    && outcome_of(other.says).is_some()
                    && operation.attempts.iter().any(|other| explains(other, attempt, gone))
            })
        };
        let fits = match (reply.status, reply.code(), post.says) {
            (400, "BODY_MALFORMED", Says::Nonsense) | (400, "TOKEN_CARRIERS_DISAGREE", Says::TwoTokens) => {
                true
            }
            (_, _, Says::Nonsense | Says::TwoTokens) => false,
            (202, ..) => reply.body["replayed"] == false && (gone || is_winner),
            (200, ..) => reply.body["replayed"] == true && (gone || is_winner) && by_other(true),
            (409, "CALLBACK_TOKEN_USED", _) => (gone || has_result && !is_winner) && by_other(false),
            (409, "WORK_ITEM_TIMED_OUT", _) => {
                (gone || outcome == Some("timed_out")) && item.may_be_over_by(attempt.returned)
            }
            (409, "WORK_ITEM_CANCELLED", _) => {
                let mut cancels = item.all_cancels().flat_map(|cancel| &cancel.attempts);
                let cancelled = cancels.any(|cancel| explains(cancel, attempt, gone));
                (gone || outcome == Some("cancelled")) && cancelled
            }
            (409, "CONVERSATION_ENDED", _) => !has_result && self.may_have_ended_before(attempt.returned),
            _ => false,
        };
        if !fits {
            let told = format!("{} {} {:?}", reply.status, reply.code(), reply.text("status"));
            let what = format!("{told} does not fit (on the channel: {outcome:?})");
            self.told(item, Rule::Reply, what);
        }
        if reply.status == 202 && self.is_after_the_end(attempt) {
            self.told(item, Rule::Ending, "taken after an end was acknowledged");
        }
        let receipt = one.acknowledges().then(|| reply.text("conversationId"));
        if receipt.is_some_and(|conversation| conversation != self.conversation.id) {
            self.told(item, Rule::Crossed, "its receipt is another conversation's");
        }
        if one.acknowledges() && reply.number("sequence") != Some(item.sequence) {
            self.told(item, Rule::Agreement, "its receipt has another sequence");
        }
    }

    /// Time of the first reply that reports it as settled.
    fn settled_by(&self, item: &Item<'a>, answered: &[Answered<'a>]) -> Time {
        let told = |one: &&Answered<'a>| {
            one.acknowledges()
                || matches!(
                    one.reply.code(),
                    "CALLBACK_TOKEN_USED" | "WORK_ITEM_TIMED_OUT" | "WORK_ITEM_CANCELLED"
                )
        };
        let posts = answered.iter().filter(told).map(|one| one.attempt.returned);
        let cancels = item.cancels.iter().flat_map(|cancel| cancel.answers());
        let cancels = cancels.filter(|(_, reply)| reply.status == 200 || reply.code() == "WORK_ITEM_SETTLED");
        let shows = item.shows.iter().flat_map(|show| show.answers());
        let shows = shows.filter(|(attempt, reply)| {
            reply.status == 200 && reply.body["outcome"].is_string() && !self.may_be_undone(attempt)
        });
        let turns = item.told_by_turn_cancels().filter(|(_, told)| told["outcome"].is_string());
        let turns = turns.map(|(attempt, _)| attempt.returned);
        let beats = item.beats.iter().flat_map(|beat| beat.answers()).filter(|(_, reply)| {
            matches!(reply.code(), "WORK_ITEM_TIMED_OUT" | "WORK_ITEM_CANCELLED")
                || matches!(reply.text("state"), "held" | "released")
        });
        let platform = cancels.chain(shows).chain(beats).map(|(attempt, _)| attempt.returned).chain(turns);
        posts.chain(platform).chain(self.seen_by_readers(item.id)).min().unwrap_or(Time::MAX)
    }

    /// Whether a state that was only read may have been lost since.
    fn may_be_undone(&self, look: &Attempt) -> bool {
        self.may_be_forgotten(look.invoked, look.returned)
    }

    fn check_cancels(&mut self, item: &Item<'a>, envelope: Option<&Envelope>) {
        let answers: Vec<_> = item.cancels.iter().flat_map(|cancel| cancel.answers()).collect();
        if answers.iter().filter(|(_, reply)| reply.status == 200).count() > 1 {
            self.told(item, Rule::OneWinner, "it was cancelled twice");
        }
        let outcome = envelope.map(|envelope| envelope.outcome.as_str());
        for (attempt, reply) in answers {
            let known = reply.body["error"]["outcome"].as_str();
            let other_may_have = || {
                let mut cancels = item.all_cancels().flat_map(|cancel| &cancel.attempts);
                cancels.any(|other| explains(other, attempt, outcome.is_none()))
            };
            let posted = || {
                let mut posts = item.posts.iter().flat_map(|(post, _)| &post.attempts);
                posts.any(|post| explains(post, attempt, outcome.is_none()))
            };
            let fits = match (reply.status, reply.code()) {
                (200, _) => {
                    let own = envelope
                        .is_none_or(|envelope| envelope.request_id.as_ref() == Some(&attempt.request_id));
                    reply.text("outcome") == "cancelled"
                        && outcome.is_none_or(|outcome| outcome == "cancelled")
                        && own
                }
                (409, "WORK_ITEM_SETTLED") => {
                    let possible = match known {
                        Some("timed_out") => item.may_be_over_by(attempt.returned),
                        Some("cancelled") => other_may_have(),
                        Some("succeeded" | "failed") => posted(),
                        _ => false,
                    };
                    possible && (outcome.is_none() || outcome == known)
                }
                (409, "CONVERSATION_ENDED") => self.may_have_ended_before(attempt.returned),
                _ => false,
            };
            if !fits {
                let what = format!(
                    "cancelling: {} {} {known:?} (on the channel: {outcome:?})",
                    reply.status,
                    reply.code()
                );
                self.told(item, Rule::Reply, what);
            }
            // Only the same attempt is told again that it succeeded.
            if reply.status == 200 && self.is_after_the_end(attempt) {
                self.told(item, Rule::Ending, "cancelled after an end was acknowledged");
            }
        }
    }

    /// Reads report the item as awaiting before its settlement and as settled after it.
    fn check_looks(&mut self, item: &Item<'a>, envelope: Option<&Envelope>, settled: Time) {
        let outcome = envelope.map(|envelope| envelope.outcome.as_str());
        let shows: Vec<_> = item.shows.iter().flat_map(|show| show.answers()).collect();
        for (attempt, reply) in shows {
            if reply.status != 200 {
                self.told(item, Rule::Lost, format!("looking at it: {} {}", reply.status, reply.code()));
            } else if let Some(shown) = reply.body["outcome"].as_str() {
                if outcome.is_some_and(|outcome| outcome != shown) && !self.may_be_undone(attempt) {
                    self.told(item, Rule::Agreement, format!("it showed as {shown}, and is {outcome:?}"));
                }
            } else if attempt.invoked > settled && reply.text("state") == "awaiting" {
                self.told(item, Rule::Agreement, "it showed as awaiting after it was settled");
            }
        }
        let inspections =
            self.operations().filter(|other| matches!(other.action, crate::record::Action::Inspect));
        for (attempt, reply) in inspections.flat_map(Operation::answers) {
            let awaiting = reply.body["awaiting"].as_array().into_iter().flatten();
            if attempt.invoked > settled && awaiting.into_iter().any(|shown| shown["workItemId"] == item.id) {
                self.told(item, Rule::Agreement, "it was inspected as awaiting after it was settled");
            }
            let mut held = reply.body["held"].as_array().into_iter().flatten();
            let held = held.find(|shown| shown["workItemId"] == item.id);
            let held_as = held.and_then(|held| held["outcome"].as_str());
            if let (Some(held_as), Some(outcome)) = (held_as, outcome)
                && held_as != outcome
                && !self.may_be_undone(attempt)
            {
                self.told(item, Rule::Agreement, format!("it was held as {held_as}, and is {outcome}"));
            }
        }
    }
}

/// Whether one attempt explains the reply to another. `gone`: the item is not on the channel.
pub(super) fn explains(one: &Attempt, other: &Attempt, gone: bool) -> bool {
    let counts = if gone { one.may_be_dropped() } else { one.may_count() };
    one.request_id != other.request_id && counts && one.invoked < other.returned
}

/// Whether a store time, in milliseconds, is within an interval.
pub(super) fn is_between(millis: u64, from: Time, until: Time) -> bool {
    (millis + 1) * 1_000 + SAME_MOMENT >= from && millis * 1_000 <= until.saturating_add(SAME_MOMENT)
}
