//! The codes of refusals, with their status.

use axum::http::StatusCode;

/// Status in logs, spans and metrics if the client disconnects before the response, as in nginx.
pub(super) const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Defines [`Code`] from a table: the meaning, the variant, the stable name on the wire, and the status.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $code:ident = $name:literal, $status:ident;)*) => {
        /// Why a request is refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[doc = $doc])+ $code,)*
        }

        impl Code {
            /// All codes.
            pub const ALL: &'static [Self] = &[$(Self::$code),*];

            /// The stable name on the wire.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$code => $name,)*
                }
            }

            /// The meaning, for people.
            pub fn description(self) -> &'static str {
                let text = match self {
                    $(Self::$code => concat!($($doc),+),)*
                };
                text.trim_start()
            }

            /// The HTTP status.
            pub const fn status(self) -> StatusCode {
                match self {
                    $(Self::$code => StatusCode::$status,)*
                }
            }
        }
    };
}

codes! {
    /// The request has no token.
    CallbackTokenMissing = "CALLBACK_TOKEN_MISSING", UNAUTHORIZED;
    /// The token is malformed, forged, or signed with a retired key.
    CallbackTokenInvalid = "CALLBACK_TOKEN_INVALID", UNAUTHORIZED;
    /// The token is authentic, but expired.
    CallbackTokenExpired = "CALLBACK_TOKEN_EXPIRED", UNAUTHORIZED;
    /// The request has two different tokens.
    TokenCarriersDisagree = "TOKEN_CARRIERS_DISAGREE", BAD_REQUEST;
    /// The token was used with another body.
    CallbackTokenUsed = "CALLBACK_TOKEN_USED", CONFLICT;
    /// The work item timed out before the callback.
    WorkItemTimedOut = "WORK_ITEM_TIMED_OUT", CONFLICT;
    /// The work item was cancelled.
    WorkItemCancelled = "WORK_ITEM_CANCELLED", CONFLICT;
    /// The work item already has an outcome.
    WorkItemSettled = "WORK_ITEM_SETTLED", CONFLICT;
    /// The conversation has no such work item: the store lost writes.
    WorkItemUnknown = "WORK_ITEM_UNKNOWN", CONFLICT;
    /// There is no such work item.
    WorkItemNotFound = "WORK_ITEM_NOT_FOUND", NOT_FOUND;
    /// The conversation has ended, or does not exist.
    ConversationEnded = "CONVERSATION_ENDED", CONFLICT;
    /// There is no such conversation.
    ConversationNotFound = "CONVERSATION_NOT_FOUND", NOT_FOUND;
    /// The body is empty, truncated, not UTF-8, not JSON or too deeply nested, or has a lone surrogate.
    BodyMalformed = "BODY_MALFORMED", BAD_REQUEST;
    /// The body is JSON, but not a valid result for the kind of the work item.
    ResultShapeInvalid = "RESULT_SHAPE_INVALID", BAD_REQUEST;
    /// A field, an id, a parameter or a header is invalid.
    RequestInvalid = "REQUEST_INVALID", BAD_REQUEST;
    /// The body's chunked coding is not well-formed.
    RequestMalformed = "REQUEST_MALFORMED", BAD_REQUEST;
    /// The body is too large.
    BodyTooLarge = "BODY_TOO_LARGE", PAYLOAD_TOO_LARGE;
    /// The body is compressed or not declared as JSON in UTF-8.
    ContentTypeUnsupported = "CONTENT_TYPE_UNSUPPORTED", UNSUPPORTED_MEDIA_TYPE;
    /// The path does not support this method.
    MethodNotAllowed = "METHOD_NOT_ALLOWED", METHOD_NOT_ALLOWED;
    /// There is no such path.
    NotFound = "NOT_FOUND", NOT_FOUND;
    /// The body took too long.
    RequestTimeout = "REQUEST_TIMEOUT", REQUEST_TIMEOUT;
    /// Too many requests from one client address.
    RateLimited = "RATE_LIMITED", TOO_MANY_REQUESTS;
    // Not 429, because the rate of the sender is not the reason.
    /// The limit on held results is reached.
    HeldLimit = "HELD_LIMIT", SERVICE_UNAVAILABLE;
    /// The limit on awaiting work items is reached.
    AwaitingLimit = "AWAITING_LIMIT", TOO_MANY_REQUESTS;
    /// The conversation's channel is full.
    ChannelLimit = "CHANNEL_LIMIT", CONFLICT;
    /// The idempotency key was used with another body.
    IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED", CONFLICT;
    /// The request has no service key.
    ServiceKeyMissing = "SERVICE_KEY_MISSING", UNAUTHORIZED;
    /// The service key is wrong.
    ServiceKeyInvalid = "SERVICE_KEY_INVALID", UNAUTHORIZED;
    /// The store is unavailable; nothing was changed.
    StoreUnavailable = "STORE_UNAVAILABLE", SERVICE_UNAVAILABLE;
    /// The store did not confirm the operation; the outcome is unknown.
    OutcomeUnknown = "OUTCOME_UNKNOWN", SERVICE_UNAVAILABLE;
    /// The service is shutting down.
    Draining = "DRAINING", SERVICE_UNAVAILABLE;
    /// The service is overloaded.
    Overloaded = "OVERLOADED", SERVICE_UNAVAILABLE;
    /// A bug, or a store operation that failed unexpectedly.
    Internal = "INTERNAL", INTERNAL_SERVER_ERROR;
}

impl Code {
    /// Whether sending the same request again can succeed. Depends only on the status, because many senders see nothing
    /// else.
    pub fn retryable(self) -> bool {
        matches!(self.status().as_u16(), 408 | 429 | 500 | 503)
    }

    /// The value of `error.type`. By OpenTelemetry's conventions, a 4xx response is not a server error.
    pub fn error_type(self) -> Option<&'static str> {
        self.status().is_server_error().then_some(self.as_str())
    }

    /// Whether the request was refused because it had no valid callback token.
    pub const fn is_token_failure(self) -> bool {
        matches!(self, Self::CallbackTokenMissing | Self::CallbackTokenInvalid | Self::CallbackTokenExpired)
    }

    /// The scheme for `WWW-Authenticate`, which every 401 response needs (RFC 9110, section 15.5.2). Callback tokens
    /// have a scheme of their own, because they are not sent in `Authorization`.
    pub fn challenge(self) -> Option<&'static str> {
        let scheme = if self.is_token_failure() { "CallbackToken" } else { "Bearer" };
        (self.status() == StatusCode::UNAUTHORIZED).then_some(scheme)
    }

    /// The value of `Retry-After` in seconds. `None`: the response has no such header.
    pub fn retry_after(self) -> Option<u64> {
        let is_overload =
            matches!(self.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        is_overload.then_some(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_no_status_disables_an_endpoint() {
        for code in Code::ALL {
            // After 410, some webhook senders disable the endpoint. Many do not follow redirects.
            assert_ne!(code.status(), StatusCode::GONE);
            assert!(!code.status().is_redirection());
        }
        let names: HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
    }
}
