//! The channel as server-sent events.

mod ends;
mod headers;
mod many;
mod resuming;
mod whitespace;
