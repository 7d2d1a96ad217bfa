//! A log event.

use std::fmt::Debug;
use std::sync::Arc;

use opentelemetry::{Context, KeyValue, StringValue, Value};
use tracing::Metadata;
use tracing::field::{Field, Visit};

use super::attributes::{number, text};

/// Attributes of every event that is logged while the current [`Context`] contains this value. They precede the event's
/// own fields.
pub(super) struct SharedAttributes(pub(super) Arc<Vec<KeyValue>>);

/// A log event.
pub(super) struct LogEvent {
    pub(super) metadata: &'static Metadata<'static>,
    /// The current context, with its span and [`SharedAttributes`].
    pub(super) context: Context,
    pub(super) message: StringValue,
    pub(super) fields: Vec<KeyValue>,
}

impl LogEvent {
    /// The shared attributes and the event's own fields.
    pub(super) fn attributes(&self) -> impl Iterator<Item = &KeyValue> {
        let shared = self.context.get::<SharedAttributes>().map_or(&[][..], |shared| &shared.0);
        shared.iter().chain(&self.fields)
    }

    fn add(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = value.into();
        } else {
            self.fields.push(KeyValue::new(field.name(), value));
        }
    }
}

impl Visit for LogEvent {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, number(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, text(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, text(format_args!("{value:?}")));
    }
}
