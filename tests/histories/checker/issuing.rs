//! Issuing: one item per key, one sequence per item, in order of issue.

use std::collections::BTreeMap;

use super::{Case, Rule};
use crate::record::{Action, Asked, Attempt, Operation, Reply};

/// A reply with an item.
struct Given<'a> {
    operation: &'a Operation,
    asked: &'a Asked,
    attempt: &'a Attempt,
    reply: &'a Reply,
}

impl<'a> Case<'a> {
    pub(super) fn check_issuing(&mut self) {
        let mut by_key: BTreeMap<&str, Vec<Given<'a>>> = BTreeMap::new();
        let mut by_id: BTreeMap<&str, &Operation> = BTreeMap::new();
        let mut fresh: Vec<(u64, u64, u64)> = Vec::new();
        for operation in self.operations() {
            let Action::Issue { asked, key } = &operation.action else { continue };
            for (attempt, reply) in operation.answers() {
                if reply.status != 201 {
                    self.check_refusal(key.as_deref(), asked, attempt, reply);
                    continue;
                }
                self.check_issued(asked, attempt, reply);
                if let Some(key) = key {
                    by_key.entry(key).or_default().push(Given { operation, asked, attempt, reply });
                } else if reply.idempotent_replay
                    || by_id.insert(reply.text("workItemId"), operation).is_some()
                {
                    self.violated(
                        Rule::Idempotency,
                        "a request without a key was given an item that was there",
                    );
                }
                if !reply.idempotent_replay {
                    let sequence = reply.number("sequence").unwrap_or_default();
                    fresh.push((sequence, attempt.invoked, attempt.returned));
                }
            }
        }
        for (key, given) in by_key {
            self.check_key(key, &given);
        }
        fresh.sort_unstable();
        for pair in fresh.windows(2) {
            if pair[0].0 == pair[1].0 {
                self.violated(Rule::Order, format!("sequence {} was issued twice", pair[0].0));
            }
        }
        // An item whose reply came before the request for another one precedes it.
        let mut asked_latest = 0;
        for (sequence, invoked, returned) in fresh {
            if returned < asked_latest {
                self.violated(Rule::Order, format!("sequence {sequence} was issued before an earlier one"));
            }
            asked_latest = asked_latest.max(invoked);
        }
    }

    fn check_issued(&mut self, asked: &Asked, attempt: &Attempt, reply: &Reply) {
        let (issued, deadline) = (reply.millis("issuedAt"), reply.millis("deadline"));
        let as_asked = reply.text("conversationId") == self.conversation.id
            && reply.text("turnId") == asked.turn
            && reply.text("toolCallId") == asked.tool_call
            && reply.body["name"].as_str() == asked.name
            && reply.text("kind") == asked.kind
            && issued.map(|issued| issued + asked.timeout_ms) == deadline;
        if !as_asked {
            self.violated(Rule::Agreement, format!("not what was asked for: {}", reply.body));
        }
        if self.ended_by().is_some_and(|ended| ended < attempt.invoked) {
            self.violated(Rule::Ending, "issued after an end was acknowledged");
        }
    }

    fn check_refusal(&mut self, key: Option<&str>, asked: &Asked, attempt: &Attempt, reply: &Reply) {
        let other_may_have = || {
            self.operations().any(|other| {
                matches!(&other.action, Action::Issue { asked: theirs, key: known }
                    if known.as_deref() == key && theirs.tool_call != asked.tool_call)
                    && other.may_count_before(attempt.returned)
            })
        };
        let fits = match reply.code() {
            "CONVERSATION_ENDED" => self.may_have_ended_before(attempt.returned),
            "IDEMPOTENCY_KEY_REUSED" => key.is_some() && other_may_have(),
            _ => false,
        };
        if !fits {
            self.violated(Rule::Reply, format!("issuing: {} {}", reply.status, reply.code()));
        }
    }

    /// All replies for a key have the same item.
    fn check_key(&mut self, key: &str, given: &[Given<'a>]) {
        let told = |reply: &Reply| (reply.text("workItemId").to_owned(), reply.body["callback"].clone());
        let mut all = given.iter().map(|given| told(given.reply));
        let first = all.next();
        if all.any(|other| Some(&other) != first.as_ref()) {
            self.violated(Rule::Idempotency, format!("key {key} was given two items or two tokens"));
        }
        if given.iter().any(|other| other.asked.tool_call != given[0].asked.tool_call) {
            self.violated(Rule::Idempotency, format!("key {key} was given an item for two bodies"));
        }
        if given.iter().filter(|given| !given.reply.idempotent_replay).count() > 1 {
            self.violated(Rule::Idempotency, format!("key {key} was issued twice"));
        }
        let of_key = |operation: &Operation| matches!(&operation.action, Action::Issue { key: Some(known), .. } if known == key);
        for one in given.iter().filter(|given| given.reply.idempotent_replay) {
            let mut attempts =
                self.operations().filter(|other| of_key(other)).flat_map(|other| &other.attempts);
            let known = attempts.any(|other| {
                other.request_id != one.attempt.request_id
                    && other.may_count()
                    && other.invoked < one.attempt.returned
            });
            if !known {
                let tool_call = &one.asked.tool_call;
                let tries = one.operation.attempts.len();
                self.violated(
                    Rule::Idempotency,
                    format!("{tool_call} ({key}, {tries} tries) was known before it was asked for"),
                );
            }
        }
        let issued = self.envelopes.iter().filter(|envelope| {
            let tool_call = envelope.tool_call_id.as_deref();
            self.operations().any(|operation| {
                of_key(operation)
                    && matches!(&operation.action, Action::Issue { asked, .. } if Some(asked.tool_call.as_str()) == tool_call)
            })
        });
        if issued.count() > 1 {
            self.violated(Rule::Idempotency, format!("key {key} has several items on the channel"));
        }
    }
}
