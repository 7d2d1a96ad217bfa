//! Parses the platform's requests into validated types.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, IgnoredAny, IntoDeserializer};
use tokio::time::Instant;

use crate::domain::ids::{
    ConversationId, InvalidId, ToolCallId, ToolName, TraceParent, TurnId, WorkItemId, contains_token,
};
use crate::domain::reason::Reason;
use crate::http::body::{self, BodyBudget, BodyLimits};
use crate::http::code::Code;
use crate::http::context::RequestContext;
use crate::http::media_type;
use crate::http::refusal::Refusal;

/// The ids in the path.
#[derive(serde::Deserialize)]
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

    /// Parses the conversation id and records it in the request's log.
    pub(super) fn recorded_conversation(&self, context: &RequestContext) -> Result<ConversationId, Refusal> {
        let conversation = self.conversation()?;
        context.record(|log| log.conversation = Some(conversation.clone()));
        Ok(conversation)
    }

    pub(super) fn work_item(&self) -> Result<WorkItemId, Refusal> {
        if TurnId::parse(&self.work_item_id).is_err() {
            return Err(invalid("workItemId", InvalidId));
        }
        WorkItemId::parse(&self.work_item_id)
            .ok_or_else(|| Refusal::new(Code::WorkItemNotFound, "there is no such work item"))
    }
}

/// Parses the request's JSON body. An empty body counts as `{}`.
pub(super) async fn json<T: DeserializeOwned>(
    parts: &Parts,
    body: Body,
    limits: BodyLimits,
    budget: &BodyBudget,
) -> Result<T, Refusal> {
    let (bytes, _reservation) = body::read(&parts.headers, body, limits, budget).await?;
    if let Some(context) = parts.extensions.get::<RequestContext>() {
        context.record(|log| log.body = Some((bytes.len(), Instant::now())));
    }
    let text = if bytes.is_empty() {
        "{}"
    } else {
        media_type::check_json(&parts.headers)?;
        std::str::from_utf8(&bytes).map_err(|_| Refusal::new(Code::BodyMalformed, "the body is not UTF-8"))?
    };
    // A derived `Deserialize` also accepts an array of the fields' values.
    if !text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok() {
        return Err(invalid("the body", "must be a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        // serde_json reports a number in place of a string as a syntax error.
        let is_json = || serde_json::from_str::<IgnoredAny>(text).is_ok();
        if inner.is_data() || is_json() {
            let field = if path == "." { "the body" } else { safe_name(&path) };
            invalid(field, expectation(&inner.to_string()))
        } else {
            Refusal::new(Code::BodyMalformed, format!("the body is not JSON: {inner}"))
        }
    })?;
    json.end()
        .map_err(|error| Refusal::new(Code::BodyMalformed, format!("the body is not JSON: {error}")))?;
    Ok(value)
}

/// Deserializes an enum from a string only. A derived `Deserialize` also accepts an object with the variant as its key.
pub(super) fn string_enum<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let text = Cow::<str>::deserialize(deserializer)?;
    T::deserialize(text.into_deserializer())
}

/// Like [`string_enum`], but `null` is `None`.
pub(super) fn optional_string_enum<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let text = Option::<Cow<str>>::deserialize(deserializer)?;
    text.map(|text| T::deserialize(text.into_deserializer())).transpose()
}

/// The values of the known parameters of a query string. Like a body's fields, unknown and repeated ones are refused.
pub(super) fn query<const N: usize>(
    query: Option<&str>,
    known: [&'static str; N],
) -> Result<[Option<String>; N], Refusal> {
    let mut values = [const { None }; N];
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let Some(at) = known.iter().position(|known| *known == name) else {
            let known = known.map(|known| format!("`{known}`")).join(", ");
            return Err(invalid(safe_name(&name), format_args!("unknown query parameter; expected {known}")));
        };
        // The parser replaces invalid UTF-8 with this character.
        if value.contains(char::REPLACEMENT_CHARACTER) {
            return Err(invalid(known[at], "must be UTF-8, percent-encoded"));
        }
        if values[at].replace(value.into_owned()).is_some() {
            return Err(invalid(known[at], "must not be repeated"));
        }
    }
    Ok(values)
}

/// Maximum length of a field name that is shown in an error.
const MAX_NAME: usize = 32;

/// A field's name for an error message, or a placeholder if the name may be a misplaced token or key.
fn safe_name(name: &str) -> &str {
    if name.len() <= MAX_NAME && !contains_token(name) { name } else { "a field whose name is not shown" }
}

/// Extracts from the parser's error message what was expected. Omits what was received, which may be a secret.
fn expectation(error: &str) -> String {
    let is_about_a_field = error.starts_with("missing field ") || error.starts_with("duplicate field ");
    match error.rsplit_once(", expected ") {
        _ if is_about_a_field => error.to_owned(),
        Some((received, expected)) if received.starts_with("unknown field ") => {
            format!("unknown field; expected {}", expected.trim_start_matches("one of "))
        }
        Some((_, expected)) => format!("must be {}", expected.replace("u64", "an unsigned integer")),
        None => "is invalid".to_owned(),
    }
}

pub(super) fn turn_id(text: &str) -> Result<TurnId, Refusal> {
    TurnId::parse(text).map_err(|error| invalid("turnId", error))
}

pub(super) fn tool_call_id(text: &str) -> Result<ToolCallId, Refusal> {
    ToolCallId::parse(text).map_err(|error| invalid("toolCallId", error))
}

pub(super) fn tool_name(text: &str) -> Result<ToolName, Refusal> {
    ToolName::parse(text).map_err(|error| invalid("name", error))
}

pub(super) fn reason(text: &str) -> Result<Reason, Refusal> {
    Reason::parse(text).map_err(|error| invalid("reason", error))
}

/// The traceparent in the body or, without one, in the header. An invalid header is ignored.
pub(super) fn traceparent(body: Option<&str>, headers: &HeaderMap) -> Result<Option<TraceParent>, Refusal> {
    if let Some(text) = body {
        return TraceParent::parse(text).map(Some).map_err(|error| invalid("traceparent", error));
    }
    let header = headers.get(HeaderName::from_static("traceparent")).and_then(|value| value.to_str().ok());
    Ok(header.and_then(|text| TraceParent::parse(text).ok()))
}

/// A duration as sent. `None`: not a whole number. [`milliseconds`] refuses it with a message that names the bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Millis(Option<u64>);

impl Millis {
    pub(super) fn get(self) -> Option<u64> {
        self.0
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_json::Value::deserialize(deserializer).map(|value| Self(whole(&value)))
    }
}

/// A whole number. JSON does not distinguish `60000` and `60000.0`, and some writers have only floating point numbers.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the number is whole, not negative, and less than 2^53"
)]
fn whole(value: &serde_json::Value) -> Option<u64> {
    /// 2^53: larger numbers may be rounded.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let float = || value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..EXACT).contains(number));
    value.as_u64().or_else(|| float().map(|number| number as u64))
}

/// Checks a duration: 1 to `max` milliseconds.
pub(super) fn milliseconds(field: &str, given: Option<Millis>, max: u64) -> Result<Option<u64>, Refusal> {
    let Some(Millis(given)) = given else { return Ok(None) };
    given
        .filter(|ms| (1..=max).contains(ms))
        .map(Some)
        .ok_or_else(|| invalid(field, format_args!("must be a whole number of milliseconds from 1 to {max}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        One,
        Two,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read into")]
    struct TestBody {
        #[serde(deserialize_with = "string_enum")]
        word: Word,
        #[serde(default, deserialize_with = "optional_string_enum")]
        other_word: Option<Word>,
        number: Option<u64>,
    }

    async fn refused(body: String) -> String {
        let (mut parts, ()) = axum::http::Request::new(()).into_parts();
        parts.headers.insert("content-type", "application/json".parse().unwrap());
        let limits = BodyLimits { max_bytes: 1 << 20, timeout: std::time::Duration::from_secs(9), copies: 1 };
        json::<TestBody>(&parts, Body::from(body), limits, &BodyBudget::new(1 << 20))
            .await
            .unwrap_err()
            .message
            .into_owned()
    }

    #[test]
    fn whole_numbers_may_be_written_as_floating_point_numbers() {
        let millis = |json: &str| serde_json::from_str::<Millis>(json).unwrap().get();
        for json in ["60000", "60000.0", "6e4", "600.00e2"] {
            assert_eq!(millis(json), Some(60_000), "{json}");
        }
        for json in ["0.5", "-1", "-1.0", "1e300", "9007199254740992.0", "true", "\"1\"", "[1]", "null"] {
            assert_eq!(millis(json), None, "{json}");
        }
    }

    #[test]
    fn query_parameters_are_known_and_not_repeated() {
        let parse = |text| query(Some(text), ["turnId", "reason"]).map_err(|refusal| refusal.message);
        let values = |turn: Option<&str>, reason: Option<&str>| {
            Ok([turn.map(ToOwned::to_owned), reason.map(ToOwned::to_owned)])
        };
        assert_eq!(parse(""), values(None, None));
        assert_eq!(parse("reason=a+b%20%C3%A9&turnId="), values(Some(""), Some("a b é")));
        for (text, expected) in [
            ("turnid=t", "turnid: unknown query parameter; expected `turnId`, `reason`"),
            ("turn_id=t", "turn_id: unknown query parameter; expected `turnId`, `reason`"),
            ("turnId=t&turnId=t", "turnId: must not be repeated"),
            ("reason=%FF", "reason: must be UTF-8, percent-encoded"),
            (
                "cbt_AQJrMQ=1",
                "a field whose name is not shown: unknown query parameter; expected `turnId`, `reason`",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn error_names_the_expected_value_and_not_the_received_one() {
        for (body, expected) in [
            ("{}", "the body: missing field `word` at line 1 column 2"),
            (r#"{"word":"one","word":"two"}"#, "the body: duplicate field `word` at line 1 column 20"),
            (r#"{"word":"SECRET"}"#, "word: must be `one` or `two` at line 1 column 17"),
            (r#"{"word":{"one":null}}"#, "word: must be a string at line 1 column 8"),
            (r#"{"word":["one"]}"#, "word: must be a string at line 1 column 8"),
            (r#"{"word":null}"#, "word: must be a string at line 1 column 12"),
            (
                r#"{"word":"one","other_word":{"two":null}}"#,
                "other_word: must be a string at line 1 column 27",
            ),
            (
                r#"{"word":"one","number":"SECRET"}"#,
                "number: must be an unsigned integer at line 1 column 31",
            ),
            (r#"{"word":"SECRET, expected x"}"#, "word: must be `one` or `two` at line 1 column 29"),
            (
                r#"{"other":1}"#,
                "other: unknown field; expected `word`, `other_word`, `number` at line 1 column 8",
            ),
        ] {
            assert_eq!(refused(body.to_owned()).await, expected, "{body}");
        }
        for name in ["cbt_AQJrMQ", &"k".repeat(33), "x, expected cbt_AQJrMQ"] {
            let expected = refused(format!("{{\"{name}\":1}}")).await;
            assert!(
                expected.starts_with(
                    "a field whose name is not shown: unknown field; expected `word`, `other_word`, `number`"
                ),
                "{expected}"
            );
        }
    }
}
