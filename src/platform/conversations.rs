//! Opening, showing and ending a conversation.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::request::{self, Millis, PathIds};
use super::work_items::WorkItemBody;
use super::{PLATFORM_PATH, Platform};
use crate::clock::Entropy;
use crate::domain::gate::{ConversationView, Limits, Open};
use crate::domain::ids::{ConversationId, Sequence, TraceParent};
use crate::domain::reason::Reason;
use crate::domain::time::Timestamp;
use crate::domain::work_item::State as ItemState;
use crate::http::context::RequestContext;
use crate::http::refusal::Refusal;
use crate::store::Store;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OpenBody {
    idle_ttl_ms: Option<Millis>,
    traceparent: Option<String>,
}

/// How a channel is read.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ChannelBody {
    /// Path of the event stream on this listener.
    events: String,
    /// Key of the Redis stream. `None` on the memory store.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis_stream: Option<String>,
}

impl ChannelBody {
    fn of(platform: &Platform, conversation: &ConversationId) -> Self {
        Self {
            events: format!("{PLATFORM_PATH}/conversations/{conversation}/events"),
            redis_stream: platform.store.channel(conversation.reference()),
        }
    }
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum ConversationState {
    Live,
    Ended,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OpenedBody<'a> {
    conversation_id: &'a ConversationId,
    state: ConversationState,
    channel: ChannelBody,
}

/// `PUT`: opens a conversation. 201 the first time, then 200.
pub(super) async fn open(
    State(platform): State<Arc<Platform>>,
    Extension(context): Extension<RequestContext>,
    Path(ids): Path<PathIds>,
    request: Request,
) -> Result<Response, Refusal> {
    let conversation = ids.recorded_conversation(&context)?;
    let (parts, body) = request.into_parts();
    let body: OpenBody = request::json(&parts, body, platform.body, &platform.bodies).await?;
    let command = Open {
        conversation: conversation.clone(),
        idle_ttl_ms: request::milliseconds("idleTtlMs", body.idle_ttl_ms, Limits::MAX_IDLE_TTL_MS)?,
        traceparent: request::traceparent(body.traceparent.as_deref(), &parts.headers)?,
        attempt: Entropy.attempt_id(),
    };
    let opened = platform.store.open(command).await??;
    let status = if opened.created { StatusCode::CREATED } else { StatusCode::OK };
    let reply = OpenedBody {
        conversation_id: &conversation,
        state: ConversationState::Live,
        channel: ChannelBody::of(&platform, &conversation),
    };
    Ok((status, Json(reply)).into_response())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownBody<'a> {
    conversation_id: &'a ConversationId,
    state: ConversationState,
    opened_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<Timestamp>,
    /// Why it was ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a Reason>,
    next_sequence: Sequence,
    waiting_for: Sequence,
    awaiting: Vec<WorkItemBody<'a>>,
    held: Vec<HeldItemBody<'a>>,
    held_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped_held: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped_awaiting: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a TraceParent>,
    channel: ChannelBody,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HeldItemBody<'a> {
    #[serde(flatten)]
    item: WorkItemBody<'a>,
    /// Size of the result in bytes.
    bytes: u64,
    /// Time in milliseconds since it was settled.
    age_ms: u64,
}

/// `GET`: the state of a conversation, the sequence that the gate waits for, and its awaiting and held items.
pub(super) async fn show(
    State(platform): State<Arc<Platform>>,
    Extension(context): Extension<RequestContext>,
    Path(ids): Path<PathIds>,
) -> Result<Response, Refusal> {
    let conversation = ids.recorded_conversation(&context)?;
    let view = platform.store.inspect(conversation.reference()).await??;
    Ok(Json(shown_body(&platform, &view)).into_response())
}

fn shown_body<'a>(platform: &Platform, view: &'a ConversationView) -> ShownBody<'a> {
    let in_state = |state| view.unreleased.iter().filter(move |item| item.state == state);
    let held: Vec<_> = in_state(ItemState::Held)
        .map(|item| HeldItemBody {
            item: WorkItemBody::of(&view.conversation_id, item),
            bytes: item.held_bytes,
            age_ms: item.settled.map_or(0, |(_, settled_at)| settled_at.millis_until(view.now)),
        })
        .collect();
    ShownBody {
        conversation_id: &view.conversation_id,
        state: if view.ended.is_some() { ConversationState::Ended } else { ConversationState::Live },
        opened_at: view.opened_at,
        idle_at: view.ended.is_none().then_some(view.idle_at),
        ended_at: view.ended.map(|ended| ended.ended_at),
        reason: view.end_reason.as_ref(),
        next_sequence: view.next_sequence,
        waiting_for: view.waiting_for,
        awaiting: in_state(ItemState::Awaiting)
            .map(|item| WorkItemBody::of(&view.conversation_id, item))
            .collect(),
        held_bytes: held.iter().map(|item| item.bytes).sum(),
        held,
        dropped_held: view.ended.map(|ended| ended.dropped_held),
        dropped_awaiting: view.ended.map(|ended| ended.dropped_awaiting),
        traceparent: view.traceparent.as_ref(),
        channel: ChannelBody::of(platform, &view.conversation_id),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndedBody<'a> {
    conversation_id: &'a ConversationId,
    state: ConversationState,
    ended_at: Timestamp,
    /// Why it was ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a Reason>,
    dropped_held: u64,
    dropped_awaiting: u64,
    channel: ChannelBody,
}

/// `DELETE`: ends a conversation. Idempotent.
pub(super) async fn end(
    State(platform): State<Arc<Platform>>,
    Extension(context): Extension<RequestContext>,
    Path(ids): Path<PathIds>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let conversation = ids.recorded_conversation(&context)?;
    let [reason] = request::query(query.as_deref(), ["reason"])?;
    let reason = reason.as_deref().map(request::reason).transpose()?;
    context.record(|log| log.reason.clone_from(&reason));
    let trace = context.span.traceparent();
    let receipt = platform.store.end(conversation.reference(), trace, reason).await??;
    let ended = receipt.ended;
    if !receipt.repeated {
        context.record(|log| {
            log.released = receipt.released.len();
            log.dropped = Some((ended.dropped_held, ended.dropped_awaiting));
        });
    }
    platform.record_released(&context, &conversation, &receipt.released);
    let reply = EndedBody {
        conversation_id: &conversation,
        state: ConversationState::Ended,
        ended_at: ended.ended_at,
        reason: receipt.reason.as_ref(),
        dropped_held: ended.dropped_held,
        dropped_awaiting: ended.dropped_awaiting,
        channel: ChannelBody::of(&platform, &conversation),
    };
    Ok(Json(reply).into_response())
}
