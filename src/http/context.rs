//! What names a request, and what is learned of it while it is answered.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, HeaderName};
use opentelemetry::{Context, KeyValue};
use tokio::time::Instant;
use tracing::Span;

use crate::clock::Entropy;
use crate::domain::gate::{Delivery, Known, Receipt};
use crate::domain::ids::{ConversationId, ConversationRef, RequestId, Sequence, TraceParent, WorkItemId};
use crate::domain::token::TokenFingerprint;
use crate::domain::work_item::{Kind, Outcome, WorkItem};
use crate::telemetry::trace::{self, Place, integer};
use crate::telemetry::{Telemetry, names};

/// Names the request in every reply.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Who is asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Providers and the internet: a trace begins here.
    Public,
    /// The platform: its trace goes on.
    Platform,
}

/// What names a request.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The caller's `X-Request-Id` where it is a UUID, or a new one.
    pub request_id: RequestId,
    /// Its place in its trace.
    pub place: Place,
    /// What the service is watched with.
    pub telemetry: Telemetry,
    facts: Arc<Mutex<Facts>>,
}

/// What is learned of a request while it is answered: for its log line, its span and the metrics.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The conversation's id.
    pub conversation: Option<ConversationId>,
    /// The conversation's reference: all that a token tells of it.
    pub reference: Option<ConversationRef>,
    /// The work item.
    pub work_item: Option<WorkItemId>,
    /// The work item's place.
    pub sequence: Option<Sequence>,
    /// The work item's kind.
    pub kind: Option<Kind>,
    /// The trace that the work item was issued in.
    pub issued_in: Option<TraceParent>,
    /// How the callback settled it.
    pub outcome: Option<Outcome>,
    /// Whether its result went to the channel at once.
    pub delivery: Option<Delivery>,
    /// Whether the callback had come before.
    pub replayed: Option<bool>,
    /// How many envelopes the request put on the channel.
    pub released: usize,
    /// Of the token that was presented.
    pub token: Option<TokenFingerprint>,
    /// The client's address, where it is the reason for a refusal.
    pub client: Option<IpAddr>,
    /// How large its body was, and when it had been read.
    pub body: Option<(usize, Instant)>,
}

impl Facts {
    /// Notes the item that the request is about.
    pub fn item(&mut self, item: &WorkItem) {
        self.work_item = Some(item.id);
        self.sequence = Some(item.sequence);
        self.kind = Some(item.kind);
        self.issued_in.clone_from(&item.traceparent);
    }

    /// Notes what became of a callback.
    pub fn receipt(&mut self, receipt: &Receipt) {
        self.conversation = Some(receipt.conversation_id.clone());
        self.item(&receipt.item);
        self.outcome = Some(receipt.outcome);
        self.delivery = Some(receipt.delivery);
        self.replayed = Some(receipt.replayed);
        self.released = receipt.released.len();
    }

    /// Notes what a refused callback was about.
    pub fn known(&mut self, known: &Known) {
        self.conversation = Some(known.conversation_id.clone());
        if let Some(item) = &known.item {
            self.item(item);
        }
    }

    /// The delivery's name.
    pub fn delivery_name(&self) -> Option<&'static str> {
        self.delivery.map(|delivery| match delivery {
            Delivery::Delivered => "delivered",
            Delivery::Held { .. } => "held",
        })
    }

    /// The sequence that the gate waited for, of a result that was held.
    pub fn held_behind(&self) -> Option<u64> {
        match self.delivery {
            Some(Delivery::Held { waiting_for }) => Some(waiting_for.get()),
            Some(Delivery::Delivered) | None => None,
        }
    }

    /// All that is known, as a span has it.
    pub fn attributes(&self) -> Vec<KeyValue> {
        fn add<T: Into<opentelemetry::Value>>(to: &mut Vec<KeyValue>, name: &'static str, value: Option<T>) {
            to.extend(value.map(|value| KeyValue::new(name, value)));
        }
        let mut all = Vec::with_capacity(24);
        add(&mut all, names::CONVERSATION_ID, self.conversation.as_ref().map(ToString::to_string));
        add(&mut all, names::CONVERSATION_REFERENCE, self.reference.map(|reference| reference.to_string()));
        add(&mut all, names::WORK_ITEM_ID, self.work_item.map(|id| id.to_string()));
        add(&mut all, names::WORK_ITEM_SEQUENCE, self.sequence.map(|sequence| integer(sequence.get())));
        add(&mut all, names::WORK_ITEM_KIND, self.kind.map(Kind::as_str));
        add(&mut all, names::OUTCOME, self.outcome.map(Outcome::as_str));
        add(&mut all, names::DELIVERY, self.delivery_name());
        add(&mut all, names::REPLAYED, self.replayed);
        add(&mut all, names::HELD_BEHIND, self.held_behind().map(integer));
        add(&mut all, names::RELEASED, (self.released > 0).then(|| integer(self.released as u64)));
        add(&mut all, names::TOKEN_FINGERPRINT, self.token.map(|token| token.to_string()));
        add(&mut all, names::CLIENT_ADDRESS, self.client.map(|address| address.to_string()));
        add(&mut all, names::HTTP_REQUEST_BODY_SIZE, self.body.map(|(bytes, _)| integer(bytes as u64)));
        all
    }
}

impl RequestContext {
    /// Begins the request's span.
    pub(super) fn begin(side: Side, headers: &HeaderMap, span: &Span, telemetry: &Telemetry) -> Self {
        let parent = match side {
            Side::Platform => trace::caller(headers),
            Side::Public => Context::new(),
        };
        let named = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).and_then(RequestId::parse);
        Self {
            request_id: named.unwrap_or_else(|| Entropy.request_id()),
            place: trace::begin(span, &parent),
            telemetry: telemetry.clone(),
            facts: Arc::default(),
        }
    }

    /// Notes what was learned of the request.
    pub fn note(&self, learn: impl FnOnce(&mut Facts)) {
        learn(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What was learned of the request.
    pub(super) fn facts(&self) -> Facts {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
