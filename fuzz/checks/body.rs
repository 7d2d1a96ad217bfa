//! A provider's body: whether it is JSON, which bytes are delivered, and what is removed with the token's field. The
//! reference is `serde_json`, which parses the same text into values.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use callback_ingress::domain::envelope::Envelope;
use callback_ingress::domain::ids::{ConversationId, Fingerprint, Sequence, WorkItemId};
use callback_ingress::domain::json::{MAX_DEPTH, Malformed, Scan};
use callback_ingress::domain::result::{CallbackResult, Payload, ResultRefused};
use callback_ingress::domain::time::Timestamp;
use callback_ingress::domain::token::KeyId;
use callback_ingress::domain::work_item::{Kind, Outcome, WorkItem};
use serde::Deserialize;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

/// Maximum number of brackets in a text for the reference, which is recursive.
const MOST_BRACKETS: usize = 400;
/// Field names with a meaning for the service.
const NAMES: [&str; 3] = ["callbackToken", "error", "content"];

/// Any bytes are a body.
pub fn check(input: &[u8]) {
    let body = Bytes::copy_from_slice(input);
    let present = std::str::from_utf8(input).ok().and_then(members).unwrap_or_default();
    let present = present.iter().map(|(name, _)| name.as_str()).take(8);
    let names: Vec<&str> = NAMES.into_iter().chain(present).collect();
    let scan = Scan::new(&body, names.iter().copied());
    let Ok(text) = std::str::from_utf8(input) else {
        assert!(matches!(scan, Err(Malformed::NotUtf8(_))), "not UTF-8: {scan:?}");
        return;
    };
    if text.trim_matches([' ', '\t', '\n', '\r']).is_empty() {
        assert!(matches!(scan, Err(Malformed::Empty)), "empty: {scan:?}");
        return;
    }
    let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
    assert_eq!(scan.is_ok(), is_json, "{scan:?}");
    let Ok(scan) = scan else {
        assert!(matches!(scan, Err(Malformed::NotJson { .. })), "{scan:?}");
        return;
    };
    let value = value(text);
    if let Some(value) = &value {
        check_problem(value, scan.problem());
    }
    if let Some(members) = members(text) {
        check_members(text, &names, &scan, &members);
    }
    for kind in [Kind::Llm, Kind::Tool] {
        check_judgement(kind, &body, &scan, value.as_ref().and_then(|value| value.as_ref().ok()));
    }
}

/// The text as parsed by the reference. `None` if it is nested too deeply for the reference.
fn value(text: &str) -> Option<Result<Value, serde_json::Error>> {
    let brackets = text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    (brackets <= MOST_BRACKETS).then(|| {
        let mut reader = serde_json::Deserializer::from_str(text);
        reader.disable_recursion_limit();
        Value::deserialize(&mut reader)
    })
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or_default(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// A body is accepted if it is JSON with at most 128 levels, and only then.
fn check_problem(value: &Result<Value, serde_json::Error>, problem: Option<&Malformed>) {
    match value {
        // A repeated name replaces the first value, so the text may be nested more deeply than the value.
        Ok(value) if depth(value) > MAX_DEPTH => assert_eq!(problem, Some(&Malformed::TooDeep)),
        Ok(_) => assert!(matches!(problem, None | Some(Malformed::TooDeep)), "{problem:?}"),
        // A number that no double can represent is valid JSON, and is delivered.
        Err(error) if error.to_string().starts_with("number out of range") => {}
        Err(error) => {
            assert!(
                matches!(problem, Some(Malformed::LoneSurrogate(_) | Malformed::TooDeep)),
                "{error}: {problem:?}"
            );
        }
    }
}

/// The members of an object in order, each with the text of its value.
type Members<'a> = Vec<(String, &'a str)>;

fn members(text: &str) -> Option<Members<'_>> {
    struct InOrder;
    impl<'de> Visitor<'de> for InOrder {
        type Value = Members<'de>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                members.push((name, value.get()));
            }
            Ok(members)
        }
    }
    serde_json::Deserializer::from_str(text).deserialize_map(InOrder).ok()
}

/// The removal of a field removes nothing else, and keeps the order of all other bytes.
fn check_members(text: &str, names: &[&str], scan: &Scan<'_>, members: &Members<'_>) {
    for &name in names {
        let expected = members.iter().filter(|(other, _)| other == name).map(|(_, value)| *value);
        let found: Vec<_> = scan.values(name).collect();
        assert_eq!(found, expected.collect::<Vec<_>>(), "the values of {name:?}");
        let without = scan.without(name);
        if found.is_empty() {
            assert!(matches!(without, Cow::Borrowed(same) if same == text), "{without:?}");
            continue;
        }
        let kept: Members<'_> = members.iter().filter(|(other, _)| other != name).cloned().collect();
        assert_eq!(self::members(&without), Some(kept), "{text:?} without {name:?}: {without:?}");
        let mut bytes = text.bytes();
        assert!(without.bytes().all(|kept| bytes.any(|byte| byte == kept)), "{text:?}: {without:?}");
        let again = Scan::new(without.as_bytes(), [name]);
        assert!(again.is_ok_and(|again| again.without(name) == without), "{without:?}");
    }
}

fn check_judgement(kind: Kind, body: &Bytes, scan: &Scan<'_>, value: Option<&Value>) {
    let judged = CallbackResult::of(kind, body);
    if let Some(problem) = scan.problem() {
        assert_eq!(judged, Err(ResultRefused::Malformed(problem.clone())));
        return;
    }
    if let Some(value) = value {
        let is_text = |value: Option<&Value>| value.is_some_and(Value::is_string);
        let error = value.get("error");
        let meant = error.is_some_and(Value::is_object);
        let whole = error.is_some_and(|error| is_text(error.get("code")) && is_text(error.get("message")));
        let alone = members(std::str::from_utf8(body).unwrap()).is_some_and(|members| members.len() == 1);
        let failed = meant && whole && alone;
        let content = value.get("content");
        let answer = value.is_string() || is_text(content) || content.is_some_and(Value::is_array);
        match &judged {
            Ok(result) => {
                assert_eq!(matches!(result.payload, Payload::Failed(_)), failed);
                assert!(failed || !meant, "an incomplete failure was accepted");
                assert!(failed || kind == Kind::Tool || answer, "an invalid LLM result was accepted");
            }
            Err(ResultRefused::NotAFailure(_)) => assert!(meant && !failed, "a valid failure was refused"),
            Err(refused) => {
                assert_eq!(*refused, ResultRefused::NotAnLlmResult);
                assert!(kind == Kind::Llm && !failed && !answer, "a valid result was refused");
            }
        }
    }
    let Ok(result) = judged else { return };
    assert_eq!(result.fingerprint, Fingerprint::of(body));
    let expected = match &result.payload {
        Payload::Succeeded(_) => Some(body.as_ref()),
        Payload::Failed(_) => scan.values("error").last().map(str::as_bytes),
    };
    assert_eq!(Some(result.payload.bytes().as_ref()), expected);
    check_envelope(kind, &result.payload);
}

/// The envelope contains the payload byte for byte.
fn check_envelope(kind: Kind, payload: &Payload) {
    #[derive(Deserialize)]
    struct Read<'a> {
        #[serde(borrow)]
        result: Option<&'a RawValue>,
        #[serde(borrow)]
        error: Option<&'a RawValue>,
    }
    let bytes = payload.bytes().clone();
    let (outcome, failed) = match payload {
        Payload::Succeeded(_) => (Outcome::Succeeded, false),
        Payload::Failed(_) => (Outcome::Failed, true),
    };
    let item = WorkItem {
        id: WorkItemId::from_uuid(Uuid::from_u128(7)),
        sequence: Sequence::FIRST,
        kind,
        turn_id: None,
        tool_call_id: None,
        name: None,
        issued_at: Timestamp::from_millis(1),
        deadline: Timestamp::from_millis(2),
        heartbeat_timeout_ms: None,
        expires_at: Timestamp::from_millis(2),
        key_id: KeyId::parse("k").unwrap(),
        traceparent: None,
    };
    let envelope = Envelope {
        conversation_id: &ConversationId::parse("call-1").unwrap(),
        item: &item,
        outcome,
        payload: Some(payload),
        received_at: Timestamp::from_millis(2),
        released_at: Timestamp::from_millis(3),
        request_id: None,
        reason: None,
        traceparent: None,
    };
    let json = envelope.to_json();
    // `null` is a valid result, but an `Option` deserializes it as `None`.
    let read: Read<'_> = serde_json::from_slice(json.bytes()).unwrap();
    let (there, not_there) = if failed { (read.error, read.result) } else { (read.result, read.error) };
    assert!(not_there.is_none());
    let sent = there.map_or("null", RawValue::get);
    assert_eq!(sent.as_bytes(), bytes.trim_ascii());
}
