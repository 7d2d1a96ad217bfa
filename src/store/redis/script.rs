//! Calling a script and reading its reply. Keys, arguments and replies travel by position, as each script's header says.

use std::fmt::{Display, Write};

use redis::{Cmd, Script, ToRedisArgs, Value};

use super::link::Request;
use super::nodes::{FromNode, Lane, Nodes};
use super::slots::Slot;
use crate::store::StoreError;

/// What a call takes besides its payload, keys included: the buffer is made once.
const CALL_BYTES: usize = 1024;
const CALL_ARGUMENTS: usize = 24;

/// An operation's script with its arguments.
pub(super) struct Call<'a> {
    script: &'a Script,
    slot: Slot,
    command: Cmd,
    scratch: String,
}

impl<'a> Call<'a> {
    /// Every script has a key, and all of its keys are in one slot. `payload`: bytes of what is long among its arguments.
    pub(super) fn new<K: AsRef<str>>(script: &'a Script, keys: &[K], payload: usize) -> Self {
        let mut command = Cmd::with_capacity(CALL_ARGUMENTS, CALL_BYTES + payload);
        command.arg("EVALSHA").arg(script.get_hash()).arg(keys.len());
        for key in keys {
            command.arg(key.as_ref());
        }
        let slot = Slot::of(keys.first().map_or("", AsRef::as_ref));
        Self { script, slot, command, scratch: String::new() }
    }

    /// Adds an argument as its text.
    pub(super) fn arg(mut self, value: impl Display) -> Self {
        self.scratch.clear();
        // Writing to a string does not fail.
        let _ = write!(self.scratch, "{value}");
        self.command.arg(self.scratch.as_str());
        self
    }

    /// Adds an argument as it is.
    pub(super) fn raw(mut self, value: impl ToRedisArgs) -> Self {
        self.command.arg(value);
        self
    }

    /// Adds an argument that is empty when there is none.
    pub(super) fn option(self, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.arg(value),
            None => self.raw(""),
        }
    }

    /// As a command, which fails where the script is not known.
    pub(super) fn command(self) -> Cmd {
        self.command
    }

    pub(super) async fn send(self, nodes: &Nodes, lane: Lane) -> Result<FromNode, StoreError> {
        nodes.call(lane, self.slot, Request::script(self.script, &self.command)).await
    }

    /// Sends it, and the other one should it have to be repeated.
    pub(super) async fn send_or(self, again: Self, nodes: &Nodes) -> Result<FromNode, StoreError> {
        let request = Request::script(self.script, &self.command).or(&again.command);
        nodes.call(Lane::Commands, self.slot, request).await
    }
}

/// A script's reply: a word, and what follows it. There may be results in it: it has no `Debug`.
pub(super) struct Reply {
    word: Vec<u8>,
    rest: std::vec::IntoIter<Value>,
}

/// A reply that does not read as the script's header says.
pub(super) fn broken(what: impl Display) -> StoreError {
    StoreError::Broken(format!("unexpected reply: {what}"))
}

pub(super) fn list(value: Value) -> Result<Vec<Value>, StoreError> {
    if let Value::Array(values) = value { Ok(values) } else { Err(broken("no list")) }
}

pub(super) fn bytes(value: Value) -> Result<Vec<u8>, StoreError> {
    if let Value::BulkString(bytes) = value { Ok(bytes) } else { Err(broken("no string")) }
}

pub(super) fn number(value: &Value) -> Result<u64, StoreError> {
    if let Value::Int(number) = value {
        u64::try_from(*number).map_err(|_| broken("a negative number"))
    } else {
        Err(broken("no number"))
    }
}

impl Reply {
    pub(super) fn read(value: Value) -> Result<Self, StoreError> {
        let mut rest = list(value)?.into_iter();
        let word = bytes(rest.next().ok_or_else(|| broken("an empty list"))?)?;
        Ok(Self { word, rest })
    }

    /// The word; empty when it is none.
    pub(super) fn word(&self) -> &str {
        std::str::from_utf8(&self.word).unwrap_or_default()
    }

    /// What comes next, without taking it.
    pub(super) fn peek(&self) -> Option<&Value> {
        self.rest.as_slice().first()
    }

    /// What comes next, if anything does.
    pub(super) fn next(&mut self) -> Option<Value> {
        self.rest.next()
    }

    fn required(&mut self) -> Result<Value, StoreError> {
        self.rest.next().ok_or_else(|| broken("a reply that is too short"))
    }

    pub(super) fn number(&mut self) -> Result<u64, StoreError> {
        number(&self.required()?)
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, StoreError> {
        bytes(self.required()?)
    }

    pub(super) fn list(&mut self) -> Result<Vec<Value>, StoreError> {
        list(self.required()?)
    }

    /// This word is none that the operation's header names.
    pub(super) fn unexpected(&self) -> StoreError {
        broken(format_args!("the word {:?}", self.word()))
    }
}
