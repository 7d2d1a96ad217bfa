//! Every way in which a request is refused: its code, its status, and whether repeating it can help.

use axum::http::StatusCode;

/// Why a request is refused. The code's name on the wire is stable; the table below is all there is to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// No carrier had a token.
    CallbackTokenMissing,
    /// Malformed, forged, or of a retired key.
    CallbackTokenInvalid,
    /// Authentic, but past its life.
    CallbackTokenExpired,
    /// Two carriers had different tokens.
    TokenCarriersDisagree,
    /// The token was used with another body.
    CallbackTokenUsed,
    /// The deadline passed first.
    WorkItemTimedOut,
    /// The platform withdrew the item.
    WorkItemCancelled,
    /// The item has an outcome already.
    WorkItemSettled,
    /// The conversation does not know the item.
    WorkItemUnknown,
    /// There is no such work item.
    WorkItemNotFound,
    /// The conversation has ended, or is not there.
    ConversationEnded,
    /// There is no such conversation.
    ConversationNotFound,
    /// Not JSON, not UTF-8, too deep.
    BodyMalformed,
    /// JSON, but not what this kind of work answers with.
    ResultShapeInvalid,
    /// A field, an id, a parameter or a header is not what it must be.
    RequestInvalid,
    /// The request is not HTTP as it should be.
    RequestMalformed,
    /// The request's head is too large.
    HeadTooLarge,
    /// The body is too large.
    BodyTooLarge,
    /// The body is of another type.
    ContentTypeUnsupported,
    /// The path knows other methods.
    MethodNotAllowed,
    /// There is no such path.
    NotFound,
    /// The body took too long.
    RequestTimeout,
    /// Too many requests from one client address.
    RateLimited,
    /// Too much is held in the conversation.
    HeldLimit,
    /// Too many items of the conversation are awaiting.
    AwaitingLimit,
    /// The conversation's channel is full.
    ChannelLimit,
    /// The idempotency key was used with another body.
    IdempotencyKeyReused,
    /// The platform sent no key.
    ServiceKeyMissing,
    /// The platform sent a wrong key.
    ServiceKeyInvalid,
    /// The store cannot be reached: nothing was spent.
    StoreUnavailable,
    /// The store's reply was lost.
    OutcomeUnknown,
    /// The service is ending.
    Draining,
    /// The service has too much to do.
    Overloaded,
    /// A bug.
    Internal,
}

impl Code {
    /// All codes.
    pub const ALL: [Self; 34] = [
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
        Self::HeadTooLarge,
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
            Self::HeadTooLarge => ("HEAD_TOO_LARGE", S::REQUEST_HEADER_FIELDS_TOO_LARGE, false),
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

    /// Whether it says that there was no room for the request.
    pub const fn is_for_want_of_room(self) -> bool {
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

    /// Whether the request came without a token that is good now.
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
    fn what_is_final_is_never_a_status_that_clients_retry() {
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
