//! What is recorded about a request. Its log line, its span and its metrics are built from this.

use axum::http::StatusCode;
use tokio::time::Instant;

use super::code::Code;
use super::refusal::Refusal;
use crate::domain::gate::{CallbackTarget, Delivery, HeartbeatReceipt, Receipt};
use crate::domain::ids::{ConversationId, Fingerprint, Sequence, TraceParent, TurnId};
use crate::domain::reason::Reason;
use crate::domain::time::Timestamp;
use crate::domain::token::{Claims, TokenFingerprint};
use crate::domain::work_item::{Outcome, TimeoutCause, WorkItem};

/// What is recorded about a request. A field is empty until it is known.
#[derive(Debug, Default)]
pub struct RequestLog {
    /// The status of the response. `None`: the client disconnected before it.
    pub(super) status: Option<StatusCode>,
    pub(super) refusal: Option<Refusal>,
    /// The conversation's id.
    pub conversation: Option<ConversationId>,
    /// The claims of the request's authentic token.
    pub claims: Option<Claims>,
    /// Fingerprint of the request's token, authentic or not.
    pub token: Option<TokenFingerprint>,
    /// The work item.
    pub item: Option<WorkItem>,
    /// Why the work item of a late callback or heartbeat timed out, and how long ago in milliseconds.
    pub late: Option<(TimeoutCause, u64)>,
    /// Whether the request is a heartbeat. Accepted heartbeats are logged at `debug`, because there can be many.
    pub is_heartbeat: bool,
    /// The outcome that the request has set, or that a repeated request has confirmed.
    pub outcome: Option<Outcome>,
    /// Whether the result is on the channel or held.
    pub delivery: Option<Delivery>,
    /// Whether the callback repeated an accepted one and got its receipt again.
    pub replayed: Option<bool>,
    /// Time from the issue of the work item to the acceptance of its result, in milliseconds.
    pub turnaround_ms: Option<u64>,
    /// The turn that the request cancels.
    pub turn_id: Option<TurnId>,
    /// Number of work items that the cancellation of a turn cancelled.
    pub cancelled: Option<u64>,
    /// The platform's `reason` for a cancellation or for the end of a conversation.
    pub reason: Option<Reason>,
    /// Number of envelopes that the request released, at most 256.
    pub released: usize,
    /// If the request released its own callback's envelope without holding it: the parts of the event id, which are the
    /// time when the conversation was opened and the sequence.
    pub own_event: Option<(Timestamp, Sequence)>,
    /// Numbers of held and of awaiting work items that the end of the conversation dropped.
    pub dropped: Option<(u64, u64)>,
    /// When a callback was accepted or refused.
    pub decided_at: Option<Instant>,
    /// Fingerprint of the body without the token.
    pub digest: Option<Fingerprint>,
    /// Size of the body in bytes, and when its last byte was read.
    pub body: Option<(usize, Instant)>,
}

impl RequestLog {
    /// Records an accepted callback.
    pub fn receipt(&mut self, receipt: Receipt) {
        self.outcome = Some(receipt.outcome);
        self.delivery = Some(receipt.delivery);
        self.replayed = Some(receipt.replayed);
        self.released = receipt.released.len();
        let own = receipt.released.iter().find(|released| released.is_callbacks_own());
        self.own_event = own.map(|own| (own.opened_at, own.sequence));
        self.turnaround_ms = Some(receipt.item.issued_at.millis_until(receipt.received_at));
        self.conversation = Some(receipt.conversation_id);
        self.item = Some(receipt.item);
    }

    /// Records an accepted heartbeat.
    pub fn heartbeat(&mut self, receipt: HeartbeatReceipt) {
        self.conversation = Some(receipt.conversation_id);
        self.item = Some(receipt.item.item);
    }

    /// Records the conversation and the work item of a refused callback or heartbeat. `late_at`: the time of the
    /// refusal, if the work item had already timed out.
    pub fn refused(&mut self, target: &CallbackTarget, late_at: Option<Timestamp>) {
        self.conversation = Some(target.conversation_id.clone());
        self.item.clone_from(&target.item);
        if let (Some(item), Some(timed_out_at), Some(now)) = (&target.item, target.times_out_at, late_at) {
            self.late = Some((item.timeout_cause(timed_out_at), timed_out_at.millis_until(now)));
        }
    }

    pub(super) fn code(&self) -> Option<Code> {
        self.refusal.as_ref().map(|refusal| refusal.code)
    }

    pub(super) fn delivery_name(&self) -> Option<&'static str> {
        self.delivery.map(|delivery| match delivery {
            Delivery::Delivered => "delivered",
            Delivery::Held { .. } => "held",
        })
    }

    /// The span in which the work item was issued.
    pub(super) fn issued_in(&self) -> Option<&TraceParent> {
        self.item.as_ref()?.traceparent.as_ref()
    }

    /// The sequence of the work item that a held result waits for.
    pub(super) fn held_behind(&self) -> Option<u64> {
        match self.delivery {
            Some(Delivery::Held { waiting_for }) => Some(waiting_for.get()),
            Some(Delivery::Delivered) | None => None,
        }
    }
}
