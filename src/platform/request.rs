//! Reading the platform's requests into types that hold good values only.

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::Platform;
use crate::domain::ids::{ConversationId, InvalidId, TraceParent, TurnId, WorkItemId};
use crate::http::body;
use crate::http::code::Code;
use crate::http::refusal::Refusal;

/// The ids in the path.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PathIds {
    conversation_id: String,
    #[serde(default)]
    work_item_id: String,
}

pub(super) fn invalid(what: &str, why: impl std::fmt::Display) -> Refusal {
    Refusal::new(Code::RequestInvalid, format!("{what}: {why}"))
}

impl PathIds {
    pub(super) fn conversation(&self) -> Result<ConversationId, Refusal> {
        ConversationId::parse(&self.conversation_id).map_err(|error| invalid("conversationId", error))
    }

    pub(super) fn work_item(&self) -> Result<WorkItemId, Refusal> {
        if TurnId::parse(&self.work_item_id).is_err() {
            return Err(invalid("workItemId", InvalidId));
        }
        WorkItemId::parse(&self.work_item_id)
            .ok_or_else(|| Refusal::new(Code::WorkItemNotFound, "there is no such work item"))
    }
}

/// The request's JSON body; an empty one counts as `{}`.
pub(super) async fn json<T: DeserializeOwned>(
    parts: &Parts,
    body: Body,
    Platform { body: limits, room, .. }: &Platform,
) -> Result<T, Refusal> {
    let whole = body::read(&parts.headers, body, *limits, room).await?;
    let bytes = &whole.bytes;
    let text = if bytes.is_empty() {
        "{}"
    } else {
        body::check_json(&parts.headers)?;
        std::str::from_utf8(bytes).map_err(|_| Refusal::new(Code::BodyMalformed, "the body is not UTF-8"))?
    };
    // Not left to the parser, to which a list of the fields' values will do.
    if !text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok() {
        return Err(invalid("the body", "must be a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        // A number where a word is wanted is an error of syntax to the parser, and JSON nevertheless.
        let is_json = || serde_json::from_str::<IgnoredAny>(text).is_ok();
        if inner.is_data() || is_json() {
            let field = if path == "." { "the body".to_owned() } else { path };
            invalid(&field, inner)
        } else {
            Refusal::new(Code::BodyMalformed, format!("the body is not JSON: {inner}"))
        }
    })?;
    json.end()
        .map_err(|error| Refusal::new(Code::BodyMalformed, format!("the body is not JSON: {error}")))?;
    Ok(value)
}

pub(super) fn turn_id(text: &str) -> Result<TurnId, Refusal> {
    TurnId::parse(text).map_err(|error| invalid("turnId", error))
}

/// The trace that the body names, or the one that the request is part of.
pub(super) fn traceparent(body: Option<&str>, headers: &HeaderMap) -> Result<Option<TraceParent>, Refusal> {
    if let Some(text) = body {
        return TraceParent::parse(text).map(Some).map_err(|error| invalid("traceparent", error));
    }
    let header = headers.get(HeaderName::from_static("traceparent")).and_then(|value| value.to_str().ok());
    Ok(header.and_then(|text| TraceParent::parse(text).ok()))
}

/// A number of milliseconds, within its bounds.
pub(super) fn milliseconds(field: &str, given: Option<u64>, max: u64) -> Result<Option<u64>, Refusal> {
    match given {
        Some(ms) if !(1..=max).contains(&ms) => Err(invalid(field, format_args!("must be 1 to {max}"))),
        _ => Ok(given),
    }
}
