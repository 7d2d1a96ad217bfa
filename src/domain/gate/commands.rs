//! The commands and queries of a conversation, with their results and refusals.

use thiserror::Error;

use crate::domain::ids::{
    AttemptId, ConversationId, ConversationRef, Fingerprint, IdempotencyDigest, RequestId, Sequence,
    ToolCallId, ToolName, TraceParent, TurnId, WorkItemId,
};
use crate::domain::progress::Progress;
use crate::domain::reason::Reason;
use crate::domain::result::CallbackResult;
use crate::domain::time::Timestamp;
use crate::domain::token::KeyId;
use crate::domain::work_item::{Kind, Outcome, State, TimeoutCause, WorkItem};

/// Opens a conversation, or restarts the idle timeout of an open one.
#[derive(Clone, Debug)]
pub struct Open {
    /// The conversation.
    pub conversation: ConversationId,
    /// Idle timeout in milliseconds. `None`: the current one, or the default for a new conversation.
    pub idle_ttl_ms: Option<u64>,
    /// Trace context of work items that are issued without one. `None`: the current one.
    pub traceparent: Option<TraceParent>,
    /// Identifies retries of this command.
    pub attempt: AttemptId,
}

/// The conversation is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Whether this attempt created it.
    pub created: bool,
}

/// Why a conversation was not opened.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum OpenRefused {
    /// It has ended and its retention is not over.
    #[error("the conversation has ended")]
    ConversationEnded,
}

/// Issues the next work item of a conversation.
#[derive(Clone, Debug)]
pub struct Issue {
    /// The conversation.
    pub conversation: ConversationRef,
    /// The id of the new item; the store sets the sequence in it. Identifies retries of this command.
    pub work_item: WorkItemId,
    /// The kind of provider.
    pub kind: Kind,
    /// The turn that the item belongs to.
    pub turn_id: Option<TurnId>,
    /// The tool call for which the item is issued.
    pub tool_call_id: Option<ToolCallId>,
    /// The tool or provider to which the work goes.
    pub name: Option<ToolName>,
    /// Time from now to the deadline, in milliseconds.
    pub timeout_ms: u64,
    /// Heartbeat timeout in milliseconds. `None`: the item needs no heartbeats.
    pub heartbeat_timeout_ms: Option<u64>,
    /// Time from the deadline to the expiry of the token, in milliseconds.
    pub replay_window_ms: u64,
    /// The key that signs the token.
    pub key_id: KeyId,
    /// The item's trace context, if the platform sent one. It takes precedence over the conversation's.
    pub traceparent: Option<TraceParent>,
    /// The trace context of the issuing request, used if neither the platform nor the conversation has one.
    pub request_traceparent: Option<TraceParent>,
    /// The digest of the idempotency key and the fingerprint of the request.
    pub idempotency: Option<(IdempotencyDigest, Fingerprint)>,
}

/// A work item was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The new item, or the earlier item of the same idempotency key.
    pub item: WorkItem,
    /// Whether an earlier request with the same idempotency key issued the item.
    pub repeated: bool,
}

/// Why a work item was not issued.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum IssueRefused {
    /// There is no such conversation.
    #[error("there is no such conversation")]
    ConversationNotFound,
    /// The conversation has ended.
    #[error("the conversation has ended")]
    ConversationEnded,
    /// The idempotency key was used for a request with another body.
    #[error("the idempotency key was used with another body")]
    IdempotencyConflict,
    /// The conversation has [`max_awaiting_items`](super::Limits::max_awaiting_items) awaiting items.
    #[error("the conversation has too many awaiting work items")]
    AwaitingLimit,
    /// The conversation has issued [`max_channel_length`](super::Limits::max_channel_length) items, or its results
    /// have reached [`max_channel_bytes`](super::Limits::max_channel_bytes).
    #[error("the conversation's channel is at its limit")]
    ChannelLimit,
}

/// Delivers a provider's result.
#[derive(Clone, Debug)]
pub struct Accept {
    /// The conversation in the token.
    pub conversation: ConversationRef,
    /// The work item in the token.
    pub work_item: WorkItemId,
    /// The work item's sequence in the token.
    pub sequence: Sequence,
    /// Expiry of the token.
    pub expires_at: Timestamp,
    /// The result.
    pub result: CallbackResult,
    /// The callback request.
    pub request_id: RequestId,
    /// Trace context of the callback request. The envelope carries it.
    pub traceparent: Option<TraceParent>,
    /// Identifies retries of this command.
    pub attempt: AttemptId,
}

/// Whether a result is on the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// On the channel.
    Delivered,
    /// Held behind an earlier item that has no outcome.
    Held {
        /// The first sequence that is not released.
        waiting_for: Sequence,
    },
}

/// The receipt of an accepted callback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Whether the result is on the channel now.
    pub delivery: Delivery,
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The work item.
    pub item: WorkItem,
    /// The outcome set by the callback.
    pub outcome: Outcome,
    /// When the first callback was accepted.
    pub received_at: Timestamp,
    /// Whether this is the receipt of a repeated callback.
    pub replayed: bool,
    /// The envelopes that this operation released, at most [`MAX_REPORTED`].
    pub released: Vec<Released>,
    /// Whether items are left to release. The sweeper releases them.
    pub unfinished: bool,
}

/// Maximum number of released envelopes that an operation reports. It can release more.
pub const MAX_REPORTED: usize = 256;

/// An envelope that an operation released to the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// When the conversation was opened.
    pub opened_at: Timestamp,
    /// The work item's sequence.
    pub sequence: Sequence,
    /// The work item.
    pub work_item: WorkItemId,
    /// The work item's kind.
    pub kind: Kind,
    /// The tool call for which the item was issued.
    pub tool_call_id: Option<ToolCallId>,
    /// The tool or provider.
    pub name: Option<ToolName>,
    /// The work item's outcome.
    pub outcome: Outcome,
    /// When the item was issued.
    pub issued_at: Timestamp,
    /// When the item was settled.
    pub received_at: Timestamp,
    /// When the envelope was written to the channel.
    pub released_at: Timestamp,
    /// Whether an earlier operation settled the item.
    pub held: bool,
    /// Trace context in which the item was issued.
    pub issued_in: Option<TraceParent>,
    /// Trace context in which the item was settled.
    pub settled_in: Option<TraceParent>,
}

impl Released {
    /// Whether this is the result of the callback that released it, and was not held.
    pub const fn is_callbacks_own(&self) -> bool {
        matches!(self.outcome, Outcome::Succeeded | Outcome::Failed) && !self.held
    }
}

/// Why a callback was not accepted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AcceptRefused {
    /// The token has expired by the store's clock.
    #[error("the token has expired")]
    TokenExpired,
    /// The conversation has ended or does not exist.
    #[error("the conversation has ended")]
    ConversationEnded,
    /// The conversation is open and has no such item.
    #[error("the work item is unknown")]
    WorkItemUnknown,
    /// The token was used with another body.
    #[error("the token was used with another body")]
    TokenUsed,
    /// The deadline or the heartbeat timeout passed before the callback.
    #[error("the work item timed out")]
    WorkItemTimedOut,
    /// The platform cancelled the item before the callback.
    #[error("the work item was cancelled")]
    WorkItemCancelled,
    /// The number or bytes of the held results are at their limit.
    #[error("too many results are held in the conversation")]
    HeldLimit,
    /// The result would exceed [`max_channel_bytes`](super::Limits::max_channel_bytes).
    #[error("the conversation's channel is at its limit")]
    ChannelLimit,
}

/// The conversation and work item of a refused callback or heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallbackTarget {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The work item; `None` if the conversation has no such item.
    pub item: Option<WorkItem>,
    /// When the item times out or timed out; see [`WorkItem::times_out_at`].
    pub times_out_at: Option<Timestamp>,
}

/// A refused callback or heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedRequest<Why> {
    /// Why it was refused.
    pub why: Why,
    /// The conversation and the work item, if known: for the log, not for the provider.
    pub target: Option<Box<CallbackTarget>>,
}

/// A refused callback.
pub type RefusedCallback = RefusedRequest<AcceptRefused>;

/// Reports that a provider is working. Does not use up the token, and does not restart the idle timeout.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// The conversation in the token.
    pub conversation: ConversationRef,
    /// The work item in the token.
    pub work_item: WorkItemId,
    /// Expiry of the token.
    pub expires_at: Timestamp,
    /// Sent to open event streams, at most every
    /// [`PROGRESS_INTERVAL_MS`](crate::domain::progress::PROGRESS_INTERVAL_MS).
    pub progress: Option<Progress>,
}

/// The state of the work item after a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatReceipt {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The work item: awaiting, or settled by a callback.
    pub item: WorkItemView,
    /// Whether the progress was published. False if the item is settled, or if the last progress is too recent.
    pub published: bool,
}

/// Why a heartbeat was refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HeartbeatRefused {
    /// The token has expired by the store's clock.
    #[error("the token has expired")]
    TokenExpired,
    /// The conversation has ended or does not exist.
    #[error("the conversation has ended")]
    ConversationEnded,
    /// The conversation is open and has no such item.
    #[error("the work item is unknown")]
    WorkItemUnknown,
    /// The deadline or the heartbeat timeout passed before this heartbeat.
    #[error("the work item timed out")]
    WorkItemTimedOut,
    /// The platform cancelled the item.
    #[error("the work item was cancelled")]
    WorkItemCancelled,
}

/// A refused heartbeat.
pub type RefusedHeartbeat = RefusedRequest<HeartbeatRefused>;

/// Cancels a work item.
#[derive(Clone, Debug)]
pub struct Cancel {
    /// The conversation.
    pub conversation: ConversationRef,
    /// The work item.
    pub work_item: WorkItemId,
    /// The platform's reason. The envelope carries it.
    pub reason: Option<Reason>,
    /// The cancelling request.
    pub request_id: RequestId,
    /// Trace context of that request. The envelope carries it.
    pub traceparent: Option<TraceParent>,
    /// Identifies retries of this command.
    pub attempt: AttemptId,
}

/// The work item is cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancelled {
    /// The item after the operation.
    pub item: WorkItemView,
    /// The envelopes that this operation released, at most [`MAX_REPORTED`].
    pub released: Vec<Released>,
    /// Whether items are left to release. The sweeper releases them.
    pub unfinished: bool,
}

/// Why a work item was not cancelled.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum CancelRefused {
    /// There is no such conversation.
    #[error("there is no such conversation")]
    ConversationNotFound,
    /// The conversation has ended.
    #[error("the conversation has ended")]
    ConversationEnded,
    /// The conversation has no such item.
    #[error("there is no such work item")]
    WorkItemNotFound,
    /// The item already has this outcome.
    #[error("the work item is settled: {0}")]
    WorkItemSettled(Outcome),
}

/// Cancels the awaiting items of a turn.
#[derive(Clone, Debug)]
pub struct CancelTurn {
    /// The conversation.
    pub conversation: ConversationRef,
    /// The turn.
    pub turn_id: TurnId,
    /// The platform's reason. The envelopes carry it.
    pub reason: Option<Reason>,
    /// The cancelling request.
    pub request_id: RequestId,
    /// Trace context of that request. The envelopes carry it.
    pub traceparent: Option<TraceParent>,
    /// Identifies retries of this command.
    pub attempt: AttemptId,
}

/// No item of the turn is awaiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelledTurn {
    /// The turn's items that were not released before, in order, as they are after the operation.
    pub items: Vec<WorkItemView>,
    /// The number of items that this attempt has cancelled.
    pub cancelled: u64,
    /// The envelopes that this operation released, at most [`MAX_REPORTED`].
    pub released: Vec<Released>,
    /// Whether items are left to release. The sweeper releases them.
    pub unfinished: bool,
}

/// Why a turn was not cancelled. A turn without items is not refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum CancelTurnRefused {
    /// There is no such conversation.
    #[error("there is no such conversation")]
    ConversationNotFound,
    /// The conversation has ended.
    #[error("the conversation has ended")]
    ConversationEnded,
}

/// The conversation has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndReceipt {
    /// When it ended and what it dropped.
    pub ended: Ended,
    /// Whether it had already ended before this operation.
    pub repeated: bool,
    /// The reason given by the operation that ended it.
    pub reason: Option<Reason>,
    /// The envelopes that this operation released, at most [`MAX_REPORTED`].
    pub released: Vec<Released>,
}

/// The conversation does not exist, or its retention is over.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("there is no such conversation")]
pub struct ConversationNotFound;

/// The end of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// When it ended.
    pub ended_at: Timestamp,
    /// Number of settled items that will not be released.
    pub dropped_held: u64,
    /// Number of items without an outcome. They can no longer be settled.
    pub dropped_awaiting: u64,
}

/// A work item that the sweeper timed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimedOut {
    /// The work item.
    pub work_item: WorkItemId,
    /// The work item's sequence.
    pub sequence: Sequence,
    /// The work item's kind.
    pub kind: Kind,
    /// The tool call for which the item was issued.
    pub tool_call_id: Option<ToolCallId>,
    /// The tool or provider.
    pub name: Option<ToolName>,
    /// Whether the deadline or the heartbeat timeout passed.
    pub cause: TimeoutCause,
    /// Time from the timeout to the sweep, in milliseconds.
    pub late_ms: u64,
    /// Trace context in which the item was issued.
    pub issued_in: Option<TraceParent>,
}

/// The effects of due timers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// The conversation; `None` if it no longer exists.
    pub conversation_id: Option<ConversationId>,
    /// The items that timed out in this operation.
    pub timed_out: Vec<TimedOut>,
    /// Set if this operation ended the conversation because its idle timeout had passed.
    pub ended: Option<Ended>,
    /// The envelopes that this operation released, at most [`MAX_REPORTED`].
    pub released: Vec<Released>,
    /// Whether items are left to release, or timers of the ended conversation are left to remove. The sweeper
    /// continues with both.
    pub unfinished: bool,
    /// Time in milliseconds until the earliest timeout of the items whose given timers fired too early. A heartbeat
    /// postpones the timeout of its item but does not move the timer, which is set again when it fires.
    pub next_in_ms: Option<u64>,
}

/// The state of a work item at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkItemView {
    /// The item as issued.
    pub item: WorkItem,
    /// Awaiting, held, released or dropped.
    pub state: State,
    /// The outcome and when the item was settled.
    pub settled: Option<(Outcome, Timestamp)>,
    /// Why it was cancelled, if the platform gave a reason, or `heartbeat` if no heartbeat arrived in time.
    pub reason: Option<Reason>,
    /// The last heartbeat.
    pub last_heartbeat_at: Option<Timestamp>,
    /// Bytes of the held result; 0 in every other state.
    pub held_bytes: u64,
}

/// Why a work item was not returned.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LookupRefused {
    /// There is no such conversation.
    #[error("there is no such conversation")]
    ConversationNotFound,
    /// The conversation has no such item.
    #[error("there is no such work item")]
    WorkItemNotFound,
}

/// The state of a conversation at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationView {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// When the idle timeout ends it unless it is used before then.
    pub idle_at: Timestamp,
    /// Its end, once it has ended.
    pub ended: Option<Ended>,
    /// Why the platform ended it, if it gave a reason.
    pub end_reason: Option<Reason>,
    /// Its trace context.
    pub traceparent: Option<TraceParent>,
    /// The sequence of the next item to be issued.
    pub next_sequence: Sequence,
    /// The first sequence without an outcome; [`next_sequence`](Self::next_sequence) if there is none.
    pub waiting_for: Sequence,
    /// Items that are not released, in order.
    pub unreleased: Vec<WorkItemView>,
    /// The time of the view by the store's clock.
    pub now: Timestamp,
}

/// A conversation that holds results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingConversation {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The item at the gate. It has no outcome.
    pub waiting_for: WorkItem,
    /// When that item times out unless a heartbeat arrives first. `None`: it needs no heartbeats.
    pub heartbeat_deadline: Option<Timestamp>,
    /// Number of settled items behind it.
    pub held: u64,
    /// Bytes of their results.
    pub held_bytes: u64,
    /// When the oldest of them was settled.
    pub since: Timestamp,
}

/// Totals over the conversations of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Awaiting work items. An overdue item counts until an operation has settled or dropped it.
    pub awaiting: u64,
    /// Settled items that are not released.
    pub held: u64,
    /// Bytes of the held results.
    pub held_bytes: u64,
}
