//! Storage of conversations: one trait, a closed set of implementations, one contract test suite for all.

mod health;
mod instrumented;
pub mod memory;
mod notifier;
pub mod redis;
mod schedule;
mod shield;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

pub use health::StoreHealth;
pub use instrumented::{Backend, InstrumentedStore};
pub use notifier::ChannelListener;
pub use schedule::Schedule;
pub use shield::ShieldedCalls;
use thiserror::Error;

use crate::domain::envelope::EnvelopeJson;
use crate::domain::gate::{
    Accept, Cancel, CancelRefused, Cancelled, ConversationNotFound, ConversationView, EndReceipt, Expired,
    Issue, IssueRefused, Issued, LookupRefused, NotAccepted, Open, OpenRefused, Opened, Receipt, Totals,
    WorkItemView,
};
use crate::domain::ids::{ConversationRef, Sequence, TraceParent, WorkItemId};
use crate::domain::time::Timestamp;

/// A failure of the store. Refusals are not errors of this type; see [`Answer`].
#[derive(Debug, Error)]
pub enum StoreError {
    /// The store cannot be reached or refuses all work. The operation was not executed.
    #[error("the store is unavailable")]
    Unavailable(#[source] Cause),
    /// The reply was lost: the operation was executed or not. It is safe to repeat, and then returns the outcome.
    #[error("the store's reply was lost")]
    OutcomeUnknown(#[source] Cause),
    /// A reply or stored value does not have a form that this version can read.
    #[error("the store returned invalid data: {0}")]
    Broken(String),
}

impl StoreError {
    /// The error and its direct source, for a log line.
    pub fn chain(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}

/// The source of a [`StoreError`].
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The result of an operation: success or refusal, or a failure of the store.
pub type Answer<T, R> = Result<Result<T, R>, StoreError>;

/// Maximum size of a page of envelopes in bytes. A first envelope that is larger is a page of its own.
pub const PAGE_BYTES: usize = 256 * 1024;

/// A page of a channel's envelopes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// When the conversation was opened. Part of the event ids, which distinguishes conversations with the same id.
    pub opened_at: Timestamp,
    /// The requested envelopes, in order.
    pub envelopes: Vec<EnvelopeJson>,
    /// Number of envelopes on the channel: the sequence of the last one.
    pub released: u64,
    /// Whether the conversation has ended: no further envelopes will follow.
    pub ended: bool,
    /// Time in milliseconds until the idle timeout.
    pub idle_in_ms: u64,
}

/// The due timers of one conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueConversation {
    /// The conversation.
    pub conversation: ConversationRef,
    /// The items whose timers are due.
    pub sequences: Vec<Sequence>,
    /// Whether the timer of the conversation as a whole is due: its idle timeout may have passed, a bounded step
    /// may have left work, or its retention may be over.
    pub whole: bool,
}

/// The due timers of some partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The time of the store's clock.
    pub now: Timestamp,
    /// The due timers, claimed for the caller: no other caller gets them for [`CLAIM_MS`].
    pub conversations: Vec<DueConversation>,
    /// For each queried partition the time in milliseconds to its next timer, if any. 0: further timers are due.
    pub next_in_ms: Vec<(u16, Option<u64>)>,
}

/// Duration of a claim on due timers, in milliseconds.
pub const CLAIM_MS: u64 = 500;

/// Time in milliseconds after which the sweeper continues a release that its caller has left unfinished.
pub const CONTINUE_MS: u64 = 1_000;

/// Groups timers by conversation.
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

/// What every store promises. The contract test suite has a test for each number and runs on every implementation.
///
/// 1. Each step is atomic. A release that exceeds one step is continued by the caller or the sweeper.
/// 2. A refusal changes nothing.
/// 3. The first settlement of an item wins, by a callback, a timeout, a cancellation or the end.
/// 4. The same token with the same body gets the first receipt again until the token expires. The same token with
///    another body is refused. Neither releases anything twice.
/// 5. A result that `accept` acknowledges is on the channel or held before `accept` returns.
/// 6. Settling the item at the gate releases it and all settled items directly behind it, before the call returns.
/// 7. A channel contains each sequence at most once, in order, without gaps, with exactly the bytes of the result.
/// 8. Every operation treats an item as timed out from its deadline on, before the sweeper has seen it. A late or
///    repeated timer settles nothing else.
/// 9. Retries with the same idempotency key issue one item.
/// 10. A reached limit is a refusal, never a silent drop.
/// 11. An ended conversation accepts nothing more. Its channel stays readable until its retention is over.
/// 12. A [`ChannelListener`] fires after every change of its channel. A lost notification is made up for by polling within seconds.
/// 13. Totals are the sums over the live conversations. A conversation whose idle timeout has passed counts until
///     the sweeper has ended it.
pub trait Store {
    /// Opens or touches a conversation.
    fn open(&self, command: Open) -> impl Future<Output = Answer<Opened, OpenRefused>> + Send;
    /// Issues the next work item.
    fn issue(&self, command: Issue) -> impl Future<Output = Answer<Issued, IssueRefused>> + Send;
    /// Accepts a callback.
    fn accept(&self, command: Accept) -> impl Future<Output = Answer<Receipt, NotAccepted>> + Send;
    /// Cancels a work item.
    fn cancel(&self, command: Cancel) -> impl Future<Output = Answer<Cancelled, CancelRefused>> + Send;
    /// Ends a conversation. Envelopes of items that time out in this step carry `traceparent`.
    fn end(
        &self,
        conversation: ConversationRef,
        traceparent: Option<TraceParent>,
    ) -> impl Future<Output = Answer<EndReceipt, ConversationNotFound>> + Send;
    /// Processes the due timers of a conversation. Envelopes of items that time out in this step carry
    /// `traceparent`.
    fn expire(
        &self,
        due: DueConversation,
        traceparent: Option<TraceParent>,
    ) -> impl Future<Output = Result<Expired, StoreError>> + Send;
    /// Returns the due timers of some partitions, at most `limit` for each, and claims them for [`CLAIM_MS`].
    fn due(&self, partitions: &[u16], limit: usize) -> impl Future<Output = Result<Due, StoreError>> + Send;
    /// Postpones the timers of a conversation that cannot be read.
    fn postpone(
        &self,
        due: &DueConversation,
        by: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Tells other instances that this partition has a timer in this second of the store's clock.
    fn announce(&self, second: u64, partition: u16) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// The partitions that instances have announced for this second.
    fn announced(&self, second: u64) -> impl Future<Output = Result<Vec<u16>, StoreError>> + Send;
    /// Number of partitions.
    fn partitions(&self) -> u16;
    /// Totals over the conversations of some partitions. Read-only.
    fn totals(&self, partitions: &[u16]) -> impl Future<Output = Result<Totals, StoreError>> + Send;
    /// Returns a conversation. Read-only.
    fn inspect(
        &self,
        conversation: ConversationRef,
    ) -> impl Future<Output = Answer<ConversationView, ConversationNotFound>> + Send;
    /// Returns a work item. Read-only.
    fn work_item(
        &self,
        conversation: ConversationRef,
        work_item: WorkItemId,
    ) -> impl Future<Output = Answer<WorkItemView, LookupRefused>> + Send;
    /// Reads at most `count` envelopes of [`PAGE_BYTES`] together after a sequence, but at least one if there is one.
    fn read(
        &self,
        conversation: ConversationRef,
        after: Option<Sequence>,
        count: usize,
    ) -> impl Future<Output = Answer<Page, ConversationNotFound>> + Send;
    /// Listens for changes of a channel. All listeners share one connection.
    fn watch(&self, conversation: ConversationRef) -> ChannelListener;
    /// Checks whether the store accepts writes: tries one that has no effect but fails where a callback's would.
    fn ping(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// The key of the channel's Redis stream, on a store that has one.
    fn channel(&self, conversation: ConversationRef) -> Option<String>;
}
