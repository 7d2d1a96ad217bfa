//! What both listeners share.

pub mod body;
pub mod client_address;
pub mod code;
mod connection;
pub mod context;
mod framing;
pub mod health;
mod http2;
pub mod lifecycle;
pub mod metrics;
pub mod observe;
mod pace;
pub mod rate;
pub mod refusal;
pub mod room;
pub mod server;
mod stall;
pub mod tls;
