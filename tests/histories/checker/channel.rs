//! The channel: order, both forms, origin of the envelopes, and lateness.

use std::collections::BTreeMap;

use super::{Case, Rule};
use crate::record::{Action, Envelope, StreamEntry, Time, millis};

/// Largest lateness of a timeout, in milliseconds, on a machine that also runs the clients and other tests, including
/// the reconnection after a fault. The promised 99th percentile is far less and part of the figures.
pub(crate) const ALLOWED_LATENESS_MS: u64 = 3_000;

/// Longest response time on a machine that is not too busy.
pub(super) const ANSWERED_IN_TIME: Time = 300_000;

impl Case<'_> {
    pub(super) fn read_envelopes(&mut self) {
        for (place, (id, data)) in self.conversation.truth.events.iter().enumerate() {
            let sequence = place as u64 + 1;
            match serde_json::from_str::<Envelope>(data) {
                Ok(envelope) => {
                    if envelope.sequence != sequence || *id != self.conversation.truth.event_id(sequence) {
                        let what = format!("the event {id} with {} is number {sequence}", envelope.sequence);
                        self.violated(Rule::Order, what);
                    }
                    self.envelopes.push(envelope);
                }
                Err(error) => self.violated(Rule::Agreement, format!("no envelope: {error}: {data}")),
            }
        }
    }

    pub(super) fn check_channel(&mut self) {
        self.check_forms();
        let mut of_tool_call: BTreeMap<String, usize> = BTreeMap::new();
        let mut released_before = 0;
        for envelope in self.envelopes.clone() {
            let told = format!("{} of {}", envelope.sequence, envelope.work_item_id);
            if envelope.conversation_id != self.conversation.id {
                self.violated(Rule::Crossed, format!("{told} is of {}", envelope.conversation_id));
            }
            let time = |text: &str| millis(text).unwrap_or_default();
            let (issued, received) = (time(&envelope.issued_at), time(&envelope.received_at));
            let released = time(&envelope.released_at);
            if !(issued <= received && received <= released && released_before <= released) {
                self.violated(Rule::Agreement, format!("{told}: its times are not in order"));
            }
            released_before = released;
            let tool_call = envelope.tool_call_id.clone().unwrap_or_default();
            *of_tool_call.entry(tool_call).or_default() += 1;
            if let Some(item) = self.items.get(envelope.work_item_id.as_str()) {
                let as_issued = item.sequence == envelope.sequence
                    && item.asked.kind == envelope.kind
                    && Some(&item.asked.turn) == envelope.turn_id.as_ref()
                    && Some(&item.asked.tool_call) == envelope.tool_call_id.as_ref()
                    && item.asked.name == envelope.name.as_deref();
                if !as_issued {
                    self.violated(Rule::Agreement, format!("{told} is not what was issued"));
                }
            } else {
                self.check_stray(&envelope, &told);
            }
        }
        for (tool_call, count) in of_tool_call {
            if count > self.most_items(&tool_call) {
                self.violated(Rule::Idempotency, format!("{count} items were issued for {tool_call}"));
            }
        }
    }

    /// An item whose issue was never answered, so nobody has its token.
    fn check_stray(&mut self, envelope: &Envelope, told: &str) {
        let others = self.history.conversations.iter().filter(|other| other.id != self.conversation.id);
        let mut theirs = others.flat_map(|other| &other.truth.events);
        if theirs.any(|(_, data)| data.contains(&envelope.work_item_id)) {
            self.violated(Rule::Crossed, format!("{told} is another conversation's"));
        } else if self.most_items(envelope.tool_call_id.as_deref().unwrap_or_default()) == 0 {
            self.violated(Rule::Uncalled, format!("{told} was never asked for"));
        } else if envelope.outcome != "timed_out" && self.cancelled_turn(envelope).is_none() {
            self.violated(Rule::Uncalled, format!("{told} has an outcome, and nobody has its token"));
        }
    }

    /// Largest number of items of a tool call: one, or the number of attempts of a request without an idempotency key.
    fn most_items(&self, tool_call: &str) -> usize {
        let issues = self.operations().filter_map(|operation| match &operation.action {
            Action::Issue { asked, key } if asked.tool_call == tool_call => Some((operation, key)),
            _ => None,
        });
        let counts = issues.map(|(operation, key)| {
            let may_count = operation.attempts.iter().filter(|attempt| attempt.may_count()).count();
            if key.is_some() { may_count.min(1) } else { may_count }
        });
        counts.max().unwrap_or_default()
    }

    /// The Redis stream has the events of the event stream, and a last entry after the end.
    fn check_forms(&mut self) {
        let truth = &self.conversation.truth;
        let Some(stream) = &truth.stream else { return };
        let field = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_owned());
        let mut expected: Vec<StreamEntry> = Vec::new();
        for ((id, data), envelope) in truth.events.iter().zip(&self.envelopes) {
            let fields = vec![
                field("envelope", data),
                field("outcome", &envelope.outcome),
                field("sequence", &envelope.sequence.to_string()),
            ];
            expected.push((id.clone(), fields));
        }
        if self.has_ended() {
            let end = format!(r#"{{"conversationId":"{}","state":"ended"}}"#, self.conversation.id);
            let id = truth.event_id(truth.events.len() as u64 + 1);
            expected.push((id, vec![field("end", &end)]));
        }
        if stream.len() != expected.len() {
            let what = format!("the Redis stream has {} entries, not {}", stream.len(), expected.len());
            self.violated(Rule::Agreement, what);
        }
        for ((id, fields), expected) in stream.iter().zip(expected) {
            let mut fields = fields.clone();
            fields.sort_unstable();
            if (id, &fields) != (&expected.0, &expected.1) {
                self.violated(Rule::Agreement, format!("{id} is not the same in both streams: {fields:?}"));
            }
        }
    }

    /// A timeout is released once its deadline has passed and all earlier items are released.
    pub(super) fn check_lateness(&mut self) {
        let mut turn = 0;
        for envelope in self.envelopes.clone() {
            let time = |text: &str| millis(text).unwrap_or_default();
            let released = time(&envelope.released_at);
            if envelope.outcome == "timed_out" {
                let due = self.excused(time(&envelope.received_at).max(turn), released);
                let late = released.saturating_sub(due);
                self.verdict.lateness.push(late);
                if late > ALLOWED_LATENESS_MS {
                    let what = format!("{} timed out {late} ms late", envelope.sequence);
                    self.violated(Rule::Deadline, what);
                }
            }
            turn = released;
        }
        let view = self.conversation.truth.view.as_ref();
        let list = |name: &str| view.and_then(|view| view[name].as_array()).map_or(0, Vec::len);
        let (awaiting, held) = (list("awaiting"), list("held"));
        if !self.has_ended() && awaiting + held > 0 {
            self.violated(Rule::Deadline, format!("{awaiting} are still awaiting, {held} are held"));
        }
    }

    /// The time from which lateness counts for an item due at `due` that arrived at `came`. Faults do not count, nor
    /// periods in which replies to clients are slow, as on a busy machine or disk.
    fn excused(&self, due: u64, came: u64) -> u64 {
        let outages = self.history.outages.iter().filter(|outage| outage.excuses);
        let broken = outages.map(|outage| (outage.from, outage.until));
        let all = self.history.conversations.iter().flat_map(|conversation| &conversation.operations);
        let slow = all.flat_map(|operation| &operation.attempts).filter(|attempt| {
            let store_failed = attempt.reply.as_ref().is_none_or(|reply| reply.status == 503);
            store_failed || attempt.returned.saturating_sub(attempt.invoked) > ANSWERED_IN_TIME
        });
        let slow = slow.map(|attempt| (attempt.invoked, attempt.returned));
        let overlapping =
            broken.chain(slow).filter(|(from, until)| from / 1_000 <= came && until / 1_000 >= due);
        overlapping.map(|(_, until)| until / 1_000).fold(due, u64::max)
    }
}
