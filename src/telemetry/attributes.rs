//! Attributes that a span and a log line can share.

use std::fmt::{Display, Write};
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
    let mut text = String::with_capacity(64);
    let _ = write!(text, "{value}");
    Value::String(Arc::<str>::from(text).into())
}

/// A number. Saturates at the maximum of the integer type of attributes.
pub fn number(value: u64) -> Value {
    Value::I64(i64::try_from(value).unwrap_or(i64::MAX))
}
