//! A history: requests and replies with their times, and the final content of the channels.

use bytes::Bytes;
use callback_ingress::clock::Clock;
use callback_ingress::domain::time::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::Instant;

/// Microseconds since the Unix epoch, on a monotonic clock.
pub(crate) type Time = u64;

/// The clock of a run: the store's time at its start plus the elapsed time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch {
    started: Instant,
    epoch: Time,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), epoch: Clock::System.now().as_millis() * 1_000 }
    }

    pub(crate) fn now(&self) -> Time {
        self.epoch + u64::try_from(self.started.elapsed().as_micros()).unwrap()
    }
}

/// A client's request, repeated until it is answered.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Open,
    Issue {
        asked: Asked,
        key: Option<String>,
    },
    Post(Post),
    /// A heartbeat with an issued token.
    Beat {
        work_item: String,
    },
    /// A callback with a forged token.
    Forged {
        how: &'static str,
    },
    Cancel {
        work_item: String,
    },
    /// A cancellation of another conversation's item.
    CancelForeign,
    CancelTurn {
        turn: String,
    },
    End,
    Inspect,
    Show {
        work_item: String,
    },
}

/// A requested work item. The tool call's id is unique, so an envelope identifies its request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) tool_call: String,
    pub(crate) turn: String,
    pub(crate) name: Option<&'static str>,
    pub(crate) kind: &'static str,
    pub(crate) timeout_ms: u64,
    pub(crate) heartbeat_timeout_ms: Option<u64>,
}

impl Asked {
    /// The body of the request.
    pub(crate) fn body(&self) -> Value {
        let mut body = json!({
            "kind": self.kind, "turnId": self.turn, "toolCallId": self.tool_call, "name": self.name,
            "timeoutMs": self.timeout_ms,
        });
        if let Some(heartbeat_timeout_ms) = self.heartbeat_timeout_ms {
            body["heartbeatTimeoutMs"] = json!(heartbeat_timeout_ms);
        }
        body
    }
}

/// A callback with an issued token.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    pub(crate) work_item: String,
    /// The result as it must be delivered, without the token's field.
    pub(crate) result: Bytes,
    pub(crate) says: Says,
}

/// The kind of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Succeeded,
    Failed,
    /// Not JSON.
    Nonsense,
    /// JSON with a second, different token.
    TwoTokens,
}

impl Says {
    /// Whether it can settle anything.
    pub(crate) const fn is_a_result(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// One HTTP request.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) replica: usize,
    /// Its request id, which its settlement carries.
    pub(crate) request_id: String,
    pub(crate) invoked: Time,
    pub(crate) returned: Time,
    /// `None` after a closed connection or a timeout.
    pub(crate) reply: Option<Reply>,
}

/// A reply.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) request_id: String,
    /// The header `Idempotent-Replayed`.
    pub(crate) idempotent_replay: bool,
    pub(crate) body: Value,
}

impl Reply {
    /// A refusal's code; empty for anything else.
    pub(crate) fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    pub(crate) fn text(&self, member: &str) -> &str {
        self.body[member].as_str().unwrap_or_default()
    }

    pub(crate) fn number(&self, member: &str) -> Option<u64> {
        self.body[member].as_u64()
    }

    /// A time in the body, in milliseconds.
    pub(crate) fn millis(&self, member: &str) -> Option<u64> {
        millis(self.text(member))
    }

    /// Whether docs/providers.md allows a retry.
    pub(crate) const fn may_be_repeated(&self) -> bool {
        matches!(self.status, 408 | 429 | 500 | 502 | 503 | 504)
    }
}

/// A time on the wire, in milliseconds.
pub(crate) fn millis(text: &str) -> Option<u64> {
    text.parse::<Timestamp>().ok().map(Timestamp::as_millis)
}

impl Attempt {
    /// Its reply, if that is conclusive.
    pub(crate) fn answer(&self) -> Option<&Reply> {
        self.reply.as_ref().filter(|reply| !reply.may_be_repeated())
    }

    /// Whether it may have settled an item that an end then dropped. If the store's first reply was lost, the repetition
    /// reports only the end.
    pub(crate) fn may_be_dropped(&self) -> bool {
        self.may_count() || self.reply.as_ref().is_some_and(|reply| reply.code() == "CONVERSATION_ENDED")
    }

    /// Whether it may have had an effect, as far as the client knows. `STORE_UNAVAILABLE`, `DRAINING` and `OVERLOADED`
    /// exclude it.
    pub(crate) fn may_count(&self) -> bool {
        match &self.reply {
            None => true,
            Some(reply) => {
                (200..300).contains(&reply.status) || matches!(reply.code(), "OUTCOME_UNKNOWN" | "INTERNAL")
            }
        }
    }
}

/// A request with its attempts. The outcome is unknown if the last one has no reply.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) action: Action,
    pub(crate) attempts: Vec<Attempt>,
}

impl Operation {
    /// When it was first sent.
    pub(crate) fn invoked(&self) -> Time {
        self.attempts.first().map_or(Time::MAX, |attempt| attempt.invoked)
    }

    /// The conclusive replies with their attempts.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (&Attempt, &Reply)> {
        self.attempts.iter().filter_map(|attempt| Some((attempt, attempt.answer()?)))
    }

    /// Whether it may have had an effect by this time.
    pub(crate) fn may_count_before(&self, time: Time) -> bool {
        self.attempts.iter().any(|attempt| attempt.may_count() && attempt.invoked < time)
    }
}

/// An envelope of an event or of an entry in the Redis stream.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Envelope {
    pub(crate) sequence: u64,
    pub(crate) conversation_id: String,
    pub(crate) work_item_id: String,
    pub(crate) turn_id: Option<String>,
    pub(crate) tool_call_id: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) kind: String,
    pub(crate) outcome: String,
    pub(crate) result: Option<Box<RawValue>>,
    pub(crate) error: Option<Box<RawValue>>,
    pub(crate) issued_at: String,
    pub(crate) received_at: String,
    pub(crate) released_at: String,
    pub(crate) request_id: Option<String>,
    /// Of a timeout without a heartbeat; clients give no reasons for cancellations.
    pub(crate) reason: Option<String>,
    #[expect(
        dead_code,
        reason = "an envelope may have it, and clients that are not traced know nothing of it"
    )]
    pub(crate) traceparent: Option<String>,
}

impl Envelope {
    /// The bytes of the result or of the error.
    pub(crate) fn payload(&self) -> Option<&str> {
        self.result.as_deref().or(self.error.as_deref()).map(RawValue::get)
    }
}

/// One reading of the event stream.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) replica: usize,
    /// The requested start: after this sequence.
    pub(crate) after: u64,
    /// Time, id and data of each event.
    pub(crate) events: Vec<(Time, String, String)>,
    /// Time and data of each progress event.
    pub(crate) progress: Vec<(Time, String)>,
    /// Whether the event `end` was received.
    pub(crate) ended: bool,
    /// The refusal, if any.
    pub(crate) refused: Option<Reply>,
    /// Time of its end.
    pub(crate) over: Time,
}

/// An entry of a Redis stream: its id, and its fields as names and bytes.
pub(crate) type StreamEntry = (String, Vec<(String, Vec<u8>)>);

/// The final state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    /// `GET` of the conversation; `None` when the store does not know it.
    pub(crate) view: Option<Value>,
    /// The event stream from its start: each event's id and data.
    pub(crate) events: Vec<(String, String)>,
    /// The Redis stream, on a store that has one.
    pub(crate) stream: Option<Vec<StreamEntry>>,
}

impl Truth {
    /// The id of this sequence's event and stream entry.
    pub(crate) fn event_id(&self, sequence: u64) -> String {
        let opened_at = self.view.as_ref().and_then(|view| millis(view["openedAt"].as_str()?));
        format!("{}-{sequence}", opened_at.unwrap_or_default())
    }
}

/// Everything recorded about one conversation.
#[derive(Clone, Debug)]
pub(crate) struct Conversation {
    pub(crate) id: String,
    pub(crate) operations: Vec<Operation>,
    pub(crate) sessions: Vec<Session>,
    /// The entries that a reader of the Redis stream received, with times.
    pub(crate) stream_seen: Vec<(Time, StreamEntry)>,
    pub(crate) truth: Truth,
}

/// Conversations that were driven together.
#[derive(Clone, Debug)]
pub(crate) struct History {
    pub(crate) conversations: Vec<Conversation>,
    /// The injected faults.
    pub(crate) outages: Vec<Outage>,
}

/// An injected fault, until everything is repaired.
#[derive(Clone, Debug)]
pub(crate) struct Outage {
    pub(crate) what: String,
    /// Whether it excuses lateness.
    pub(crate) excuses: bool,
    pub(crate) from: Time,
    /// Time until which writes of a lost Redis server may be missing; `None` without loss.
    pub(crate) loses_until: Option<Time>,
    pub(crate) until: Time,
}
