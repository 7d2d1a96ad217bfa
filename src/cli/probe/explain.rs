//! Explains unexpected responses to operators.

use super::http_client::{OwnError, ProbeResponse, Side};
use super::report::StepFailure;
use crate::config::Carrier;
use crate::http::code::Code;

/// A callback that was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent<'a> {
    pub(super) carrier: Carrier,
    /// The name of the header, parameter or field.
    pub(super) name: &'a str,
    pub(super) bytes: usize,
}

/// Explains a response of the platform listener.
pub(super) fn platform(response: &ProbeResponse) -> StepFailure {
    explain(Side::Platform, response, |error| match error.map(|error| error.code) {
        Some(Code::ServiceKeyInvalid) => Some("the service key is not one of this deployment".into()),
        Some(Code::NotFound) | None => Some("is it the address of the platform listener?".into()),
        Some(_) => None,
    })
}

/// Explains a response to a callback.
pub(super) fn callback(response: &ProbeResponse, sent: Sent<'_>) -> StepFailure {
    explain(Side::Public, response, |error| match error {
        Some(error) => in_service(error, sent),
        None => Some(at_gateway(response, sent)),
    })
}

fn explain(
    side: Side,
    response: &ProbeResponse,
    hint: impl Fn(Option<&OwnError>) -> Option<String>,
) -> StepFailure {
    let (error, status) = (response.own_error(), response.status.as_u16());
    let (side, hint) =
        (side.as_str(), hint(error.as_ref()).map(|hint| format!(": {hint}")).unwrap_or_default());
    let Some(OwnError { code, message, request_id }) = error else {
        let server = response.header("server").map(|name| format!(" (Server: {name})")).unwrap_or_default();
        let reason = format!("{side} responded with {status}, but not from callback-ingress{server}{hint}");
        return StepFailure { status: Some(status), ..StepFailure::new(reason) };
    };
    let code = code.as_str();
    StepFailure {
        reason: format!("{side} responded with {status} {code} ({message}; request id {request_id}){hint}"),
        status: Some(status),
        code: Some(code),
        request_id: Some(request_id),
    }
}

/// A hint for a request that reached callback-ingress.
fn in_service(error: &OwnError, sent: Sent<'_>) -> Option<String> {
    let place = match sent.carrier {
        Carrier::Header => format!("the header {}", sent.name),
        Carrier::Query => format!("the query parameter {}", sent.name),
        Carrier::Body => format!("the field {} of the body", sent.name),
        Carrier::Path => "the last segment of the path".to_owned(),
    };
    Some(match error.code {
        Code::CallbackTokenMissing => format!("does the gateway drop {place}?"),
        Code::CallbackTokenInvalid | Code::CallbackTokenExpired => {
            "does the public URL lead to another deployment, or to an instance with other token.keys?".into()
        }
        Code::TokenCarriersDisagree => "does the gateway add a token?".into(),
        Code::ConversationEnded | Code::WorkItemUnknown => {
            "does the public URL lead to an instance with another store.url? Each instance has its own memory store"
                .into()
        }
        Code::NotFound | Code::MethodNotAllowed => "does the gateway change the path or the method?".into(),
        Code::BodyTooLarge => format!("http.max_body_bytes is less than {}", sent.bytes),
        Code::BodyMalformed | Code::RequestMalformed | Code::ContentTypeUnsupported => {
            "does the gateway change the body or its Content-Type?".into()
        }
        Code::CallbackTokenUsed
        | Code::WorkItemTimedOut
        | Code::WorkItemCancelled
        | Code::WorkItemSettled
        | Code::WorkItemNotFound
        | Code::ConversationNotFound
        | Code::ResultShapeInvalid
        | Code::RequestInvalid
        | Code::RequestTimeout
        | Code::RateLimited
        | Code::HeldLimit
        | Code::AwaitingLimit
        | Code::ChannelLimit
        | Code::IdempotencyKeyReused
        | Code::ServiceKeyMissing
        | Code::ServiceKeyInvalid
        | Code::StoreUnavailable
        | Code::OutcomeUnknown
        | Code::Draining
        | Code::Overloaded
        | Code::Internal => return None,
    })
}

/// A hint for a request that did not reach callback-ingress, or whose response was replaced.
fn at_gateway(response: &ProbeResponse, sent: Sent<'_>) -> String {
    match response.status.as_u16() {
        404 => "is the path prefix of the gateway correct?".into(),
        401 | 403 => "does the gateway require its own credentials?".into(),
        405 => "does the gateway allow POST on this path?".into(),
        413 => format!("the gateway's body limit is less than {} bytes", sent.bytes),
        414 | 431 => {
            "does the gateway limit the length of a URL or a header? A token has 116 characters".into()
        }
        300..=399 => match response.header("location") {
            Some(location) => format!("it redirects to {location}; give that URL to providers"),
            None => "callbacks must not be redirected".into(),
        },
        502..=504 => "can the gateway reach the public listener?".into(),
        200..=299 => "another service responds at this URL".into(),
        _ => "check the log of the gateway".into(),
    }
}
