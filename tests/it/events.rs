//! The channel as server-sent events.

mod ends;
mod many;
mod resuming;
mod whitespace;
