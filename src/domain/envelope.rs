//! The result envelope: the message format of the routing channel.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use bytes::Bytes;

use super::ids::{ConversationId, RequestId, Sequence, ToolCallId, ToolName, TraceParent, TurnId};
use super::reason::Reason;
use super::result::Payload;
use super::time::Timestamp;
use super::work_item::{Kind, Outcome, WorkItem};

/// A settled work item for the platform. `append` in `store/redis/scripts/release.lua` writes the same JSON.
///
/// A `timed_out` or `cancelled` envelope has no payload. A `timed_out` envelope has no request id.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The conversation.
    pub conversation_id: &'a ConversationId,
    /// The work item.
    pub item: &'a WorkItem,
    /// The work item's outcome.
    pub outcome: Outcome,
    /// The provider's result or error.
    pub payload: Option<&'a Payload>,
    /// When the callback or cancellation was accepted; for a timeout, the deadline or the end of the heartbeat timeout.
    pub received_at: Timestamp,
    /// When the envelope was written to the channel.
    pub released_at: Timestamp,
    /// The request that settled the item.
    pub request_id: Option<RequestId>,
    /// Why the item was cancelled, or `heartbeat` if no heartbeat arrived in time.
    pub reason: Option<&'a Reason>,
    /// The trace context in which the item was settled; if there is none, the one in which it was issued.
    pub traceparent: Option<&'a TraceParent>,
}

/// An envelope as JSON. `Debug` shows only the size, because the envelope may contain a result.
#[derive(Clone, PartialEq, Eq)]
pub struct EnvelopeJson(Bytes);

impl EnvelopeJson {
    /// Wraps the JSON of an envelope without checking it.
    pub const fn new(json: Bytes) -> Self {
        Self(json)
    }

    /// The JSON text. It is UTF-8 if the result is.
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for EnvelopeJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnvelopeJson({} bytes)", self.0.len())
    }
}

/// The id of an envelope's event and of its entry in the Redis stream. The time of opening distinguishes successive
/// conversations with the same id.
pub fn event_id(opened_at: Timestamp, sequence: Sequence) -> String {
    format!("{}-{sequence}", opened_at.as_millis())
}

/// Typical size of an envelope without its payload, in bytes.
const METADATA_BYTES: usize = 512;

/// Typical size of [`members_at_issue`], in bytes.
const MEMBERS_BYTES: usize = 128;

/// The members of an item's envelope that are known when it is issued, as JSON without braces.
pub fn members_at_issue(
    kind: Kind,
    turn_id: Option<&TurnId>,
    tool_call_id: Option<&ToolCallId>,
    name: Option<&ToolName>,
) -> String {
    let mut members = String::with_capacity(MEMBERS_BYTES);
    // Writing to a `String` cannot fail.
    if let Some(turn_id) = turn_id {
        members.push_str(&turn_member(turn_id));
    }
    if let Some(tool_call_id) = tool_call_id {
        // The only member that can contain characters that JSON escapes: the quotation mark and the backslash.
        let escaped = tool_call_id.as_str().replace('\\', "\\\\").replace('"', "\\\"");
        let _ = write!(members, "\"toolCallId\":\"{escaped}\",");
    }
    if let Some(name) = name {
        let _ = write!(members, "\"name\":\"{name}\",");
    }
    let _ = write!(members, "\"kind\":\"{}\"", kind.as_str());
    members
}

/// The text with which [`members_at_issue`] begins for the items of this turn, and for no others.
pub fn turn_member(turn_id: &TurnId) -> String {
    format!("\"turnId\":\"{turn_id}\",")
}

impl Envelope<'_> {
    /// The envelope as JSON. The payload is copied byte for byte; it was validated when the callback was read.
    pub fn to_json(&self) -> EnvelopeJson {
        let payload: &[u8] = self.payload.map_or(&[], |payload| payload.bytes());
        let mut json = Vec::with_capacity(payload.len() + METADATA_BYTES);
        // Writing to a `Vec` cannot fail.
        let _ = write!(
            json,
            "{{\"sequence\":{},\"conversationId\":\"{}\",\"workItemId\":\"{}\",{},\"outcome\":\"{}\"",
            self.item.sequence,
            self.conversation_id,
            self.item.id,
            members_at_issue(
                self.item.kind,
                self.item.turn_id.as_ref(),
                self.item.tool_call_id.as_ref(),
                self.item.name.as_ref(),
            ),
            self.outcome,
        );
        match self.payload {
            Some(Payload::Succeeded(_)) => json.extend_from_slice(b",\"result\":"),
            Some(Payload::Failed(_)) => json.extend_from_slice(b",\"error\":"),
            None => {}
        }
        json.extend_from_slice(payload);
        if let Some(reason) = self.reason {
            let _ = write!(json, ",\"reason\":{}", reason.to_json());
        }
        let _ = write!(
            json,
            ",\"issuedAt\":\"{}\",\"receivedAt\":\"{}\",\"releasedAt\":\"{}\"",
            self.item.issued_at, self.received_at, self.released_at
        );
        if let Some(request_id) = self.request_id {
            let _ = write!(json, ",\"requestId\":\"{request_id}\"");
        }
        if let Some(traceparent) = self.traceparent {
            let _ = write!(json, ",\"traceparent\":\"{}\"", traceparent.as_str());
        }
        json.push(b'}');
        EnvelopeJson(json.into())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::WorkItemId;
    use crate::domain::token::KeyId;

    fn json(outcome: Outcome, payload: Option<&Payload>) -> String {
        let item = WorkItem {
            id: WorkItemId::from_uuid(Uuid::from_u128(7)),
            sequence: Sequence::new(7),
            kind: Kind::Tool,
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
            payload,
            received_at: Timestamp::from_millis(2),
            released_at: Timestamp::from_millis(3),
            request_id: None,
            reason: None,
            traceparent: None,
        };
        String::from_utf8(envelope.to_json().bytes().to_vec()).unwrap()
    }

    #[test]
    fn payload_is_copied_byte_for_byte() {
        let body = " { \"n\" : 1.000000000000000000000000001e+999,\n\"s\":\"\\u00e9\", \"s\":2 }";
        let json = json(Outcome::Succeeded, Some(&Payload::Succeeded(Bytes::from_static(body.as_bytes()))));
        assert!(json.contains(&format!("\"result\":{body},")), "{json}");
        assert!(!json.contains("\"error\""));
    }

    #[test]
    fn members_at_issue_are_valid_json_in_the_documented_order() {
        let (turn, name) = (TurnId::parse("turn-3").unwrap(), ToolName::parse("maps").unwrap());
        for call in ["call_1", "\\", "\"", "{\"a\":\"\\\\\"}"] {
            let call = ToolCallId::parse(call).unwrap();
            let members = members_at_issue(Kind::Tool, Some(&turn), Some(&call), Some(&name));
            let start = "\"turnId\":\"turn-3\",\"toolCallId\":\"";
            assert!(members.starts_with(start), "{members}");
            assert!(members.ends_with("\",\"name\":\"maps\",\"kind\":\"tool\""), "{members}");
            let read: serde_json::Value = serde_json::from_str(&format!("{{{members}}}")).unwrap();
            assert_eq!(read["toolCallId"], call.as_str());
        }
    }

    #[test]
    fn failed_envelope_has_an_error_and_timed_out_has_no_payload() {
        let error = Payload::Failed(Bytes::from_static(b"{\"code\":\"X\"}"));
        let failed = json(Outcome::Failed, Some(&error));
        assert!(
            failed.contains("\"outcome\":\"failed\",\"error\":{\"code\":\"X\"},")
                && !failed.contains("result")
        );
        assert_eq!(
            json(Outcome::TimedOut, None),
            "{\"sequence\":7,\"conversationId\":\"call-1\",\
             \"workItemId\":\"00000000-0000-0000-0000-000000000007\",\"kind\":\"tool\",\"outcome\":\"timed_out\",\
             \"issuedAt\":\"1970-01-01T00:00:00.001Z\",\"receivedAt\":\"1970-01-01T00:00:00.002Z\",\
             \"releasedAt\":\"1970-01-01T00:00:00.003Z\"}"
        );
    }
}
