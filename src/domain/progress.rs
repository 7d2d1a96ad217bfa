//! Progress that a provider reports with a heartbeat, and the event that carries it to the platform.

use std::fmt;

use bytes::Bytes;
use thiserror::Error;

use super::envelope::members_at_issue;
use super::ids::contains_token;
use super::time::Timestamp;
use super::work_item::WorkItem;

/// Maximum length of a message in characters.
pub const MAX_MESSAGE: usize = 1_000;
/// Maximum size of the data in bytes, as sent.
pub const MAX_DATA: usize = 4 * 1024;
/// Minimum time in milliseconds between two progress events of a work item.
pub const PROGRESS_INTERVAL_MS: u64 = 500;

/// Why progress is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidProgress {
    /// The message is too long, or contains a disallowed character or the token prefix.
    #[error(
        "message: must be at most 1000 characters without control characters or line separators, and must not \
         contain a token"
    )]
    Message,
    /// The data is larger than 4 KiB.
    #[error("data: must be at most 4096 bytes of JSON")]
    DataSize,
    /// The data contains the token prefix.
    #[error("data: must not contain a token")]
    DataToken,
}

/// A message, data, or both. `Debug` shows only the size: neither is ever logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Progress {
    /// The members `message` and `data` as JSON, without braces. Not empty.
    members: String,
}

impl Progress {
    /// Checks a message and the JSON text of the data. `None` if there is neither. An empty message counts as none.
    ///
    /// Like a [`Reason`](super::reason::Reason), a message is one line.
    pub fn new(message: Option<&str>, data: Option<&str>) -> Result<Option<Self>, InvalidProgress> {
        let message = message.filter(|message| !message.is_empty());
        if !message.is_none_or(is_message) {
            return Err(InvalidProgress::Message);
        }
        if data.is_some_and(|data| data.len() > MAX_DATA) {
            return Err(InvalidProgress::DataSize);
        }
        if data.is_some_and(|data| contains_token(&without_escapes(data))) {
            return Err(InvalidProgress::DataToken);
        }
        let message = message.map(|message| format!("\"message\":{}", serde_json::Value::from(message)));
        let data = data.map(|data| format!("\"data\":{data}"));
        let members: Vec<String> = message.into_iter().chain(data).collect();
        Ok((!members.is_empty()).then(|| Self { members: members.join(",") }))
    }

    /// The members `message` and `data` as JSON, without braces.
    pub fn members(&self) -> &str {
        &self.members
    }

    /// The event as JSON, equal to the one that `store/redis/scripts/heartbeat.lua` publishes.
    pub fn event(&self, item: &WorkItem, at: Timestamp) -> ProgressJson {
        let known = members_at_issue(
            item.kind,
            item.turn_id.as_ref(),
            item.tool_call_id.as_ref(),
            item.name.as_ref(),
        );
        let json = format!(
            "{{\"sequence\":{},\"workItemId\":\"{}\",{known},{},\"at\":\"{at}\"}}",
            item.sequence, item.id, self.members
        );
        ProgressJson(json.into())
    }
}

fn is_message(text: &str) -> bool {
    let allowed = |c: char| !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}');
    // A character has at most 4 bytes, so the characters of a longer text need not be counted.
    let in_bounds = text.len() <= 4 * MAX_MESSAGE && text.chars().count() <= MAX_MESSAGE;
    in_bounds && text.chars().all(allowed) && !contains_token(text)
}

/// The JSON text, with its `\u` escapes replaced by the characters that they denote.
fn without_escapes(json: &str) -> String {
    let mut parts = json.split("\\u");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..4).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let character = code.and_then(char::from_u32);
        text.extend(character);
        text.push_str(&part[if character.is_some() { 4 } else { 0 }..]);
    }
    text
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Progress({} bytes)", self.members.len())
    }
}

/// A progress event as JSON. `Debug` shows only the size.
#[derive(Clone, PartialEq, Eq)]
pub struct ProgressJson(Bytes);

impl ProgressJson {
    /// Wraps the JSON of an event without checking it.
    pub const fn new(json: Bytes) -> Self {
        Self(json)
    }

    /// The JSON text. It is UTF-8 if the data is.
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for ProgressJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProgressJson({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(message: Option<&str>, data: Option<&str>) -> Result<Option<String>, InvalidProgress> {
        Progress::new(message, data).map(|progress| progress.map(|progress| progress.members))
    }

    #[test]
    fn message_is_escaped_and_data_is_copied() {
        assert_eq!(members(None, None), Ok(None));
        assert_eq!(members(Some(""), None), Ok(None));
        assert_eq!(members(Some("\"half\" \\ é"), None), Ok(Some(r#""message":"\"half\" \\ é""#.into())));
        assert_eq!(
            members(Some("m"), Some("{ \"n\":1.0 }")),
            Ok(Some(r#""message":"m","data":{ "n":1.0 }"#.into()))
        );
    }

    #[test]
    fn bounds_are_those_of_the_documentation() {
        assert!(members(Some(&"😀".repeat(1_000)), Some(&"1".repeat(4_096))).is_ok());
        for bad in [&"x".repeat(1_001), "a\nb", "\0", "\u{85}", "\u{2028}", "with CBT_AQJrMQ"] {
            assert_eq!(members(Some(bad), None), Err(InvalidProgress::Message), "{bad:?}");
        }
        assert_eq!(members(None, Some(&"1".repeat(4_097))), Err(InvalidProgress::DataSize));
        for bad in [r#"["cbt_AQJrMQ"]"#, r#"{"\u0063bt_AQJrMQ":1}"#, r#"["cb\u0054\u005fAQJrMQ"]"#] {
            assert_eq!(members(None, Some(bad)), Err(InvalidProgress::DataToken), "{bad}");
        }
        assert!(InvalidProgress::Message.to_string().contains(&MAX_MESSAGE.to_string()));
        assert!(InvalidProgress::DataSize.to_string().contains(&MAX_DATA.to_string()));
    }

    #[test]
    fn debug_shows_no_text() {
        let progress = Progress::new(Some("private"), Some("\"private\"")).unwrap().unwrap();
        assert!(!format!("{progress:?}").contains("private"));
    }
}
