//! Lists the conversations that hold results.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Platform;
use super::request::{self, invalid};
use crate::domain::gate::WaitingConversation;
use crate::domain::ids::{ConversationId, Sequence, ToolCallId, ToolName, TurnId, WorkItemId};
use crate::domain::time::Timestamp;
use crate::domain::work_item::Kind;
use crate::http::refusal::Refusal;
use crate::store::Store;

/// Maximum number of conversations in a response.
pub(super) const MAX_LIMIT: usize = 100;
/// The default of `limit`.
pub(super) const DEFAULT_LIMIT: usize = 20;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WaitingBody<'a> {
    /// Sorted by `since`, oldest first.
    conversations: Vec<WaitingConversationBody<'a>>,
    /// Whether there may be more conversations.
    truncated: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WaitingConversationBody<'a> {
    conversation_id: &'a ConversationId,
    waiting_for: WaitingForBody<'a>,
    held: HeldTotalsBody,
    /// When the oldest held item was settled.
    since: Timestamp,
}

/// The item that the gate waits for.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WaitingForBody<'a> {
    sequence: Sequence,
    work_item_id: WorkItemId,
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a ToolName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a ToolCallId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    turn_id: Option<&'a TurnId>,
    issued_at: Timestamp,
    deadline: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_deadline: Option<Timestamp>,
}

/// The held results of the conversation.
#[derive(Serialize)]
struct HeldTotalsBody {
    /// Number of held items.
    count: u64,
    /// Bytes of their results.
    bytes: u64,
}

impl<'a> From<&'a WaitingConversation> for WaitingConversationBody<'a> {
    fn from(waiting: &'a WaitingConversation) -> Self {
        let item = &waiting.waiting_for;
        Self {
            conversation_id: &waiting.conversation_id,
            waiting_for: WaitingForBody {
                sequence: item.sequence,
                work_item_id: item.id,
                kind: item.kind,
                name: item.name.as_ref(),
                tool_call_id: item.tool_call_id.as_ref(),
                turn_id: item.turn_id.as_ref(),
                issued_at: item.issued_at,
                deadline: item.deadline,
                heartbeat_deadline: waiting.heartbeat_deadline,
            },
            held: HeldTotalsBody { count: waiting.held, bytes: waiting.held_bytes },
            since: waiting.since,
        }
    }
}

/// `GET` on the collection: the conversations that hold results. Others cannot be listed.
pub(super) async fn list(
    State(platform): State<Arc<Platform>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let [waiting, limit] = request::query(query.as_deref(), ["waiting", "limit"])?;
    if waiting.as_deref() != Some("true") {
        return Err(invalid("waiting", "must be `true`: only waiting conversations can be listed"));
    }
    let limit = limit.map_or(Ok(DEFAULT_LIMIT), |limit| parse_limit(&limit))?;
    let waiting = platform.store.waiting(limit).await?;
    let conversations = waiting.conversations.iter().map(Into::into).collect();
    Ok(Json(WaitingBody { conversations, truncated: waiting.truncated }).into_response())
}

fn parse_limit(text: &str) -> Result<usize, Refusal> {
    let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let limit = digits.and_then(|digits| digits.parse().ok()).filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| invalid("limit", format_args!("must be a whole number from 1 to {MAX_LIMIT}")))
}
