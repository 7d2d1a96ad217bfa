//! What both listeners share.

pub mod body;
pub mod code;
mod connection;
pub mod context;
pub mod health;
pub mod lifecycle;
pub mod metrics;
pub mod observe;
pub mod refusal;
pub mod server;
