//! **The sequence gate**: the rules of one conversation, as a pure state machine.
//!
//! The memory store calls these rules; `store/redis/scripts/gate.lua` states them again for Redis, function by
//! function under the same names, and a model test binds the two.
//!
//! | rule | here |
//! |---|---|
//! | what is released, and when | [`Conversation::release`] |
//! | when a conversation has ended | [`Conversation::ended_at`] |
//! | what an item's outcome is at a time | `Slot::outcome_at` |
//! | whether a callback is taken | [`Conversation::accept`] |
//! | when a limit is reached | [`Conversation::accept`], [`Conversation::issue`] |

mod commands;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

pub use commands::{
    Accept, AcceptRefused, Cancel, CancelRefused, Cancelled, ConversationNotFound, ConversationView,
    Delivery, EndReceipt, Ended, Expired, Issue, IssueRefused, Issued, Known, LookupRefused, MOST_TOLD,
    NotAccepted, Open, OpenRefused, Opened, Receipt, Released, TimedOut, Totals, WorkItemView,
};

use super::envelope::Envelope;
use super::ids::{
    AttemptId, ConversationId, Fingerprint, IdempotencyDigest, RequestId, Sequence, TraceParent, WorkItemId,
};
use super::result::Payload;
use super::time::Timestamp;
use super::work_item::{Outcome, State, WorkItem};

/// What one conversation may take up, and how long it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most items that are settled and not released.
    pub max_held_items: u64,
    /// Most bytes of results that are settled and not released.
    pub max_held_bytes: u64,
    /// Most items that are not settled.
    pub max_awaiting_items: u64,
    /// Most envelopes on a channel; as many items can be issued.
    pub max_channel_length: u64,
    /// How long a conversation may be left untouched, unless it was opened with another time.
    pub conversation_idle_ttl_ms: u64,
    /// How long an ended conversation and its channel can be read.
    pub ended_retention_ms: u64,
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
    /// Taken out when the item is released.
    payload: Option<Payload>,
}

impl Settlement {
    const fn timed_out(deadline: Timestamp, traceparent: Option<TraceParent>) -> Self {
        Self {
            outcome: Outcome::TimedOut,
            received_at: deadline,
            request_id: None,
            traceparent,
            attempt: None,
            fingerprint: None,
            payload: None,
        }
    }

    fn held_bytes(&self) -> u64 {
        self.payload.as_ref().map_or(0, size)
    }
}

fn size(payload: &Payload) -> u64 {
    u64::try_from(payload.bytes().len()).unwrap_or(u64::MAX)
}

/// A work item in the gate.
#[derive(Clone, Debug)]
struct Slot {
    item: WorkItem,
    settlement: Option<Settlement>,
}

impl Slot {
    /// The rule of deadlines: an item that nothing has settled is timed out from its deadline on,
    /// whether anybody has swept it or not.
    fn outcome_at(&self, now: Timestamp) -> Option<(Outcome, Timestamp)> {
        match &self.settlement {
            Some(settlement) => Some((settlement.outcome, settlement.received_at)),
            None if now >= self.item.deadline => Some((Outcome::TimedOut, self.item.deadline)),
            None => None,
        }
    }
}

/// A conversation: its work items in the order of issue, and its routing channel.
#[derive(Clone, Debug)]
pub struct Conversation {
    id: ConversationId,
    opened_by: AttemptId,
    opened_at: Timestamp,
    touched_at: Timestamp,
    idle_ttl_ms: u64,
    ended: Option<Ended>,
    traceparent: Option<TraceParent>,
    next: Sequence,
    gate: Sequence,
    awaiting: u64,
    held_bytes: u64,
    slots: BTreeMap<Sequence, Slot>,
    by_id: HashMap<WorkItemId, Sequence>,
    issued_by_key: HashMap<IdempotencyDigest, (Fingerprint, Sequence)>,
    channel: Vec<Envelope>,
    /// Whether somebody was told that it was left untouched.
    end_told: bool,
    /// What the step under way has settled.
    fresh: BTreeSet<Sequence>,
    /// Deadlines that settle nothing any more, until somebody takes them.
    done_timers: Vec<(Timestamp, WorkItemId)>,
}

impl Conversation {
    /// A new conversation.
    pub fn open(command: &Open, now: Timestamp, limits: &Limits) -> Self {
        Self {
            id: command.conversation.clone(),
            opened_by: command.attempt,
            opened_at: now,
            touched_at: now,
            idle_ttl_ms: command.idle_ttl_ms.unwrap_or(limits.conversation_idle_ttl_ms),
            ended: None,
            traceparent: command.traceparent.clone(),
            next: Sequence::FIRST,
            gate: Sequence::FIRST,
            awaiting: 0,
            held_bytes: 0,
            slots: BTreeMap::new(),
            by_id: HashMap::new(),
            issued_by_key: HashMap::new(),
            channel: Vec::new(),
            end_told: false,
            fresh: BTreeSet::new(),
            done_timers: Vec::new(),
        }
    }

    /// Opens it again: touches it, and takes over what the command names.
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

    /// When it counts as ended, if nothing touches it.
    pub const fn idle_at(&self) -> Timestamp {
        self.touched_at.plus_millis(self.idle_ttl_ms)
    }

    /// When it ended, if it has: by command, or by being left untouched.
    pub fn ended_at(&self, now: Timestamp) -> Option<Timestamp> {
        match self.ended {
            Some(ended) => Some(ended.ended_at),
            None if now >= self.idle_at() => Some(self.idle_at()),
            None => None,
        }
    }

    /// Whether it ended so long ago that nobody can ask for it any more.
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
        // An attempt whose answer was lost is told what it did, whatever came after it.
        if let Some(slot) = self.slot(command.work_item) {
            return Ok(Issued { item: slot.item.clone(), repeated: false });
        }
        if self.ended_at(now).is_some() {
            return Err(IssueRefused::ConversationEnded);
        }
        if let Some((key, fingerprint)) = &command.idempotency
            && let Some((known, sequence)) = self.issued_by_key.get(key)
            && let Some(slot) = self.slots.get(sequence)
        {
            if known != fingerprint {
                return Err(IssueRefused::IdempotencyConflict);
            }
            return Ok(Issued { item: slot.item.clone(), repeated: true });
        }
        if self.awaiting >= limits.max_awaiting_items {
            return Err(IssueRefused::AwaitingLimit);
        }
        if self.next.get() > limits.max_channel_length {
            return Err(IssueRefused::ChannelLimit);
        }
        let deadline = now.plus_millis(command.timeout_ms);
        let item = WorkItem {
            id: command.work_item,
            sequence: self.next,
            kind: command.kind,
            turn_id: command.turn_id.clone(),
            issued_at: now,
            deadline,
            expires_at: deadline.plus_millis(command.replay_window_ms),
            key_id: command.key_id,
            traceparent: [&command.traceparent, &self.traceparent, &command.request_traceparent]
                .into_iter()
                .find_map(Clone::clone),
        };
        self.slots.insert(item.sequence, Slot { item: item.clone(), settlement: None });
        self.by_id.insert(item.id, item.sequence);
        if let Some((key, fingerprint)) = command.idempotency {
            self.issued_by_key.insert(key, (fingerprint, item.sequence));
        }
        self.next = self.next.next();
        self.awaiting += 1;
        self.touched_at = now;
        Ok(Issued { item, repeated: false })
    }

    /// Takes a callback: first settlement wins, the same one again is told what the first was told.
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
        let replayed = match (slot.fingerprint(), slot.outcome_at(now)) {
            (Some(first), _) if first != command.result.fingerprint => return Err(AcceptRefused::TokenUsed),
            (Some(_), _) => slot.attempt() != Some(command.attempt),
            (None, Some((Outcome::TimedOut, _))) => return Err(AcceptRefused::WorkItemTimedOut),
            (None, Some((Outcome::Cancelled, _))) => return Err(AcceptRefused::WorkItemCancelled),
            (None, Some((Outcome::Succeeded | Outcome::Failed, _))) => return Err(AcceptRefused::TokenUsed),
            (None, None) => {
                self.check_held(sequence, size(&command.result.payload), now, limits)?;
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
                        payload: Some(command.result.payload.clone()),
                    },
                );
                self.touched_at = now;
                false
            }
        };
        let released = if ended { Vec::new() } else { self.release(now, command.traceparent.as_ref()) };
        self.receipt(sequence, replayed, released).ok_or(AcceptRefused::WorkItemUnknown)
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
        })
    }

    /// The rule of held results: one that is released in the same step is never too much.
    fn check_held(
        &self,
        sequence: Sequence,
        bytes: u64,
        now: Timestamp,
        limits: &Limits,
    ) -> Result<(), AcceptRefused> {
        let mut before = self.slots.range(self.gate..sequence);
        let blocked = before.any(|(_, slot)| slot.outcome_at(now).is_none());
        let held_items = self.next.get() - self.gate.get() - self.awaiting;
        let too_much = held_items >= limits.max_held_items
            || self.held_bytes.saturating_add(bytes) > limits.max_held_bytes;
        if blocked && too_much { Err(AcceptRefused::HeldLimit) } else { Ok(()) }
    }

    /// Withdraws a work item.
    pub fn cancel(&mut self, command: &Cancel, now: Timestamp) -> Result<Cancelled, CancelRefused> {
        let Some(slot) = self.slot(command.work_item) else {
            return Err(CancelRefused::WorkItemNotFound);
        };
        // An attempt whose answer was lost is told what it did, unless the end has dropped it since.
        let ended = self.ended_at(now).is_some();
        let sequence = slot.item.sequence;
        let repeated = slot.attempt() == Some(command.attempt) && (!ended || sequence < self.gate);
        match slot.outcome_at(now) {
            Some((Outcome::Cancelled, _)) if repeated => {}
            _ if ended => return Err(CancelRefused::ConversationEnded),
            Some((outcome, _)) => return Err(CancelRefused::WorkItemSettled(outcome)),
            None => {
                self.settle(
                    sequence,
                    Settlement {
                        outcome: Outcome::Cancelled,
                        received_at: now,
                        request_id: Some(command.request_id),
                        traceparent: command.traceparent.clone(),
                        attempt: Some(command.attempt),
                        fingerprint: None,
                        payload: None,
                    },
                );
                self.touched_at = now;
            }
        }
        let released = if ended { Vec::new() } else { self.release(now, command.traceparent.as_ref()) };
        let item = self.work_item(command.work_item, now).ok_or(CancelRefused::WorkItemNotFound)?;
        Ok(Cancelled { item, released })
    }

    /// Ends it. What is due by now is still released; what is held or awaiting then is dropped.
    /// Ending twice is the same as once.
    pub fn end(&mut self, traceparent: Option<&TraceParent>, now: Timestamp) -> EndReceipt {
        let repeated = self.ended_at(now).is_some();
        let mut released = Vec::new();
        if !repeated {
            released = self.release(now, traceparent);
            self.ended = Some(self.left_behind(now));
            for slot in self.slots.range_mut(self.gate..).map(|(_, slot)| slot) {
                match &mut slot.settlement {
                    Some(settlement) => settlement.payload = None,
                    None => self.done_timers.push((slot.item.deadline, slot.item.id)),
                }
            }
        }
        let ended = self.ended.unwrap_or_else(|| self.left_behind(self.idle_at()));
        EndReceipt { ended, repeated, released }
    }

    /// What is dropped when it ends at this time.
    fn left_behind(&self, ended_at: Timestamp) -> Ended {
        let settled = |slot: &&Slot| slot.outcome_at(ended_at).is_some();
        let dropped_held = self.unreleased().filter(settled).count();
        let dropped_awaiting = self.unreleased().count() - dropped_held;
        Ended { ended_at, dropped_held: dropped_held as u64, dropped_awaiting: dropped_awaiting as u64 }
    }

    /// Times out those of the named items that are due. A stale timer finds nothing to do.
    pub fn expire(
        &mut self,
        work_items: &[WorkItemId],
        traceparent: Option<&TraceParent>,
        now: Timestamp,
    ) -> Expired {
        if self.ended_at(now).is_some() {
            let timer = |&id| self.deadline_of(id).map(|deadline| (deadline, id));
            let done: Vec<_> = work_items.iter().filter_map(timer).collect();
            self.done_timers.extend(done);
            // Left untouched, it ended without a step that would have told of it.
            let told = std::mem::replace(&mut self.end_told, true);
            if told || self.ended.is_some() {
                return Expired::default();
            }
            let dropped_held = self.held().0;
            return Expired { conversation_id: Some(self.id.clone()), dropped_held, ..Expired::default() };
        }
        let mut timed_out = Vec::new();
        for &work_item in work_items {
            let due =
                self.slot(work_item).filter(|slot| slot.settlement.is_none() && now >= slot.item.deadline);
            if let Some(item) = due.map(|slot| slot.item.clone()) {
                self.settle(item.sequence, Settlement::timed_out(item.deadline, traceparent.cloned()));
                timed_out.push(TimedOut {
                    work_item,
                    sequence: item.sequence,
                    kind: item.kind,
                    late_ms: item.deadline.millis_until(now),
                    issued_in: item.traceparent,
                });
            }
        }
        let released = self.release(now, traceparent);
        Expired { conversation_id: Some(self.id.clone()), timed_out, dropped_held: 0, released }
    }

    fn settle(&mut self, sequence: Sequence, settlement: Settlement) {
        if let Some(slot) = self.slots.get_mut(&sequence) {
            self.held_bytes += settlement.held_bytes();
            slot.settlement = Some(settlement);
            self.fresh.insert(sequence);
            self.done_timers.push((slot.item.deadline, slot.item.id));
            self.awaiting -= 1;
        }
    }

    /// **The rule of the gate**: beginning with the sequence it waits for, every item that is settled, or whose
    /// deadline has passed, is released, up to the first that is neither.
    fn release(&mut self, now: Timestamp, traceparent: Option<&TraceParent>) -> Vec<Released> {
        let mut released = Vec::new();
        while let Some(slot) = self.slots.get(&self.gate) {
            if slot.settlement.is_none() {
                let deadline = slot.item.deadline;
                if now < deadline {
                    break;
                }
                self.settle(self.gate, Settlement::timed_out(deadline, traceparent.cloned()));
            }
            let told = self.append(self.gate, now);
            released.extend(told.filter(|_| released.len() < MOST_TOLD));
            self.gate = self.gate.next();
        }
        self.fresh.clear();
        released
    }

    fn append(&mut self, sequence: Sequence, now: Timestamp) -> Option<Released> {
        let slot = self.slots.get_mut(&sequence)?;
        let settlement = slot.settlement.as_mut()?;
        self.held_bytes -= settlement.held_bytes();
        let settled_in = settlement.traceparent.clone();
        self.channel.push(Envelope {
            sequence,
            conversation_id: self.id.clone(),
            work_item_id: slot.item.id,
            turn_id: slot.item.turn_id.clone(),
            kind: slot.item.kind,
            outcome: settlement.outcome,
            payload: settlement.payload.take(),
            issued_at: slot.item.issued_at,
            received_at: settlement.received_at,
            released_at: now,
            request_id: settlement.request_id,
            traceparent: settled_in.clone().or_else(|| slot.item.traceparent.clone()),
        });
        Some(Released {
            sequence,
            work_item: slot.item.id,
            kind: slot.item.kind,
            outcome: settlement.outcome,
            issued_at: slot.item.issued_at,
            received_at: settlement.received_at,
            released_at: now,
            held: !self.fresh.contains(&sequence),
            issued_in: slot.item.traceparent.clone(),
            settled_in,
        })
    }

    fn slot(&self, work_item: WorkItemId) -> Option<&Slot> {
        self.slots.get(self.by_id.get(&work_item)?)
    }

    fn unreleased(&self) -> impl Iterator<Item = &Slot> {
        self.slots.range(self.gate..).map(|(_, slot)| slot)
    }

    /// The envelopes after a sequence, at most `count`.
    pub fn read(&self, after: Option<Sequence>, count: usize) -> &[Envelope] {
        let released = self.channel.len();
        let start = after.map_or(0, |after| usize::try_from(after.get()).unwrap_or(usize::MAX)).min(released);
        let range: Range<usize> = start..start.saturating_add(count).min(released);
        &self.channel[range]
    }

    /// How many envelopes the channel has.
    pub fn released(&self) -> u64 {
        self.gate.get() - 1
    }

    /// How many items are settled and not released, and the bytes of their results.
    pub const fn held(&self) -> (u64, u64) {
        (self.next.get() - self.gate.get() - self.awaiting, self.held_bytes)
    }

    /// What is known of a callback that is not taken.
    pub fn known(&self, work_item: WorkItemId) -> Known {
        let item = self.slot(work_item).map(|slot| slot.item.clone());
        Known { conversation_id: self.id.clone(), item }
    }

    /// One work item as it stands.
    pub fn work_item(&self, work_item: WorkItemId, now: Timestamp) -> Option<WorkItemView> {
        self.slot(work_item).map(|slot| self.view(slot, now))
    }

    fn view(&self, slot: &Slot, now: Timestamp) -> WorkItemView {
        let ended_at = self.ended_at(now);
        let settled = slot.outcome_at(ended_at.unwrap_or(now));
        let state = match (slot.item.sequence < self.gate, ended_at, settled) {
            (true, _, _) => State::Released,
            (false, Some(_), _) => State::Dropped,
            (false, None, Some(_)) => State::Held,
            (false, None, None) => State::Awaiting,
        };
        let held_bytes = match (&slot.settlement, state) {
            (Some(settlement), State::Held) => settlement.held_bytes(),
            _ => 0,
        };
        WorkItemView { item: slot.item.clone(), state, settled, held_bytes }
    }

    /// All of it as it stands.
    pub fn inspect(&self, now: Timestamp) -> ConversationView {
        let unreleased: Vec<_> = self.unreleased().map(|slot| self.view(slot, now)).collect();
        let awaited = unreleased.iter().find(|view| view.settled.is_none());
        ConversationView {
            conversation_id: self.id.clone(),
            opened_at: self.opened_at,
            idle_at: self.idle_at(),
            ended: self.ended_at(now).map(|at| self.ended.unwrap_or_else(|| self.left_behind(at))),
            traceparent: self.traceparent.clone(),
            next_sequence: self.next,
            waiting_for: awaited.map_or(self.next, |view| view.item.sequence),
            unreleased,
            now,
        }
    }

    /// The deadline of an item, while nothing has settled it.
    pub fn deadline_of(&self, work_item: WorkItemId) -> Option<Timestamp> {
        self.slot(work_item).filter(|slot| slot.settlement.is_none()).map(|slot| slot.item.deadline)
    }

    /// Takes the deadlines that settle nothing any more, so that nobody is reminded of them.
    pub fn take_done_timers(&mut self) -> Vec<(Timestamp, WorkItemId)> {
        std::mem::take(&mut self.done_timers)
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
