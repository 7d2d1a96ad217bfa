//! The codes of refusals, with their status and whether a retry can help.

use axum::http::StatusCode;

/// Why a request is refused. The name on the wire is stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// No carrier had a token.
    CallbackTokenMissing,
    /// The token is malformed, forged, or signed with a retired key.
    CallbackTokenInvalid,
    /// The token is authentic, but expired.
    CallbackTokenExpired,
    /// Two carriers had different tokens.
    TokenCarriersDisagree,
    /// The token was used with another body.
    CallbackTokenUsed,
    /// The work item timed out before the callback.
    WorkItemTimedOut,
    /// The work item was cancelled.
    WorkItemCancelled,
    /// The work item already has an outcome.
    WorkItemSettled,
    /// The conversation has no such work item: the store lost writes.
    WorkItemUnknown,
    /// There is no such work item.
    WorkItemNotFound,
    /// The conversation has ended, or does not exist.
    ConversationEnded,
    /// There is no such conversation.
    ConversationNotFound,
    /// Not JSON, not UTF-8, too deep.
    BodyMalformed,
    /// JSON, but not a result of this kind of work.
    ResultShapeInvalid,
    /// A field, an id, a parameter or a header is invalid.
    RequestInvalid,
    /// The body's chunked coding is not well-formed.
    RequestMalformed,
    /// The body is too large.
    BodyTooLarge,
    /// The body has another content type.
    ContentTypeUnsupported,
    /// The path has other methods.
    MethodNotAllowed,
    /// There is no such path.
    NotFound,
    /// The body took too long.
    RequestTimeout,
    /// Too many requests from one client address.
    RateLimited,
    /// The conversation holds as much as it may.
    HeldLimit,
    /// The conversation has as many awaiting items as it may.
    AwaitingLimit,
    /// The conversation's channel is full.
    ChannelLimit,
    /// The idempotency key was used with another body.
    IdempotencyKeyReused,
    /// The request has no service key.
    ServiceKeyMissing,
    /// The service key is wrong.
    ServiceKeyInvalid,
    /// The store cannot be reached; nothing was changed.
    StoreUnavailable,
    /// The store's reply was lost; the outcome is unknown.
    OutcomeUnknown,
    /// The service is shutting down.
    Draining,
    /// The service is overloaded.
    Overloaded,
    /// A bug.
    Internal,
}

impl Code {
    /// All codes.
    pub const ALL: [Self; 33] = [
        Self::CallbackTokenMissing,
        Self::CallbackTokenInvalid,
        Self::CallbackTokenExpired,
        Self::TokenCarriersDisagree,
        Self::CallbackTokenUsed,
        Self::WorkItemTimedOut,
        Self::WorkItemCancelled,
        Self::WorkItemSettled,
        Self::WorkItemUnknown,
        Self::WorkItemNotFound,
        Self::ConversationEnded,
        Self::ConversationNotFound,
        Self::BodyMalformed,
        Self::ResultShapeInvalid,
        Self::RequestInvalid,
        Self::RequestMalformed,
        Self::BodyTooLarge,
        Self::ContentTypeUnsupported,
        Self::MethodNotAllowed,
        Self::NotFound,
        Self::RequestTimeout,
        Self::RateLimited,
        Self::HeldLimit,
        Self::AwaitingLimit,
        Self::ChannelLimit,
        Self::IdempotencyKeyReused,
        Self::ServiceKeyMissing,
        Self::ServiceKeyInvalid,
        Self::StoreUnavailable,
        Self::OutcomeUnknown,
        Self::Draining,
        Self::Overloaded,
        Self::Internal,
    ];

    /// Name on the wire, status, and whether sending the same request again can help.
    const fn row(self) -> (&'static str, StatusCode, bool) {
        use StatusCode as S;
        match self {
            Self::CallbackTokenMissing => ("CALLBACK_TOKEN_MISSING", S::UNAUTHORIZED, false),
            Self::CallbackTokenInvalid => ("CALLBACK_TOKEN_INVALID", S::UNAUTHORIZED, false),
            Self::CallbackTokenExpired => ("CALLBACK_TOKEN_EXPIRED", S::UNAUTHORIZED, false),
            Self::TokenCarriersDisagree => ("TOKEN_CARRIERS_DISAGREE", S::BAD_REQUEST, false),
            Self::CallbackTokenUsed => ("CALLBACK_TOKEN_USED", S::CONFLICT, false),
            Self::WorkItemTimedOut => ("WORK_ITEM_TIMED_OUT", S::CONFLICT, false),
            Self::WorkItemCancelled => ("WORK_ITEM_CANCELLED", S::CONFLICT, false),
            Self::WorkItemSettled => ("WORK_ITEM_SETTLED", S::CONFLICT, false),
            Self::WorkItemUnknown => ("WORK_ITEM_UNKNOWN", S::CONFLICT, false),
            Self::WorkItemNotFound => ("WORK_ITEM_NOT_FOUND", S::NOT_FOUND, false),
            Self::ConversationEnded => ("CONVERSATION_ENDED", S::CONFLICT, false),
            Self::ConversationNotFound => ("CONVERSATION_NOT_FOUND", S::NOT_FOUND, false),
            Self::BodyMalformed => ("BODY_MALFORMED", S::BAD_REQUEST, false),
            Self::ResultShapeInvalid => ("RESULT_SHAPE_INVALID", S::BAD_REQUEST, false),
            Self::RequestInvalid => ("REQUEST_INVALID", S::BAD_REQUEST, false),
            Self::RequestMalformed => ("REQUEST_MALFORMED", S::BAD_REQUEST, false),
            Self::BodyTooLarge => ("BODY_TOO_LARGE", S::PAYLOAD_TOO_LARGE, false),
            Self::ContentTypeUnsupported => ("CONTENT_TYPE_UNSUPPORTED", S::UNSUPPORTED_MEDIA_TYPE, false),
            Self::MethodNotAllowed => ("METHOD_NOT_ALLOWED", S::METHOD_NOT_ALLOWED, false),
            Self::NotFound => ("NOT_FOUND", S::NOT_FOUND, false),
            Self::RequestTimeout => ("REQUEST_TIMEOUT", S::REQUEST_TIMEOUT, true),
            Self::RateLimited => ("RATE_LIMITED", S::TOO_MANY_REQUESTS, true),
            Self::HeldLimit => ("HELD_LIMIT", S::TOO_MANY_REQUESTS, true),
            Self::AwaitingLimit => ("AWAITING_LIMIT", S::TOO_MANY_REQUESTS, true),
            Self::ChannelLimit => ("CHANNEL_LIMIT", S::CONFLICT, false),
            Self::IdempotencyKeyReused => ("IDEMPOTENCY_KEY_REUSED", S::CONFLICT, false),
            Self::ServiceKeyMissing => ("SERVICE_KEY_MISSING", S::UNAUTHORIZED, false),
            Self::ServiceKeyInvalid => ("SERVICE_KEY_INVALID", S::UNAUTHORIZED, false),
            Self::StoreUnavailable => ("STORE_UNAVAILABLE", S::SERVICE_UNAVAILABLE, true),
            Self::OutcomeUnknown => ("OUTCOME_UNKNOWN", S::SERVICE_UNAVAILABLE, true),
            Self::Draining => ("DRAINING", S::SERVICE_UNAVAILABLE, true),
            Self::Overloaded => ("OVERLOADED", S::SERVICE_UNAVAILABLE, true),
            Self::Internal => ("INTERNAL", S::INTERNAL_SERVER_ERROR, true),
        }
    }

    /// The stable name on the wire.
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status.
    pub const fn status(self) -> StatusCode {
        self.row().1
    }

    /// Whether sending the same request again can help.
    pub const fn retryable(self) -> bool {
        self.row().2
    }

    /// Whether the request was refused because of a limit or of draining.
    pub const fn is_load_shed(self) -> bool {
        matches!(
            self,
            Self::Overloaded
                | Self::Draining
                | Self::RateLimited
                | Self::HeldLimit
                | Self::AwaitingLimit
                | Self::ChannelLimit
        )
    }

    /// Whether the request had no valid token.
    pub const fn is_failed_authentication(self) -> bool {
        matches!(self, Self::CallbackTokenMissing | Self::CallbackTokenInvalid | Self::CallbackTokenExpired)
    }

    /// Seconds for `Retry-After`, where there is one.
    pub fn retry_after(self) -> Option<u64> {
        let asks = matches!(self.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        asks.then_some(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn final_refusals_have_no_status_that_clients_retry() {
        for code in Code::ALL {
            let retried = matches!(code.status().as_u16(), 408 | 429 | 500 | 502 | 503 | 504);
            assert_eq!(code.retryable(), retried, "{}", code.as_str());
            assert_ne!(code.status(), StatusCode::GONE);
            assert!(!code.status().is_redirection());
        }
        let names: HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
    }
}
