//! Calls scripts and reads their replies. Keys, arguments and replies are positional; the header of each script lists
//! them.

use std::fmt::{Display, Write};

use redis::{Cmd, Script, ToRedisArgs, Value};

use super::connection::Request;
use super::node::ConnectionRole;
use super::nodes::{NodeReply, Nodes};
use super::slots::HashSlot;
use crate::store::StoreError;

/// Initial capacity of a command in bytes, without the payload. Enough for the keys and arguments of every script.
const CALL_BYTES: usize = 1024;
const CALL_ARGUMENTS: usize = 24;

/// A script call with its keys and arguments.
pub(super) struct ScriptCall<'a> {
    script: &'a Script,
    slot: HashSlot,
    command: Cmd,
    retry: Option<Cmd>,
    scratch: String,
}

impl<'a> ScriptCall<'a> {
    /// All keys must be in one slot. `payload` is the size in bytes of the long arguments, for the capacity.
    pub(super) fn new<K: AsRef<str>>(script: &'a Script, keys: &[K], payload: usize) -> Self {
        let mut command = Cmd::with_capacity(CALL_ARGUMENTS, CALL_BYTES + payload);
        command.arg("EVALSHA").arg(script.get_hash()).arg(keys.len());
        for key in keys {
            command.arg(key.as_ref());
        }
        let slot = HashSlot::of(keys.first().map_or("", AsRef::as_ref));
        Self { script, slot, command, retry: None, scratch: String::new() }
    }

    /// Adds an argument in its text form.
    pub(super) fn arg(mut self, value: impl Display) -> Self {
        self.scratch.clear();
        // Writing to a `String` cannot fail.
        let _ = write!(self.scratch, "{value}");
        self.command.arg(self.scratch.as_str());
        self
    }

    /// Adds an argument without formatting it.
    pub(super) fn raw(mut self, value: impl ToRedisArgs) -> Self {
        self.command.arg(value);
        self
    }

    /// Adds an optional argument; `None` becomes the empty string.
    pub(super) fn option(self, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.arg(value),
            None => self.raw(""),
        }
    }

    /// The `EVALSHA` command. It fails with `NOSCRIPT` if the server has not loaded the script.
    pub(super) fn command(self) -> Cmd {
        self.command
    }

    /// Sets the call to send instead when this one is retried.
    pub(super) fn with_retry(self, retry: Self) -> Self {
        Self { retry: Some(retry.command), ..self }
    }

    pub(super) async fn send(self, nodes: &Nodes, role: ConnectionRole) -> Result<NodeReply, StoreError> {
        let request = Request::script(self.script, &self.command);
        let request = self.retry.as_ref().map_or(request, |retry| request.with_retry(retry));
        nodes.call(role, self.slot, request).await
    }
}

/// The reply of a script: a word and further values. Not `Debug`, because the values may contain results.
pub(super) struct ScriptReply {
    word: Vec<u8>,
    rest: std::vec::IntoIter<Value>,
}

/// The error for a reply or stored value that does not have the documented form.
pub(super) fn broken(what: impl Display) -> StoreError {
    StoreError::Broken(format!("unexpected reply: {what}"))
}

pub(super) fn list(value: Value) -> Result<Vec<Value>, StoreError> {
    if let Value::Array(values) = value { Ok(values) } else { Err(broken("not a list")) }
}

pub(super) fn bytes(value: Value) -> Result<Vec<u8>, StoreError> {
    if let Value::BulkString(bytes) = value { Ok(bytes) } else { Err(broken("not a string")) }
}

pub(super) fn text(value: Value) -> Result<String, StoreError> {
    String::from_utf8(bytes(value)?).map_err(|_| broken("not UTF-8"))
}

pub(super) fn number(value: &Value) -> Result<u64, StoreError> {
    if let Value::Int(number) = value {
        u64::try_from(*number).map_err(|_| broken("a negative number"))
    } else {
        Err(broken("not a number"))
    }
}

impl ScriptReply {
    pub(super) fn read(value: Value) -> Result<Self, StoreError> {
        let mut rest = list(value)?.into_iter();
        let word = bytes(rest.next().ok_or_else(|| broken("an empty list"))?)?;
        Ok(Self { word, rest })
    }

    /// The first value. Empty if it is not UTF-8.
    pub(super) fn word(&self) -> &str {
        std::str::from_utf8(&self.word).unwrap_or_default()
    }

    /// The next value, without consuming it.
    pub(super) fn peek(&self) -> Option<&Value> {
        self.rest.as_slice().first()
    }

    /// Consumes the next value.
    pub(super) fn next(&mut self) -> Option<Value> {
        self.rest.next()
    }

    fn required(&mut self) -> Result<Value, StoreError> {
        self.rest.next().ok_or_else(|| broken("the reply is too short"))
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

    /// The error for a word that the script's header does not list.
    pub(super) fn unexpected(&self) -> StoreError {
        broken(format_args!("unknown word {:?}", self.word()))
    }
}
