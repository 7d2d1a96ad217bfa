//! Attributes that a span and a log line can share.

use std::fmt::Display;
use std::io::Write;
use std::sync::Arc;

use opentelemetry::{KeyValue, Value};

/// The attributes that have a value.
pub fn attributes<const N: usize>(all: [(&'static str, Option<Value>); N]) -> Vec<KeyValue> {
    // Leaves space for the attributes that only the span has.
    let mut present = Vec::with_capacity(N + 8);
    present.extend(all.into_iter().filter_map(|(name, value)| Some(KeyValue::new(name, value?))));
    present
}

/// A value as text. Clones share it.
pub fn text(value: impl Display) -> Value {
    // Formats most values on the stack, so that only the shared string is allocated.
    let mut buffer = [0; 128];
    let mut rest = &mut buffer[..];
    let fits = write!(rest, "{value}").is_ok();
    let length = 128 - rest.len();
    let short = str::from_utf8(&buffer[..length]).ok().filter(|_| fits);
    Value::String(short.map_or_else(|| value.to_string().into(), Arc::<str>::from).into())
}

/// A number. Saturates at the maximum of the integer type of attributes.
pub fn number(value: u64) -> Value {
    Value::I64(i64::try_from(value).unwrap_or(i64::MAX))
}
