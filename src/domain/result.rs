//! Classifies a provider's body as a result, a failure or invalid.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use thiserror::Error;

use super::ids::Fingerprint;
use super::json::{Malformed, Scan, Shape, shape_of};
use super::work_item::Kind;

/// A classified callback body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallbackResult {
    /// The outcome and the bytes for the channel.
    pub payload: Payload,
    /// Fingerprint of the body without the token; identifies retries.
    pub fingerprint: Fingerprint,
}

/// A result or an error, byte for byte as the provider wrote it. Its `Debug` shows the size only.
#[derive(Clone, PartialEq, Eq)]
pub enum Payload {
    /// The whole body.
    Succeeded(Bytes),
    /// The value of the body's `error` member.
    Failed(Bytes),
}

impl Payload {
    /// The bytes for the channel.
    pub const fn bytes(&self) -> &Bytes {
        match self {
            Self::Succeeded(bytes) | Self::Failed(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Succeeded(_) => "Succeeded",
            Self::Failed(_) => "Failed",
        };
        write!(f, "{name}({} bytes)", self.bytes().len())
    }
}

/// Why a body is not a result. The token is not spent.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ResultRefused {
    /// Not JSON, or JSON that cannot be passed on unchanged.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// JSON, but not a valid LLM result.
    #[error("an llm result is a JSON string, or an object whose content is a string or an array of parts")]
    NotAnLlmResult,
}

impl CallbackResult {
    /// The top-level members that a result is classified by.
    pub const NAMES: [&'static str; 2] = ["error", "content"];

    /// Classifies a body that carries no token.
    pub fn of(kind: Kind, body: &Bytes) -> Result<Self, ResultRefused> {
        Self::classify(kind, body, &Scan::new(body, Self::NAMES)?, None)
    }

    /// Classifies a body. A member that carried the token is removed first.
    ///
    /// An object whose `error` is an object with string `code` and string `message` is a failure, of either
    /// kind of work. Otherwise a tool's result is any JSON value; a language model's is a string, or an
    /// object whose `content` is a string or an array.
    ///
    /// `scan` is of the same body, with [`CallbackResult::NAMES`] and the token's field.
    pub fn classify(
        kind: Kind,
        body: &Bytes,
        scan: &Scan<'_>,
        token_field: Option<&str>,
    ) -> Result<Self, ResultRefused> {
        if let Some(problem) = scan.problem() {
            return Err(problem.clone().into());
        }
        let result = match token_field.map(|field| scan.without(field)) {
            Some(Cow::Owned(without)) => without.into(),
            Some(Cow::Borrowed(_)) | None => body.clone(),
        };
        let fingerprint = Fingerprint::of(&result);
        let last = |name| scan.values(name).last().filter(|_| token_field != Some(name));
        if let Some(error) = last("error").filter(|error| is_error(error)) {
            // A copy, so that the whole body is not kept for it.
            return Ok(Self {
                payload: Payload::Failed(Bytes::copy_from_slice(error.as_bytes())),
                fingerprint,
            });
        }
        if kind == Kind::Llm && !is_llm_result(scan.shape(), last("content")) {
            return Err(ResultRefused::NotAnLlmResult);
        }
        Ok(Self { payload: Payload::Succeeded(result), fingerprint })
    }
}

/// If a name occurs twice, the last member counts, as in most parsers.
fn is_error(error: &str) -> bool {
    let Ok(scan) = Scan::new(error.as_bytes(), ["code", "message"]) else { return false };
    let is_string = |name| scan.values(name).last().is_some_and(|value| shape_of(value) == Shape::String);
    is_string("code") && is_string("message")
}

fn is_llm_result(shape: Shape, content: Option<&str>) -> bool {
    match shape {
        Shape::String => true,
        Shape::Object => content.is_some_and(|value| matches!(shape_of(value), Shape::String | Shape::Array)),
        Shape::Array | Shape::Scalar => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(kind: Kind, body: &str) -> Result<CallbackResult, ResultRefused> {
        CallbackResult::of(kind, &Bytes::copy_from_slice(body.as_bytes()))
    }

    fn classify(kind: Kind, body: &str) -> Result<Payload, ResultRefused> {
        whole(kind, body).map(|result| result.payload)
    }

    fn taken(body: &str) -> Payload {
        Payload::Succeeded(Bytes::copy_from_slice(body.as_bytes()))
    }

    #[test]
    fn a_tool_answers_with_any_json_value() {
        for body in [
            "null",
            " 1e999999 ",
            "[]",
            "\"x\"",
            "{\"a\":1,\"a\":2}",
            "{\"error\":\"x\"}",
            "{\"error\":{\"code\":1,\"message\":\"m\"}}",
        ] {
            assert_eq!(classify(Kind::Tool, body), Ok(taken(body)), "{body}");
        }
    }

    #[test]
    fn a_language_model_answers_with_a_string_or_content() {
        for body in ["\"hi\"", " {\"content\":\"hi\",\"usage\":{}}", "{\"content\":[]}"] {
            assert_eq!(classify(Kind::Llm, body), Ok(taken(body)), "{body}");
        }
        for body in
            ["1", "null", "[\"hi\"]", "{}", "{\"content\":{}}", "{\"content\":null}", "{\"Content\":\"\"}"]
        {
            assert_eq!(classify(Kind::Llm, body), Err(ResultRefused::NotAnLlmResult), "{body}");
        }
    }

    #[test]
    fn an_error_envelope_is_a_failure_of_either_kind_and_its_bytes_travel() {
        for kind in [Kind::Llm, Kind::Tool] {
            let error = r#"{ "code":"X", "message":"m", "requestId":7 }"#;
            let body = format!(r#"{{"content":"half", "error": {error} }}"#);
            assert_eq!(classify(kind, &body), Ok(Payload::Failed(Bytes::copy_from_slice(error.as_bytes()))));
        }
    }

    #[test]
    fn the_fingerprint_is_the_whole_bodys() {
        let judged = |body: &str| whole(Kind::Tool, body);
        let error = r#"{"error":{"code":"X","message":"m"},"n":1}"#;
        let other = r#"{"error":{"code":"X","message":"m"},"n":2}"#;
        assert_ne!(judged(error).unwrap().fingerprint, judged(other).unwrap().fingerprint);
    }
}
