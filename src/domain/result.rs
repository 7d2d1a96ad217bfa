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

/// A result or an error, byte for byte as the provider wrote it. `Debug` shows only the size.
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

/// Why a body is refused. The token is not used up.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ResultRefused {
    /// Not JSON, or JSON that cannot be passed on unchanged.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// JSON, but not a valid LLM result.
    #[error("an llm result is a JSON string, or an object whose content is a string or an array of parts")]
    NotAnLlmResult,
    /// Probably meant as a failure. Delivered as a result, it would hide the failure from the platform.
    #[error(
        "{0}; a failure is {{\"error\":{{\"code\":\"…\",\"message\":\"…\"}}}}; put further details inside error"
    )]
    NotAFailure(FailureDefect),
}

/// What is wrong with a body whose `error` is an object.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FailureDefect {
    /// A member of `error` is missing.
    #[error("error.{0} is missing")]
    Missing(&'static str),
    /// A member of `error` has another type.
    #[error("error.{0} must be a string")]
    NotAString(&'static str),
    /// The body has a member other than `error`, or has `error` twice.
    #[error("error must be the only member of the body, and must occur once")]
    OtherMembers,
}

impl CallbackResult {
    /// The names of the top-level members that determine the classification.
    pub const NAMES: [&'static str; 2] = ["error", "content"];

    /// Classifies a body that carries no token.
    pub fn of(kind: Kind, body: &Bytes) -> Result<Self, ResultRefused> {
        Self::classify(kind, body, &Scan::new(body, Self::NAMES)?, None)
    }

    /// Classifies a body. A member that carried the token is removed first.
    ///
    /// An object whose `error` is an object is a failure, whatever the kind of the work item. It must have no other
    /// members, and the `code` and `message` of `error` must be strings. Any other JSON value is the result of a tool.
    /// The result of a language model is a string, or an object whose `content` is a string or an array. If a name
    /// occurs twice, the last member counts, as in most parsers.
    ///
    /// `scan` must be of the same body, with [`CallbackResult::NAMES`] and the token's field.
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
        if let Some(error) = last("error").filter(|error| shape_of(error) == Shape::Object) {
            check_failure(error)?;
            let own = ["error", token_field.unwrap_or("error")];
            if scan.count_others(&own) > 0 || scan.values("error").count() > 1 {
                return Err(ResultRefused::NotAFailure(FailureDefect::OtherMembers));
            }
            // A copy, so that the rest of the body does not stay in memory.
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

/// Checks the value of `error`, an object.
fn check_failure(error: &str) -> Result<(), ResultRefused> {
    const NAMES: [&str; 2] = ["code", "message"];
    let scan = Scan::new(error.as_bytes(), NAMES)?;
    for name in NAMES {
        match scan.values(name).last().map(shape_of) {
            Some(Shape::String) => {}
            Some(_) => return Err(ResultRefused::NotAFailure(FailureDefect::NotAString(name))),
            None => return Err(ResultRefused::NotAFailure(FailureDefect::Missing(name))),
        }
    }
    Ok(())
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

    fn succeeded(body: &str) -> Payload {
        Payload::Succeeded(Bytes::copy_from_slice(body.as_bytes()))
    }

    #[test]
    fn any_json_value_is_a_tool_result() {
        for body in [
            "null",
            " 1e999999 ",
            "[]",
            "\"x\"",
            "{\"a\":1,\"a\":2}",
            "{\"error\":\"x\"}",
            "{\"error\":null,\"a\":1}",
            "{\"error\":[{\"code\":1}]}",
            "{\"in\":{\"error\":{\"code\":1}}}",
        ] {
            assert_eq!(classify(Kind::Tool, body), Ok(succeeded(body)), "{body}");
        }
    }

    #[test]
    fn llm_result_is_a_string_or_has_content() {
        for body in ["\"hi\"", " {\"content\":\"hi\",\"usage\":{}}", "{\"content\":[]}"] {
            assert_eq!(classify(Kind::Llm, body), Ok(succeeded(body)), "{body}");
        }
        for body in
            ["1", "null", "[\"hi\"]", "{}", "{\"content\":{}}", "{\"content\":null}", "{\"Content\":\"\"}"]
        {
            assert_eq!(classify(Kind::Llm, body), Err(ResultRefused::NotAnLlmResult), "{body}");
        }
    }

    #[test]
    fn error_envelope_is_a_failure_for_each_kind() {
        for kind in [Kind::Llm, Kind::Tool] {
            let error = r#"{ "code":"X", "message":"m", "requestId":7 }"#;
            let body = format!(r#" {{ "error": {error} }}"#);
            assert_eq!(classify(kind, &body), Ok(Payload::Failed(Bytes::copy_from_slice(error.as_bytes()))));
        }
    }

    #[test]
    fn malformed_failures_are_refused() {
        use FailureDefect::{Missing, NotAString, OtherMembers};
        for (body, defect) in [
            (r#"{"error":{}}"#, Missing("code")),
            (r#"{"error":{"code":"X"}}"#, Missing("message")),
            (r#"{"error":{"message":"m"}}"#, Missing("code")),
            (r#"{"error":{"code":500,"message":"m"}}"#, NotAString("code")),
            (r#"{"error":{"code":"X","message":null}}"#, NotAString("message")),
            (r#"{"error":{"code":"X","message":"m"},"details":{}}"#, OtherMembers),
            (r#"{"content":"half","error":{"code":"X","message":"m"}}"#, OtherMembers),
            (r#"{"error":null,"error":{"code":"X","message":"m"}}"#, OtherMembers),
        ] {
            for kind in [Kind::Llm, Kind::Tool] {
                assert_eq!(classify(kind, body), Err(ResultRefused::NotAFailure(defect)), "{body}");
            }
        }
        assert_eq!(
            ResultRefused::NotAFailure(Missing("code")).to_string(),
            r#"error.code is missing; a failure is {"error":{"code":"…","message":"…"}}; put further details inside error"#
        );
    }

    #[test]
    fn token_field_beside_error_is_allowed() {
        let body = Bytes::from_static(br#"{"t":"x","error":{"code":"X","message":"m"},"t":null}"#);
        let scan = Scan::new(&body, CallbackResult::NAMES.into_iter().chain(["t"])).unwrap();
        let result = CallbackResult::classify(Kind::Tool, &body, &scan, Some("t")).unwrap();
        assert_eq!(result.payload, Payload::Failed(Bytes::from_static(br#"{"code":"X","message":"m"}"#)));
    }

    #[test]
    fn fingerprint_covers_the_whole_body() {
        let classified = |body: &str| whole(Kind::Tool, body);
        let error = r#"{"error":{"code":"X","message":"m"}}"#;
        let other = r#"{"error":{"code":"X","message":"m"} }"#;
        assert_ne!(classified(error).unwrap().fingerprint, classified(other).unwrap().fingerprint);
    }
}
