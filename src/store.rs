//! Stores conversations: one trait, two implementations, and one contract test suite for both.

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
pub use notifier::{ChannelListener, Notice};
pub use schedule::Schedule;
pub use shield::ShieldedCalls;
use thiserror::Error;

use crate::domain::envelope::EnvelopeJson;
use crate::domain::gate::{
    Accept, Cancel, CancelRefused, CancelTurn, CancelTurnRefused, Cancelled, CancelledTurn,
    ConversationNotFound, ConversationView, EndReceipt, Expired, Heartbeat, HeartbeatReceipt, Issue,
    IssueRefused, Issued, LookupRefused, Open, OpenRefused, Opened, Receipt, RefusedCallback,
    RefusedHeartbeat, Totals, WaitingConversation, WorkItemView,
};
use crate::domain::ids::{ConversationRef, Sequence, TraceParent, WorkItemId};
use crate::domain::reason::Reason;
use crate::domain::time::Timestamp;

/// A failure of the store. Refusals are not errors of this type; see [`Answer`].
#[derive(Debug, Error)]
pub enum StoreError {
    /// The store cannot be reached, or rejects the operation. The operation was not executed.
    #[error("the store is unavailable")]
    Unavailable(#[source] Cause),
    /// The operation may or may not have been executed: the reply was lost, or too few replicas confirmed the write.
    /// Repeating it is safe and returns the outcome. Exception: without an idempotency key, repeating an issue can
    /// issue the work twice.
    #[error("the outcome of the operation is unknown")]
    OutcomeUnknown(#[source] Cause),
    /// A script failed, or a reply or stored value has a form that this version cannot read.
    #[error("a script failed or the store returned invalid data: {0}")]
    Broken(String),
}

impl StoreError {
    /// The message of the error and of its source, for a log line.
    pub fn chain(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}

/// The source of a [`StoreError`].
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The result of an operation: `Ok(Ok)` for success, `Ok(Err)` for a refusal, `Err` for a failure of the store.
pub type Answer<T, R> = Result<Result<T, R>, StoreError>;

/// Maximum size of a page of envelopes in bytes. A larger envelope is returned alone.
pub const PAGE_BYTES: usize = 256 * 1024;

/// A page of a channel's envelopes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// When the conversation was opened. Event ids contain it, to distinguish conversations that reuse an id.
    pub opened_at: Timestamp,
    /// The requested envelopes, in order.
    pub envelopes: Vec<EnvelopeJson>,
    /// Number of envelopes on the channel, which is also the sequence of the last one.
    pub released: u64,
    /// Whether the conversation has ended. No further envelopes follow.
    pub ended: bool,
    /// Why it was ended.
    pub end_reason: Option<Reason>,
    /// Time in milliseconds until the idle timeout.
    pub idle_in_ms: u64,
}

/// The reply to [`Store::waiting`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The conversations, the one with the oldest held result first.
    pub conversations: Vec<WaitingConversation>,
    /// Whether there may be more: the limit was reached, or a part of the store did not respond.
    pub truncated: bool,
}

/// The due timers of one conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueConversation {
    /// The conversation.
    pub conversation: ConversationRef,
    /// The items whose timers are due.
    pub sequences: Vec<Sequence>,
    /// Whether the timer of the conversation as a whole is due. It is set for the idle timeout, for the end of the
    /// retention, and for work that a bounded step left unfinished.
    pub whole: bool,
}

/// The reply to [`Store::due`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The time of the store's clock.
    pub now: Timestamp,
    /// The due timers. They are claimed for the caller: no other caller gets them for [`CLAIM_MS`].
    pub conversations: Vec<DueConversation>,
    /// The time in milliseconds until the next timer of each queried partition. `None`: it has no further timer. 0:
    /// further timers are due.
    pub next_in_ms: Vec<(u16, Option<u64>)>,
}

/// Duration of a claim on due timers, in milliseconds.
pub const CLAIM_MS: u64 = 500;

/// Delay in milliseconds before the sweeper continues a release that another caller left unfinished.
pub const CONTINUE_MS: u64 = 1_000;

/// Groups timers by conversation.
pub(crate) fn group_by_conversation(
    timers: impl IntoIterator<Item = (ConversationRef, Option<Sequence>)>,
) -> Vec<DueConversation> {
    let mut by_conversation: BTreeMap<ConversationRef, (Vec<Sequence>, bool)> = BTreeMap::new();
    for (conversation, sequence) in timers {
        let (sequences, whole) = by_conversation.entry(conversation).or_default();
        match sequence {
            Some(sequence) => sequences.push(sequence),
            None => *whole = true,
        }
    }
    let due = |(conversation, (sequences, whole))| DueConversation { conversation, sequences, whole };
    by_conversation.into_iter().map(due).collect()
}

/// The guarantees of every store. The contract test suite covers each number, for each implementation.
///
/// 1. Each step is atomic. If a release needs more than one step, the caller or the sweeper continues it.
/// 2. A refusal changes nothing.
/// 3. An item is settled once, by the first of callback, timeout and cancellation. The end of the conversation drops
///    the items that are not released.
/// 4. Until a token expires, a repeated callback with the same body gets the receipt again, and one with another
///    body is refused. Neither releases anything twice.
/// 5. A result that `accept` acknowledges is on the channel or held before `accept` returns.
/// 6. Settling the first unreleased item releases it and all settled items that directly follow it, before the call
///    returns, unless a failure interrupts a release of more than one step.
/// 7. A channel contains each sequence at most once, in order, without gaps, with exactly the bytes of the result.
/// 8. Every operation treats an awaiting item as timed out once its deadline or its heartbeat timeout has passed, even
///    before the sweeper has processed it. A late or repeated timer has no further effect.
/// 9. Repeated requests with the same idempotency key issue one item.
/// 10. An operation that would exceed a limit is refused. Nothing is dropped silently.
/// 11. An ended conversation accepts no new results. Repeated callbacks for delivered results still get their receipts,
///     and the channel stays readable until the retention is over.
/// 12. A [`ChannelListener`] fires after every change of its channel. If a notification is lost, event streams find the
///     change by polling within seconds.
/// 13. Totals cover the live conversations. A conversation whose idle timeout has passed is included until the sweeper
///     has ended it.
/// 14. Cancelling a turn cancels the awaiting items of the turn and no others. This is one atomic step if the
///     conversation has at most 128 unreleased items. Otherwise further steps follow, which ignore items that are
///     issued in the meantime.
/// 15. An awaiting item with a heartbeat timeout times out when that time has passed since its issue or its last
///     heartbeat. A heartbeat changes nothing else, not even the deadline. It is refused once the item has timed out or
///     is cancelled. The progress in a heartbeat reaches the listeners of the channel at most once. Progress of one
///     item is published at most every 500 ms.
/// 16. A live conversation is listed as waiting while it holds items behind an item that is awaiting and not overdue:
///     from the operation that settles the first of them to the one that releases or drops the last. An overdue item
///     counts as held once an operation has settled it. Each entry of the list is read atomically, but the list as a
///     whole is not.
pub trait Store {
    /// Opens a conversation, or restarts the idle timeout of an open one.
    fn open(&self, command: Open) -> impl Future<Output = Answer<Opened, OpenRefused>> + Send;
    /// Issues the next work item.
    fn issue(&self, command: Issue) -> impl Future<Output = Answer<Issued, IssueRefused>> + Send;
    /// Accepts a callback.
    fn accept(&self, command: Accept) -> impl Future<Output = Answer<Receipt, RefusedCallback>> + Send;
    /// Records a heartbeat.
    fn heartbeat(
        &self,
        command: Heartbeat,
    ) -> impl Future<Output = Answer<HeartbeatReceipt, RefusedHeartbeat>> + Send;
    /// Cancels a work item.
    fn cancel(&self, command: Cancel) -> impl Future<Output = Answer<Cancelled, CancelRefused>> + Send;
    /// Cancels the awaiting items of a turn. Idempotent; a turn without items is not refused.
    fn cancel_turn(
        &self,
        command: CancelTurn,
    ) -> impl Future<Output = Answer<CancelledTurn, CancelTurnRefused>> + Send;
    /// Ends a conversation. Envelopes of items that time out in this step carry `traceparent`. Only the first call sets
    /// the reason.
    fn end(
        &self,
        conversation: ConversationRef,
        traceparent: Option<TraceParent>,
        reason: Option<Reason>,
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
    /// Announces to the other instances that this partition has a timer in this second of the store's clock.
    fn announce(&self, second: u64, partition: u16) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// The partitions that instances have announced for this second.
    fn announced(&self, second: u64) -> impl Future<Output = Result<Vec<u16>, StoreError>> + Send;
    /// Number of partitions. 1 for the memory store.
    fn partitions(&self) -> u16;
    /// Totals over the conversations of some partitions. Read-only.
    fn totals(&self, partitions: &[u16]) -> impl Future<Output = Result<Totals, StoreError>> + Send;
    /// Lists at most `limit` conversations that hold results, the one with the oldest held result first.
    fn waiting(&self, limit: usize) -> impl Future<Output = Result<Waiting, StoreError>> + Send;
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
    /// Reads the envelopes after a sequence: at most `count`, and at most [`PAGE_BYTES`] in total, but at least one if
    /// there is one.
    fn read(
        &self,
        conversation: ConversationRef,
        after: Option<Sequence>,
        count: usize,
    ) -> impl Future<Output = Answer<Page, ConversationNotFound>> + Send;
    /// Listens for changes to a channel. On Redis, all listeners share one connection.
    fn watch(&self, conversation: ConversationRef) -> ChannelListener;
    /// Checks whether the store accepts writes: sends one that fails under the same conditions as the write of a
    /// callback, and changes no conversation.
    fn ping(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// The key of the channel's Redis stream. `None` on the memory store.
    fn channel(&self, conversation: ConversationRef) -> Option<String>;
}
