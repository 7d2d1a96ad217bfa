//! Bodies of callbacks, and heartbeats.

use crate::client::Call;
use crate::plan::Carrier;
use crate::record::Says;

const CALLBACKS: &str = "/api/v1/webhooks/callbacks";

/// A body and the part of it that must be delivered. Each body is unique, and its white space and escapes change when a
/// parser writes it again.
pub(crate) fn body(kind: &str, says: Says, label: &str, variant: u8) -> (String, String) {
    let of = format!("{label}/{variant}");
    match (says, kind) {
        (Says::Failed, _) => {
            let error = format!("{{ \"code\":\"provider_failed\", \"message\":\"of {of}\"}}");
            (format!("{{\"error\": {error}}}"), error)
        }
        (Says::Nonsense, _) => (format!("{{\"of\":\"{of}\","), String::new()),
        (Says::Succeeded | Says::TwoTokens, "llm") => {
            let body = format!("{{ \"content\":\"caf\\u00e9 of {of}\" ,\"usage\" :{{\"tokens\":1.0e1}}}}");
            (body.clone(), body)
        }
        (Says::Succeeded | Says::TwoTokens, _) => {
            let body = format!("{{\"of\" : \"{of}\",\n \"value\":[1.50, -0, \"é\\/\\u0041\"]}}");
            (body.clone(), body)
        }
    }
}

/// A callback with its token in this carrier.
pub(crate) fn callback(carrier: Carrier, token: &str, body: String) -> Call {
    let (mut path, mut body, mut headers) = (CALLBACKS.to_owned(), body, Vec::new());
    match carrier {
        Carrier::Header => headers.push(("x-callback-token", token.to_owned())),
        Carrier::Query => path = format!("{path}?callbackToken={token}"),
        Carrier::Path => path = format!("{path}/{token}"),
        Carrier::Body => body = format!("{{\"callbackToken\":\"{token}\",{}", &body[1..]),
    }
    let call = Call { method: "POST", public: true, path, headers, body: bytes::Bytes::new() };
    call.json(body)
}

/// A heartbeat with progress.
pub(crate) fn heartbeat(token: &str) -> Call {
    let path = format!("{CALLBACKS}/heartbeat");
    let call = Call { method: "POST", public: true, path, headers: Vec::new(), body: bytes::Bytes::new() };
    call.header("x-callback-token", token).json("{\"message\":\"on it\",\"data\":[1.50]}")
}
