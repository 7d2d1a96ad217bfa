//! The domain model as pure values and functions: no async, no clock, no I/O, no logging.
//!
//! Everything that needs the time, randomness or configuration gets it as an argument.

pub mod envelope;
pub mod gate;
pub mod ids;
pub mod json;
pub mod progress;
pub mod reason;
pub mod result;
pub mod time;
pub mod token;
pub mod work_item;
