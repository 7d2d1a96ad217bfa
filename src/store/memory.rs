//! The memory store: a mutex around [`crate::domain::gate`]. Its data is lost when the process ends.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::notifier::ChannelNotifier;
use super::{
    Answer, CLAIM_MS, ChannelListener, Due, DueConversation, PAGE_BYTES, Page, Store, StoreError, Waiting,
    group_by_conversation,
};
use crate::clock::Clock;
use crate::domain::envelope::EnvelopeJson;
use crate::domain::gate::{
    Accept, AcceptRefused, Cancel, CancelRefused, CancelTurn, CancelTurnRefused, Cancelled, CancelledTurn,
    Conversation, ConversationNotFound, ConversationView, EndReceipt, Expired, Heartbeat, HeartbeatReceipt,
    HeartbeatRefused, Issue, IssueRefused, Issued, Limits, LookupRefused, Open, OpenRefused, Opened, Receipt,
    RefusedCallback, RefusedHeartbeat, Totals, WorkItemView,
};
use crate::domain::ids::{ConversationRef, Sequence, TraceParent, WorkItemId};
use crate::domain::reason::Reason;
use crate::domain::time::Timestamp;

/// Stores all conversations in the memory of this process.
#[derive(Debug)]
pub struct MemoryStore {
    clock: Clock,
    limits: Limits,
    notifier: ChannelNotifier,
    state: Box<Mutex<MemoryState>>,
}

#[derive(Debug, Default)]
struct MemoryState {
    conversations: HashMap<ConversationRef, Conversation>,
    timers: Timers,
    /// The conversations with held items, by the time at which the oldest of these items was settled.
    waiting: ByTime<ConversationRef>,
}

/// The timer of an item. Without a sequence, the timer of the conversation as a whole.
type Timer = (ConversationRef, Option<Sequence>);

/// Timers. A timer that fires early or is out of date has no effect.
type Timers = ByTime<Timer>;

/// Keys, each with a time. Indexed by time and by key.
#[derive(Debug)]
struct ByTime<K> {
    by_time: BTreeSet<(Timestamp, K)>,
    times: HashMap<K, Timestamp>,
}

impl<K> Default for ByTime<K> {
    fn default() -> Self {
        Self { by_time: BTreeSet::new(), times: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash + Ord> ByTime<K> {
    fn set(&mut self, key: K, time: Timestamp) {
        self.remove(key);
        self.times.insert(key, time);
        self.by_time.insert((time, key));
    }

    fn remove(&mut self, key: K) {
        if let Some(time) = self.times.remove(&key) {
            self.by_time.remove(&(time, key));
        }
    }
}

impl Timers {
    /// The timers that are due at `now`, in order.
    fn due(&self, now: Timestamp) -> impl Iterator<Item = Timer> {
        self.by_time.range(..Self::after(now)).map(|(_, timer)| *timer)
    }

    /// The time of the first timer after `now`.
    fn next(&self, now: Timestamp) -> Option<Timestamp> {
        let later = (Bound::Included(Self::after(now)), Bound::Unbounded);
        self.by_time.range(later).next().map(|(time, _)| *time)
    }

    /// A lower bound for the timers after `time`.
    const fn after(time: Timestamp) -> (Timestamp, Timer) {
        (time.plus_millis(1), (ConversationRef::from_bytes([0; 16]), None))
    }

    /// Number of awaiting items. Each has one timer.
    fn awaiting(&self) -> u64 {
        self.times.keys().filter(|(_, sequence)| sequence.is_some()).count() as u64
    }
}

impl MemoryState {
    /// The conversation, unless its retention is over.
    fn conversation(
        &mut self,
        reference: ConversationRef,
        now: Timestamp,
        limits: &Limits,
    ) -> Option<&mut Conversation> {
        self.conversations.get_mut(&reference).filter(|conversation| !conversation.is_gone(now, limits))
    }

    /// Calls `step` with a conversation, unless its retention is over. Removes the timers that become obsolete, and
    /// updates the index of waiting conversations.
    fn with_conversation<T>(
        &mut self,
        reference: ConversationRef,
        now: Timestamp,
        limits: &Limits,
        step: impl FnOnce(&mut Conversation) -> T,
    ) -> Option<T> {
        let conversation = self.conversation(reference, now, limits)?;
        let (held_before, _) = conversation.held();
        let result = step(conversation);
        let (held, _) = conversation.held();
        let held_since = conversation.held_since();
        for sequence in conversation.take_obsolete_timers() {
            self.timers.remove((reference, Some(sequence)));
        }
        if let Some(since) = held_since {
            self.waiting.set(reference, since);
        } else if held_before > 0 || held > 0 {
            self.waiting.remove(reference);
        }
        Some(result)
    }

    /// Sets the timer of the conversation as a whole.
    fn set_timer(&mut self, reference: ConversationRef, limits: &Limits) {
        if let Some(conversation) = self.conversations.get(&reference) {
            self.timers.set((reference, None), conversation.next_check(limits));
        }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new(clock: Clock, limits: Limits) -> Self {
        Self { clock, limits, notifier: ChannelNotifier::new(None), state: Box::default() }
    }

    /// Locks the state, and returns it with the current time. Ignores a poisoned lock, because every step leaves the
    /// state consistent.
    fn lock(&self) -> (MutexGuard<'_, MemoryState>, Timestamp) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        (state, now)
    }
}

/// The first envelopes that fit into a page, but at least one if there is one.
fn page_of(envelopes: &[EnvelopeJson]) -> &[EnvelopeJson] {
    let fitting = envelopes.iter().scan(0, |bytes, envelope| {
        *bytes += envelope.bytes().len();
        (*bytes <= PAGE_BYTES).then_some(())
    });
    &envelopes[..fitting.count().max(1).min(envelopes.len())]
}

impl Store for MemoryStore {
    async fn open(&self, command: Open) -> Answer<Opened, OpenRefused> {
        let (mut state, now) = self.lock();
        let reference = command.conversation.reference();
        let opened = if let Some(conversation) = state.conversation(reference, now, &self.limits) {
            conversation.reopen(&command, now)
        } else {
            state.conversations.insert(reference, Conversation::open(&command, now, &self.limits));
            state.waiting.remove(reference);
            Ok(Opened { created: true })
        };
        if opened.is_ok() {
            state.set_timer(reference, &self.limits);
        }
        Ok(opened)
    }

    async fn issue(&self, command: Issue) -> Answer<Issued, IssueRefused> {
        let (mut state, now) = self.lock();
        let Some(conversation) = state.conversation(command.conversation, now, &self.limits) else {
            return Ok(Err(IssueRefused::ConversationNotFound));
        };
        let before = conversation.next_sequence();
        let issued = conversation.issue(&command, now, &self.limits);
        if let Ok(Issued { item, .. }) = &issued
            && item.sequence == before
        {
            state.timers.set((command.conversation, Some(item.sequence)), item.times_out_at(None));
        }
        Ok(issued)
    }

    async fn accept(&self, command: Accept) -> Answer<Receipt, RefusedCallback> {
        let (mut state, now) = self.lock();
        if now >= command.expires_at {
            return Ok(Err(RefusedCallback { why: AcceptRefused::TokenExpired, target: None }));
        }
        let accept = |conversation: &mut Conversation| {
            conversation.accept(&command, now, &self.limits).map_err(|why| RefusedCallback {
                why,
                target: Some(Box::new(conversation.target(command.work_item))),
            })
        };
        let Some(accepted) = state.with_conversation(command.conversation, now, &self.limits, accept) else {
            return Ok(Err(RefusedCallback { why: AcceptRefused::ConversationEnded, target: None }));
        };
        if accepted.is_ok() {
            self.notifier.notify(command.conversation);
        }
        Ok(accepted)
    }

    async fn heartbeat(&self, command: Heartbeat) -> Answer<HeartbeatReceipt, RefusedHeartbeat> {
        let (mut state, now) = self.lock();
        let refused = |why, target| Ok(Err(RefusedHeartbeat { why, target }));
        if now >= command.expires_at {
            return refused(HeartbeatRefused::TokenExpired, None);
        }
        let Some(conversation) = state.conversation(command.conversation, now, &self.limits) else {
            return refused(HeartbeatRefused::ConversationEnded, None);
        };
        match conversation.heartbeat(&command, now) {
            Ok(receipt) => {
                if let Some(progress) = command.progress.filter(|_| receipt.published) {
                    self.notifier.publish(command.conversation, progress.event(&receipt.item.item, now));
                }
                Ok(Ok(receipt))
            }
            Err(why) => refused(why, Some(Box::new(conversation.target(command.work_item)))),
        }
    }

    async fn cancel(&self, command: Cancel) -> Answer<Cancelled, CancelRefused> {
        let (mut state, now) = self.lock();
        let cancel = |conversation: &mut Conversation| conversation.cancel(&command, now);
        let Some(cancelled) = state.with_conversation(command.conversation, now, &self.limits, cancel) else {
            return Ok(Err(CancelRefused::ConversationNotFound));
        };
        if cancelled.is_ok() {
            self.notifier.notify(command.conversation);
        }
        Ok(cancelled)
    }

    async fn cancel_turn(&self, command: CancelTurn) -> Answer<CancelledTurn, CancelTurnRefused> {
        let (mut state, now) = self.lock();
        let cancel = |conversation: &mut Conversation| conversation.cancel_turn(&command, now);
        let Some(cancelled) = state.with_conversation(command.conversation, now, &self.limits, cancel) else {
            return Ok(Err(CancelTurnRefused::ConversationNotFound));
        };
        if cancelled.is_ok() {
            self.notifier.notify(command.conversation);
        }
        Ok(cancelled)
    }

    async fn end(
        &self,
        reference: ConversationRef,
        traceparent: Option<TraceParent>,
        reason: Option<Reason>,
    ) -> Answer<EndReceipt, ConversationNotFound> {
        let (mut state, now) = self.lock();
        let end =
            |conversation: &mut Conversation| conversation.end(traceparent.as_ref(), reason.as_ref(), now);
        let Some(ended) = state.with_conversation(reference, now, &self.limits, end) else {
            return Ok(Err(ConversationNotFound));
        };
        state.set_timer(reference, &self.limits);
        drop(state);
        self.notifier.notify(reference);
        Ok(Ok(ended))
    }

    async fn expire(
        &self,
        due: DueConversation,
        traceparent: Option<TraceParent>,
    ) -> Result<Expired, StoreError> {
        let (mut state, now) = self.lock();
        let reference = due.conversation;
        let expire =
            |conversation: &mut Conversation| conversation.expire(&due.sequences, traceparent.as_ref(), now);
        let expired = state.with_conversation(reference, now, &self.limits, expire).unwrap_or_default();
        // `due` has moved the claimed timers. Set the timer of an awaiting item to the time at which it times out, and
        // remove the timer of any other item.
        for &sequence in &due.sequences {
            let conversation = state.conversations.get(&reference);
            let live = conversation.filter(|conversation| conversation.ended_at(now).is_none());
            match live.and_then(|conversation| conversation.times_out_at(sequence)) {
                Some(time) => state.timers.set((reference, Some(sequence)), time),
                None => state.timers.remove((reference, Some(sequence))),
            }
        }
        let (gone, ended) = match state.conversations.get(&reference) {
            Some(known) => (known.is_gone(now, &self.limits), known.ended_at(now).is_some()),
            None => (due.whole, false),
        };
        if gone {
            let former = state.conversations.remove(&reference);
            for sequence in former.iter().flat_map(Conversation::awaiting) {
                state.timers.remove((reference, Some(sequence)));
            }
            state.timers.remove((reference, None));
            state.waiting.remove(reference);
        } else if due.whole || ended {
            state.set_timer(reference, &self.limits);
        }
        self.notifier.notify(reference);
        Ok(expired)
    }

    async fn due(&self, partitions: &[u16], limit: usize) -> Result<Due, StoreError> {
        let (mut state, now) = self.lock();
        let due: Vec<Timer> = state.timers.due(now).take(limit).collect();
        let more = state.timers.due(now).nth(limit).is_some();
        let next = if more { Some(0) } else { state.timers.next(now).map(|time| now.millis_until(time)) };
        for &timer in &due {
            state.timers.set(timer, now.plus_millis(CLAIM_MS));
        }
        let next_in_ms = partitions.iter().map(|&partition| (partition, next)).collect();
        Ok(Due { now, conversations: group_by_conversation(due), next_in_ms })
    }

    async fn postpone(&self, _: &DueConversation, _: Duration) -> Result<(), StoreError> {
        Ok(())
    }

    async fn announce(&self, _: u64, _: u16) -> Result<(), StoreError> {
        Ok(())
    }

    async fn announced(&self, _: u64) -> Result<Vec<u16>, StoreError> {
        Ok(Vec::new())
    }

    fn partitions(&self) -> u16 {
        1
    }

    async fn totals(&self, _: &[u16]) -> Result<Totals, StoreError> {
        let (state, _) = self.lock();
        let live = state.conversations.values().filter(|conversation| !conversation.has_ended());
        let awaiting = state.timers.awaiting();
        Ok(live.fold(Totals { awaiting, ..Totals::default() }, |totals, conversation| {
            let (held, bytes) = conversation.held();
            Totals { held: totals.held + held, held_bytes: totals.held_bytes + bytes, ..totals }
        }))
    }

    async fn waiting(&self, limit: usize) -> Result<Waiting, StoreError> {
        let (state, now) = self.lock();
        let indexed = state.waiting.by_time.iter();
        let known = indexed.filter_map(|(_, reference)| state.conversations.get(reference)?.waiting(now));
        let mut conversations: Vec<_> = known.take(limit.saturating_add(1)).collect();
        let truncated = conversations.len() > limit;
        conversations.truncate(limit);
        Ok(Waiting { conversations, truncated })
    }

    async fn inspect(&self, reference: ConversationRef) -> Answer<ConversationView, ConversationNotFound> {
        let (mut state, now) = self.lock();
        let conversation = state.conversation(reference, now, &self.limits);
        Ok(conversation.map(|conversation| conversation.inspect(now)).ok_or(ConversationNotFound))
    }

    async fn work_item(
        &self,
        reference: ConversationRef,
        work_item: WorkItemId,
    ) -> Answer<WorkItemView, LookupRefused> {
        let (mut state, now) = self.lock();
        let Some(conversation) = state.conversation(reference, now, &self.limits) else {
            return Ok(Err(LookupRefused::ConversationNotFound));
        };
        Ok(conversation.work_item(work_item, now).ok_or(LookupRefused::WorkItemNotFound))
    }

    async fn read(
        &self,
        reference: ConversationRef,
        after: Option<Sequence>,
        count: usize,
    ) -> Answer<Page, ConversationNotFound> {
        let (mut state, now) = self.lock();
        let Some(conversation) = state.conversation(reference, now, &self.limits) else {
            return Ok(Err(ConversationNotFound));
        };
        Ok(Ok(Page {
            opened_at: conversation.opened_at(),
            envelopes: page_of(conversation.read(after, count)).to_vec(),
            released: conversation.released(),
            ended: conversation.ended_at(now).is_some(),
            end_reason: conversation.end_reason().cloned(),
            idle_in_ms: now.millis_until(conversation.idle_at()),
        }))
    }

    fn watch(&self, conversation: ConversationRef) -> ChannelListener {
        self.notifier.watch(conversation)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn channel(&self, _: ConversationRef) -> Option<String> {
        None
    }
}
