//! The responses to callbacks.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::domain::gate::{
    AcceptRefused, CallbackTarget, Delivery, HeartbeatRefused, Receipt, RefusedCallback, RefusedHeartbeat,
    WorkItemView,
};
use crate::domain::ids::{ConversationId, Sequence, TOKEN_PREFIX, WorkItemId};
use crate::domain::result::ResultRefused;
use crate::domain::time::Timestamp;
use crate::domain::token::{TOKEN_CHARS, TokenRefused};
use crate::domain::work_item::{Outcome, State, TimeoutCause};
use crate::http::code::Code;
use crate::http::refusal::Refusal;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReceiptBody<'a> {
    status: &'static str,
    work_item_id: WorkItemId,
    conversation_id: &'a ConversationId,
    sequence: Sequence,
    outcome: Outcome,
    received_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<Sequence>,
    replayed: bool,
}

/// The receipt: 202 for the first callback, 200 for a repetition.
pub(super) fn receipt(receipt: &Receipt) -> Response {
    let (status, waiting_for) = match receipt.delivery {
        Delivery::Delivered => ("delivered", None),
        Delivery::Held { waiting_for } => ("held", Some(waiting_for)),
    };
    let body = ReceiptBody {
        status,
        work_item_id: receipt.item.id,
        conversation_id: &receipt.conversation_id,
        sequence: receipt.item.sequence,
        outcome: receipt.outcome,
        received_at: receipt.received_at,
        waiting_for,
        replayed: receipt.replayed,
    };
    let status = if receipt.replayed { StatusCode::OK } else { StatusCode::ACCEPTED };
    let no_store = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    (status, [no_store], Json(body)).into_response()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HeartbeatBody {
    state: State,
    deadline: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_deadline: Option<Timestamp>,
    /// Always false: after a cancellation, heartbeats are refused.
    cancel_requested: bool,
}

/// The response to an accepted heartbeat.
pub(super) fn heartbeat(item: &WorkItemView) -> Response {
    let body = HeartbeatBody {
        state: item.state,
        deadline: item.item.deadline,
        heartbeat_deadline: item.heartbeat_deadline(),
        cancel_requested: false,
    };
    let no_store = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    (StatusCode::OK, [no_store], Json(body)).into_response()
}

/// The refusal of a token. Its message describes only what the sender can see in the sent text. The reason why a
/// well-formed token is not authentic is only logged. `sent`: `None` if the value is not text.
pub(super) fn token_refused(refused: TokenRefused, sent: Option<&str>) -> Refusal {
    match refused {
        TokenRefused::Invalid(defect) => {
            let message = format!("the token is not valid: {}", advice(sent));
            Refusal::new(Code::CallbackTokenInvalid, message).with_cause(defect.to_string())
        }
        TokenRefused::Expired(_) => expired(),
    }
}

fn advice(sent: Option<&str>) -> Cow<'static, str> {
    let Some(sent) = sent else { return "send it as a string of ASCII characters".into() };
    let bare = sent.trim_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`'));
    if bare.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("Bearer ")) {
        return "remove Bearer before the token".into();
    }
    if bare.len() < sent.len() {
        return "remove the quotes or spaces around the token".into();
    }
    match bare.chars().count() {
        _ if !bare.starts_with(TOKEN_PREFIX) => "it does not begin with the prefix of a token".into(),
        length if length < TOKEN_CHARS => {
            format!("it is truncated: it has {length} of {TOKEN_CHARS} characters").into()
        }
        length if length > TOKEN_CHARS => {
            format!("it is too long: it has {length} characters instead of {TOKEN_CHARS}").into()
        }
        _ => "send callback.token exactly as it was given".into(),
    }
}

fn expired() -> Refusal {
    Refusal::new(
        Code::CallbackTokenExpired,
        "the token has expired; the deadline of the work item has passed",
    )
}

impl From<ResultRefused> for Refusal {
    fn from(refused: ResultRefused) -> Self {
        let code = match refused {
            ResultRefused::Malformed(_) => Code::BodyMalformed,
            ResultRefused::NotAnLlmResult | ResultRefused::NotAFailure(_) => Code::ResultShapeInvalid,
        };
        Self::new(code, refused.to_string())
    }
}

impl From<RefusedCallback> for Refusal {
    fn from(refused: RefusedCallback) -> Self {
        let (code, message) = match refused.why {
            AcceptRefused::TokenExpired => return expired(),
            AcceptRefused::ConversationEnded => (Code::ConversationEnded, CONVERSATION_ENDED),
            AcceptRefused::WorkItemUnknown => (Code::WorkItemUnknown, WORK_ITEM_UNKNOWN),
            AcceptRefused::TokenUsed => {
                (Code::CallbackTokenUsed, "the token was used with another body; the first result stands")
            }
            AcceptRefused::WorkItemTimedOut if missed_heartbeat(refused.target.as_deref()) => (
                Code::WorkItemTimedOut,
                "the work item timed out before this callback arrived, because no heartbeat arrived in time",
            ),
            AcceptRefused::WorkItemTimedOut => {
                (Code::WorkItemTimedOut, "the work item timed out before this callback arrived")
            }
            AcceptRefused::WorkItemCancelled => {
                (Code::WorkItemCancelled, "the platform cancelled the work item before this callback arrived")
            }
            AcceptRefused::HeldLimit => (
                Code::HeldLimit,
                "the limit on held results is reached while an earlier work item has no outcome; the token is still \
                 valid: send the request again later",
            ),
            AcceptRefused::ChannelLimit => {
                (Code::ChannelLimit, "the conversation's channel has reached its size limit")
            }
        };
        Self::new(code, message)
    }
}

const CONVERSATION_ENDED: &str = "the conversation has ended and accepts no more results";
const WORK_ITEM_UNKNOWN: &str = "the conversation has no such work item";

/// Whether the item timed out because no heartbeat arrived in time.
fn missed_heartbeat(target: Option<&CallbackTarget>) -> bool {
    target.is_some_and(|target| {
        let times = target.item.as_ref().zip(target.times_out_at);
        times.is_some_and(|(item, at)| item.timeout_cause(at) == TimeoutCause::Heartbeat)
    })
}

impl From<RefusedHeartbeat> for Refusal {
    fn from(refused: RefusedHeartbeat) -> Self {
        let (code, message) = match refused.why {
            HeartbeatRefused::TokenExpired => return expired(),
            HeartbeatRefused::ConversationEnded => (Code::ConversationEnded, CONVERSATION_ENDED),
            HeartbeatRefused::WorkItemUnknown => (Code::WorkItemUnknown, WORK_ITEM_UNKNOWN),
            HeartbeatRefused::WorkItemTimedOut if missed_heartbeat(refused.target.as_deref()) => (
                Code::WorkItemTimedOut,
                "the work item timed out, because this heartbeat did not arrive in time; stop the work",
            ),
            HeartbeatRefused::WorkItemTimedOut => {
                (Code::WorkItemTimedOut, "the work item has passed its deadline; stop the work")
            }
            HeartbeatRefused::WorkItemCancelled => {
                (Code::WorkItemCancelled, "the platform cancelled the work item; stop the work")
            }
        };
        Self::new(code, message)
    }
}
