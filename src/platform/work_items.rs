//! Issuing, showing and cancelling a work item.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::Platform;
use super::conversations::named;
use super::request::{self, PathIds, invalid};
use crate::clock::Entropy;
use crate::config::Carrier;
use crate::domain::gate::{Cancel, Issue, WorkItemView};
use crate::domain::ids::{
    ConversationId, Fingerprint, IdempotencyDigest, Sequence, TraceParent, TurnId, WorkItemId,
};
use crate::domain::time::Timestamp;
use crate::domain::token::Token;
use crate::domain::work_item::{Kind, Outcome, State as ItemState, WorkItem};
use crate::http::context::RequestContext;
use crate::http::refusal::Refusal;
use crate::public::{CALLBACKS_PATH, Place};
use crate::store::Store;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IssueBody {
    kind: Kind,
    turn_id: Option<String>,
    timeout_ms: Option<u64>,
    carrier: Option<Carrier>,
    traceparent: Option<String>,
}

impl IssueBody {
    /// Equal for bodies that ask for the same, however they are written.
    fn fingerprint(&self) -> Fingerprint {
        let asked = (self.kind, &self.turn_id, self.timeout_ms, self.carrier, &self.traceparent);
        Fingerprint::of(format!("{asked:?}").as_bytes())
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IssuedBody<'a> {
    work_item_id: WorkItemId,
    conversation_id: &'a ConversationId,
    sequence: Sequence,
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    turn_id: Option<&'a TurnId>,
    issued_at: Timestamp,
    deadline: Timestamp,
    callback: CallbackBody<'a>,
}

/// How the provider is to answer: to be handed on as it is.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CallbackBody<'a> {
    url: String,
    method: &'static str,
    token: &'a str,
    carrier: Carrier,
    name: &'a str,
    headers: BTreeMap<&'a str, &'a str>,
    expires_at: Timestamp,
}

impl<'a> CallbackBody<'a> {
    fn new(base_url: &str, place: Place<'a>, token: &'a Token, item: &WorkItem) -> Self {
        let token = token.expose();
        let mut url = format!("{base_url}{CALLBACKS_PATH}");
        let mut headers = BTreeMap::from([("Content-Type", "application/json")]);
        // A token needs no percent-encoding, wherever it stands; neither does a parameter's name.
        match place.carrier {
            Carrier::Header => drop(headers.insert(place.name, token)),
            Carrier::Query => url = format!("{url}?{}={token}", place.name),
            Carrier::Path => url = format!("{url}/{token}"),
            Carrier::Body => {}
        }
        Self {
            url,
            method: "POST",
            token,
            carrier: place.carrier,
            name: place.name,
            headers,
            expires_at: item.expires_at,
        }
    }
}

/// `POST`: issues the next work item. It is committed before its token exists, so no callback can be too early.
pub(super) async fn issue(
    State(platform): State<Arc<Platform>>,
    Extension(context): Extension<RequestContext>,
    Path(ids): Path<PathIds>,
    request: Request,
) -> Result<Response, Refusal> {
    let conversation = named(&ids, &context)?;
    let (parts, body) = request.into_parts();
    let body: IssueBody = request::json(&parts, body, platform.body, &platform.room).await?;
    let place = platform
        .carriers
        .place(body.carrier)
        .ok_or_else(|| invalid("carrier", "this carrier is switched off"))?;
    let timeout_ms = request::milliseconds("timeoutMs", body.timeout_ms, platform.max_timeout_ms)?;
    let command = Issue {
        conversation: conversation.reference(),
        work_item: Entropy.work_item_id(),
        kind: body.kind,
        turn_id: body.turn_id.as_deref().map(request::turn_id).transpose()?,
        timeout_ms: timeout_ms.unwrap_or(platform.default_timeout_ms),
        replay_window_ms: platform.replay_window_ms,
        key_id: platform.keyring.signing_key_id(),
        traceparent: request::traceparent(body.traceparent.as_deref(), &parts.headers)?,
        request_traceparent: context.place.traceparent(),
        idempotency: idempotency_key(&parts.headers)?.map(|key| (key, body.fingerprint())),
    };
    let issued = platform.store.issue(command).await??;
    let item = issued.item;
    context.note(|facts| facts.item(&item));
    if !issued.repeated {
        context.telemetry.metrics.issued(item.kind);
    }
    let token = platform.keyring.sign(conversation.reference(), &item);
    let reply = IssuedBody {
        work_item_id: item.id,
        conversation_id: &conversation,
        sequence: item.sequence,
        kind: item.kind,
        turn_id: item.turn_id.as_ref(),
        issued_at: item.issued_at,
        deadline: item.deadline,
        callback: CallbackBody::new(&platform.public_base_url, place, &token, &item),
    };
    let mut response = (StatusCode::CREATED, Json(reply)).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if issued.repeated {
        response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyDigest>, Refusal> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let digest = value.to_str().ok().and_then(IdempotencyDigest::of);
            digest.map(Some).ok_or_else(|| {
                invalid("Idempotency-Key", "must be 1 to 255 visible ASCII characters, without spaces")
            })
        }
        (Some(_), Some(_)) => Err(invalid("Idempotency-Key", "must be there at most once")),
    }
}

/// A work item as it stands.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WorkItemBody<'a> {
    work_item_id: WorkItemId,
    conversation_id: &'a ConversationId,
    sequence: Sequence,
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    turn_id: Option<&'a TurnId>,
    state: ItemState,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    issued_at: Timestamp,
    deadline: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    received_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a TraceParent>,
}

impl<'a> WorkItemBody<'a> {
    pub(super) fn of(conversation_id: &'a ConversationId, view: &'a WorkItemView) -> Self {
        let item = &view.item;
        Self {
            work_item_id: item.id,
            conversation_id,
            sequence: item.sequence,
            kind: item.kind,
            turn_id: item.turn_id.as_ref(),
            state: view.state,
            outcome: view.settled.map(|(outcome, _)| outcome),
            issued_at: item.issued_at,
            deadline: item.deadline,
            received_at: view.settled.map(|(_, received_at)| received_at),
            traceparent: item.traceparent.as_ref(),
        }
    }
}

/// `GET`: its state.
pub(super) async fn show(
    State(platform): State<Arc<Platform>>,
    Extension(context): Extension<RequestContext>,
    Path(ids): Path<PathIds>,
) -> Result<Response, Refusal> {
    let (conversation, work_item) = (named(&ids, &context)?, ids.work_item()?);
    let shown = platform.store.work_item(conversation.reference(), work_item).await;
    let view = shown??;
    context.note(|facts| facts.item(&view.item));
    Ok(Json(WorkItemBody::of(&conversation, &view)).into_response())
}

/// `DELETE`: withdraws it.
pub(super) async fn cancel(
    State(platform): State<Arc<Platform>>,
    Extension(context): Extension<RequestContext>,
    Path(ids): Path<PathIds>,
) -> Result<Response, Refusal> {
    let (conversation, work_item) = (named(&ids, &context)?, ids.work_item()?);
    let command = Cancel {
        conversation: conversation.reference(),
        work_item,
        request_id: context.request_id,
        traceparent: context.place.traceparent(),
        attempt: Entropy.attempt_id(),
    };
    let cancelled = platform.store.cancel(command).await??;
    context.note(|facts| {
        facts.item(&cancelled.item.item);
        facts.outcome = Some(Outcome::Cancelled);
        facts.released = cancelled.released.len();
    });
    context.telemetry.released(
        &context.place,
        (conversation.reference(), Some(&conversation)),
        || platform.store.channel(conversation.reference()),
        &cancelled.released,
        &[],
    );
    Ok(Json(WorkItemBody::of(&conversation, &cancelled.item)).into_response())
}
