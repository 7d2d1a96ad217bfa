//! What can be asked of a conversation, what it answers, and why it refuses.

use thiserror::Error;

use crate::domain::ids::{
    AttemptId, ConversationId, ConversationRef, Fingerprint, IdempotencyDigest, RequestId, Sequence,
    TraceParent, TurnId, WorkItemId,
};
use crate::domain::result::CallbackResult;
use crate::domain::time::Timestamp;
use crate::domain::token::KeyId;
use crate::domain::work_item::{Kind, Outcome, State, WorkItem};

/// Opens a conversation, or touches one that is open.
#[derive(Clone, Debug)]
pub struct Open {
    /// The conversation.
    pub conversation: ConversationId,
    /// How long it may be left untouched; without it, what it had or the default.
    pub idle_ttl_ms: Option<u64>,
    /// The trace that its work items are issued in, unless they bring their own.
    pub traceparent: Option<TraceParent>,
    /// This attempt.
    pub attempt: AttemptId,
}

/// A conversation is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Whether this attempt made it.
    pub created: bool,
}

/// Why a conversation is not opened.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum OpenRefused {
    /// It has ended, and its channel is still readable.
    #[error("the conversation has ended")]
    ConversationEnded,
}

/// Issues the next work item of a conversation.
#[derive(Clone, Debug)]
pub struct Issue {
    /// The conversation.
    pub conversation: ConversationRef,
    /// This attempt: the new item's id, but for the sequence in it. The same again is the same attempt repeated.
    pub work_item: WorkItemId,
    /// What kind of provider it goes to.
    pub kind: Kind,
    /// The turn it belongs to.
    pub turn_id: Option<TurnId>,
    /// Time to the deadline.
    pub timeout_ms: u64,
    /// Time from the deadline to the end of the token.
    pub replay_window_ms: u64,
    /// The key that signs its token.
    pub key_id: KeyId,
    /// The trace it is issued in, as the platform says.
    pub traceparent: Option<TraceParent>,
    /// The request that issues it, as this service traces it: for when neither the platform nor the conversation
    /// says.
    pub request_traceparent: Option<TraceParent>,
    /// The caller's idempotency key and the fingerprint of its request.
    pub idempotency: Option<(IdempotencyDigest, Fingerprint)>,
}

/// A work item is issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// What was issued; an earlier item, when the idempotency key was known.
    pub item: WorkItem,
    /// Whether an earlier request with the same idempotency key had issued it.
    pub repeated: bool,
}

/// Why a work item is not issued.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum IssueRefused {
    /// There is no such conversation.
    #[error("there is no such conversation")]
    ConversationNotFound,
    /// The conversation has ended.
    #[error("the conversation has ended")]
    ConversationEnded,
    /// The idempotency key was used with another body.
    #[error("the idempotency key was used with another body")]
    IdempotencyConflict,
    /// As many items as allowed are awaiting.
    #[error("too many work items of the conversation are awaiting")]
    AwaitingLimit,
    /// The channel has, or is to have, as many envelopes or bytes of results as allowed.
    #[error("the conversation's channel is at its limit")]
    ChannelLimit,
}

/// Brings a provider's result.
#[derive(Clone, Debug)]
pub struct Accept {
    /// The conversation that the token names.
    pub conversation: ConversationRef,
    /// The work item that the token names.
    pub work_item: WorkItemId,
    /// The work item's place in the conversation.
    pub sequence: Sequence,
    /// When the token ends.
    pub expires_at: Timestamp,
    /// The result.
    pub result: CallbackResult,
    /// The request that brings it.
    pub request_id: RequestId,
    /// The trace of that request: the envelope carries it on.
    pub traceparent: Option<TraceParent>,
    /// This attempt.
    pub attempt: AttemptId,
}

/// Whether a result is on the channel yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// On the channel.
    Delivered,
    /// Behind an earlier item that is not settled.
    Held {
        /// The sequence the gate waits for.
        waiting_for: Sequence,
    },
}

/// What the provider is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Whether the result is on the channel now.
    pub delivery: Delivery,
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The item that was issued.
    pub item: WorkItem,
    /// How the callback settled it.
    pub outcome: Outcome,
    /// When the first callback came in.
    pub received_at: Timestamp,
    /// Whether this is the answer to a repetition.
    pub replayed: bool,
    /// What this step put on the channel.
    pub released: Vec<Released>,
}

/// Most envelopes of one step that are told of: a longer chain is released all the same.
pub const MOST_TOLD: usize = 256;

/// An envelope that a step put on the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// When its conversation was opened.
    pub opened_at: Timestamp,
    /// Its place.
    pub sequence: Sequence,
    /// The work item.
    pub work_item: WorkItemId,
    /// The kind of work.
    pub kind: Kind,
    /// How the item was settled.
    pub outcome: Outcome,
    /// When the item was issued.
    pub issued_at: Timestamp,
    /// When it was settled.
    pub received_at: Timestamp,
    /// When it was written to the channel: now.
    pub released_at: Timestamp,
    /// Whether it had been settled before this step, and waited.
    pub held: bool,
    /// The trace that the item was issued in.
    pub issued_in: Option<TraceParent>,
    /// The trace that it was settled in.
    pub settled_in: Option<TraceParent>,
}

/// Why a callback is not taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AcceptRefused {
    /// The token's life is over, by the store's clock.
    #[error("the token has expired")]
    TokenExpired,
    /// The conversation has ended, or is not there.
    #[error("the conversation has ended")]
    ConversationEnded,
    /// The conversation is live but the item is not there.
    #[error("the work item is unknown")]
    WorkItemUnknown,
    /// The token was used with another body.
    #[error("the token was used with another body")]
    TokenUsed,
    /// The deadline passed first.
    #[error("the work item timed out")]
    WorkItemTimedOut,
    /// The platform withdrew the item first.
    #[error("the work item was cancelled")]
    WorkItemCancelled,
    /// As many results, or bytes of them, as allowed are held.
    #[error("too much is held in the conversation")]
    HeldLimit,
    /// The channel has as many bytes of results as allowed.
    #[error("the conversation's channel is at its limit")]
    ChannelLimit,
}

/// What the store knows of the callback that it did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The item that was issued, unless it is the item that is unknown.
    pub item: Option<WorkItem>,
}

/// A callback that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAccepted {
    /// Why.
    pub why: AcceptRefused,
    /// What it was about, where that is known: for operators.
    pub known: Option<Box<Known>>,
}

/// Withdraws a work item.
#[derive(Clone, Debug)]
pub struct Cancel {
    /// The conversation.
    pub conversation: ConversationRef,
    /// The work item.
    pub work_item: WorkItemId,
    /// The request that withdraws it.
    pub request_id: RequestId,
    /// The trace of that request: the envelope carries it on.
    pub traceparent: Option<TraceParent>,
    /// This attempt.
    pub attempt: AttemptId,
}

/// A work item is withdrawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancelled {
    /// The item as it stands.
    pub item: WorkItemView,
    /// What this step put on the channel.
    pub released: Vec<Released>,
}

/// Why a work item is not cancelled.
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
    /// It has an outcome already.
    #[error("the work item is settled: {0}")]
    WorkItemSettled(Outcome),
}

/// A conversation has ended, by this step or before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndReceipt {
    /// What it leaves behind.
    pub ended: Ended,
    /// Whether it had ended before.
    pub repeated: bool,
    /// What this step put on the channel.
    pub released: Vec<Released>,
}

/// There is no such conversation, or none any more.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("there is no such conversation")]
pub struct ConversationNotFound;

/// What an ended conversation leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// When it ended.
    pub ended_at: Timestamp,
    /// Settled items that will not be released.
    pub dropped_held: u64,
    /// Items that no step has settled, and none can any more.
    pub dropped_awaiting: u64,
}

/// An awaiting marker that timed out in this step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimedOut {
    /// The work item.
    pub work_item: WorkItemId,
    /// Its place.
    pub sequence: Sequence,
    /// The kind of work.
    pub kind: Kind,
    /// How long after its deadline.
    pub late_ms: u64,
    /// The trace that it was issued in.
    pub issued_in: Option<TraceParent>,
}

/// Timers have fired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// The conversation, unless it is gone.
    pub conversation_id: Option<ConversationId>,
    /// What timed out.
    pub timed_out: Vec<TimedOut>,
    /// What a conversation left behind that was left untouched and ended by that: told once.
    pub ended: Option<Ended>,
    /// What this step put on the channel.
    pub released: Vec<Released>,
}

/// A work item as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkItemView {
    /// What was issued.
    pub item: WorkItem,
    /// Where it is on its way.
    pub state: State,
    /// How it was settled, and when.
    pub settled: Option<(Outcome, Timestamp)>,
    /// Bytes of its result, while it is held.
    pub held_bytes: u64,
}

/// Why a work item is not shown.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LookupRefused {
    /// There is no such conversation.
    #[error("there is no such conversation")]
    ConversationNotFound,
    /// The conversation has no such item.
    #[error("there is no such work item")]
    WorkItemNotFound,
}

/// A conversation as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationView {
    /// Its id.
    pub conversation_id: ConversationId,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// When it counts as ended if nothing touches it.
    pub idle_at: Timestamp,
    /// What it left behind, once ended.
    pub ended: Option<Ended>,
    /// The trace it was opened in.
    pub traceparent: Option<TraceParent>,
    /// The sequence of the next item.
    pub next_sequence: Sequence,
    /// The sequence the gate waits for.
    pub waiting_for: Sequence,
    /// Items that are not released, in order.
    pub unreleased: Vec<WorkItemView>,
    /// The time of the view, by the store's clock.
    pub now: Timestamp,
}

/// What all conversations of a store add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Work items that are not settled. Those of a conversation that was left untouched count until their deadlines.
    pub awaiting: u64,
    /// Items that are settled behind one that is not.
    pub held: u64,
    /// Bytes of their results.
    pub held_bytes: u64,
}
