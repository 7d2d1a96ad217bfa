//! Where conversations live: one trait, a closed set of implementations, one test suite for all of them.

mod health;
pub mod memory;
mod observed;
pub mod redis;
mod schedule;
mod wakes;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
pub use health::StoreHealth;
pub use observed::Observed;
pub use schedule::Schedule;
use thiserror::Error;
pub use wakes::Wake;

use crate::domain::gate::{
    Accept, Cancel, CancelRefused, Cancelled, ConversationNotFound, ConversationView, EndReceipt, Expired,
    Issue, IssueRefused, Issued, LookupRefused, NotAccepted, Open, OpenRefused, Opened, Receipt, Totals,
    WorkItemView,
};
use crate::domain::ids::{ConversationRef, Sequence, TraceParent, WorkItemId};
use crate::domain::time::Timestamp;

/// Why a store gave no answer. A refusal is an answer and not one of these.
#[derive(Debug, Error)]
pub enum StoreError {
    /// It cannot be reached, or refuses to work: nothing happened, nothing was spent.
    #[error("the store cannot be reached")]
    Unavailable(#[source] Cause),
    /// The answer was lost: the step happened or did not. Repeating it is safe and tells.
    #[error("the store's answer was lost")]
    OutcomeUnknown(#[source] Cause),
    /// The store holds or answers something that this version cannot read.
    #[error("the store's answer makes no sense: {0}")]
    Broken(String),
}

impl StoreError {
    /// The error and what stood behind it, for a log line.
    pub fn chain(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}

/// What stood behind a [`StoreError`].
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A step's answer, or why there was none.
pub type Answer<T, R> = Result<Result<T, R>, StoreError>;

/// A page of a channel takes no further envelopes once it has so many bytes; a single larger one comes alone.
pub const PAGE_BYTES: usize = 256 * 1024;

/// Some of a channel's envelopes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// When the conversation was opened: envelopes of another one under the same id have other event ids.
    pub opened_at: Timestamp,
    /// The envelopes after the one asked for, in order, as JSON.
    pub envelopes: Vec<Bytes>,
    /// How many envelopes the channel has: the sequence of its last one.
    pub released: u64,
    /// Whether the conversation has ended: nothing will follow the channel's last envelope.
    pub ended: bool,
    /// How long until it counts as ended, if nothing touches it.
    pub idle_in_ms: u64,
}

/// What is due of one conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueConversation {
    /// The conversation.
    pub conversation: ConversationRef,
    /// Its items whose deadline has passed.
    pub sequences: Vec<Sequence>,
    /// Whether it has to be looked at as a whole: it may have ended by being left untouched, a step may have left it
    /// something to do, or nobody can ask for it any more.
    pub whole: bool,
}

/// What a look at the timers of some partitions found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The store's time.
    pub now: Timestamp,
    /// What is due now: the caller's to expire, and given to nobody else for [`CLAIM_MS`].
    pub conversations: Vec<DueConversation>,
    /// Each partition that was asked for, with the time to its next timer, if it has one. 0: more is due than was told.
    pub next_in_ms: Vec<(u16, Option<u64>)>,
}

/// For how long, in milliseconds, nobody else is told of what somebody was told is due.
pub const CLAIM_MS: u64 = 500;

/// Markers of timers, gathered by conversation.
pub(crate) fn gather(
    markers: impl IntoIterator<Item = (ConversationRef, Option<Sequence>)>,
) -> Vec<DueConversation> {
    let mut found: BTreeMap<ConversationRef, (Vec<Sequence>, bool)> = BTreeMap::new();
    for (conversation, sequence) in markers {
        let (sequences, whole) = found.entry(conversation).or_default();
        match sequence {
            Some(sequence) => sequences.push(sequence),
            None => *whole = true,
        }
    }
    let due = |(conversation, (sequences, whole))| DueConversation { conversation, sequences, whole };
    found.into_iter().map(due).collect()
}

/// Where else, besides the event stream, the platform can read a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelAddress {
    /// Nowhere: the channel is in this process.
    EventStreamOnly,
    /// A Redis stream under this key.
    RedisStream(String),
}

/// What every store promises. The contract suite has a test for each number, run on every implementation.
///
/// 1. Each operation is one atomic step: it happens as a whole or not at all.
/// 2. A refusal changes nothing.
/// 3. The first settlement of an item wins: callback, timeout, cancellation and end race, exactly one gets it.
/// 4. The same token with the same body again is answered with the first receipt's facts, as long as the token
///    lives; with another body it is refused. Either way nothing is released twice.
/// 5. What `accept` acknowledges is on the channel, or held, before it returns.
/// 6. Settling the item that the gate waits for releases it, and every settled item that follows it, in that step.
/// 7. A channel holds each sequence at most once, in order, without gaps, with the bytes that were posted.
/// 8. From its deadline on an item is timed out for whatever touches it, swept or not, and a timer that is
///    late or repeated settles nothing else.
/// 9. An item is issued once for an idempotency key, whatever is repeated.
/// 10. A limit is a refusal, never a silent drop.
/// 11. An ended conversation takes nothing more; its channel stays readable until its retention is over.
/// 12. A [`Wake`] fires after every change of its channel; one that is lost is made up for within seconds.
/// 13. Totals are what the live conversations add up to. One that was left untouched counts until that was swept.
pub trait Store {
    /// Opens or touches a conversation.
    fn open(&self, command: Open) -> impl Future<Output = Answer<Opened, OpenRefused>> + Send;
    /// Issues the next work item.
    fn issue(&self, command: Issue) -> impl Future<Output = Answer<Issued, IssueRefused>> + Send;
    /// Takes a callback.
    fn accept(&self, command: Accept) -> impl Future<Output = Answer<Receipt, NotAccepted>> + Send;
    /// Withdraws a work item.
    fn cancel(&self, command: Cancel) -> impl Future<Output = Answer<Cancelled, CancelRefused>> + Send;
    /// Ends a conversation, in a trace.
    fn end(
        &self,
        conversation: ConversationRef,
        traceparent: Option<TraceParent>,
    ) -> impl Future<Output = Answer<EndReceipt, ConversationNotFound>> + Send;
    /// Times out those of a conversation's items that are due, in a trace.
    fn expire(
        &self,
        due: DueConversation,
        traceparent: Option<TraceParent>,
    ) -> impl Future<Output = Result<Expired, StoreError>> + Send;
    /// Finds what is due in some partitions, at most `limit` timers of each, and claims it for the caller.
    fn due(&self, partitions: &[u16], limit: usize) -> impl Future<Output = Result<Due, StoreError>> + Send;
    /// Puts off the timers of a conversation that cannot be read.
    fn put_off(
        &self,
        due: &DueConversation,
        by: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Tells other instances that this partition has a timer in this second of the store's clock.
    fn announce(&self, second: u64, partition: u16) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// The partitions of which somebody told that they have a timer in this second.
    fn announced(&self, second: u64) -> impl Future<Output = Result<Vec<u16>, StoreError>> + Send;
    /// Into how many partitions conversations are spread.
    fn partitions(&self) -> u16;
    /// Adds up what all conversations hold. Changes nothing.
    fn totals(&self) -> impl Future<Output = Result<Totals, StoreError>> + Send;
    /// Shows a conversation.
    fn inspect(
        &self,
        conversation: ConversationRef,
    ) -> impl Future<Output = Answer<ConversationView, ConversationNotFound>> + Send;
    /// Shows a work item.
    fn work_item(
        &self,
        conversation: ConversationRef,
        work_item: WorkItemId,
    ) -> impl Future<Output = Answer<WorkItemView, LookupRefused>> + Send;
    /// Reads a channel from after a sequence on: at most `count` envelopes of [`PAGE_BYTES`] together, and at least one
    /// when there is one.
    fn read(
        &self,
        conversation: ConversationRef,
        after: Option<Sequence>,
        count: usize,
    ) -> impl Future<Output = Answer<Page, ConversationNotFound>> + Send;
    /// Watches a channel. Costs no connection of its own.
    fn watch(&self, conversation: ConversationRef) -> Wake;
    /// Whether the store can take callbacks: tries a write that is refused like theirs would be. Changes nothing.
    fn ping(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Where else a channel can be read.
    fn channel(&self, conversation: ConversationRef) -> ChannelAddress;
}

/// The stores there are.
#[derive(Debug)]
pub enum AnyStore {
    /// In this process, gone with it.
    Memory(memory::MemoryStore),
    /// In Redis or Valkey.
    Redis(Box<redis::RedisStore>),
}

/// Calls the same operation on whichever store it is.
macro_rules! either {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            Self::Memory($store) => $call,
            Self::Redis($store) => $call,
        }
    };
}

impl Store for AnyStore {
    async fn open(&self, command: Open) -> Answer<Opened, OpenRefused> {
        either!(self, store => store.open(command).await)
    }

    async fn issue(&self, command: Issue) -> Answer<Issued, IssueRefused> {
        either!(self, store => store.issue(command).await)
    }

    async fn accept(&self, command: Accept) -> Answer<Receipt, NotAccepted> {
        either!(self, store => store.accept(command).await)
    }

    async fn cancel(&self, command: Cancel) -> Answer<Cancelled, CancelRefused> {
        either!(self, store => store.cancel(command).await)
    }

    async fn end(
        &self,
        conversation: ConversationRef,
        traceparent: Option<TraceParent>,
    ) -> Answer<EndReceipt, ConversationNotFound> {
        either!(self, store => store.end(conversation, traceparent).await)
    }

    async fn expire(
        &self,
        due: DueConversation,
        traceparent: Option<TraceParent>,
    ) -> Result<Expired, StoreError> {
        either!(self, store => store.expire(due, traceparent).await)
    }

    async fn due(&self, partitions: &[u16], limit: usize) -> Result<Due, StoreError> {
        either!(self, store => store.due(partitions, limit).await)
    }

    async fn put_off(&self, due: &DueConversation, by: Duration) -> Result<(), StoreError> {
        either!(self, store => store.put_off(due, by).await)
    }

    async fn announce(&self, second: u64, partition: u16) -> Result<(), StoreError> {
        either!(self, store => store.announce(second, partition).await)
    }

    async fn announced(&self, second: u64) -> Result<Vec<u16>, StoreError> {
        either!(self, store => store.announced(second).await)
    }

    fn partitions(&self) -> u16 {
        either!(self, store => store.partitions())
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        either!(self, store => store.totals().await)
    }

    async fn inspect(&self, conversation: ConversationRef) -> Answer<ConversationView, ConversationNotFound> {
        either!(self, store => store.inspect(conversation).await)
    }

    async fn work_item(
        &self,
        conversation: ConversationRef,
        work_item: WorkItemId,
    ) -> Answer<WorkItemView, LookupRefused> {
        either!(self, store => store.work_item(conversation, work_item).await)
    }

    async fn read(
        &self,
        conversation: ConversationRef,
        after: Option<Sequence>,
        count: usize,
    ) -> Answer<Page, ConversationNotFound> {
        either!(self, store => store.read(conversation, after, count).await)
    }

    fn watch(&self, conversation: ConversationRef) -> Wake {
        either!(self, store => store.watch(conversation))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        either!(self, store => store.ping().await)
    }

    fn channel(&self, conversation: ConversationRef) -> ChannelAddress {
        either!(self, store => store.channel(conversation))
    }
}
