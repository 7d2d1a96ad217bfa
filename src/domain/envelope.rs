//! The result envelope: what travels on a conversation's routing channel.

use serde::Serialize;

use super::ids::{ConversationId, RequestId, Sequence, TraceParent, TurnId, WorkItemId};
use super::result::Payload;
use super::time::Timestamp;
use super::work_item::{Kind, Outcome};

/// One settled work item, as the platform reads it.
///
/// A `timed_out` or `cancelled` envelope has no payload, and a `timed_out` one no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The work item's place in the conversation.
    pub sequence: Sequence,
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The work item.
    pub work_item_id: WorkItemId,
    /// The turn, if the platform named one.
    pub turn_id: Option<TurnId>,
    /// The kind of work.
    pub kind: Kind,
    /// How the item was settled.
    pub outcome: Outcome,
    /// What the provider sent, if it did.
    pub payload: Option<Payload>,
    /// When the item was issued.
    pub issued_at: Timestamp,
    /// When it was settled: the callback or cancellation came in, or the deadline passed.
    pub received_at: Timestamp,
    /// When it was written to the channel.
    pub released_at: Timestamp,
    /// The request that settled it.
    pub request_id: Option<RequestId>,
    /// The trace it was settled in, or else issued in: with it the reader's own trace goes on.
    pub traceparent: Option<TraceParent>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BeforePayload<'a> {
    sequence: Sequence,
    conversation_id: &'a ConversationId,
    work_item_id: WorkItemId,
    #[serde(skip_serializing_if = "Option::is_none")]
    turn_id: Option<&'a TurnId>,
    kind: Kind,
    outcome: Outcome,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AfterPayload<'a> {
    issued_at: Timestamp,
    received_at: Timestamp,
    released_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<RequestId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a TraceParent>,
}

impl Envelope {
    /// The envelope as JSON. The payload, checked when it came in, is spliced in byte for byte.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut json = serde_json::to_vec(&BeforePayload {
            sequence: self.sequence,
            conversation_id: &self.conversation_id,
            work_item_id: self.work_item_id,
            turn_id: self.turn_id.as_ref(),
            kind: self.kind,
            outcome: self.outcome,
        })?;
        let after = serde_json::to_vec(&AfterPayload {
            issued_at: self.issued_at,
            received_at: self.received_at,
            released_at: self.released_at,
            request_id: self.request_id,
            traceparent: self.traceparent.as_ref(),
        })?;
        json.pop();
        match &self.payload {
            Some(Payload::Succeeded(result)) => {
                json.extend_from_slice(b",\"result\":");
                json.extend_from_slice(result);
            }
            Some(Payload::Failed(error)) => {
                json.extend_from_slice(b",\"error\":");
                json.extend_from_slice(error);
            }
            None => {}
        }
        json.push(b',');
        json.extend_from_slice(&after[1..]);
        Ok(json)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;

    fn envelope(outcome: Outcome, payload: Option<Payload>) -> Envelope {
        Envelope {
            sequence: Sequence::new(7),
            conversation_id: ConversationId::parse("call-1").unwrap(),
            work_item_id: WorkItemId::from_uuid(Uuid::from_u128(1)),
            turn_id: None,
            kind: Kind::Tool,
            outcome,
            payload,
            issued_at: Timestamp::from_millis(1),
            received_at: Timestamp::from_millis(2),
            released_at: Timestamp::from_millis(3),
            request_id: None,
            traceparent: None,
        }
    }

    fn json(envelope: &Envelope) -> String {
        String::from_utf8(envelope.to_json().unwrap()).unwrap()
    }

    #[test]
    fn a_result_stands_in_it_byte_for_byte() {
        let body = " { \"n\" : 1.000000000000000000000000001e+999,\n\"s\":\"\\u00e9\", \"s\":2 }";
        let json = json(&envelope(
            Outcome::Succeeded,
            Some(Payload::Succeeded(Bytes::from_static(body.as_bytes()))),
        ));
        assert!(json.contains(&format!("\"result\":{body},")), "{json}");
        assert!(!json.contains("\"error\""));
    }

    #[test]
    fn a_failure_has_an_error_and_a_timeout_has_neither() {
        let failed =
            envelope(Outcome::Failed, Some(Payload::Failed(Bytes::from_static(b"{\"code\":\"X\"}"))));
        let json = json(&failed);
        assert!(
            json.contains("\"outcome\":\"failed\",\"error\":{\"code\":\"X\"},") && !json.contains("result")
        );
        assert_eq!(
            self::json(&envelope(Outcome::TimedOut, None)),
            "{\"sequence\":7,\"conversationId\":\"call-1\",\
             \"workItemId\":\"00000000-0000-0000-0000-000000000001\",\"kind\":\"tool\",\"outcome\":\"timed_out\",\
             \"issuedAt\":\"1970-01-01T00:00:00.001Z\",\"receivedAt\":\"1970-01-01T00:00:00.002Z\",\
             \"releasedAt\":\"1970-01-01T00:00:00.003Z\"}"
        );
    }
}
