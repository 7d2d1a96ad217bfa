//! Decodes stored values. The packed layouts are defined in `conversation.lua` and `item.lua`.

use std::borrow::Cow;

use serde::Deserialize;

use super::script::broken;
use crate::domain::gate::{self, Ended, Released, TimedOut, WorkItemView};
use crate::domain::ids::{
    AttemptId, ConversationId, Sequence, ToolCallId, ToolName, TraceParent, TurnId, WorkItemId,
};
use crate::domain::reason::Reason;
use crate::domain::time::Timestamp;
use crate::domain::token::KeyId;
use crate::domain::work_item::{Kind, Outcome, WorkItem};
use crate::store::StoreError;

/// Reads packed fields in order. A missing field is an error.
struct PackedFields<'a>(&'a [u8]);

impl<'a> PackedFields<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], StoreError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| broken("the value is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// An unsigned big-endian number of `bytes` bytes.
    fn number(&mut self, bytes: usize) -> Result<u64, StoreError> {
        Ok(self.bytes(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn time(&mut self) -> Result<Timestamp, StoreError> {
        self.number(6).map(Timestamp::from_millis)
    }

    fn text(&mut self, count: usize) -> Result<&'a str, StoreError> {
        std::str::from_utf8(self.bytes(count)?).map_err(|_| broken("a text is not UTF-8"))
    }

    /// A text preceded by a length field of `bytes` bytes.
    fn length_prefixed(&mut self, bytes: usize) -> Result<&'a str, StoreError> {
        let length = self.number(bytes)?;
        self.text(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn traceparent(&mut self) -> Result<Option<TraceParent>, StoreError> {
        match self.length_prefixed(1)? {
            "" => Ok(None),
            text => TraceParent::parse(text).map(Some).map_err(|_| broken("invalid traceparent")),
        }
    }

    fn rfc3339(&mut self) -> Result<Timestamp, StoreError> {
        self.text(24)?.parse().map_err(|_| broken("invalid time"))
    }
}

/// The fields of a conversation's state that the service reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredState {
    touched_at: Timestamp,
    idle_ttl_ms: u64,
    busy_until: Timestamp,
    ended_at: Option<Timestamp>,
    pub(super) next: Sequence,
    pub(super) gate: Sequence,
    awaiting: u64,
    pub(super) held_bytes: u64,
    gate_deadline: u64,
    cleared: u64,
}

impl StoredState {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut fields = PackedFields(bytes);
        let (touched_at, idle_ttl_ms, busy_until) = (fields.time()?, fields.number(4)?, fields.time()?);
        let (_kept_until, ended_at) = (fields.time()?, fields.time()?);
        let (next, gate, awaiting) = (fields.number(4)?, fields.number(4)?, fields.number(4)?);
        let (held_bytes, gate_deadline) = (fields.number(6)?, fields.number(6)?);
        let (_channel_bytes, cleared) = (fields.number(6)?, fields.number(4)?);
        Ok(Self {
            touched_at,
            idle_ttl_ms,
            busy_until,
            ended_at: (ended_at.as_millis() > 0).then_some(ended_at),
            next: Sequence::new(next),
            gate: Sequence::new(gate),
            awaiting,
            held_bytes,
            gate_deadline,
            cleared,
        })
    }

    pub(super) fn idle_at(&self) -> Timestamp {
        gate::idle_at(self.touched_at, self.idle_ttl_ms, self.busy_until)
    }

    pub(super) fn ended_at(&self, now: Timestamp) -> Option<Timestamp> {
        if self.is_unfinished() {
            return None;
        }
        gate::ended_at(self.ended_at, self.idle_at(), now)
    }

    /// The end of the conversation and the items that it dropped, once it has ended.
    pub(super) fn ended(&self, now: Timestamp) -> Option<Ended> {
        let (dropped_held, dropped_awaiting) = (self.held(), self.awaiting);
        self.ended_at(now).map(|ended_at| Ended { ended_at, dropped_held, dropped_awaiting })
    }

    /// Number of settled items that are not released.
    pub(super) const fn held(&self) -> u64 {
        self.next.get().saturating_sub(self.gate.get()).saturating_sub(self.awaiting)
    }

    /// Whether a bounded step left items to release.
    pub(super) const fn is_unfinished(&self) -> bool {
        self.gate_deadline == 1 && self.ended_at.is_none()
    }

    /// Whether it has ended and timers of its items are still to be removed.
    pub(super) const fn has_uncleared_timers(&self) -> bool {
        self.ended_at.is_some() && self.cleared < self.next.get()
    }
}

/// The metadata of a conversation, which `open` sets.
#[derive(Clone, Debug)]
pub(super) struct StoredConversation {
    pub(super) opened_at: Timestamp,
    pub(super) id: ConversationId,
    pub(super) traceparent: Option<TraceParent>,
}

impl StoredConversation {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut fields = PackedFields(bytes);
        let opened_at = fields.text(13)?.parse().map(Timestamp::from_millis);
        let opened_at = opened_at.map_err(|_| broken("invalid time of opening"))?;
        let _opened_by = fields.bytes(8)?;
        let id = ConversationId::parse(fields.length_prefixed(1)?)
            .map_err(|_| broken("invalid conversation id"))?;
        Ok(Self { opened_at, id, traceparent: fields.traceparent()? })
    }
}

/// The members of an item's envelope that are known when it is issued.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Members<'a> {
    turn_id: Option<&'a str>,
    /// The only member that can contain a JSON escape sequence.
    #[serde(borrow)]
    tool_call_id: Option<Cow<'a, str>>,
    name: Option<&'a str>,
    kind: Kind,
}

/// The deadline, the heartbeat timeout and the last heartbeat of an item.
#[derive(Clone, Copy, Debug)]
struct StoredHeartbeat {
    deadline: Timestamp,
    timeout_ms: Option<u64>,
    last_at: Option<Timestamp>,
}

impl StoredHeartbeat {
    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut fields = PackedFields(bytes);
        let (deadline, timeout_ms, last_at) = (fields.time()?, fields.number(4)?, fields.time()?);
        Ok(Self {
            deadline,
            timeout_ms: (timeout_ms > 0).then_some(timeout_ms),
            last_at: (last_at.as_millis() > 0).then_some(last_at),
        })
    }
}

/// How an item was settled.
#[derive(Clone, Debug)]
struct StoredSettlement {
    outcome: Outcome,
    received_at: Timestamp,
    attempt: u64,
    bytes: u64,
    reason: Option<Reason>,
    settled_in: Option<TraceParent>,
}

/// A work item with its settlement.
#[derive(Clone, Debug)]
pub(super) struct StoredItem {
    pub(super) item: WorkItem,
    last_heartbeat_at: Option<Timestamp>,
    settlement: Option<StoredSettlement>,
}

/// Maps the numbers of `item.lua`. `None` for 0 (awaiting) and for an unknown number.
pub(super) const fn outcome(number: u64) -> Option<Outcome> {
    match number {
        1 => Some(Outcome::Succeeded),
        2 => Some(Outcome::Failed),
        3 => Some(Outcome::TimedOut),
        4 => Some(Outcome::Cancelled),
        _ => None,
    }
}

/// A stored reason: a JSON string, or empty.
pub(super) fn reason(json: &[u8]) -> Result<Option<Reason>, StoreError> {
    if json.is_empty() {
        return Ok(None);
    }
    let text: Cow<'_, str> = serde_json::from_slice(json).map_err(|_| broken("a reason is not JSON"))?;
    Reason::parse(&text).map(Some).map_err(|_| broken("invalid reason"))
}

impl StoredItem {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        // The last byte is the outcome, for awaiting and settled items alike.
        let [fields @ .., last] = bytes else { return Err(broken("the value is empty")) };
        let (outcome, mut fields) = (outcome(u64::from(*last)), PackedFields(fields));
        let (times_out_at, window) = (fields.time()?, fields.number(4)?);
        let id = WorkItemId::parse(fields.text(36)?).ok_or_else(|| broken("invalid work item id"))?;
        let (issued_at, _date) = (fields.rfc3339()?, fields.bytes(10)?);
        let key_id = KeyId::parse(fields.length_prefixed(1)?).map_err(|_| broken("invalid key id"))?;
        let traceparent = fields.traceparent()?;
        let members = format!("{{{}}}", fields.length_prefixed(2)?);
        let heartbeat = match fields.number(1)? {
            0 => StoredHeartbeat { deadline: times_out_at, timeout_ms: None, last_at: None },
            length => StoredHeartbeat::decode(fields.bytes(usize::try_from(length).unwrap_or(usize::MAX))?)?,
        };
        let deadline = heartbeat.deadline;
        let members: Members<'_> =
            serde_json::from_str(&members).map_err(|_| broken("invalid envelope members"))?;
        let turn_id = members.turn_id.map(TurnId::parse).transpose();
        let tool_call_id = members.tool_call_id.as_deref().map(ToolCallId::parse).transpose();
        let name = members.name.map(ToolName::parse).transpose();
        let item = WorkItem {
            id,
            sequence: id.sequence(),
            kind: members.kind,
            turn_id: turn_id.map_err(|_| broken("invalid turn id"))?,
            tool_call_id: tool_call_id.map_err(|_| broken("invalid tool call id"))?,
            name: name.map_err(|_| broken("invalid name"))?,
            issued_at,
            deadline,
            heartbeat_timeout_ms: heartbeat.timeout_ms,
            expires_at: deadline.plus_millis(window),
            key_id,
            traceparent,
        };
        let settlement = match outcome {
            None => None,
            Some(outcome) => {
                let _awaiting = fields.bytes(1)?;
                let (received_at, attempt, bytes) = (fields.rfc3339()?, fields.number(8)?, fields.number(4)?);
                let (_request_id, settled_in) = (fields.length_prefixed(1)?, fields.traceparent()?);
                let reason = reason(fields.0)?;
                Some(StoredSettlement { outcome, received_at, attempt, bytes, reason, settled_in })
            }
        };
        Ok(Self { item, last_heartbeat_at: heartbeat.last_at, settlement })
    }

    /// When the item times out or timed out.
    pub(super) fn times_out_at(&self) -> Timestamp {
        self.item.times_out_at(self.last_heartbeat_at)
    }

    /// The outcome and the time of settlement.
    pub(super) fn settled(&self) -> Option<(Outcome, Timestamp)> {
        self.settlement.as_ref().map(|settlement| (settlement.outcome, settlement.received_at))
    }

    /// Whether this attempt cancelled the item.
    pub(super) fn is_cancelled_by(&self, attempt: AttemptId) -> bool {
        self.settlement.as_ref().is_some_and(|settlement| {
            settlement.outcome == Outcome::Cancelled && settlement.attempt.to_be_bytes() == attempt.to_bytes()
        })
    }

    /// The item at `now`, in a conversation with this state.
    pub(super) fn view(self, state: &StoredState, now: Timestamp) -> WorkItemView {
        let bytes = self.settlement.as_ref().map_or(0, |settlement| settlement.bytes);
        let settled = self.settled();
        let reason = self.settlement.and_then(|settlement| settlement.reason);
        let (item, heartbeat) = (self.item, self.last_heartbeat_at);
        let view = WorkItemView::new(item, heartbeat, settled, bytes, state.gate, state.ended_at(now), now);
        WorkItemView { reason: reason.or(view.reason), ..view }
    }

    /// When the awaiting item times out unless a heartbeat arrives first. `None`: it needs no heartbeats.
    pub(super) fn heartbeat_deadline(&self) -> Option<Timestamp> {
        self.item.heartbeat_deadline(self.last_heartbeat_at)
    }

    /// The record of this item's release at `now`. Fails if the item has no outcome.
    pub(super) fn released(
        &self,
        opened_at: Timestamp,
        now: Timestamp,
        held: bool,
    ) -> Result<Released, StoreError> {
        let settlement = self.settlement.as_ref().ok_or_else(|| broken("a released item has no outcome"))?;
        Ok(Released {
            opened_at,
            sequence: self.item.sequence,
            work_item: self.item.id,
            kind: self.item.kind,
            tool_call_id: self.item.tool_call_id.clone(),
            name: self.item.name.clone(),
            outcome: settlement.outcome,
            issued_at: self.item.issued_at,
            received_at: settlement.received_at,
            released_at: now,
            held,
            issued_in: self.item.traceparent.clone(),
            settled_in: settlement.settled_in.clone(),
        })
    }

    /// The record of this item's timeout, which was processed at `now`.
    pub(super) fn timed_out(self, now: Timestamp) -> TimedOut {
        let at = self.times_out_at();
        TimedOut {
            work_item: self.item.id,
            sequence: self.item.sequence,
            kind: self.item.kind,
            cause: self.item.timeout_cause(at),
            tool_call_id: self.item.tool_call_id,
            name: self.item.name,
            late_ms: at.millis_until(now),
            issued_in: self.item.traceparent,
        }
    }
}
