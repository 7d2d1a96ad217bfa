//! The platform's reason for cancelling work items or ending a conversation.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use thiserror::Error;

use super::ids::contains_token;

/// In characters.
const MAX_REASON: usize = 200;

/// The text is not a valid reason.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "must be 1 to 200 characters without control characters or line separators, and must not contain the token \
     prefix cbt_"
)]
pub struct InvalidReason;

/// A reason: a line of text that is logged, stored and delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(Arc<str>);

impl Reason {
    /// Accepts 1–200 characters. Refuses control characters, U+2028 and U+2029 (some readers of logs and event streams
    /// treat these as line breaks), and a text that contains the token prefix.
    pub fn parse(text: &str) -> Result<Self, InvalidReason> {
        let allowed = |c: char| !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}');
        // A character has at most 4 bytes, so the characters of a longer text need not be counted.
        let in_bounds = text.len() <= 4 * MAX_REASON && (1..=MAX_REASON).contains(&text.chars().count());
        if in_bounds && text.chars().all(allowed) && !contains_token(text) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidReason)
        }
    }

    /// The reason of a work item that timed out because no heartbeat arrived in time.
    pub fn heartbeat() -> Self {
        Self("heartbeat".into())
    }

    /// The unchanged text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text as a JSON string, with its quotation marks.
    pub fn to_json(&self) -> String {
        // The only characters of a reason that JSON escapes.
        format!("\"{}\"", self.0.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_one_line_without_a_token() {
        for bad in [
            "",
            "a\nb",
            "\0",
            "\u{7f}",
            "\u{85}",
            "\u{2028}",
            "\u{2029}",
            "with cbt_AQJrMQ",
            "with CBT_AQJrMQ",
            &"x".repeat(201),
            &"é".repeat(201),
        ] {
            assert_eq!(Reason::parse(bad), Err(InvalidReason), "{bad:?}");
        }
        assert!(InvalidReason.to_string().contains(&MAX_REASON.to_string()));
        for good in ["the caller hung up", "\"\\", "überholt 😀", &"😀".repeat(200)] {
            let reason = Reason::parse(good).unwrap();
            assert_eq!(reason.as_str(), good);
            assert_eq!(serde_json::from_str::<String>(&reason.to_json()).unwrap(), good);
        }
    }
}
