//! Ends, and what readers received.

use serde_json::Value;

use super::{Case, Rule};
use crate::record::{Action, Time, millis};

impl Case<'_> {
    /// An end reports the final state, and no event follows it.
    pub(super) fn check_ending(&mut self) {
        let Some(view) = self.conversation.truth.view.clone() else { return };
        let ends: Vec<_> = self.operations().filter(|end| matches!(end.action, Action::End)).collect();
        let issued = view["nextSequence"].as_u64().unwrap_or_default().saturating_sub(1);
        let released = self.envelopes.len() as u64;
        if !self.has_ended() {
            if self.ended_by().is_some() {
                self.violated(Rule::Ending, "its end was acknowledged, and it lives");
            }
            if released != issued {
                self.violated(Rule::Order, format!("{issued} were issued, {released} are on the channel"));
            }
            return;
        }
        if !ends.iter().any(|end| end.may_count_before(Time::MAX)) {
            self.violated(Rule::Ending, "it has ended, and nobody has ended it");
        }
        let dropped = |list: &str| view[list].as_u64().unwrap_or_default();
        if released + dropped("droppedHeld") + dropped("droppedAwaiting") != issued {
            self.violated(
                Rule::Ending,
                format!("{issued} were issued, {released} released, dropped: {view}"),
            );
        }
        let ended_at = self.ended_at().unwrap_or_default();
        for (attempt, reply) in ends.iter().flat_map(|end| end.answers()) {
            let same = ["endedAt", "droppedHeld", "droppedAwaiting"]
                .iter()
                .all(|name| reply.body[name] == view[name]);
            if reply.status != 200 || !same {
                self.violated(Rule::Ending, format!("an end was answered {} {}", reply.status, reply.body));
            } else if ended_at * 1_000 > attempt.returned + super::SAME_MOMENT {
                self.violated(Rule::Ending, "it ended after its end was acknowledged");
            }
        }
        let late = self.envelopes.iter().any(|one| millis(&one.released_at) > Some(ended_at));
        if late {
            self.violated(Rule::Ending, "something was released after the end");
        }
        let acknowledged = self.operations().filter_map(|operation| match &operation.action {
            Action::Post(post) if operation.answers().any(|(_, reply)| reply.status < 300) => {
                Some(&post.work_item)
            }
            _ => None,
        });
        let mut held: Vec<_> = acknowledged
            .filter(|item| !self.envelopes.iter().any(|envelope| envelope.work_item_id == **item))
            .collect();
        held.sort_unstable();
        held.dedup();
        if held.len() as u64 > dropped("droppedHeld") {
            let what = format!(
                "{} acknowledged results are not on the channel, {} dropped",
                held.len(),
                dropped("droppedHeld")
            );
            self.violated(Rule::Ending, what);
        }
    }

    /// Each reading is a contiguous part of the channel from its requested start.
    pub(super) fn check_readers(&mut self) {
        let (seen, stream) = (&self.conversation.stream_seen, self.conversation.truth.stream.as_ref());
        let there = stream.into_iter().flatten().map(Some).chain(std::iter::repeat(None));
        let differing = seen.iter().zip(there).filter(|((time, entry), there)| {
            stream.is_some() && *there != Some(entry) && !self.may_be_forgotten(*time, *time)
        });
        if differing.count() > 0 {
            self.violated(Rule::Reading, format!("a reader of the Redis stream saw {seen:?}"));
        }
        let channel = &self.conversation.truth.events;
        for session in &self.conversation.sessions {
            if let Some(refused) = &session.refused
                && !(refused.code() == "REQUEST_INVALID" && self.was_cut_short(session.after))
            {
                let rule = if refused.status == 404 { Rule::Lost } else { Rule::Reading };
                let what = format!("reading after {}: {} {}", session.after, refused.status, refused.code());
                self.violated(rule, what);
            }
            let start = usize::try_from(session.after).unwrap();
            let expected = channel.iter().skip(start);
            let differs = session.events.iter().zip(expected.map(Some).chain(std::iter::repeat(None)));
            let found = differs.filter(|((time, seen, told), there)| {
                there.is_none_or(|(id, data)| (seen, told) != (id, data))
                    && !self.may_be_forgotten(*time, *time)
            });
            let found: Vec<_> = found.collect();
            for ((_, id, data), there) in found {
                let what = format!(
                    "a reader at replica {} saw {id} {data}, and there is {there:?}",
                    session.replica
                );
                self.violated(Rule::Reading, what);
            }
            let at_the_end = self.has_ended() && start + session.events.len() == channel.len();
            if session.ended && !at_the_end && !self.may_be_forgotten(session.over, session.over) {
                self.violated(Rule::Reading, "a reader was told of the end too early");
            }
        }
    }

    /// Each progress event is of a heartbeat, and no reader gets it twice or too often.
    pub(super) fn check_progress(&mut self) {
        for session in &self.conversation.sessions {
            let mut last: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
            for (time, data) in &session.progress {
                let told: Value = serde_json::from_str(data).unwrap_or_default();
                let work_item = told["workItemId"].as_str().unwrap_or_default().to_owned();
                let beats = self.operations().filter(
                    |beat| matches!(&beat.action, Action::Beat { work_item: of } if *of == work_item),
                );
                let sent = beats.flat_map(|beat| &beat.attempts).any(|attempt| attempt.invoked < *time);
                let at = told["at"].as_str().and_then(millis).unwrap_or_default();
                let too_soon = last.insert(work_item, at).is_some_and(|before| at < before + 500)
                    && !self.may_be_forgotten(*time, *time);
                if !sent || too_soon || told["message"] != "on it" {
                    self.violated(Rule::Reading, format!("a reader was told of progress: {data}"));
                }
            }
        }
    }

    /// Whether a failover may have removed events that were read up to here.
    fn was_cut_short(&self, after: u64) -> bool {
        let read = self.conversation.sessions.iter().filter_map(|session| {
            let place = usize::try_from(after.checked_sub(session.after + 1)?).unwrap();
            session.events.get(place)
        });
        read.map(|(time, ..)| *time).any(|time| self.may_be_forgotten(time, time))
    }

    /// When readers received an item's settlement.
    pub(super) fn seen_by_readers(&self, work_item: &str) -> impl Iterator<Item = Time> {
        let events = self.conversation.sessions.iter().flat_map(|session| &session.events);
        let named = format!("\"workItemId\":\"{work_item}\"");
        let seen = events.filter(move |(_, _, data)| data.contains(&named)).map(|(time, ..)| *time);
        seen.filter(|time| !self.may_be_forgotten(*time, *time))
    }
}
