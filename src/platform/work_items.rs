//! Issuing, showing and cancelling work items.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::Platform;
use super::refusals::issue_failed;
use super::request::{self, Millis, PathIds, invalid};
use crate::clock::Entropy;
use crate::config::Carrier;
use crate::domain::gate::{Cancel, CancelTurn, Issue, WorkItemView};
use crate::domain::ids::{
    ConversationId, Fingerprint, IdempotencyDigest, Sequence, ToolCallId, ToolName, TraceParent, TurnId,
    WorkItemId,
};
use crate::domain::reason::Reason;
use crate::domain::time::Timestamp;
use crate::domain::token::Token;
use crate::domain::work_item::{Kind, Outcome, State as ItemState, WorkItem};
use crate::http::context::RequestContext;
use crate::http::refusal::Refusal;
use crate::public::{CALLBACKS_PATH, HEARTBEAT_SEGMENT, TokenLocation};
use crate::store::Store;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IssueBody {
    #[serde(deserialize_with = "request::string_enum")]
    kind: Kind,
    turn_id: Option<String>,
    timeout_ms: Option<Millis>,
    #[serde(default, deserialize_with = "request::optional_string_enum")]
    carrier: Option<Carrier>,
    traceparent: Option<String>,
    tool_call_id: Option<String>,
    name: Option<String>,
    heartbeat_timeout_ms: Option<Millis>,
}

impl IssueBody {
    /// A digest of the fields' values, which does not depend on the formatting of the JSON. It must not change between
    /// releases: it is stored with the idempotency key, and a retry may reach another version of the service.
    fn fingerprint(&self) -> Fingerprint {
        let text = |duration: Option<Millis>| duration.and_then(Millis::get).map(|ms| ms.to_string());
        let (timeout_ms, heartbeat_timeout_ms) = (text(self.timeout_ms), text(self.heartbeat_timeout_ms));
        // The order is part of the fingerprint: append new fields, and skip absent ones.
        let fields = [
            ("kind", Some(self.kind.as_str())),
            ("turnId", self.turn_id.as_deref()),
            ("timeoutMs", timeout_ms.as_deref()),
            ("carrier", self.carrier.map(Carrier::as_str)),
            ("traceparent", self.traceparent.as_deref()),
            ("toolCallId", self.tool_call_id.as_deref()),
            ("name", self.name.as_deref()),
            ("heartbeatTimeoutMs", heartbeat_timeout_ms.as_deref()),
        ];
        let mut form = b"issue/v1".to_vec();
        for (name, value) in fields {
            let Some(value) = value else { continue };
            for part in [name, value] {
                form.extend_from_slice(&(part.len() as u64).to_be_bytes());
                form.extend_from_slice(part.as_bytes());
            }
        }
        Fingerprint::of(&form)
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
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a ToolCallId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a ToolName>,
    issued_at: Timestamp,
    deadline: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_timeout_ms: Option<u64>,
    /// When the first heartbeat is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_deadline: Option<Timestamp>,
    callback: CallbackBody<'a>,
}

/// How the provider posts its result. The platform passes this object on unchanged.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CallbackBody<'a> {
    url: String,
    /// The URL for heartbeats, if the item needs them.
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_url: Option<String>,
    method: &'static str,
    token: &'a str,
    carrier: Carrier,
    name: &'a str,
    headers: BTreeMap<&'a str, &'a str>,
    /// The time until which the provider should retry.
    deadline: Timestamp,
    expires_at: Timestamp,
}

impl<'a> CallbackBody<'a> {
    fn new(base_url: &str, location: TokenLocation<'a>, token: &'a Token, item: &WorkItem) -> Self {
        let token = token.expose();
        let mut url = format!("{base_url}{CALLBACKS_PATH}");
        let mut heartbeat_url = format!("{url}{HEARTBEAT_SEGMENT}");
        let mut headers = BTreeMap::from([("Content-Type", "application/json")]);
        // Neither a token nor a parameter's name needs percent-encoding.
        match location.carrier {
            Carrier::Header => drop(headers.insert(location.name, token)),
            Carrier::Query => {
                let query = format!("?{}={token}", location.name);
                url.push_str(&query);
                heartbeat_url.push_str(&query);
            }
            Carrier::Path => {
                url = format!("{url}/{token}");
                heartbeat_url = format!("{url}{HEARTBEAT_SEGMENT}");
            }
            Carrier::Body => {}
        }
        Self {
            url,
            heartbeat_url: item.heartbeat_timeout_ms.map(|_| heartbeat_url),
            method: "POST",
            token,
            carrier: location.carrier,
            name: location.name,
            headers,
            deadline: item.deadline,
            expires_at: item.expires_at,
        }
    }
}

/// `POST`: issues the next work item. The item is stored before its token is returned, so a callback cannot arrive
/// before the item exists.
pub(super) async fn issue(
    State(platform): State<Arc<Platform>>,
    Extension(context): Extension<RequestContext>,
    Path(ids): Path<PathIds>,
    request: Request,
) -> Result<Response, Refusal> {
    let conversation = ids.recorded_conversation(&context)?;
    let (parts, body) = request.into_parts();
    let body: IssueBody = request::json(&parts, body, platform.body, &platform.bodies).await?;
    let location = platform
        .carriers
        .location(body.carrier)
        .ok_or_else(|| invalid("carrier", "this carrier is disabled"))?;
    let timeout_ms = request::milliseconds("timeoutMs", body.timeout_ms, platform.max_timeout_ms)?
        .unwrap_or(platform.default_timeout_ms);
    // A heartbeat timeout longer than the item's timeout would have no effect.
    let heartbeat_timeout_ms =
        request::milliseconds("heartbeatTimeoutMs", body.heartbeat_timeout_ms, timeout_ms)?;
    let command = Issue {
        conversation: conversation.reference(),
        work_item: Entropy.work_item_id(),
        kind: body.kind,
        turn_id: body.turn_id.as_deref().map(request::turn_id).transpose()?,
        tool_call_id: body.tool_call_id.as_deref().map(request::tool_call_id).transpose()?,
        name: body.name.as_deref().map(request::tool_name).transpose()?,
        timeout_ms,
        heartbeat_timeout_ms,
        replay_window_ms: platform.replay_window_ms,
        key_id: platform.keyring.signing_key_id(),
        traceparent: request::traceparent(body.traceparent.as_deref(), &parts.headers)?,
        request_traceparent: context.span.traceparent(),
        idempotency: idempotency_key(&parts.headers)?.map(|key| (key, body.fingerprint())),
    };
    let has_key = command.idempotency.is_some();
    let issued = platform.store.issue(command).await.map_err(|error| issue_failed(error, has_key))??;
    let item = issued.item;
    context.record(|log| log.item = Some(item.clone()));
    let token = platform.keyring.sign(conversation.reference(), &item);
    let reply = IssuedBody {
        work_item_id: item.id,
        conversation_id: &conversation,
        sequence: item.sequence,
        kind: item.kind,
        turn_id: item.turn_id.as_ref(),
        tool_call_id: item.tool_call_id.as_ref(),
        name: item.name.as_ref(),
        issued_at: item.issued_at,
        deadline: item.deadline,
        heartbeat_timeout_ms: item.heartbeat_timeout_ms,
        heartbeat_deadline: item.heartbeat_deadline(None),
        callback: CallbackBody::new(&platform.public_base_url, location, &token, &item),
    };
    let mut response = (StatusCode::CREATED, Json(reply)).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if issued.repeated {
        response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The digest of the `Idempotency-Key` header. The IETF draft requires quotes; a key means the same without them.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyDigest>, Refusal> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let key = value.to_str().ok().and_then(unquoted);
            let digest = key.and_then(|key| IdempotencyDigest::of(&key));
            digest.map(Some).ok_or_else(|| {
                let why = "must be 1 to 255 visible ASCII characters, without spaces; within quotes, \" and \\ are \
                           written as \\\" and \\\\";
                invalid("Idempotency-Key", why)
            })
        }
        (Some(_), Some(_)) => Err(invalid("Idempotency-Key", "must not be repeated")),
    }
}

/// Decodes a quoted string (RFC 8941, section 3.3.3). Returns a text that does not begin with a quotation mark
/// unchanged, and `None` for a malformed string.
fn unquoted(text: &str) -> Option<Cow<'_, str>> {
    let Some(quoted) = text.strip_prefix('"') else { return Some(Cow::Borrowed(text)) };
    let quoted = quoted.strip_suffix('"')?;
    let mut content = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        content.push(match character {
            '"' => return None,
            '\\' => characters.next().filter(|escaped| matches!(escaped, '"' | '\\'))?,
            other => other,
        });
    }
    Some(Cow::Owned(content))
}

/// The state of a work item.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WorkItemBody<'a> {
    work_item_id: WorkItemId,
    conversation_id: &'a ConversationId,
    sequence: Sequence,
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    turn_id: Option<&'a TurnId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a ToolCallId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a ToolName>,
    state: ItemState,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    /// Why it was cancelled, or `heartbeat` if no heartbeat arrived in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a Reason>,
    issued_at: Timestamp,
    deadline: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_timeout_ms: Option<u64>,
    /// When the next heartbeat is due, while the item needs one.
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_deadline: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_heartbeat_at: Option<Timestamp>,
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
            tool_call_id: item.tool_call_id.as_ref(),
            name: item.name.as_ref(),
            state: view.state,
            outcome: view.settled.map(|(outcome, _)| outcome),
            reason: view.reason.as_ref(),
            issued_at: item.issued_at,
            deadline: item.deadline,
            heartbeat_timeout_ms: item.heartbeat_timeout_ms,
            heartbeat_deadline: view.heartbeat_deadline(),
            last_heartbeat_at: view.last_heartbeat_at,
            received_at: view.settled.map(|(_, received_at)| received_at),
            traceparent: item.traceparent.as_ref(),
        }
    }
}

/// `GET`: the state of a work item.
pub(super) async fn show(
    State(platform): State<Arc<Platform>>,
    Extension(context): Extension<RequestContext>,
    Path(ids): Path<PathIds>,
) -> Result<Response, Refusal> {
    let (conversation, work_item) = (ids.recorded_conversation(&context)?, ids.work_item()?);
    let shown = platform.store.work_item(conversation.reference(), work_item).await;
    let view = shown??;
    context.record(|log| log.item = Some(view.item.clone()));
    Ok(Json(WorkItemBody::of(&conversation, &view)).into_response())
}

/// `DELETE`: cancels a work item.
pub(super) async fn cancel(
    State(platform): State<Arc<Platform>>,
    Extension(context): Extension<RequestContext>,
    Path(ids): Path<PathIds>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let (conversation, work_item) = (ids.recorded_conversation(&context)?, ids.work_item()?);
    let [reason] = request::query(query.as_deref(), ["reason"])?;
    let reason = reason.as_deref().map(request::reason).transpose()?;
    context.record(|log| log.reason.clone_from(&reason));
    let command = Cancel {
        conversation: conversation.reference(),
        work_item,
        reason,
        request_id: context.request_id,
        traceparent: context.span.traceparent(),
        attempt: Entropy.attempt_id(),
    };
    let cancelled = platform.store.cancel(command).await??;
    context.record(|log| {
        log.item = Some(cancelled.item.item.clone());
        log.outcome = Some(Outcome::Cancelled);
        log.released = cancelled.released.len();
    });
    platform.record_released(&context, &conversation, &cancelled.released);
    Ok(Json(WorkItemBody::of(&conversation, &cancelled.item)).into_response())
}

/// The items of a turn after its cancellation.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CancelledTurnBody<'a> {
    conversation_id: &'a ConversationId,
    turn_id: &'a TurnId,
    /// The number of items that the request has cancelled.
    cancelled: u64,
    /// The turn's items that were not on the channel before the request.
    work_items: Vec<WorkItemBody<'a>>,
}

/// `DELETE` on the collection: cancels the awaiting items of a turn.
pub(super) async fn cancel_turn(
    State(platform): State<Arc<Platform>>,
    Extension(context): Extension<RequestContext>,
    Path(ids): Path<PathIds>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let conversation = ids.recorded_conversation(&context)?;
    let [turn_id, reason] = request::query(query.as_deref(), ["turnId", "reason"])?;
    let turn_id = turn_id.ok_or_else(|| invalid("turnId", "the query parameter is missing"))?;
    let turn_id = request::turn_id(&turn_id)?;
    let reason = reason.as_deref().map(request::reason).transpose()?;
    context.record(|log| {
        log.turn_id = Some(turn_id.clone());
        log.reason.clone_from(&reason);
    });
    let command = CancelTurn {
        conversation: conversation.reference(),
        turn_id: turn_id.clone(),
        reason,
        request_id: context.request_id,
        traceparent: context.span.traceparent(),
        attempt: Entropy.attempt_id(),
    };
    let cancelled = platform.store.cancel_turn(command).await??;
    context.record(|log| {
        log.cancelled = Some(cancelled.cancelled);
        log.released = cancelled.released.len();
    });
    platform.record_released(&context, &conversation, &cancelled.released);
    let body = CancelledTurnBody {
        conversation_id: &conversation,
        turn_id: &turn_id,
        cancelled: cancelled.cancelled,
        work_items: cancelled.items.iter().map(|item| WorkItemBody::of(&conversation, item)).collect(),
    };
    Ok(Json(body).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(body: &str) -> String {
        serde_json::from_str::<IssueBody>(body).unwrap().fingerprint().to_string()
    }

    const FULL: &str = r#"{"kind":"llm","turnId":"turn-1","timeoutMs":60000,"carrier":"header",
        "traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;

    /// Stores contain these digests: if one changed, a retry after an update would be a conflict.
    #[test]
    fn fingerprints_are_stable() {
        for (body, digest) in [
            (r#"{"kind":"tool"}"#, "34005d714534701da73a0e1c0baf18a0d1da72fb4164ee398bc135d1741c4bc9"),
            (r#"{"kind":"llm"}"#, "2e45e8f335c8a30722c5d60a13401076e5af086ec928cf6d3c7a95daec404e6b"),
            (
                r#"{"kind":"tool","turnId":"t","timeoutMs":1}"#,
                "af22201e4ab958d4eb11428b32fa8025f1b49f2daa6fb69ea611fb4e572ccfbc",
            ),
            (FULL, "3670c5780619137c3240d42fbcf7277d93cf6735f2d1ce7e3198f7cb0996f769"),
        ] {
            assert_eq!(fingerprint(body), digest, "{body}");
        }
    }

    #[test]
    fn fingerprint_ignores_json_formatting() {
        for (body, other) in [
            (r#"{"kind":"tool","timeoutMs":1}"#, " { \"timeoutMs\" : 1,\n\"kind\":\"t\\u006fol\" } "),
            (r#"{"kind":"tool"}"#, r#"{"turnId":null,"kind":"tool","timeoutMs":null,"carrier":null}"#),
            (r#"{"kind":"tool","name":"a"}"#, r#"{"name":"\u0061","toolCallId":null,"kind":"tool"}"#),
            (r#"{"kind":"tool"}"#, r#"{"kind":"tool","heartbeatTimeoutMs":null}"#),
        ] {
            assert_eq!(fingerprint(body), fingerprint(other), "{other}");
        }
    }

    #[test]
    fn every_field_changes_the_fingerprint() {
        let bodies = [
            FULL.to_owned(),
            FULL.replace("llm", "tool"),
            FULL.replace("turn-1", "turn-2"),
            FULL.replace(r#""turnId":"turn-1","#, ""),
            FULL.replace("60000", "60001"),
            FULL.replace(r#""timeoutMs":60000,"#, ""),
            FULL.replace("header", "path"),
            FULL.replace(r#""carrier":"header","#, ""),
            FULL.replace("331-01", "331-00"),
            r#"{"kind":"tool","turnId":"1"}"#.to_owned(),
            r#"{"kind":"tool","timeoutMs":1}"#.to_owned(),
            r#"{"kind":"tool","turnId":"1","timeoutMs":1}"#.to_owned(),
            r#"{"kind":"tool","turnId":"11"}"#.to_owned(),
            r#"{"kind":"tool","toolCallId":"1"}"#.to_owned(),
            r#"{"kind":"tool","name":"1"}"#.to_owned(),
            r#"{"kind":"tool","toolCallId":"1","name":"1"}"#.to_owned(),
            r#"{"kind":"tool","toolCallId":"1","name":"2"}"#.to_owned(),
            r#"{"kind":"tool","heartbeatTimeoutMs":1}"#.to_owned(),
            r#"{"kind":"tool","heartbeatTimeoutMs":2}"#.to_owned(),
            r#"{"kind":"tool","timeoutMs":2,"heartbeatTimeoutMs":1}"#.to_owned(),
        ];
        let distinct: std::collections::HashSet<String> =
            bodies.iter().map(|body| fingerprint(body)).collect();
        assert_eq!(distinct.len(), bodies.len());
    }
}
