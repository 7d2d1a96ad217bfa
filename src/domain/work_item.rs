//! A work item: what was issued, and how it was settled.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::{Sequence, ToolCallId, ToolName, TraceParent, TurnId, WorkItemId};
use super::reason::Reason;
use super::time::Timestamp;

/// The kind of provider. Determines which results are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A language model: a JSON string, or an object with `content`.
    Llm,
    /// A tool: any JSON value.
    Tool,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Llm, Self::Tool];

    /// The name in the API and in envelopes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Llm => "llm",
            Self::Tool => "tool",
        }
    }

    /// Parses a name. `None` if it is unknown.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// How a work item was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A callback delivered a result.
    Succeeded,
    /// A callback delivered an error.
    Failed,
    /// The deadline or the heartbeat timeout passed before a callback was accepted.
    TimedOut,
    /// The platform cancelled the item.
    Cancelled,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 4] = [Self::Succeeded, Self::Failed, Self::TimedOut, Self::Cancelled];

    /// The name in the API and in envelopes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
        }
    }

    /// Parses a name. `None` if it is unknown.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of a work item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Has no outcome, and has not timed out.
    Awaiting,
    /// Has an outcome and waits for an earlier item without one.
    Held,
    /// Written to the routing channel.
    Released,
    /// Will never be released, because its conversation has ended.
    Dropped,
}

/// Why a work item timed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeoutCause {
    /// Its deadline passed.
    Deadline,
    /// Its heartbeat timeout passed without a heartbeat, before its deadline.
    Heartbeat,
}

impl TimeoutCause {
    /// Both causes.
    pub const ALL: [Self; 2] = [Self::Deadline, Self::Heartbeat];

    /// The name in log lines, spans and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Heartbeat => "heartbeat",
        }
    }

    /// The `reason` in the envelope and in the API: `heartbeat` for a missed heartbeat, none for a passed deadline.
    pub fn reason(self) -> Option<Reason> {
        match self {
            Self::Deadline => None,
            Self::Heartbeat => Some(Reason::heartbeat()),
        }
    }
}

/// The immutable data of a work item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkItem {
    /// Its id.
    pub id: WorkItemId,
    /// Its position in the order of issue.
    pub sequence: Sequence,
    /// The kind of provider that it was sent to.
    pub kind: Kind,
    /// The turn that it belongs to, if the platform set one.
    pub turn_id: Option<TurnId>,
    /// The platform's id of the tool call, if the platform set one.
    pub tool_call_id: Option<ToolCallId>,
    /// The name of the tool or provider, if the platform set one.
    pub name: Option<ToolName>,
    /// When it was issued, by the store's clock.
    pub issued_at: Timestamp,
    /// When it times out, unless its heartbeat timeout passes first.
    pub deadline: Timestamp,
    /// Maximum time in milliseconds from its issue to the first heartbeat, and between heartbeats. `None`: it needs no
    /// heartbeats.
    pub heartbeat_timeout_ms: Option<u64>,
    /// When its token expires: the deadline plus the replay window.
    pub expires_at: Timestamp,
    /// The id of the key that signs its token.
    pub key_id: super::token::KeyId,
    /// The trace context in which it was issued.
    pub traceparent: Option<TraceParent>,
}

impl WorkItem {
    /// When the item times out if it is not settled and no further heartbeat arrives: at the deadline, or at the end of
    /// the heartbeat timeout if that is earlier.
    pub fn times_out_at(&self, last_heartbeat_at: Option<Timestamp>) -> Timestamp {
        let heartbeat_due_at = self
            .heartbeat_timeout_ms
            .map(|timeout_ms| last_heartbeat_at.unwrap_or(self.issued_at).plus_millis(timeout_ms));
        heartbeat_due_at.map_or(self.deadline, |heartbeat_due_at| heartbeat_due_at.min(self.deadline))
    }

    /// When the awaiting item times out unless a heartbeat arrives first. `None`: it needs no heartbeats.
    pub fn heartbeat_deadline(&self, last_heartbeat_at: Option<Timestamp>) -> Option<Timestamp> {
        self.heartbeat_timeout_ms.map(|_| self.times_out_at(last_heartbeat_at))
    }

    /// The cause of a timeout at this time.
    pub fn timeout_cause(&self, timed_out_at: Timestamp) -> TimeoutCause {
        if timed_out_at < self.deadline { TimeoutCause::Heartbeat } else { TimeoutCause::Deadline }
    }
}
