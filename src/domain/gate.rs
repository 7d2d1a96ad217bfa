//! **The sequence gate**: the rules of one conversation, as a pure state machine.
//!
//! The memory store calls these rules. `store/redis/scripts` implements them for Redis in scripts and functions of the
//! same names. A model test (`tests/it/model.rs`) compares the two.
//!
//! | rule | function |
//! |---|---|
//! | which items are released, and when | [`Conversation::release`] |
//! | when a conversation has ended | [`ended_at`] |
//! | an item's outcome at a given time | [`outcome_at`] |
//! | whether a callback is accepted | [`Conversation::accept`] |
//! | whether a heartbeat is accepted | [`Conversation::heartbeat`] |
//! | limits | [`Conversation::accept`], [`Conversation::issue`] |

mod commands;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

pub use commands::{
    Accept, AcceptRefused, CallbackTarget, Cancel, CancelRefused, CancelTurn, CancelTurnRefused, Cancelled,
    CancelledTurn, ConversationNotFound, ConversationView, Delivery, EndReceipt, Ended, Expired, Heartbeat,
    HeartbeatReceipt, HeartbeatRefused, Issue, IssueRefused, Issued, LookupRefused, MAX_REPORTED, Open,
    OpenRefused, Opened, Receipt, RefusedCallback, RefusedHeartbeat, RefusedRequest, Released, TimedOut,
    Totals, WaitingConversation, WorkItemView,
};

use super::envelope::{Envelope, EnvelopeJson};
use super::ids::{
    AttemptId, ConversationId, Fingerprint, IdempotencyDigest, RequestId, Sequence, TraceParent, WorkItemId,
};
use super::progress::PROGRESS_INTERVAL_MS;
use super::reason::Reason;
use super::result::Payload;
use super::time::Timestamp;
use super::work_item::{Outcome, State, WorkItem};

/// Limits of one conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of held items (settled and not released).
    pub max_held_items: u64,
    /// Maximum bytes of held results.
    pub max_held_bytes: u64,
    /// Maximum number of awaiting items (without an outcome).
    pub max_awaiting_items: u64,
    /// Maximum number of envelopes on the channel, and therefore of items that can be issued.
    pub max_channel_length: u64,
    /// Maximum bytes of results on the channel, held results included.
    pub max_channel_bytes: u64,
    /// Default idle timeout in milliseconds.
    pub conversation_idle_ttl_ms: u64,
    /// Time in milliseconds that an ended conversation and its channel stay readable.
    pub ended_retention_ms: u64,
}

impl Limits {
    /// Longest time from issue to deadline in milliseconds: one day.
    pub const MAX_TIMEOUT_MS: u64 = 24 * 60 * 60 * 1000;
    /// Longest idle timeout of a conversation in milliseconds: one week.
    pub const MAX_IDLE_TTL_MS: u64 = 7 * Self::MAX_TIMEOUT_MS;
    /// Longest time in milliseconds that an ended conversation and its channel stay readable: one week.
    pub const MAX_RETENTION_MS: u64 = 7 * Self::MAX_TIMEOUT_MS;
}

/// How an item was settled.
#[derive(Clone, Debug)]
struct Settlement {
    outcome: Outcome,
    received_at: Timestamp,
    request_id: Option<RequestId>,
    traceparent: Option<TraceParent>,
    attempt: Option<AttemptId>,
    fingerprint: Option<Fingerprint>,
    reason: Option<Reason>,
    /// Moved to the envelope when the item is released.
    payload: Option<Payload>,
}

impl Settlement {
    fn held_bytes(&self) -> u64 {
        self.payload.as_ref().map_or(0, size)
    }
}

fn size(payload: &Payload) -> u64 {
    u64::try_from(payload.bytes().len()).unwrap_or(u64::MAX)
}

/// A work item with its settlement.
#[derive(Clone, Debug)]
struct Slot {
    item: WorkItem,
    last_heartbeat_at: Option<Timestamp>,
    /// When the last progress was published.
    progress_at: Option<Timestamp>,
    settlement: Option<Settlement>,
}

impl Slot {
    fn outcome_at(&self, now: Timestamp) -> Option<(Outcome, Timestamp)> {
        let settled = self.settlement.as_ref().map(|settlement| (settlement.outcome, settlement.received_at));
        outcome_at(settled, self.times_out_at(), now)
    }

    fn times_out_at(&self) -> Timestamp {
        self.item.times_out_at(self.last_heartbeat_at)
    }
}

/// A conversation: its work items in order of issue, and its routing channel.
#[derive(Clone, Debug)]
pub struct Conversation {
    id: ConversationId,
    opened_by: AttemptId,
    opened_at: Timestamp,
    touched_at: Timestamp,
    idle_ttl_ms: u64,
    /// Latest deadline of any item. Reset to zero when the conversation is used and no item is awaiting.
    busy_until: Timestamp,
    ended: Option<Ended>,
    end_reason: Option<Reason>,
    traceparent: Option<TraceParent>,
    next: Sequence,
    gate: Sequence,
    awaiting: u64,
    held_bytes: u64,
    /// The held items by the time of their settlement.
    held_by_time: BTreeSet<(Timestamp, Sequence)>,
    channel_bytes: u64,
    slots: BTreeMap<Sequence, Slot>,
    /// The key is the item's id with sequence 0.
    issued_by_attempt: HashMap<WorkItemId, Sequence>,
    issued_by_key: HashMap<IdempotencyDigest, (Fingerprint, Sequence)>,
    channel: Vec<EnvelopeJson>,
    /// Items that the current operation has settled. If it also releases them, they were never held.
    just_settled: BTreeSet<Sequence>,
    /// Items whose timers are obsolete; see [`Conversation::take_obsolete_timers`].
    obsolete_timers: Vec<Sequence>,
}

impl Conversation {
    /// Creates a conversation.
    pub fn open(command: &Open, now: Timestamp, limits: &Limits) -> Self {
        Self {
            id: command.conversation.clone(),
            opened_by: command.attempt,
            opened_at: now,
            touched_at: now,
            idle_ttl_ms: command.idle_ttl_ms.unwrap_or(limits.conversation_idle_ttl_ms),
            busy_until: Timestamp::from_millis(0),
            ended: None,
            end_reason: None,
            traceparent: command.traceparent.clone(),
            next: Sequence::FIRST,
            gate: Sequence::FIRST,
            awaiting: 0,
            held_bytes: 0,
            held_by_time: BTreeSet::new(),
            channel_bytes: 0,
            slots: BTreeMap::new(),
            issued_by_attempt: HashMap::new(),
            issued_by_key: HashMap::new(),
            channel: Vec::new(),
            just_settled: BTreeSet::new(),
            obsolete_timers: Vec::new(),
        }
    }

    /// Restarts the idle timeout of an open conversation and applies the options that the command sets.
    pub fn reopen(&mut self, command: &Open, now: Timestamp) -> Result<Opened, OpenRefused> {
        if self.ended_at(now).is_some() {
            return Err(OpenRefused::ConversationEnded);
        }
        self.touched_at = now;
        self.idle_ttl_ms = command.idle_ttl_ms.unwrap_or(self.idle_ttl_ms);
        if command.traceparent.is_some() {
            self.traceparent.clone_from(&command.traceparent);
        }
        Ok(Opened { created: self.opened_by == command.attempt })
    }

    /// When the idle timeout ends the conversation unless it is used before then; see [`idle_at`].
    pub fn idle_at(&self) -> Timestamp {
        idle_at(self.touched_at, self.idle_ttl_ms, self.busy_until)
    }

    /// When it ended, if it has; see [`ended_at`].
    pub fn ended_at(&self, now: Timestamp) -> Option<Timestamp> {
        ended_at(self.ended.map(|ended| ended.ended_at), self.idle_at(), now)
    }

    /// Whether its retention is over. The stores then treat it as nonexistent.
    pub fn is_gone(&self, now: Timestamp, limits: &Limits) -> bool {
        self.ended_at(now).is_some_and(|ended| now >= ended.plus_millis(limits.ended_retention_ms))
    }

    /// Issues the next work item.
    pub fn issue(
        &mut self,
        command: &Issue,
        now: Timestamp,
        limits: &Limits,
    ) -> Result<Issued, IssueRefused> {
        // A retry after a lost reply returns the item that the first call issued, even if the conversation has
        // since ended.
        let attempt = command.work_item.with_sequence(Sequence::new(0));
        if let Some(slot) = self.issued_by_attempt.get(&attempt).and_then(|sequence| self.slots.get(sequence))
        {
            return Ok(Issued { item: slot.item.clone(), repeated: false });
        }
        if self.ended_at(now).is_some() {
            return Err(IssueRefused::ConversationEnded);
        }
        if let Some((key, fingerprint)) = &command.idempotency
            && let Some((original, sequence)) = self.issued_by_key.get(key)
            && let Some(slot) = self.slots.get(sequence)
        {
            if original != fingerprint {
                return Err(IssueRefused::IdempotencyConflict);
            }
            return Ok(Issued { item: slot.item.clone(), repeated: true });
        }
        if self.awaiting >= limits.max_awaiting_items {
            return Err(IssueRefused::AwaitingLimit);
        }
        if self.next.get() > limits.max_channel_length
            || self.channel_bytes + self.held_bytes >= limits.max_channel_bytes
        {
            return Err(IssueRefused::ChannelLimit);
        }
        let deadline = now.plus_millis(command.timeout_ms);
        let item = WorkItem {
            id: command.work_item.with_sequence(self.next),
            sequence: self.next,
            kind: command.kind,
            turn_id: command.turn_id.clone(),
            tool_call_id: command.tool_call_id.clone(),
            name: command.name.clone(),
            issued_at: now,
            deadline,
            heartbeat_timeout_ms: command.heartbeat_timeout_ms,
            expires_at: deadline.plus_millis(command.replay_window_ms),
            key_id: command.key_id,
            traceparent: [&command.traceparent, &self.traceparent, &command.request_traceparent]
                .into_iter()
                .find_map(Clone::clone),
        };
        let slot = Slot { item: item.clone(), last_heartbeat_at: None, progress_at: None, settlement: None };
        self.slots.insert(item.sequence, slot);
        self.issued_by_attempt.insert(attempt, item.sequence);
        if let Some((key, fingerprint)) = command.idempotency {
            self.issued_by_key.insert(key, (fingerprint, item.sequence));
        }
        self.next = self.next.next();
        self.awaiting += 1;
        self.touched_at = now;
        self.busy_until = self.busy_until.max(deadline);
        Ok(Issued { item, repeated: false })
    }

    /// Accepts a callback. The first settlement of an item wins. A replay gets the receipt again, with the
    /// current delivery.
    pub fn accept(
        &mut self,
        command: &Accept,
        now: Timestamp,
        limits: &Limits,
    ) -> Result<Receipt, AcceptRefused> {
        if now >= command.expires_at {
            return Err(AcceptRefused::TokenExpired);
        }
        let ended = self.ended_at(now).is_some();
        let Some(slot) = self.slot(command.work_item) else {
            return Err(if ended {
                AcceptRefused::ConversationEnded
            } else {
                AcceptRefused::WorkItemUnknown
            });
        };
        let sequence = slot.item.sequence;
        if ended && (slot.fingerprint().is_none() || sequence >= self.gate) {
            return Err(AcceptRefused::ConversationEnded);
        }
        match (slot.fingerprint(), slot.outcome_at(now)) {
            (Some(first), _) if first != command.result.fingerprint => Err(AcceptRefused::TokenUsed),
            (Some(_), _) => {
                let replayed = slot.attempt() != Some(command.attempt);
                // Overdue items are released first, because the gate must not wait for them.
                let released =
                    if ended { Vec::new() } else { self.release(now, command.traceparent.as_ref()) };
                self.receipt(sequence, replayed, released).ok_or(AcceptRefused::WorkItemUnknown)
            }
            (None, Some((Outcome::TimedOut, _))) => Err(AcceptRefused::WorkItemTimedOut),
            (None, Some((Outcome::Cancelled, _))) => Err(AcceptRefused::WorkItemCancelled),
            (None, Some((Outcome::Succeeded | Outcome::Failed, _))) => Err(AcceptRefused::TokenUsed),
            (None, None) => {
                self.check_limits(sequence, size(&command.result.payload), now, limits)?;
                let outcome = match command.result.payload {
                    Payload::Succeeded(_) => Outcome::Succeeded,
                    Payload::Failed(_) => Outcome::Failed,
                };
                self.settle(
                    sequence,
                    Settlement {
                        outcome,
                        received_at: now,
                        request_id: Some(command.request_id),
                        traceparent: command.traceparent.clone(),
                        attempt: Some(command.attempt),
                        fingerprint: Some(command.result.fingerprint),
                        reason: None,
                        payload: Some(command.result.payload.clone()),
                    },
                );
                self.touch(now);
                let released = self.release(now, command.traceparent.as_ref());
                self.receipt(sequence, false, released).ok_or(AcceptRefused::WorkItemUnknown)
            }
        }
    }

    /// Records a heartbeat. A settled item is unchanged.
    pub fn heartbeat(
        &mut self,
        command: &Heartbeat,
        now: Timestamp,
    ) -> Result<HeartbeatReceipt, HeartbeatRefused> {
        if now >= command.expires_at {
            return Err(HeartbeatRefused::TokenExpired);
        }
        let ended = self.ended_at(now).is_some();
        let Some(slot) = self.slot(command.work_item) else {
            return Err(if ended {
                HeartbeatRefused::ConversationEnded
            } else {
                HeartbeatRefused::WorkItemUnknown
            });
        };
        let (sequence, mut published) = (slot.item.sequence, false);
        let outcome = slot.outcome_at(now).map(|(outcome, _)| outcome);
        let has_result = matches!(outcome, Some(Outcome::Succeeded | Outcome::Failed));
        if ended && !(has_result && sequence < self.gate) {
            return Err(HeartbeatRefused::ConversationEnded);
        }
        match outcome {
            Some(Outcome::TimedOut) => return Err(HeartbeatRefused::WorkItemTimedOut),
            Some(Outcome::Cancelled) => return Err(HeartbeatRefused::WorkItemCancelled),
            Some(Outcome::Succeeded | Outcome::Failed) => {}
            None => {
                let is_old =
                    |last: Timestamp| last.as_millis().abs_diff(now.as_millis()) >= PROGRESS_INTERVAL_MS;
                published = command.progress.is_some() && slot.progress_at.is_none_or(is_old);
                if let Some(slot) = self.slots.get_mut(&sequence) {
                    slot.last_heartbeat_at = Some(now);
                    slot.progress_at = if published { Some(now) } else { slot.progress_at };
                }
            }
        }
        let item = self.work_item(command.work_item, now).ok_or(HeartbeatRefused::WorkItemUnknown)?;
        Ok(HeartbeatReceipt { conversation_id: self.id.clone(), item, published })
    }

    /// Restarts the idle timeout. The sweeper's operations do not call it.
    const fn touch(&mut self, now: Timestamp) {
        self.touched_at = now;
        if self.awaiting == 0 {
            self.busy_until = Timestamp::from_millis(0);
        }
    }

    fn receipt(&self, sequence: Sequence, replayed: bool, released: Vec<Released>) -> Option<Receipt> {
        let slot = self.slots.get(&sequence)?;
        let settlement = slot.settlement.as_ref()?;
        let delivery = if sequence < self.gate {
            Delivery::Delivered
        } else {
            Delivery::Held { waiting_for: self.gate }
        };
        Some(Receipt {
            delivery,
            conversation_id: self.id.clone(),
            item: slot.item.clone(),
            outcome: settlement.outcome,
            received_at: settlement.received_at,
            replayed,
            released,
            unfinished: false,
        })
    }

    /// Checks the limits for a new result. The limits on held results apply only behind an item that is still awaiting:
    /// if the item at the gate is overdue, accepting the result moves the gate.
    fn check_limits(
        &self,
        sequence: Sequence,
        bytes: u64,
        now: Timestamp,
        limits: &Limits,
    ) -> Result<(), AcceptRefused> {
        let gate = self.slots.get(&self.gate);
        let blocked = sequence > self.gate && gate.is_some_and(|slot| slot.outcome_at(now).is_none());
        let (held_items, held_bytes) = self.held();
        let too_much =
            held_items >= limits.max_held_items || held_bytes.saturating_add(bytes) > limits.max_held_bytes;
        if blocked && too_much {
            return Err(AcceptRefused::HeldLimit);
        }
        let channel_bytes = self.channel_bytes.saturating_add(held_bytes).saturating_add(bytes);
        if channel_bytes > limits.max_channel_bytes { Err(AcceptRefused::ChannelLimit) } else { Ok(()) }
    }

    /// Cancels a work item.
    pub fn cancel(&mut self, command: &Cancel, now: Timestamp) -> Result<Cancelled, CancelRefused> {
        let Some(slot) = self.slot(command.work_item) else {
            return Err(CancelRefused::WorkItemNotFound);
        };
        // A retry after a lost reply succeeds again, unless the conversation has since ended and dropped the item.
        let ended = self.ended_at(now).is_some();
        let sequence = slot.item.sequence;
        let repeated = slot.attempt() == Some(command.attempt) && (!ended || sequence < self.gate);
        let mut released = Vec::new();
        match slot.outcome_at(now) {
            Some((Outcome::Cancelled, _)) if repeated => {}
            _ if ended => return Err(CancelRefused::ConversationEnded),
            Some((outcome, _)) => return Err(CancelRefused::WorkItemSettled(outcome)),
            None => {
                let (trace, reason) = (command.traceparent.as_ref(), command.reason.as_ref());
                self.cancel_item(sequence, command.attempt, command.request_id, trace, reason, now);
                self.touch(now);
                released = self.release(now, command.traceparent.as_ref());
            }
        }
        let item = self.work_item(command.work_item, now).ok_or(CancelRefused::WorkItemNotFound)?;
        Ok(Cancelled { item, released, unfinished: false })
    }

    /// Cancels the awaiting items of a turn. Idempotent. A retry after a lost reply succeeds again, unless the
    /// conversation has ended since and dropped all the items that the first call cancelled.
    pub fn cancel_turn(
        &mut self,
        command: &CancelTurn,
        now: Timestamp,
    ) -> Result<CancelledTurn, CancelTurnRefused> {
        let has_ended = self.ended_at(now).is_some();
        let is_own = |slot: &Slot| {
            let settlement = slot.settlement.as_ref();
            settlement.is_some_and(|settlement| {
                settlement.outcome == Outcome::Cancelled && settlement.attempt == Some(command.attempt)
            })
        };
        // A retry also lists the items that the first call has cancelled and released.
        let of_turn = self.slots.values().filter(|slot| {
            let is_listed = if slot.item.sequence < self.gate { is_own(slot) } else { !has_ended };
            slot.item.turn_id.as_ref() == Some(&command.turn_id) && is_listed
        });
        let listed: Vec<Sequence> = of_turn.map(|slot| slot.item.sequence).collect();
        if has_ended && listed.is_empty() {
            return Err(CancelTurnRefused::ConversationEnded);
        }
        let is_awaiting = |sequence: &Sequence| self.slots[sequence].outcome_at(now).is_none();
        let awaiting: Vec<Sequence> = listed.iter().copied().filter(is_awaiting).collect();
        let mut released = Vec::new();
        if !awaiting.is_empty() {
            let (trace, reason) = (command.traceparent.as_ref(), command.reason.as_ref());
            for sequence in awaiting {
                self.cancel_item(sequence, command.attempt, command.request_id, trace, reason, now);
            }
            self.touch(now);
            released = self.release(now, trace);
        }
        let slots = || listed.iter().map(|sequence| &self.slots[sequence]);
        Ok(CancelledTurn {
            items: slots().map(|slot| self.view(slot, now)).collect(),
            cancelled: slots().filter(|slot| is_own(slot)).count() as u64,
            released,
            unfinished: false,
        })
    }

    /// Why it was ended.
    pub const fn end_reason(&self) -> Option<&Reason> {
        self.end_reason.as_ref()
    }

    /// Releases what the gate allows, then ends the conversation and drops its held and awaiting items. Idempotent.
    pub fn end(
        &mut self,
        traceparent: Option<&TraceParent>,
        reason: Option<&Reason>,
        now: Timestamp,
    ) -> EndReceipt {
        let ended_before = self.ended_at(now);
        let mut released = Vec::new();
        if ended_before.is_none() {
            released = self.release(now, traceparent);
            self.end_reason = reason.cloned();
        }
        let ended = self.finish(ended_before.unwrap_or(now));
        EndReceipt { ended, repeated: ended_before.is_some(), reason: self.end_reason.clone(), released }
    }

    /// Records the end and drops the held results, unless an earlier operation has done so.
    fn finish(&mut self, time: Timestamp) -> Ended {
        let ended = self.end_summary(time);
        if self.ended.is_none() {
            self.ended = Some(ended);
            for slot in self.slots.range_mut(self.gate..).map(|(_, slot)| slot) {
                match &mut slot.settlement {
                    Some(settlement) => settlement.payload = None,
                    None => self.obsolete_timers.push(slot.item.sequence),
                }
            }
        }
        ended
    }

    /// The recorded end. If none is recorded: an end at `ended_at` that drops the items now held and awaiting.
    fn end_summary(&self, ended_at: Timestamp) -> Ended {
        let (dropped_held, _) = self.held();
        self.ended.unwrap_or(Ended { ended_at, dropped_held, dropped_awaiting: self.awaiting })
    }

    /// Times out the given items if they are due, and ends the conversation if its idle timeout has passed. A stale
    /// timer has no effect.
    pub fn expire(
        &mut self,
        sequences: &[Sequence],
        traceparent: Option<&TraceParent>,
        now: Timestamp,
    ) -> Expired {
        let conversation_id = Some(self.id.clone());
        if let Some(time) = self.ended_at(now) {
            let ended_before = self.ended.is_some();
            let ended = self.finish(time);
            return Expired {
                conversation_id,
                ended: (!ended_before).then_some(ended),
                ..Expired::default()
            };
        }
        let mut timed_out = Vec::new();
        let mut next_in_ms: Option<u64> = None;
        for sequence in sequences {
            let Some(slot) = self.slots.get(sequence).filter(|slot| slot.settlement.is_none()) else {
                continue;
            };
            let at = slot.times_out_at();
            if now < at {
                let in_ms = now.millis_until(at);
                next_in_ms = Some(next_in_ms.map_or(in_ms, |earliest| earliest.min(in_ms)));
                continue;
            }
            let item = slot.item.clone();
            self.time_out(item.sequence, traceparent);
            timed_out.push(TimedOut {
                work_item: item.id,
                sequence: item.sequence,
                kind: item.kind,
                cause: item.timeout_cause(at),
                tool_call_id: item.tool_call_id,
                name: item.name,
                late_ms: at.millis_until(now),
                issued_in: item.traceparent,
            });
        }
        let released = self.release(now, traceparent);
        Expired { conversation_id, timed_out, ended: None, released, unfinished: false, next_in_ms }
    }

    fn settle(&mut self, sequence: Sequence, settlement: Settlement) {
        if let Some(slot) = self.slots.get_mut(&sequence) {
            self.held_bytes += settlement.held_bytes();
            // The item at the gate is released in the same operation, so it is never held.
            if sequence > self.gate {
                self.held_by_time.insert((settlement.received_at, sequence));
            }
            slot.settlement = Some(settlement);
            self.just_settled.insert(sequence);
            self.obsolete_timers.push(sequence);
            self.awaiting -= 1;
        }
    }

    /// Settles an awaiting item as cancelled.
    fn cancel_item(
        &mut self,
        sequence: Sequence,
        attempt: AttemptId,
        request_id: RequestId,
        traceparent: Option<&TraceParent>,
        reason: Option<&Reason>,
        now: Timestamp,
    ) {
        self.settle(
            sequence,
            Settlement {
                outcome: Outcome::Cancelled,
                received_at: now,
                request_id: Some(request_id),
                traceparent: traceparent.cloned(),
                attempt: Some(attempt),
                fingerprint: None,
                reason: reason.cloned(),
                payload: None,
            },
        );
    }

    fn time_out(&mut self, sequence: Sequence, traceparent: Option<&TraceParent>) {
        let Some(slot) = self.slots.get(&sequence) else { return };
        let (at, cause) = (slot.times_out_at(), slot.item.timeout_cause(slot.times_out_at()));
        self.settle(
            sequence,
            Settlement {
                outcome: Outcome::TimedOut,
                received_at: at,
                request_id: None,
                traceparent: traceparent.cloned(),
                attempt: None,
                fingerprint: None,
                reason: cause.reason(),
                payload: None,
            },
        );
    }

    /// **The gate rule**: starting at the gate, releases every item that is settled or overdue. Stops at the first
    /// that is neither.
    fn release(&mut self, now: Timestamp, traceparent: Option<&TraceParent>) -> Vec<Released> {
        let mut released = Vec::new();
        while let Some(slot) = self.slots.get(&self.gate) {
            if slot.settlement.is_none() {
                if now < slot.times_out_at() {
                    break;
                }
                self.time_out(self.gate, traceparent);
            }
            let appended = self.append(self.gate, now);
            released.extend(appended.filter(|_| released.len() < MAX_REPORTED));
            self.gate = self.gate.next();
        }
        self.just_settled.clear();
        released
    }

    fn append(&mut self, sequence: Sequence, now: Timestamp) -> Option<Released> {
        let slot = self.slots.get_mut(&sequence)?;
        let settlement = slot.settlement.as_mut()?;
        self.held_bytes -= settlement.held_bytes();
        self.held_by_time.remove(&(settlement.received_at, sequence));
        self.channel_bytes += settlement.held_bytes();
        let settled_in = settlement.traceparent.clone();
        let payload = settlement.payload.take();
        let envelope = Envelope {
            conversation_id: &self.id,
            item: &slot.item,
            outcome: settlement.outcome,
            payload: payload.as_ref(),
            received_at: settlement.received_at,
            released_at: now,
            request_id: settlement.request_id,
            reason: settlement.reason.as_ref(),
            traceparent: settled_in.as_ref().or(slot.item.traceparent.as_ref()),
        };
        self.channel.push(envelope.to_json());
        Some(Released {
            opened_at: self.opened_at,
            sequence,
            work_item: slot.item.id,
            kind: slot.item.kind,
            tool_call_id: slot.item.tool_call_id.clone(),
            name: slot.item.name.clone(),
            outcome: settlement.outcome,
            issued_at: slot.item.issued_at,
            received_at: settlement.received_at,
            released_at: now,
            held: !self.just_settled.contains(&sequence),
            issued_in: slot.item.traceparent.clone(),
            settled_in,
        })
    }

    fn slot(&self, work_item: WorkItemId) -> Option<&Slot> {
        self.slots.get(&work_item.sequence()).filter(|slot| slot.item.id == work_item)
    }

    fn unreleased(&self) -> impl Iterator<Item = &Slot> {
        self.slots.range(self.gate..).map(|(_, slot)| slot)
    }

    /// The envelopes after a sequence, at most `count`.
    pub fn read(&self, after: Option<Sequence>, count: usize) -> &[EnvelopeJson] {
        let released = self.channel.len();
        let start = after.map_or(0, |after| usize::try_from(after.get()).unwrap_or(usize::MAX)).min(released);
        let range: Range<usize> = start..start.saturating_add(count).min(released);
        &self.channel[range]
    }

    /// The sequence of the next item to be issued.
    pub const fn next_sequence(&self) -> Sequence {
        self.next
    }

    /// Whether its end is recorded. After an idle timeout, the next operation of the sweeper records it.
    pub const fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// When it was opened.
    pub const fn opened_at(&self) -> Timestamp {
        self.opened_at
    }

    /// Number of envelopes on the channel.
    pub fn released(&self) -> u64 {
        self.gate.get() - 1
    }

    /// Number of held items and the bytes of their results.
    pub const fn held(&self) -> (u64, u64) {
        (self.next.get() - self.gate.get() - self.awaiting, self.held_bytes)
    }

    /// When the oldest held item was settled. `None`: nothing is held, or the end is recorded.
    pub fn held_since(&self) -> Option<Timestamp> {
        let oldest = self.held_by_time.first().filter(|_| !self.has_ended());
        oldest.map(|(settled_at, _)| *settled_at)
    }

    /// What it waits for and what it holds at `now`. `None`: nothing is held, it has ended, or the next operation moves
    /// the gate, because the item at the gate has timed out.
    pub fn waiting(&self, now: Timestamp) -> Option<WaitingConversation> {
        let since = self.held_since().filter(|_| self.ended_at(now).is_none())?;
        let waiting_for = self.slots.get(&self.gate).filter(|slot| slot.outcome_at(now).is_none())?;
        let (held, held_bytes) = self.held();
        Some(WaitingConversation {
            conversation_id: self.id.clone(),
            heartbeat_deadline: waiting_for.item.heartbeat_deadline(waiting_for.last_heartbeat_at),
            waiting_for: waiting_for.item.clone(),
            held,
            held_bytes,
            since,
        })
    }

    /// The conversation and work item of a refused callback or heartbeat.
    pub fn target(&self, work_item: WorkItemId) -> CallbackTarget {
        let slot = self.slot(work_item);
        CallbackTarget {
            conversation_id: self.id.clone(),
            item: slot.map(|slot| slot.item.clone()),
            times_out_at: slot.map(Slot::times_out_at),
        }
    }

    /// A work item at `now`.
    pub fn work_item(&self, work_item: WorkItemId, now: Timestamp) -> Option<WorkItemView> {
        self.slot(work_item).map(|slot| self.view(slot, now))
    }

    fn view(&self, slot: &Slot, now: Timestamp) -> WorkItemView {
        let settled = slot.settlement.as_ref().map(|settlement| (settlement.outcome, settlement.received_at));
        let bytes = slot.settlement.as_ref().map_or(0, Settlement::held_bytes);
        let reason = slot.settlement.as_ref().and_then(|settlement| settlement.reason.clone());
        let (item, heartbeat) = (slot.item.clone(), slot.last_heartbeat_at);
        let view = WorkItemView::new(item, heartbeat, settled, bytes, self.gate, self.ended_at(now), now);
        WorkItemView { reason: reason.or(view.reason), ..view }
    }

    /// The conversation at `now`.
    pub fn inspect(&self, now: Timestamp) -> ConversationView {
        let unreleased: Vec<_> = self.unreleased().map(|slot| self.view(slot, now)).collect();
        let first_awaiting = unreleased.iter().find(|view| view.settled.is_none());
        ConversationView {
            conversation_id: self.id.clone(),
            opened_at: self.opened_at,
            idle_at: self.idle_at(),
            ended: self.ended_at(now).map(|at| self.end_summary(at)),
            end_reason: self.end_reason.clone(),
            traceparent: self.traceparent.clone(),
            next_sequence: self.next,
            waiting_for: first_awaiting.map_or(self.next, |view| view.item.sequence),
            unreleased,
            now,
        }
    }

    /// When the sweeper next has to process it as a whole: at its idle timeout, then at the end of its retention.
    pub fn next_check(&self, limits: &Limits) -> Timestamp {
        match self.ended {
            Some(ended) => ended.ended_at.plus_millis(limits.ended_retention_ms),
            None => self.idle_at(),
        }
    }

    /// When an item without an outcome times out.
    pub fn times_out_at(&self, sequence: Sequence) -> Option<Timestamp> {
        let slot = self.slots.get(&sequence).filter(|slot| slot.settlement.is_none());
        slot.map(Slot::times_out_at)
    }

    /// The items without an outcome.
    pub fn awaiting(&self) -> impl Iterator<Item = Sequence> {
        self.unreleased().filter(|slot| slot.settlement.is_none()).map(|slot| slot.item.sequence)
    }

    /// The items whose timers have become obsolete since the last call. The store removes these timers.
    pub fn take_obsolete_timers(&mut self) -> Vec<Sequence> {
        std::mem::take(&mut self.obsolete_timers)
    }
}

/// When the idle timeout ends a conversation: not before `busy_until`, the latest deadline of its items.
pub fn idle_at(touched_at: Timestamp, idle_ttl_ms: u64, busy_until: Timestamp) -> Timestamp {
    touched_at.plus_millis(idle_ttl_ms).max(busy_until)
}

/// When a conversation ended, if it has: by a recorded end, or by its idle timeout.
pub fn ended_at(ended_at: Option<Timestamp>, idle_at: Timestamp, now: Timestamp) -> Option<Timestamp> {
    ended_at.or_else(|| (now >= idle_at).then_some(idle_at))
}

/// The deadline rule: from `times_out_at` on, an awaiting item counts as timed out, even if the sweeper has not
/// processed it yet. See [`WorkItem::times_out_at`].
pub fn outcome_at(
    settled: Option<(Outcome, Timestamp)>,
    times_out_at: Timestamp,
    now: Timestamp,
) -> Option<(Outcome, Timestamp)> {
    settled.or_else(|| (now >= times_out_at).then_some((Outcome::TimedOut, times_out_at)))
}

impl WorkItemView {
    /// An item at `now`, without the reason of a cancellation. `gate`: the first sequence that is not released.
    /// `ended_at`: when the conversation ended.
    pub fn new(
        item: WorkItem,
        last_heartbeat_at: Option<Timestamp>,
        settled: Option<(Outcome, Timestamp)>,
        bytes: u64,
        gate: Sequence,
        ended_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Self {
        let settled = outcome_at(settled, item.times_out_at(last_heartbeat_at), ended_at.unwrap_or(now));
        let state = match (item.sequence < gate, ended_at, settled) {
            (true, _, _) => State::Released,
            (false, Some(_), _) => State::Dropped,
            (false, None, Some(_)) => State::Held,
            (false, None, None) => State::Awaiting,
        };
        let held_bytes = if state == State::Held { bytes } else { 0 };
        let timed_out = settled.filter(|(outcome, _)| *outcome == Outcome::TimedOut);
        let reason = timed_out.and_then(|(_, at)| item.timeout_cause(at).reason());
        Self { item, state, settled, reason, last_heartbeat_at, held_bytes }
    }

    /// When the item times out unless a heartbeat arrives first. `None` if it needs no heartbeats or is not awaiting.
    pub fn heartbeat_deadline(&self) -> Option<Timestamp> {
        let item = Some(&self.item).filter(|_| self.state == State::Awaiting);
        item.and_then(|item| item.heartbeat_deadline(self.last_heartbeat_at))
    }
}

impl Slot {
    fn fingerprint(&self) -> Option<Fingerprint> {
        self.settlement.as_ref()?.fingerprint
    }

    fn attempt(&self) -> Option<AttemptId> {
        self.settlement.as_ref()?.attempt
    }
}

#[cfg(test)]
mod tests;
