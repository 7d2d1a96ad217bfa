//! Calling a script and reading its reply. Arguments and replies travel as names and values, not as positions.

use std::fmt::Display;
use std::str::FromStr;

use redis::{Cmd, Script, Value, cmd};

use super::link::Request;
use super::nodes::{FromNode, Lane, Nodes};
use super::slots::Slot;
use crate::domain::gate::{Released, TimedOut, WorkItemView};
use crate::domain::ids::{Sequence, TraceParent, TurnId, WorkItemId};
use crate::domain::time::Timestamp;
use crate::domain::token::KeyId;
use crate::domain::work_item::{Kind, Outcome, State, WorkItem};
use crate::store::StoreError;

/// An operation's script with its arguments.
pub(super) struct Call<'a> {
    script: &'a Script,
    keys: Vec<String>,
    arguments: Vec<Vec<u8>>,
}

impl<'a> Call<'a> {
    /// Every script has a key, and all of its keys are in one slot.
    pub(super) fn new(script: &'a Script, keys: impl Into<Vec<String>>) -> Self {
        Self { script, keys: keys.into(), arguments: Vec::new() }
    }

    pub(super) fn key(mut self, key: String) -> Self {
        self.keys.push(key);
        self
    }

    pub(super) fn arg(self, name: &str, value: impl Display) -> Self {
        self.bytes(name, value.to_string().as_bytes())
    }

    pub(super) fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        self.arguments.extend([name.into(), value.into()]);
        self
    }

    /// Leaves the argument out when there is none.
    pub(super) fn option(self, name: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.arg(name, value),
            None => self,
        }
    }

    /// A value without a name, for a script that stands alone.
    pub(super) fn plain(mut self, value: impl Display) -> Self {
        self.arguments.push(value.to_string().into());
        self
    }

    /// The slot of its keys.
    pub(super) fn slot(&self) -> Slot {
        Slot::of(self.keys.first().map_or("", String::as_str))
    }

    /// As a command, which fails where the script is not known.
    pub(super) fn command(self) -> Cmd {
        let mut call = cmd("EVALSHA");
        call.arg(self.script.get_hash()).arg(self.keys.len()).arg(self.keys).arg(self.arguments);
        call
    }

    pub(super) async fn send(self, nodes: &Nodes, lane: Lane) -> Result<FromNode, StoreError> {
        let (slot, script) = (self.slot(), self.script);
        let call = self.command();
        nodes.call(lane, slot, Request::script(script, &call)).await
    }

    /// The reply to what changes nothing.
    pub(super) async fn read(self, nodes: &Nodes) -> Result<Reply, StoreError> {
        Reply::read(self.send(nodes, Lane::Reads).await?.value)
    }
}

/// A script's reply: a word, and what follows it. There may be results in it: it has no `Debug`.
pub(super) struct Reply {
    pub(super) word: String,
    pub(super) rest: Vec<Value>,
}

/// A reply that does not read as the script's header says.
pub(super) fn broken(what: impl Display) -> StoreError {
    StoreError::Broken(format!("unexpected reply: {what}"))
}

pub(super) fn list(value: Value) -> Result<Vec<Value>, StoreError> {
    if let Value::Array(values) = value {
        Ok(values)
    } else {
        Err(broken(format_args!("no list but {}", kind_of(&value))))
    }
}

pub(super) fn bytes(value: Value) -> Result<Vec<u8>, StoreError> {
    if let Value::BulkString(bytes) = value {
        Ok(bytes)
    } else {
        Err(broken(format_args!("no string but {}", kind_of(&value))))
    }
}

pub(super) fn string(value: Value) -> Result<String, StoreError> {
    String::from_utf8(bytes(value)?).map_err(|_| broken("a string that is not UTF-8"))
}

/// The kind of a reply, without what is in it.
#[expect(clippy::wildcard_enum_match_arm, reason = "only told to people")]
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Nil => "nil",
        Value::Int(_) => "an integer",
        Value::ServerError(_) => "an error",
        _ => "something else",
    }
}

impl Reply {
    pub(super) fn read(value: Value) -> Result<Self, StoreError> {
        let mut values = list(value)?.into_iter();
        let word = string(values.next().ok_or_else(|| broken("an empty list"))?)?;
        Ok(Self { word, rest: values.collect() })
    }

    pub(super) fn fields(self) -> Result<Fields, StoreError> {
        Fields::read(self.rest)
    }

    /// This word is none that the operation's header names.
    pub(super) fn unexpected(&self) -> StoreError {
        broken(format_args!("the word {:?}", self.word))
    }
}

/// Names and values. There may be a result among them: they have no `Debug`.
pub(super) struct Fields(Vec<(String, Vec<u8>)>);

impl Fields {
    pub(super) fn read(values: Vec<Value>) -> Result<Self, StoreError> {
        let mut fields = Vec::with_capacity(values.len() / 2);
        let mut values = values.into_iter();
        while let Some(name) = values.next() {
            let value = values.next().ok_or_else(|| broken("a name without a value"))?;
            fields.push((string(name)?, bytes(value)?));
        }
        Ok(Self(fields))
    }

    /// Takes a value out, its bytes as they are.
    pub(super) fn take(&mut self, name: &str) -> Option<Vec<u8>> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    fn text(&self, name: &str) -> Result<Option<&str>, StoreError> {
        match self.0.iter().find(|(known, _)| known == name) {
            Some((_, value)) => std::str::from_utf8(value).map(Some).map_err(|_| broken(name)),
            None => Ok(None),
        }
    }

    /// A value that may be missing.
    pub(super) fn optional<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        parse(text).map(Some).ok_or_else(|| broken(name))
    }

    /// A value that must be there.
    pub(super) fn required<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, StoreError> {
        self.optional(name, parse)?.ok_or_else(|| broken(format_args!("no {name}")))
    }

    pub(super) fn parsed<T: FromStr>(&self, name: &str) -> Result<T, StoreError> {
        self.required(name, |text| text.parse().ok())
    }

    /// A time in milliseconds.
    pub(super) fn time(&self, name: &str) -> Result<Timestamp, StoreError> {
        self.parsed(name).map(Timestamp::from_millis)
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, StoreError> {
        self.required(name, |text| match text {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        })
    }

    /// The item that `describe` of `gate.lua` wrote.
    pub(super) fn work_item(&self) -> Result<WorkItem, StoreError> {
        Ok(WorkItem {
            id: self.required("id", WorkItemId::parse)?,
            sequence: self.parsed("sequence").map(Sequence::new)?,
            kind: self.required("kind", Kind::parse)?,
            turn_id: self.optional("turn_id", |text| TurnId::parse(text).ok())?,
            issued_at: self.time("issued_at")?,
            deadline: self.time("deadline")?,
            expires_at: self.time("expires_at")?,
            key_id: self.required("key_id", |text| KeyId::parse(text).ok())?,
            traceparent: self.optional("traceparent", |text| TraceParent::parse(text).ok())?,
        })
    }

    /// Lines of words; none when the field is not there.
    fn lines<T, const N: usize>(
        &self,
        name: &str,
        read: impl Fn([&str; N]) -> Option<T>,
    ) -> Result<Vec<T>, StoreError> {
        let text = self.text(name)?.unwrap_or_default();
        text.lines()
            .map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                words.try_into().ok().and_then(&read).ok_or_else(|| broken(name))
            })
            .collect()
    }

    /// What `append` of `gate.lua` wrote of the envelopes.
    pub(super) fn released(&self) -> Result<Vec<Released>, StoreError> {
        self.lines(
            "released",
            |[sequence, id, kind, outcome, issued, received, released, held, issue, settle]| {
                Some(Released {
                    sequence: Sequence::new(sequence.parse().ok()?),
                    work_item: WorkItemId::parse(id)?,
                    kind: Kind::parse(kind)?,
                    outcome: Outcome::parse(outcome)?,
                    issued_at: Timestamp::from_millis(issued.parse().ok()?),
                    received_at: Timestamp::from_millis(received.parse().ok()?),
                    released_at: Timestamp::from_millis(released.parse().ok()?),
                    held: held == "1",
                    issued_in: TraceParent::parse(issue).ok(),
                    settled_in: TraceParent::parse(settle).ok(),
                })
            },
        )
    }

    /// What `expire.lua` timed out.
    pub(super) fn timed_out(&self) -> Result<Vec<TimedOut>, StoreError> {
        self.lines("timed_out", |[id, sequence, kind, late, issue]| {
            Some(TimedOut {
                work_item: WorkItemId::parse(id)?,
                sequence: Sequence::new(sequence.parse().ok()?),
                kind: Kind::parse(kind)?,
                late_ms: late.parse().ok()?,
                issued_in: TraceParent::parse(issue).ok(),
            })
        })
    }

    /// The item that `view` of `gate.lua` wrote.
    pub(super) fn work_item_view(&self) -> Result<WorkItemView, StoreError> {
        let state = self.required("state", |text| match text {
            "awaiting" => Some(State::Awaiting),
            "held" => Some(State::Held),
            "released" => Some(State::Released),
            "dropped" => Some(State::Dropped),
            _ => None,
        })?;
        let settled = match self.optional("outcome", Outcome::parse)? {
            Some(outcome) => Some((outcome, self.time("received_at")?)),
            None => None,
        };
        let bytes = self.optional("bytes", |text| text.parse().ok())?.unwrap_or_default();
        let held_bytes = if state == State::Held { bytes } else { 0 };
        Ok(WorkItemView { item: self.work_item()?, state, settled, held_bytes })
    }
}
