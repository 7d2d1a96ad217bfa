//! The embedded store: a mutex around [`crate::domain::gate`]. In this process, and gone with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::wakes::Wakes;
use super::{Answer, ChannelAddress, Due, DueConversation, Page, Store, StoreError, Wake};
use crate::clock::Clock;
use crate::domain::gate::{
    Accept, AcceptRefused, Cancel, CancelRefused, Cancelled, Conversation, ConversationNotFound,
    ConversationView, EndReceipt, Expired, Issue, IssueRefused, Issued, Limits, LookupRefused, NotAccepted,
    Open, OpenRefused, Opened, Receipt, Totals, WorkItemView,
};
use crate::domain::ids::{ConversationRef, Sequence, TraceParent, WorkItemId};
use crate::domain::time::Timestamp;

/// Conversations in this process's memory.
#[derive(Debug)]
pub struct MemoryStore {
    clock: Clock,
    limits: Limits,
    wakes: Wakes,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    conversations: HashMap<ConversationRef, Conversation>,
    /// Reminders of deadlines. One that came too early or too late settles nothing.
    deadlines: BTreeSet<Deadline>,
    /// When conversations were last looked through for what nobody can ask for any more.
    collected_at: Option<Timestamp>,
}

type Deadline = (Timestamp, ConversationRef, WorkItemId);

/// How often what nobody can ask for any more is given back, in milliseconds.
const COLLECT_EVERY_MS: u64 = 1_000;

impl State {
    /// The conversation, unless it is gone.
    fn conversation(
        &mut self,
        reference: ConversationRef,
        now: Timestamp,
        limits: &Limits,
    ) -> Option<&mut Conversation> {
        self.conversations.get_mut(&reference).filter(|conversation| !conversation.is_gone(now, limits))
    }

    /// One step on a conversation, unless it is gone. Nobody is reminded any more of what the step settled.
    fn step_on<T>(
        &mut self,
        reference: ConversationRef,
        now: Timestamp,
        limits: &Limits,
        step: impl FnOnce(&mut Conversation) -> T,
    ) -> Option<T> {
        let conversation = self.conversation(reference, now, limits)?;
        let done = step(conversation);
        for (deadline, work_item) in conversation.take_done_timers() {
            self.deadlines.remove(&(deadline, reference, work_item));
        }
        Some(done)
    }

    /// The greatest entry that a deadline at `time` can have.
    const fn last_at(time: Timestamp) -> Deadline {
        (time, ConversationRef::from_bytes([0xff; 16]), WorkItemId::from_uuid(uuid::Uuid::max()))
    }

    /// The reminders whose time has come.
    fn due(&self, now: Timestamp) -> impl Iterator<Item = Deadline> {
        self.deadlines.range(..=Self::last_at(now)).copied()
    }

    fn collect(&mut self, now: Timestamp, limits: &Limits) {
        let due = self.collected_at.is_none_or(|last| last.millis_until(now) >= COLLECT_EVERY_MS);
        if due {
            self.conversations.retain(|_, conversation| !conversation.is_gone(now, limits));
            self.collected_at = Some(now);
        }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new(clock: Clock, limits: Limits) -> Self {
        Self { clock, limits, wakes: Wakes::new(None), state: Mutex::default() }
    }

    /// The state and the time. The state is whole after every step, so a panic elsewhere does not spoil it.
    fn step(&self) -> (MutexGuard<'_, State>, Timestamp) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        (state, now)
    }
}

impl Store for MemoryStore {
    async fn open(&self, command: Open) -> Answer<Opened, OpenRefused> {
        let (mut state, now) = self.step();
        let reference = command.conversation.reference();
        if let Some(conversation) = state.conversation(reference, now, &self.limits) {
            return Ok(conversation.reopen(&command, now));
        }
        state.conversations.insert(reference, Conversation::open(&command, now, &self.limits));
        Ok(Ok(Opened { created: true }))
    }

    async fn issue(&self, command: Issue) -> Answer<Issued, IssueRefused> {
        let (mut state, now) = self.step();
        let Some(conversation) = state.conversation(command.conversation, now, &self.limits) else {
            return Ok(Err(IssueRefused::ConversationNotFound));
        };
        let issued = conversation.issue(&command, now, &self.limits);
        let awaits = issued.is_ok() && conversation.ended_at(now).is_none();
        if let Some(deadline) = conversation.deadline_of(command.work_item).filter(|_| awaits) {
            state.deadlines.insert((deadline, command.conversation, command.work_item));
        }
        Ok(issued)
    }

    async fn accept(&self, command: Accept) -> Answer<Receipt, NotAccepted> {
        let (mut state, now) = self.step();
        if now >= command.expires_at {
            return Ok(Err(NotAccepted { why: AcceptRefused::TokenExpired, known: None }));
        }
        let accept = |conversation: &mut Conversation| {
            conversation.accept(&command, now, &self.limits).map_err(|why| NotAccepted {
                why,
                known: Some(Box::new(conversation.known(command.work_item))),
            })
        };
        let Some(accepted) = state.step_on(command.conversation, now, &self.limits, accept) else {
            return Ok(Err(NotAccepted { why: AcceptRefused::ConversationEnded, known: None }));
        };
        if accepted.is_ok() {
            self.wakes.wake(command.conversation);
        }
        Ok(accepted)
    }

    async fn cancel(&self, command: Cancel) -> Answer<Cancelled, CancelRefused> {
        let (mut state, now) = self.step();
        let cancel = |conversation: &mut Conversation| conversation.cancel(&command, now);
        let Some(cancelled) = state.step_on(command.conversation, now, &self.limits, cancel) else {
            return Ok(Err(CancelRefused::ConversationNotFound));
        };
        if cancelled.is_ok() {
            self.wakes.wake(command.conversation);
        }
        Ok(cancelled)
    }

    async fn end(
        &self,
        reference: ConversationRef,
        traceparent: Option<TraceParent>,
    ) -> Answer<EndReceipt, ConversationNotFound> {
        let (mut state, now) = self.step();
        let end = |conversation: &mut Conversation| conversation.end(traceparent.as_ref(), now);
        let Some(ended) = state.step_on(reference, now, &self.limits, end) else {
            return Ok(Err(ConversationNotFound));
        };
        drop(state);
        self.wakes.wake(reference);
        Ok(Ok(ended))
    }

    async fn expire(
        &self,
        due: DueConversation,
        traceparent: Option<TraceParent>,
    ) -> Result<Expired, StoreError> {
        let (mut state, now) = self.step();
        let expire = |conversation: &mut Conversation| {
            let expired = conversation.expire(&due.work_items, traceparent.as_ref(), now);
            let unknown = |id: &WorkItemId| conversation.work_item(*id, now).is_none();
            (expired, due.work_items.iter().copied().filter(unknown).collect())
        };
        // What the conversation does not know was of one before it, that is gone.
        let (expired, gone): (_, Vec<_>) = state
            .step_on(due.conversation, now, &self.limits, expire)
            .unwrap_or_else(|| (Expired::default(), due.work_items.clone()));
        let entries: Vec<Deadline> = if gone.is_empty() {
            Vec::new()
        } else {
            state.due(now).filter(|(_, of, id)| *of == due.conversation && gone.contains(id)).collect()
        };
        for entry in &entries {
            state.deadlines.remove(entry);
        }
        self.wakes.wake(due.conversation);
        Ok(expired)
    }

    async fn due(&self, limit: usize) -> Result<Due, StoreError> {
        let (mut state, now) = self.step();
        state.collect(now, &self.limits);
        let mut found: BTreeMap<ConversationRef, Vec<WorkItemId>> = BTreeMap::new();
        for (_, conversation, work_item) in state.due(now).take(limit) {
            found.entry(conversation).or_default().push(work_item);
        }
        let more = state.due(now).nth(limit).is_some();
        let next = state.deadlines.range((Bound::Excluded(State::last_at(now)), Bound::Unbounded)).next();
        Ok(Due {
            conversations: found
                .into_iter()
                .map(|(conversation, work_items)| DueConversation { conversation, work_items })
                .collect(),
            next_in_ms: next.map(|(deadline, _, _)| now.millis_until(*deadline)),
            more,
        })
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        let (state, now) = self.step();
        let live = state.conversations.values().filter(|conversation| conversation.ended_at(now).is_none());
        let awaiting = state.deadlines.len() as u64;
        Ok(live.fold(Totals { awaiting, ..Totals::default() }, |totals, conversation| {
            let (held, bytes) = conversation.held();
            Totals { held: totals.held + held, held_bytes: totals.held_bytes + bytes, ..totals }
        }))
    }

    async fn inspect(&self, reference: ConversationRef) -> Answer<ConversationView, ConversationNotFound> {
        let (mut state, now) = self.step();
        let conversation = state.conversation(reference, now, &self.limits);
        Ok(conversation.map(|conversation| conversation.inspect(now)).ok_or(ConversationNotFound))
    }

    async fn work_item(
        &self,
        reference: ConversationRef,
        work_item: WorkItemId,
    ) -> Answer<WorkItemView, LookupRefused> {
        let (mut state, now) = self.step();
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
        let (mut state, now) = self.step();
        let Some(conversation) = state.conversation(reference, now, &self.limits) else {
            return Ok(Err(ConversationNotFound));
        };
        Ok(Ok(Page {
            envelopes: conversation.read(after, count).to_vec(),
            released: conversation.released(),
            ended: conversation.ended_at(now).is_some(),
            idle_in_ms: now.millis_until(conversation.idle_at()),
        }))
    }

    fn watch(&self, conversation: ConversationRef) -> Wake {
        self.wakes.watch(conversation)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn channel(&self, _: ConversationRef) -> ChannelAddress {
        ChannelAddress::EventStreamOnly
    }
}
