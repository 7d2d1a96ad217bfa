//! A refused request, and its response: the error envelope.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::code::Code;
use crate::domain::ids::RequestId;
use crate::domain::work_item::Outcome;
use crate::store::StoreError;

/// Tells senders that support this header not to repeat the request.
const WEBHOOK_DELIVERY: HeaderName = HeaderName::from_static("webhook-delivery");

/// The message of [`Code::Internal`].
pub(super) const INTERNAL: &str = "internal error; quote the request id when you report it";

/// Why a request is refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The stable code.
    pub code: Code,
    /// Human-readable. Contains no credential and no result.
    pub message: Cow<'static, str>,
    /// The cause, for the request's log line. The caller does not get it.
    pub cause: Option<String>,
    outcome: Option<Outcome>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// A refusal with a human-readable message.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), cause: None, outcome: None, headers: Vec::new() }
    }

    /// The refusal of an unknown path. Its message suggests a fix.
    pub fn not_found(path: &str) -> Self {
        let message = if path.len() > 1 && path.ends_with('/') {
            "there is no such path; remove the trailing slash"
        } else if path.contains("//") {
            "there is no such path; it has two slashes in a row"
        } else {
            "there is no such path; use the URL exactly as it was given"
        };
        Self::new(Code::NotFound, message)
    }

    /// Adds a header to the response.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Adds the outcome of a settled work item.
    #[must_use]
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The body of the response.
    pub fn envelope(&self, request_id: RequestId, trace_id: &str) -> Vec<u8> {
        let body = ErrorBody {
            error: ErrorFields {
                code: self.code.as_str(),
                message: &self.message,
                request_id: request_id.to_string(),
                retryable: self.code.retryable(),
                trace_id,
                outcome: self.outcome,
            },
        };
        serde_json::to_vec(&body).unwrap_or_default()
    }

    /// The response.
    pub fn render(&self, request_id: RequestId, trace_id: &str) -> Response {
        let json = self.envelope(request_id, trace_id);
        let mut response = (self.code.status(), Body::from(json)).into_response();
        let headers = response.headers_mut();
        headers.extend(self.headers.clone());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(scheme) = self.code.challenge() {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        }
        if self.code == Code::ContentTypeUnsupported {
            headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        }
        if !self.code.retryable() {
            headers.insert(WEBHOOK_DELIVERY, HeaderValue::from_static("abort-message"));
        }
        if let Some(seconds) = self.code.retry_after() {
            headers.entry(header::RETRY_AFTER).or_insert_with(|| HeaderValue::from(seconds));
        }
        response
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let (code, message) = match &error {
            StoreError::Unavailable(_) => (
                Code::StoreUnavailable,
                "the store is unavailable and nothing was changed; send the request again",
            ),
            StoreError::OutcomeUnknown(_) => {
                let message = "the outcome is unknown; send the same request again: this is safe and returns the \
                               outcome";
                (Code::OutcomeUnknown, message)
            }
            StoreError::Broken(_) => (Code::Internal, INTERNAL),
        };
        Self::new(code, message).with_cause(error.chain())
    }
}

/// The refusal travels as an extension of an empty response. The outermost layer renders it, because it knows the
/// request's ids.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorFields<'a> {
    code: &'a str,
    message: &'a str,
    request_id: String,
    retryable: bool,
    trace_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
}
