//! Heartbeats: when an item times out without them, and what a reply to a heartbeat may report.

use super::items::{explains, is_between};
use super::{Case, Item, Rule, SAME_MOMENT};
use crate::record::{Attempt, Envelope, Reply, Time, millis};

/// The issue or a heartbeat of an item: the store recorded it between these times, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Sign {
    from: u64,
    until: u64,
    /// Whether it was acknowledged.
    certain: bool,
}

impl Sign {
    /// Whether an item with this heartbeat timeout has not timed out by silence at this time, thanks to this sign.
    fn keeps_alive(&self, at: u64, silence: u64) -> bool {
        self.from <= at && at - self.until.min(at) < silence
    }
}

/// Whether the reply to a heartbeat reports that its item was settled, or that the conversation has ended.
fn reports_that_it_is_over(reply: &Reply) -> bool {
    matches!(reply.text("state"), "held" | "released")
        || matches!(reply.code(), "WORK_ITEM_TIMED_OUT" | "WORK_ITEM_CANCELLED" | "CONVERSATION_ENDED")
}

impl Item<'_> {
    /// Heartbeat timeout in milliseconds; `None` if it needs no heartbeats.
    fn silence(&self) -> Option<u64> {
        self.asked.heartbeat_timeout_ms
    }

    /// The issue, and every heartbeat that may have been recorded.
    fn signs(&self, silence: u64) -> Vec<Sign> {
        let mut signs = vec![Sign { from: self.issued, until: self.issued, certain: true }];
        // In the order in which they were sent, which `lost_sign` needs.
        let mut attempts: Vec<_> = self.beats.iter().flat_map(|beat| &beat.attempts).collect();
        attempts.sort_by_key(|attempt| attempt.invoked);
        for attempt in attempts {
            let from = attempt.invoked.saturating_sub(SAME_MOMENT) / 1_000;
            let alive = attempt.reply.as_ref().filter(|reply| reply.status == 200);
            match alive.map(|reply| (reply.text("state"), reply.millis("heartbeatDeadline"))) {
                // The time of the heartbeat, unless the deadline comes first.
                Some(("awaiting", Some(until))) if until < self.deadline => {
                    let at = until.saturating_sub(silence);
                    signs.push(Sign { from: at, until: at, certain: true });
                }
                Some(("awaiting", Some(_))) => {
                    let from = self.deadline.saturating_sub(silence);
                    signs.push(Sign { from, until: self.deadline, certain: true });
                }
                None if attempt.may_count() => signs.push(Sign { from, until: u64::MAX, certain: false }),
                _ => {
                    let lost = self.lost_sign(from, attempt, &signs, silence);
                    signs.extend(lost);
                }
            }
        }
        signs
    }

    /// A heartbeat whose reply reports only that the item was settled or the conversation has ended. If the store's
    /// first reply was lost, it can have been recorded before. `from`: the earliest time for that. `earlier`: the signs
    /// of heartbeats that were sent earlier.
    fn lost_sign(&self, from: u64, attempt: &Attempt, earlier: &[Sign], silence: u64) -> Option<Sign> {
        let reply = attempt.reply.as_ref().filter(|reply| reports_that_it_is_over(reply))?;
        let may_have_been_alive = earlier.iter().any(|sign| sign.keeps_alive(from.max(self.issued), silence));
        let returned = (attempt.returned + SAME_MOMENT) / 1_000;
        let was_silent = reply.code() == "WORK_ITEM_TIMED_OUT" && returned < self.deadline;
        let until = if was_silent { returned.saturating_sub(silence) } else { returned };
        (may_have_been_alive && from <= until).then_some(Sign { from, until, certain: false })
    }

    /// Whether it may not have timed out at this time, in milliseconds.
    pub(super) fn may_be_alive(&self, at: u64) -> bool {
        let Some(silence) = self.silence() else { return at < self.deadline };
        at < self.deadline && self.signs(silence).iter().any(|sign| sign.keeps_alive(at, silence))
    }

    /// Whether it had certainly timed out by this time, in milliseconds.
    pub(super) fn is_over_by(&self, at: u64) -> bool {
        let is_silent = self.silence().is_some_and(|silence| {
            let signs = self.signs(silence);
            signs.iter().all(|sign| sign.certain && sign.until.saturating_add(silence) <= at)
        });
        at >= self.deadline || is_silent
    }

    /// Whether it may have timed out by this time, in microseconds.
    pub(super) fn may_be_over_by(&self, time: Time) -> bool {
        let silent_at = self.silence().map_or(u64::MAX, |silence| self.issued + silence);
        time + SAME_MOMENT >= self.deadline.min(silent_at) * 1_000
    }

    /// Why it cannot have timed out at this time, in milliseconds. `None` if it can.
    fn timeout_defect(&self, at: u64, by_silence: bool) -> Option<&'static str> {
        let Some(silence) = self.silence().filter(|_| by_silence) else {
            let silent_before = self.silence().is_some() && !self.may_be_alive(self.deadline - 1);
            return match (at == self.deadline && !by_silence, silent_before) {
                (true, false) => None,
                (true, true) => Some("it timed out at its deadline, and was silent before"),
                (false, _) => Some("it timed out at another time than its deadline"),
            };
        };
        let signs = self.signs(silence);
        let last = at.saturating_sub(silence);
        if at >= self.deadline || !signs.iter().any(|sign| (sign.from..=sign.until).contains(&last)) {
            return Some("it timed out by silence at a time that no heartbeat explains");
        }
        let ignored = signs.iter().any(|sign| sign.certain && sign.from > last);
        ignored.then_some("it timed out by silence, and a later heartbeat was acknowledged")
    }
}

impl<'a> Case<'a> {
    /// An envelope of a timeout has the time and the reason of that timeout.
    pub(super) fn check_timeout(&mut self, item: &Item<'a>, envelope: &Envelope) {
        let by_silence = envelope.reason.as_deref() == Some("heartbeat");
        let at = millis(&envelope.received_at).unwrap_or_default();
        if let Some(defect) = item.timeout_defect(at, by_silence) {
            self.told(item, Rule::Deadline, defect);
        }
    }

    /// Replies to heartbeats report the item as awaiting before its settlement and as settled after it.
    pub(super) fn check_beats(&mut self, item: &Item<'a>, envelope: Option<&Envelope>, settled: Time) {
        let answers: Vec<_> = item.beats.iter().flat_map(|beat| beat.answers()).collect();
        let outcome = envelope.map(|envelope| envelope.outcome.as_str());
        let has_result = matches!(outcome, Some("succeeded" | "failed"));
        for (attempt, reply) in answers {
            let gone = envelope.is_none();
            let explained = |by: &[&crate::record::Operation]| {
                by.iter().flat_map(|other| &other.attempts).any(|other| explains(other, attempt, gone))
            };
            let posts: Vec<_> = item.posts.iter().map(|(operation, _)| *operation).collect();
            let fits = match (reply.status, reply.code(), reply.text("state")) {
                (200, _, "awaiting") => {
                    self.check_alive(item, attempt, reply, settled);
                    true
                }
                (200, _, "held" | "released") => (gone || has_result) && explained(&posts),
                (409, "WORK_ITEM_TIMED_OUT", _) => {
                    (gone || outcome == Some("timed_out")) && item.may_be_over_by(attempt.returned)
                }
                (409, "WORK_ITEM_CANCELLED", _) => {
                    (gone || outcome == Some("cancelled"))
                        && explained(&item.all_cancels().collect::<Vec<_>>())
                }
                (409, "CONVERSATION_ENDED", _) => !has_result && self.may_have_ended_before(attempt.returned),
                _ => false,
            };
            if !fits {
                let told = format!("{} {} {:?}", reply.status, reply.code(), reply.text("state"));
                let what = format!("a heartbeat: {told} does not fit (on the channel: {outcome:?})");
                self.told(item, Rule::Reply, what);
            }
        }
    }

    fn check_alive(&mut self, item: &Item<'a>, attempt: &Attempt, reply: &Reply, settled: Time) {
        let due = reply.millis("heartbeatDeadline");
        let as_issued = reply.millis("deadline") == Some(item.deadline)
            && reply.body["cancelRequested"] == false
            && due.is_some() == item.silence().is_some();
        let in_time = match (due, item.silence()) {
            (Some(due), Some(silence)) if due < item.deadline => {
                is_between(due.saturating_sub(silence), attempt.invoked, attempt.returned)
            }
            (Some(due), _) => due == item.deadline,
            (None, _) => true,
        };
        if !as_issued || !in_time {
            self.told(item, Rule::Agreement, format!("a heartbeat was told {}", reply.body));
        }
        if attempt.invoked > settled {
            self.told(item, Rule::Agreement, "a heartbeat was taken after it was settled");
        }
        if self.is_after_the_end(attempt) {
            self.told(item, Rule::Ending, "a heartbeat was taken after an end was acknowledged");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::record::{Action, Asked, Operation};

    /// Why a timeout at the deadline is impossible, if the only heartbeat was sent and refused at these times, because
    /// the item had timed out. In milliseconds after the issue; the deadline is at 90.
    fn defect_with_a_refused_heartbeat(sent: u64, refused: u64) -> Option<&'static str> {
        let asked = Asked {
            tool_call: "c".to_owned(),
            turn: "t".to_owned(),
            name: None,
            kind: "tool",
            timeout_ms: 90,
            heartbeat_timeout_ms: Some(60),
        };
        let reply = Reply {
            status: 409,
            request_id: String::new(),
            idempotent_replay: false,
            body: json!({"error": {"code": "WORK_ITEM_TIMED_OUT"}}),
        };
        let [invoked, returned] = [sent, refused].map(|time| (1_000 + time) * 1_000);
        let attempt =
            Attempt { replica: 0, request_id: String::new(), invoked, returned, reply: Some(reply) };
        let beat = Operation { action: Action::Beat { work_item: "i".to_owned() }, attempts: vec![attempt] };
        let item = Item {
            id: "i",
            sequence: 1,
            issued: 1_000,
            deadline: 1_090,
            asked: &asked,
            posts: Vec::new(),
            beats: vec![&beat],
            cancels: Vec::new(),
            turn_cancels: Vec::new(),
            shows: Vec::new(),
            envelope: None,
        };
        item.timeout_defect(1_090, false)
    }

    #[test]
    fn refused_heartbeat_counts_only_if_it_can_have_been_recorded_in_time() {
        let silent = Some("it timed out at its deadline, and was silent before");
        assert_eq!(defect_with_a_refused_heartbeat(40, 200), None);
        assert_eq!(defect_with_a_refused_heartbeat(70, 200), silent, "the item was silent when it was sent");
        assert_eq!(
            defect_with_a_refused_heartbeat(55, 62),
            silent,
            "the item was silent when it was refused"
        );
    }
}
