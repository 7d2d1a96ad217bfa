//! Receipts agree with the channel.

use super::items::{Answered, is_between};
use super::{Case, Item, Rule};
use crate::record::{Attempt, Envelope, Time, millis};

impl<'a> Case<'a> {
    /// For the accepted attempt: request id and times.
    pub(super) fn check_receipt(&mut self, item: &Item<'a>, envelope: Option<&Envelope>, one: &Answered<'a>) {
        let received = one.reply.millis("receivedAt").unwrap_or_default();
        if !item.may_be_alive(received) {
            self.told(item, Rule::Deadline, "taken at or after its deadline, or after silence");
        }
        if !is_between(received, one.attempt.invoked, one.attempt.returned) {
            self.told(item, Rule::Agreement, "its receipt has a time at which it was not being taken");
        }
        if let Some(envelope) = envelope
            && (envelope.request_id.as_deref() != Some(&one.attempt.request_id)
                || envelope.received_at != one.reply.text("receivedAt"))
        {
            self.told(item, Rule::Agreement, "its envelope and its receipt do not agree");
        }
    }

    /// For any attempt: `delivered` means on the channel at that time, `held` means not yet, with the item that the gate
    /// waits for. A repetition gets the current status.
    pub(super) fn check_delivery(
        &mut self,
        item: &Item<'a>,
        envelope: Option<&Envelope>,
        one: &Answered<'a>,
    ) {
        let waiting_for = one.reply.number("waitingFor");
        match (one.reply.text("status"), waiting_for) {
            ("delivered", None) => {
                // A missing envelope is checked by other rules.
                if envelope.is_some_and(|envelope| released_after(envelope, one.attempt.returned)) {
                    self.told(item, Rule::Agreement, "it was called delivered, and was released later");
                }
            }
            ("held", Some(waiting_for)) if (1..item.sequence).contains(&waiting_for) => {
                if envelope.is_some_and(|envelope| over_before(&envelope.released_at, one.attempt)) {
                    self.told(item, Rule::Agreement, "it was called held, and was released before");
                }
                self.check_waiting(item, waiting_for, one);
            }
            (status, _) => {
                self.told(item, Rule::Agreement, format!("its receipt: {status:?}, for {waiting_for:?}"));
            }
        }
    }

    /// The gate was waiting for this item: all earlier ones were released and it was not settled.
    fn check_waiting(&mut self, item: &Item<'a>, waiting_for: u64, one: &Answered<'a>) {
        let at = |sequence: u64| {
            let place = usize::try_from(sequence.checked_sub(1)?).ok()?;
            self.envelopes.get(place)
        };
        let settled = at(waiting_for).is_some_and(|next| over_before(&next.received_at, one.attempt));
        let early = match waiting_for.checked_sub(1).filter(|before| *before > 0) {
            Some(before) => at(before).is_none_or(|before| released_after(before, one.attempt.returned)),
            None => false,
        };
        if settled || early {
            let what = if settled { "was settled before" } else { "was not the next one" };
            self.told(item, Rule::Agreement, format!("held for {waiting_for}, which {what}"));
        }
    }
}

fn released_after(envelope: &Envelope, time: Time) -> bool {
    millis(&envelope.released_at).is_none_or(|released| !is_between(released, 0, time))
}

/// Whether a time on the channel is before the request.
fn over_before(time: &str, attempt: &Attempt) -> bool {
    millis(time).is_none_or(|time| !is_between(time, attempt.invoked, Time::MAX))
}
