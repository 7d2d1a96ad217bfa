//! A request to the provider's listener, with the token in any carrier: the real router on the memory store, without
//! sockets. A model of the documented order of checks predicts the response.

mod model;
mod stage;
mod written;

use axum::http::{HeaderMap, Method, StatusCode};
use callback_ingress::domain::result::Payload;
use callback_ingress::domain::work_item::State;
use callback_ingress::http::code::Code;
use serde_json::Value;
use uuid::Uuid;

use self::model::Verdict;
use self::stage::{Reply, Stage};
use self::written::Written;

/// The input consists of the first letters of the enabled carriers, a request line, headers, an empty line and a body.
/// `{T}` and `{L}` are replaced by the tokens of an awaiting tool item and an awaiting LLM item, `{E}` by an expired token,
/// and `{F}` by a forged one.
pub fn check(input: &[u8]) {
    stage::LOGGED.with(|(log, logging)| {
        let _ = log.take();
        let run = || stage::RUNTIME.with(|runtime| runtime.block_on(check_request(input)));
        tracing::dispatcher::with_default(logging, run);
        let logged = log.take();
        assert!(!logged.contains("cbt_"), "a token was logged: {logged}");
    });
}

async fn check_request(input: &[u8]) {
    let mut stage = Stage::new().await;
    let Some(written) = Written::parse(input, &stage.tokens) else { return };
    stage.allow(&written.carriers);
    let verdict = model::verdict(&written, &stage);
    let reply = stage.ask(&written).await;
    check_reply(&written, &reply, &verdict);
    check_store(&stage, &verdict).await;
    match verdict {
        Verdict::Taken(_) => {
            let again = stage.ask(&written).await;
            let mut first = reply.json();
            first["replayed"] = Value::Bool(true);
            assert_eq!((again.status, again.json()), (StatusCode::OK, first), "sent again");
        }
        // A refused request or a heartbeat has not used up a token.
        Verdict::Refused(_) | Verdict::Healthy | Verdict::Alive => {
            stage.allow("hqbp");
            let corrected = stage.ask(&Written::plain(&stage.tokens.tool)).await;
            assert_eq!(corrected.status, StatusCode::ACCEPTED, "corrected: {}", corrected.text());
        }
    }
}

/// Every reply has a request id and a trace id, and contains no token.
fn check_reply(written: &Written, reply: &Reply, verdict: &Verdict) {
    let named = header(&reply.headers, "x-request-id");
    let id = Uuid::try_parse(named).unwrap_or_else(|_| panic!("no request id: {named:?}"));
    let wanted = written.headers.get("x-request-id").and_then(|value| value.to_str().ok());
    if let Some(wanted) = wanted.and_then(|text| Uuid::try_parse(text).ok()) {
        assert_eq!(id, wanted, "the caller's own request id");
    }
    let trace = header(&reply.headers, "x-trace-id");
    assert!(trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit()), "{trace:?}");
    let shown = format!("{:?} {}", reply.headers, reply.text());
    assert!(!shown.contains("cbt_"), "a token was echoed: {shown}");
    match verdict {
        Verdict::Healthy => assert_eq!(reply.status, StatusCode::OK),
        Verdict::Alive => {
            assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
            let alive = reply.json();
            assert_eq!((&alive["state"], &alive["cancelRequested"]), (&"awaiting".into(), &false.into()));
        }
        Verdict::Refused(code) => {
            check_refusal(reply, *code, written.method == Method::HEAD, named, trace);
        }
        Verdict::Taken(taken) => {
            assert_eq!(reply.status, StatusCode::ACCEPTED, "{}", reply.text());
            assert_eq!(header(&reply.headers, "content-type"), "application/json");
            let receipt = reply.json();
            for (name, expected) in taken.receipt() {
                assert_eq!(receipt[name], expected, "{name} of {receipt}");
            }
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The reply is an error envelope, with the status and the headers of its code.
fn check_refusal(reply: &Reply, code: Code, head: bool, request_id: &str, trace: &str) {
    assert_eq!(reply.status, code.status());
    // The reply to HEAD has no body on the wire, but the router may produce one.
    if head && reply.text().is_empty() {
        return;
    }
    let envelope = reply.json();
    let error = envelope["error"].as_object().unwrap_or_else(|| panic!("no envelope: {envelope}"));
    assert_eq!(error["code"], code.as_str(), "{envelope}");
    assert_eq!(error["requestId"], request_id);
    assert_eq!(error["traceId"], trace);
    assert_eq!(error["retryable"], code.retryable());
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
    assert_eq!((envelope.as_object().map_or(0, serde_json::Map::len), error.len()), (1, 5), "{envelope}");
    assert_eq!(header(&reply.headers, "content-type"), "application/json");
    let allow = header(&reply.headers, "allow");
    assert_eq!(code == Code::MethodNotAllowed, !allow.is_empty(), "Allow: {allow}");
}

/// The channel and the items are as predicted: the channel has the result byte for byte, or nothing has changed.
async fn check_store(stage: &Stage, verdict: &Verdict) {
    let channel = stage.channel().await;
    let states = [stage.state(&stage.tool).await, stage.state(&stage.llm).await];
    match verdict {
        Verdict::Taken(taken) if taken.item.id == stage.tool.id => {
            assert_eq!(channel.len(), 1);
            let envelope = std::str::from_utf8(channel[0].bytes()).unwrap();
            let (name, payload) = match &taken.result.payload {
                Payload::Succeeded(result) => ("result", result),
                Payload::Failed(error) => ("error", error),
            };
            let payload = std::str::from_utf8(payload).unwrap();
            assert!(envelope.contains(&format!(",\"{name}\":{payload},\"issuedAt\":")), "{envelope}");
            assert!(envelope.contains(&format!("\"workItemId\":\"{}\"", stage.tool.id)), "{envelope}");
            assert_eq!(states, [State::Released, State::Awaiting]);
        }
        Verdict::Taken(_) => {
            assert!(channel.is_empty());
            assert_eq!(states, [State::Awaiting, State::Held]);
        }
        Verdict::Refused(_) | Verdict::Healthy | Verdict::Alive => {
            assert!(channel.is_empty());
            assert_eq!(states, [State::Awaiting, State::Awaiting]);
        }
    }
}
