//! Cancellations of turns.

use serde_json::Value;

use super::{Case, Item, Rule, SAME_MOMENT};
use crate::record::{Action, Attempt, Envelope, Operation, Reply, millis};

impl<'a> Item<'a> {
    /// The cancellations of the item and of its turn.
    pub(super) fn all_cancels(&self) -> impl Iterator<Item = &'a Operation> + use<'_, 'a> {
        self.cancels.iter().chain(&self.turn_cancels).copied()
    }

    /// What the cancellations of its turn have reported about it.
    pub(super) fn told_by_turn_cancels(
        &self,
    ) -> impl Iterator<Item = (&'a Attempt, &'a Value)> + use<'_, 'a> {
        let answers = self.turn_cancels.iter().flat_map(|cancel| cancel.answers());
        answers.filter_map(|(attempt, reply)| {
            let told = reply.body["workItems"].as_array()?.iter().find(|told| told["workItemId"] == self.id);
            Some((attempt, told?))
        })
    }
}

impl<'a> Case<'a> {
    /// The attempt to cancel a turn that has cancelled this item.
    pub(super) fn cancelled_turn(&self, envelope: &Envelope) -> Option<&'a Attempt> {
        let is_of_turn = |operation: &&Operation| matches!(&operation.action, Action::CancelTurn { turn } if Some(turn) == envelope.turn_id.as_ref());
        let mut attempts = self.operations().filter(is_of_turn).flat_map(|operation| &operation.attempts);
        let is_it = |attempt: &&Attempt| Some(&attempt.request_id) == envelope.request_id.as_ref();
        attempts.find(is_it).filter(|_| envelope.outcome == "cancelled")
    }

    pub(super) fn check_turns(&mut self) {
        for operation in self.operations() {
            let Action::CancelTurn { turn } = &operation.action else { continue };
            for attempt in &operation.attempts {
                self.check_one_step(turn, attempt);
            }
            for (attempt, reply) in operation.answers() {
                match (reply.status, reply.code()) {
                    (200, _) => self.check_cancelled_turn(turn, attempt, reply),
                    (409, "CONVERSATION_ENDED") if self.may_have_ended_before(attempt.returned) => {}
                    (status, code) => {
                        self.violated(Rule::Reply, format!("cancelling turn {turn}: {status} {code}"));
                    }
                }
            }
        }
    }

    /// All cancelled items are of the turn, and were cancelled at the same time.
    fn check_one_step(&mut self, turn: &str, attempt: &Attempt) {
        let cancelled = self.envelopes.iter().filter(|envelope| {
            envelope.outcome == "cancelled" && envelope.request_id.as_ref() == Some(&attempt.request_id)
        });
        let cancelled: Vec<Envelope> = cancelled.cloned().collect();
        if let Some(other) = cancelled.iter().find(|envelope| envelope.turn_id.as_deref() != Some(turn)) {
            let what =
                format!("{} of turn {:?} was cancelled with turn {turn}", other.sequence, other.turn_id);
            self.violated(Rule::Uncalled, what);
        }
        if cancelled.windows(2).any(|pair| pair[0].received_at != pair[1].received_at) {
            self.violated(Rule::Agreement, format!("turn {turn} was not cancelled in one step"));
        }
    }

    /// No item of the turn is awaiting after it, and the reply reports the cancelled items.
    fn check_cancelled_turn(&mut self, turn: &str, attempt: &Attempt, reply: &Reply) {
        if self.ended_by().is_some_and(|ended| ended < attempt.invoked) {
            self.violated(Rule::Ending, format!("turn {turn} was cancelled after an end was acknowledged"));
        }
        let told = reply.body["workItems"].as_array().map(Vec::as_slice).unwrap_or_default();
        if told.iter().any(|item| item["turnId"] != turn || item["state"] == "awaiting") {
            self.violated(Rule::Reply, format!("cancelling turn {turn}, and it told of {told:?}"));
        }
        let by_it = self.envelopes.iter().filter(|envelope| {
            envelope.outcome == "cancelled" && envelope.request_id.as_ref() == Some(&attempt.request_id)
        });
        let (by_it, claimed) = (by_it.count() as u64, reply.number("cancelled").unwrap_or_default());
        if by_it > claimed || by_it < claimed && !self.has_ended() {
            self.violated(
                Rule::Agreement,
                format!("turn {turn}: it told of {claimed}, and has cancelled {by_it}"),
            );
        }
        let mut left = Vec::new();
        for envelope in self.envelopes.iter().filter(|envelope| envelope.turn_id.as_deref() == Some(turn)) {
            let settled = millis(&envelope.received_at).unwrap_or_default() * 1_000;
            if self.was_issued_before(envelope, attempt) && settled > attempt.returned + SAME_MOMENT {
                left.push(envelope.sequence);
            }
            let shown = told.iter().find(|item| item["workItemId"] == envelope.work_item_id.as_str());
            if shown.is_some_and(|shown| shown["outcome"] != envelope.outcome.as_str()) {
                left.push(envelope.sequence);
            }
        }
        if !left.is_empty() {
            let what = format!("turn {turn} was cancelled, and {left:?} awaited, or became something else");
            self.violated(Rule::Reply, what);
        }
    }

    /// Whether its issue was answered before the request.
    fn was_issued_before(&self, envelope: &Envelope, attempt: &Attempt) -> bool {
        let issues = self.operations().filter(|other| matches!(other.action, Action::Issue { .. }));
        let mut answers = issues.flat_map(Operation::answers);
        answers.any(|(issue, reply)| {
            reply.text("workItemId") == envelope.work_item_id && issue.returned < attempt.invoked
        })
    }
}
