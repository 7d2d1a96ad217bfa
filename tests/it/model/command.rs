//! The operations of a store and their answers, as values.

use callback_ingress::domain::gate::{
    Accept, Cancel, CancelRefused, CancelTurn, CancelTurnRefused, Cancelled, CancelledTurn,
    ConversationNotFound, ConversationView, Delivery, EndReceipt, Expired, Heartbeat, HeartbeatReceipt,
    Issue, IssueRefused, Issued, LookupRefused, Open, OpenRefused, Opened, Receipt, RefusedCallback,
    RefusedHeartbeat, WorkItemView,
};
use callback_ingress::domain::ids::{ConversationRef, Sequence, TraceParent, WorkItemId};
use callback_ingress::domain::reason::Reason;
use callback_ingress::store::{Due, DueConversation, InstrumentedStore, Page, Store};

/// An operation with its arguments.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Open(Open),
    Issue(Issue),
    Accept(Accept),
    Heartbeat(Heartbeat),
    Cancel(Cancel),
    CancelTurn(CancelTurn),
    End(ConversationRef, Option<TraceParent>, Option<Reason>),
    Expire(DueConversation, Option<TraceParent>),
    Due(usize),
    Inspect(ConversationRef),
    WorkItem(ConversationRef, WorkItemId),
    Read(ConversationRef, Option<Sequence>, usize),
}

/// An answer of a store.
#[derive(Debug, PartialEq)]
pub(super) enum Reply {
    Open(Result<Opened, OpenRefused>),
    Issue(Result<Issued, IssueRefused>),
    Accept(Result<Receipt, RefusedCallback>),
    Heartbeat(Result<HeartbeatReceipt, RefusedHeartbeat>),
    Cancel(Result<Cancelled, CancelRefused>),
    CancelTurn(Result<CancelledTurn, CancelTurnRefused>),
    End(Result<EndReceipt, ConversationNotFound>),
    Expire(Expired),
    Due(Due),
    Inspect(Result<ConversationView, ConversationNotFound>),
    WorkItem(Result<WorkItemView, LookupRefused>),
    Read(Result<Page, ConversationNotFound>),
}

impl Command {
    /// Runs the command; an unavailable store fails the test.
    pub(super) async fn run(self, store: &InstrumentedStore) -> Reply {
        match self {
            Self::Open(command) => Reply::Open(store.open(command).await.unwrap()),
            Self::Issue(command) => Reply::Issue(store.issue(command).await.unwrap()),
            Self::Accept(command) => Reply::Accept(store.accept(command).await.unwrap()),
            Self::Heartbeat(command) => Reply::Heartbeat(store.heartbeat(command).await.unwrap()),
            Self::Cancel(command) => Reply::Cancel(store.cancel(command).await.unwrap()),
            Self::CancelTurn(command) => Reply::CancelTurn(store.cancel_turn(command).await.unwrap()),
            Self::End(conversation, trace, reason) => {
                Reply::End(store.end(conversation, trace, reason).await.unwrap())
            }
            Self::Expire(due, trace) => Reply::Expire(store.expire(due, trace).await.unwrap()),
            Self::Due(limit) => {
                let partitions: Vec<u16> = (0..store.partitions()).collect();
                let mut due = store.due(&partitions, limit).await.unwrap();
                // The spread over partitions is not part of the contract.
                due.conversations.sort_by_key(|of| of.conversation);
                let next = due.next_in_ms.iter().filter_map(|(_, next)| *next).min();
                due.next_in_ms = vec![(0, next)];
                Reply::Due(due)
            }
            Self::Inspect(conversation) => Reply::Inspect(store.inspect(conversation).await.unwrap()),
            Self::WorkItem(conversation, item) => {
                Reply::WorkItem(store.work_item(conversation, item).await.unwrap())
            }
            Self::Read(conversation, after, count) => {
                Reply::Read(store.read(conversation, after, count).await.unwrap())
            }
        }
    }
}

fn or_refused<T, R: std::fmt::Debug>(
    operation: &str,
    result: &Result<T, R>,
    name: impl FnOnce(&T) -> String,
) -> String {
    match result {
        Ok(done) => format!("{operation}: {}", name(done)),
        Err(refused) => format!("{operation}: refused, {refused:?}"),
    }
}

impl Reply {
    /// The kind of the answer, one of [`EVERY_KIND`].
    pub(super) fn kind(&self) -> String {
        let live = |ended| if ended { "ended" } else { "live" }.to_owned();
        let some = |none| if none { "none" } else { "some" };
        match self {
            Self::Open(result) => {
                or_refused("open", result, |opened| if opened.created { "made" } else { "touched" }.into())
            }
            Self::Issue(result) => {
                or_refused("issue", result, |issued| if issued.repeated { "known" } else { "new" }.into())
            }
            Self::Accept(Err(refused)) => format!("accept: refused, {:?}", refused.why),
            Self::Accept(result) => or_refused("accept", result, |receipt| {
                let again = if receipt.replayed { " again" } else { "" };
                match receipt.delivery {
                    Delivery::Delivered => format!("{} delivered{again}", receipt.outcome),
                    Delivery::Held { .. } => format!("{} held{again}", receipt.outcome),
                }
            }),
            Self::Heartbeat(Err(refused)) => format!("heartbeat: refused, {:?}", refused.why),
            Self::Heartbeat(result) => or_refused("heartbeat", result, |receipt| {
                let published = if receipt.published { ", published" } else { "" };
                format!("{:?}{published}", receipt.item.state)
            }),
            Self::Cancel(result) => or_refused("cancel", result, |view| format!("{:?}", view.item.state)),
            Self::CancelTurn(result) => or_refused("cancel turn", result, |turn| {
                let cancelled = some(turn.cancelled == 0);
                format!("{} listed, {cancelled} cancelled", some(turn.items.is_empty()))
            }),
            Self::End(result) => or_refused("end", result, |receipt| {
                match (receipt.ended.dropped_held, receipt.ended.dropped_awaiting) {
                    (0, 0) => "nothing dropped".to_owned(),
                    (0, _) => "awaited items dropped".to_owned(),
                    _ => "held items dropped".to_owned(),
                }
            }),
            Self::Expire(expired) if expired.ended.is_some() => "expire: ended".to_owned(),
            Self::Expire(expired) if expired.next_in_ms.is_some() => "expire: set again".to_owned(),
            Self::Expire(expired) => format!("expire: {}", some(expired.timed_out.is_empty())),
            Self::Due(due) if due.next_in_ms == [(0, Some(0))] => "due: more".to_owned(),
            Self::Due(due) => {
                let next = some(due.next_in_ms == [(0, None)]);
                format!("due: {} now, {next} later", some(due.conversations.is_empty()))
            }
            Self::Inspect(result) => or_refused("inspect", result, |view| live(view.ended.is_some())),
            Self::WorkItem(result) => or_refused("work item", result, |view| {
                let settled = view.settled.map_or("unsettled", |(outcome, _)| outcome.as_str());
                format!("{:?} {settled}", view.state)
            }),
            Self::Read(result) => or_refused("read", result, |page| {
                format!("{} {}", some(page.envelopes.is_empty()), live(page.ended))
            }),
        }
    }
}

/// Every kind of answer. A run must produce each at least once.
pub(super) const EVERY_KIND: &[&str] = &[
    "open: made",
    "open: touched",
    "open: refused, ConversationEnded",
    "issue: new",
    "issue: known",
    "issue: refused, ConversationNotFound",
    "issue: refused, ConversationEnded",
    "issue: refused, IdempotencyConflict",
    "issue: refused, AwaitingLimit",
    "issue: refused, ChannelLimit",
    "accept: succeeded delivered",
    "accept: succeeded delivered again",
    "accept: succeeded held",
    "accept: succeeded held again",
    "accept: failed delivered",
    "accept: failed delivered again",
    "accept: failed held",
    "accept: failed held again",
    "accept: refused, TokenExpired",
    "accept: refused, ConversationEnded",
    "accept: refused, WorkItemUnknown",
    "accept: refused, TokenUsed",
    "accept: refused, WorkItemTimedOut",
    "accept: refused, WorkItemCancelled",
    "accept: refused, HeldLimit",
    "accept: refused, ChannelLimit",
    "heartbeat: Awaiting",
    "heartbeat: Awaiting, published",
    "heartbeat: Held",
    "heartbeat: Released",
    "heartbeat: refused, TokenExpired",
    "heartbeat: refused, ConversationEnded",
    "heartbeat: refused, WorkItemUnknown",
    "heartbeat: refused, WorkItemTimedOut",
    "heartbeat: refused, WorkItemCancelled",
    "cancel: Held",
    "cancel: Released",
    "cancel: refused, ConversationNotFound",
    "cancel: refused, ConversationEnded",
    "cancel: refused, WorkItemNotFound",
    "cancel: refused, WorkItemSettled(Succeeded)",
    "cancel: refused, WorkItemSettled(Failed)",
    "cancel: refused, WorkItemSettled(TimedOut)",
    "cancel: refused, WorkItemSettled(Cancelled)",
    "cancel turn: none listed, none cancelled",
    "cancel turn: some listed, none cancelled",
    "cancel turn: some listed, some cancelled",
    "cancel turn: refused, ConversationNotFound",
    "cancel turn: refused, ConversationEnded",
    "end: nothing dropped",
    "end: awaited items dropped",
    "end: held items dropped",
    "end: refused, ConversationNotFound",
    "expire: none",
    "expire: some",
    "expire: ended",
    "expire: set again",
    "due: more",
    "due: none now, none later",
    "due: none now, some later",
    "due: some now, none later",
    "due: some now, some later",
    "inspect: live",
    "inspect: ended",
    "inspect: refused, ConversationNotFound",
    "work item: Awaiting unsettled",
    "work item: Held succeeded",
    "work item: Held failed",
    "work item: Held timed_out",
    "work item: Held cancelled",
    "work item: Released succeeded",
    "work item: Released failed",
    "work item: Released timed_out",
    "work item: Released cancelled",
    "work item: Dropped unsettled",
    "work item: Dropped succeeded",
    "work item: Dropped failed",
    "work item: Dropped timed_out",
    "work item: Dropped cancelled",
    "work item: refused, ConversationNotFound",
    "work item: refused, WorkItemNotFound",
    "read: none live",
    "read: some live",
    "read: none ended",
    "read: some ended",
    "read: refused, ConversationNotFound",
];
