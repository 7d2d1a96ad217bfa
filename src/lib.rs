//! Takes the callbacks of asynchronous LLM and tool providers and puts each conversation's results, in the order of
//! issue, on its routing channel.
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod http;
pub mod platform;
pub mod public;
pub mod store;
pub mod sweeper;
pub mod telemetry;
