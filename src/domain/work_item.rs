//! A work item: what was issued, and how it was settled.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::{Sequence, ToolCallId, ToolName, TraceParent, TurnId, WorkItemId};
use super::time::Timestamp;

/// What kind of provider the work went to; it decides which results are well-formed.
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

    /// The word on the wire and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Llm => "llm",
            Self::Tool => "tool",
        }
    }

    /// The kind a word stands for.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// How a work item was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A callback brought a result.
    Succeeded,
    /// A callback brought an error envelope.
    Failed,
    /// The deadline passed first.
    TimedOut,
    /// The platform withdrew it.
    Cancelled,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 4] = [Self::Succeeded, Self::Failed, Self::TimedOut, Self::Cancelled];

    /// The word on the wire and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
        }
    }

    /// The outcome a word stands for.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a work item is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not settled, its deadline ahead.
    Awaiting,
    /// Settled, behind an earlier item that is not.
    Held,
    /// Written to the routing channel.
    Released,
    /// Neither released nor able to be: its conversation ended first.
    Dropped,
}

/// What is fixed when a work item is issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkItem {
    /// Its id.
    pub id: WorkItemId,
    /// Its place in the conversation.
    pub sequence: Sequence,
    /// What kind of provider it went to.
    pub kind: Kind,
    /// The turn it belongs to, if the platform said so.
    pub turn_id: Option<TurnId>,
    /// The platform's id of the tool call, if the platform said so.
    pub tool_call_id: Option<ToolCallId>,
    /// The name of the tool or provider, if the platform said so.
    pub name: Option<ToolName>,
    /// When it was issued, by the store's clock.
    pub issued_at: Timestamp,
    /// When it times out.
    pub deadline: Timestamp,
    /// When its token ends: the deadline plus the replay window.
    pub expires_at: Timestamp,
    /// The id of the key that signs its token.
    pub key_id: super::token::KeyId,
    /// The trace it was issued in.
    pub traceparent: Option<TraceParent>,
}
