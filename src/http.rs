//! What both listeners share.

pub mod body;
pub mod code;
mod connection;
mod framing;
pub mod health;
pub mod lifecycle;
pub mod observe;
pub mod refusal;
pub mod room;
pub mod server;
