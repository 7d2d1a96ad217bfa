//! Ends, and what readers saw.

use super::{Case, Rule};
use crate::record::{Action, Time, millis};

impl Case<'_> {
    /// What an end says is what is there, and nothing follows it.
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
        let ended_at = view["endedAt"].as_str().and_then(millis).unwrap_or_default();
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

    /// Each reading is a part of the channel, from where it was asked to begin.
    pub(super) fn check_readers(&mut self) {
        let (seen, stream) = (&self.conversation.stream_seen, self.conversation.truth.stream.as_ref());
        if stream.is_some_and(|stream| !stream.starts_with(seen)) {
            self.violated(Rule::Reading, format!("a reader of the Redis stream saw {seen:?}"));
        }
        let channel = &self.conversation.truth.events;
        for session in &self.conversation.sessions {
            if let Some(refused) = &session.refused {
                let rule = if refused.status == 404 { Rule::Lost } else { Rule::Reading };
                let what = format!("reading after {}: {} {}", session.after, refused.status, refused.code());
                self.violated(rule, what);
            }
            let start = usize::try_from(session.after).unwrap();
            let expected = channel.iter().skip(start);
            let seen = session.events.iter().map(|(_, id, data)| (id, data));
            let differs = seen.zip(expected.map(Some).chain(std::iter::repeat(None)));
            let found = differs.filter(|(seen, there)| there.is_none_or(|(id, data)| *seen != (id, data)));
            for ((id, data), there) in found {
                let what = format!(
                    "a reader at replica {} saw {id} {data}, and there is {there:?}",
                    session.replica
                );
                self.violated(Rule::Reading, what);
            }
            if session.ended && !(self.has_ended() && start + session.events.len() == channel.len()) {
                self.violated(Rule::Reading, "a reader was told of the end too early");
            }
        }
    }

    /// When readers saw an item.
    pub(super) fn seen_by_readers(&self, work_item: &str) -> impl Iterator<Item = Time> {
        let events = self.conversation.sessions.iter().flat_map(|session| &session.events);
        let named = format!("\"workItemId\":\"{work_item}\"");
        events.filter(move |(_, _, data)| data.contains(&named)).map(|(time, ..)| *time)
    }
}
