//! What both listeners share.

pub mod admission;
pub mod body;
pub mod client_address;
pub mod code;
pub mod connection;
pub mod context;
pub mod health;
pub mod media_type;
pub mod metrics;
pub mod observe;
pub mod rate_limit;
pub mod refusal;
pub mod refusal_summaries;
mod report;
pub mod request_log;
pub mod server;
pub mod tls;
pub mod trace_headers;
