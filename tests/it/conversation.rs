//! Operations on one conversation of a stage.

use bytes::Bytes;
use callback_ingress::clock::Entropy;
use callback_ingress::domain::envelope::EnvelopeJson;
use callback_ingress::domain::gate::{
    Accept, AcceptRefused, Cancel, CancelRefused, CancelTurn, CancelTurnRefused, CancelledTurn,
    ConversationNotFound, ConversationView, Ended, Heartbeat, HeartbeatReceipt, HeartbeatRefused, Issue,
    IssueRefused, Issued, LookupRefused, Open, OpenRefused, Opened, Receipt, WorkItemView,
};
use callback_ingress::domain::ids::{
    ConversationId, ConversationRef, Fingerprint, Sequence, TurnId, WorkItemId,
};
use callback_ingress::domain::progress::Progress;
use callback_ingress::domain::result::{CallbackResult, Payload};
use callback_ingress::domain::token::KeyId;
use callback_ingress::domain::work_item::{Kind, Outcome, WorkItem};
use callback_ingress::store::{DueConversation, Page, Store};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::stage::Stage;

/// Default time from an item's deadline to the expiry of its token.
pub(crate) const REPLAY_WINDOW_MS: u64 = 5_000;

/// A conversation of a [`Stage`].
#[derive(Debug)]
pub(crate) struct Conversation<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) id: ConversationId,
}

/// Everything that a store reports about a conversation.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen {
    view: Result<ConversationView, ConversationNotFound>,
    page: Result<Page, ConversationNotFound>,
    items: Vec<Result<WorkItemView, LookupRefused>>,
}

impl<'a> Conversation<'a> {
    pub(crate) const fn new(stage: &'a Stage, id: ConversationId) -> Self {
        Self { stage, id }
    }

    pub(crate) fn reference(&self) -> ConversationRef {
        self.id.reference()
    }

    /// A command that opens it.
    pub(crate) fn opening(&self) -> Open {
        Open {
            conversation: self.id.clone(),
            idle_ttl_ms: None,
            traceparent: None,
            attempt: Entropy.attempt_id(),
        }
    }

    /// Opens it, after the test has changed the command.
    pub(crate) async fn open(&self, change: impl FnOnce(&mut Open)) -> Result<Opened, OpenRefused> {
        let mut command = self.opening();
        change(&mut command);
        self.stage.store.open(command).await.unwrap()
    }

    /// A command that issues a tool's work item.
    pub(crate) fn issuing(&self, timeout_ms: u64) -> Issue {
        Issue {
            conversation: self.reference(),
            work_item: Entropy.work_item_id(),
            kind: Kind::Tool,
            turn_id: None,
            tool_call_id: None,
            name: None,
            timeout_ms,
            heartbeat_timeout_ms: None,
            replay_window_ms: REPLAY_WINDOW_MS,
            key_id: KeyId::parse("k").unwrap(),
            traceparent: None,
            request_traceparent: None,
            idempotency: None,
        }
    }

    pub(crate) async fn issue_with(&self, command: Issue) -> Result<Issued, IssueRefused> {
        self.stage.store.issue(command).await.unwrap()
    }

    /// Issues an item; a refusal fails the test.
    pub(crate) async fn issue(&self, timeout_ms: u64) -> WorkItem {
        self.issue_with(self.issuing(timeout_ms)).await.unwrap().item
    }

    /// Issues `N` items.
    pub(crate) async fn issue_many<const N: usize>(&self, timeout_ms: u64) -> [WorkItem; N] {
        let mut items = Vec::new();
        for _ in 0..N {
            items.push(self.issue(timeout_ms).await);
        }
        items.try_into().unwrap()
    }

    /// A command that accepts a result.
    pub(crate) fn bringing(&self, item: &WorkItem, body: &[u8]) -> Accept {
        Accept {
            conversation: self.reference(),
            work_item: item.id,
            sequence: item.sequence,
            expires_at: item.expires_at,
            result: succeeded(body),
            request_id: Entropy.request_id(),
            traceparent: None,
            attempt: Entropy.attempt_id(),
        }
    }

    pub(crate) async fn accept_with(&self, command: Accept) -> Result<Receipt, AcceptRefused> {
        self.stage.store.accept(command).await.unwrap().map_err(|refused| refused.why)
    }

    /// Accepts a result.
    pub(crate) async fn accept(&self, item: &WorkItem, body: &str) -> Result<Receipt, AcceptRefused> {
        self.accept_with(self.bringing(item, body.as_bytes())).await
    }

    /// A heartbeat of an item.
    pub(crate) fn beating(&self, item: &WorkItem, progress: Option<Progress>) -> Heartbeat {
        Heartbeat {
            conversation: self.reference(),
            work_item: item.id,
            expires_at: item.expires_at,
            progress,
        }
    }

    pub(crate) async fn heartbeat(
        &self,
        item: &WorkItem,
        progress: Option<Progress>,
    ) -> Result<HeartbeatReceipt, HeartbeatRefused> {
        let taken = self.stage.store.heartbeat(self.beating(item, progress)).await.unwrap();
        taken.map_err(|refused| refused.why)
    }

    /// A command that cancels an item.
    pub(crate) fn withdrawing(&self, item: &WorkItem) -> Cancel {
        Cancel {
            conversation: self.reference(),
            work_item: item.id,
            reason: None,
            request_id: Entropy.request_id(),
            traceparent: None,
            attempt: Entropy.attempt_id(),
        }
    }

    /// A command that cancels a turn.
    pub(crate) fn withdrawing_turn(&self, turn: &str) -> CancelTurn {
        CancelTurn {
            conversation: self.reference(),
            turn_id: TurnId::parse(turn).unwrap(),
            reason: None,
            request_id: Entropy.request_id(),
            traceparent: None,
            attempt: Entropy.attempt_id(),
        }
    }

    pub(crate) async fn cancel_turn(&self, turn: &str) -> Result<CancelledTurn, CancelTurnRefused> {
        self.stage.store.cancel_turn(self.withdrawing_turn(turn)).await.unwrap()
    }

    pub(crate) async fn cancel(&self, item: &WorkItem) -> Result<WorkItemView, CancelRefused> {
        self.stage.store.cancel(self.withdrawing(item)).await.unwrap().map(|cancelled| cancelled.item)
    }

    pub(crate) async fn end(&self) -> Result<Ended, ConversationNotFound> {
        self.stage.store.end(self.reference(), None, None).await.unwrap().map(|receipt| receipt.ended)
    }

    /// Fires the timers of these items.
    pub(crate) async fn expire(&self, items: &[&WorkItem]) -> Vec<(WorkItemId, u64)> {
        let sequences = items.iter().map(|item| item.sequence).collect();
        let due = DueConversation { conversation: self.reference(), sequences, whole: false };
        let expired = self.stage.store.expire(due, None).await.unwrap();
        expired.timed_out.iter().map(|timed_out| (timed_out.work_item, timed_out.late_ms)).collect()
    }

    pub(crate) async fn inspect(&self) -> Result<ConversationView, ConversationNotFound> {
        self.stage.store.inspect(self.reference()).await.unwrap()
    }

    pub(crate) async fn work_item(&self, item: &WorkItem) -> Result<WorkItemView, LookupRefused> {
        self.stage.store.work_item(self.reference(), item.id).await.unwrap()
    }

    pub(crate) async fn read(&self, after: u64, count: usize) -> Result<Page, ConversationNotFound> {
        let after = (after > 0).then(|| Sequence::new(after));
        self.stage.store.read(self.reference(), after, count).await.unwrap()
    }

    /// Sequence and outcome of each envelope on the channel.
    pub(crate) async fn channel(&self) -> Vec<(u64, Outcome)> {
        let page = self.read(0, 100_000).await.unwrap();
        page.envelopes
            .iter()
            .map(Envelope::read)
            .map(|envelope| (envelope.sequence, envelope.outcome))
            .collect()
    }

    /// The payloads on the channel.
    pub(crate) async fn results(&self) -> Vec<Option<Bytes>> {
        let page = self.read(0, 100_000).await.unwrap();
        let payload =
            |envelope: &EnvelopeJson| Envelope::read(envelope).payload.map(|payload| payload.bytes().clone());
        page.envelopes.iter().map(payload).collect()
    }

    /// Everything that the store reports about it and these items.
    pub(crate) async fn seen(&self, items: &[&WorkItem]) -> Seen {
        let mut views = Vec::new();
        for item in items {
            views.push(self.work_item(item).await);
        }
        Seen { view: self.inspect().await, page: self.read(0, 100_000).await, items: views }
    }
}

/// A parsed envelope.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) sequence: u64,
    pub(crate) outcome: Outcome,
    pub(crate) payload: Option<Payload>,
    /// The members other than the payload.
    pub(crate) members: Members,
}

/// The members that the service writes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Members {
    pub(crate) sequence: u64,
    pub(crate) conversation_id: String,
    pub(crate) work_item_id: String,
    pub(crate) turn_id: Option<String>,
    pub(crate) tool_call_id: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) kind: Kind,
    #[serde(deserialize_with = "outcome")]
    pub(crate) outcome: Outcome,
    pub(crate) issued_at: String,
    pub(crate) received_at: String,
    pub(crate) released_at: String,
    pub(crate) request_id: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) traceparent: Option<String>,
}

fn outcome<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Outcome, D::Error> {
    let word = String::deserialize(deserializer)?;
    Outcome::parse(&word).ok_or_else(|| D::Error::custom("no outcome"))
}

impl Envelope {
    /// Cuts the payload out before parsing, because these tests use results that are not JSON.
    pub(crate) fn read(json: &EnvelopeJson) -> Self {
        let json = json.bytes();
        let find = |what: &str| json.windows(what.len()).position(|part| part == what.as_bytes());
        let last = |what: &str| json.windows(what.len()).rposition(|part| part == what.as_bytes());
        let after = last(",\"issuedAt\":\"").unwrap();
        let (before, payload) = match (find("\",\"result\":"), find("\",\"error\":")) {
            (Some(at), _) => (at + 1, Some(Payload::Succeeded(json.slice(at + 11..after)))),
            (None, Some(at)) => (at + 1, Some(Payload::Failed(json.slice(at + 10..after)))),
            (None, None) => (after, None),
        };
        let members = [&json[..before], &json[after..]].concat();
        let members: Members = serde_json::from_slice(&members)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(json)));
        Self { sequence: members.sequence, outcome: members.outcome, payload, members }
    }
}

/// A result, as parsed from a provider's body.
pub(crate) fn succeeded(body: &[u8]) -> CallbackResult {
    let body = Bytes::copy_from_slice(body);
    CallbackResult { fingerprint: Fingerprint::of(&body), payload: Payload::Succeeded(body) }
}

/// An error, as parsed from a provider's body.
pub(crate) fn failed(error: &[u8]) -> CallbackResult {
    let body = Bytes::copy_from_slice(error);
    CallbackResult { fingerprint: Fingerprint::of(&body), payload: Payload::Failed(body) }
}
