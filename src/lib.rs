//! Accepts callbacks of asynchronous LLM and tool providers and delivers each conversation's results in the order of
//! issue on its routing channel.
//!
//! # Where a rule lives
//!
//! | to change | look at |
//! |---|---|
//! | what is released, and when (**the gate**) | `release`, in [`domain::gate`] and `store/redis/scripts/release.lua` |
//! | whether a callback is taken | `accept`, in [`domain::gate`] and `store/redis/scripts/accept.lua` |
//! | when a work item has timed out | `outcome_at`, in [`domain::gate`] and `item.lua` |
//! | when a conversation has ended | `ended_at`, in [`domain::gate`] and `conversation.lua` |
//! | what a token says, and how it is checked | [`domain::token`] |
//! | what counts as a result, or as a failure | [`domain::result`], on what [`domain::json`] finds |
//! | what an envelope contains | [`domain::envelope`], and `append` in `release.lua` |
//! | what is stored in Redis, and in which form | `conversation.lua` and `item.lua`, which `store/redis/stored.rs` decodes |
//! | when a timer fires | [`sweeper`], by [`store::Schedule`] and `due.lua` |
//! | what `/health` reports about the store | `store/health.rs` |
//! | how much of a channel is read at once | `platform/pages.rs` |
//! | which client address counts | [`http::client_address`] |
//! | rate limits | [`http::rate_limit`], `public/client_limits.rs`, `platform/auth.rs` |
//! | limits of connections and their times | [`http::server`], `http/connection.rs` |
//! | limits of a body: size, time, memory | [`http::body`] |
//! | a code, its status, whether to retry | [`http::code`] |
//! | a setting | `config/default.toml`, then [`config::Config`] |
//! | a name in a span, a metric or a log line | [`telemetry::names`], and the tables in `config/signoz/README.md` |
//! | a Redis key | `store/redis/keys.rs`, the only place that builds keys |
//!
//! The gate's rules exist twice under the same names: as pure functions, called by [`store::memory`], and in Lua, run by
//! Redis. Change both together.
//!
//! # The map
//!
//! Dependencies point downward only; [`domain`] depends on none of the others.
//!
//! ```text
//! cli                      one file per subcommand
//!  └ app                   puts the parts together, binds, runs, drains
//!     ├ public             the provider's listener: carrier → callback → reply
//!     ├ platform           the platform's listener: conversations, work items, events
//!     ├ sweeper            times out work items and ends idle conversations
//!     └ store              the trait with its numbered promises
//!        ├ memory          a mutex around domain::gate
//!        ├ redis           one Lua script per operation
//!        └ domain          ids, token, work item, result, envelope, gate: pure
//!
//! beside them: http (what both listeners share), config, clock, telemetry (log lines, spans, metrics)
//! ```
//!
//! # The walk of one callback
//!
//! 1. [`http::server`] accepts the connection; hyper parses the request. [`http::observe`] gives it its ids, and a
//!    [`http::context::RequestContext`] that collects what is learned about it.
//! 2. [`public`] routes it to `callback`, which goes through the following steps in this order. `carrier` finds the
//!    token in the header, query or path, and [`domain::token::Keyring::verify`] verifies it without the store.
//! 3. [`http::admission`] refuses with `DRAINING`, `client_limits` with `RATE_LIMITED`. [`http::body`] reads the body
//!    within its limits; then the request needs a permit, or is refused with `OVERLOADED`.
//! 4. [`domain::json`] scans the body once. A token in it is verified now. [`domain::result::CallbackResult`] decides
//!    whether the body is a result or a failure, and which bytes go to the channel.
//! 5. [`store::Store::accept`] is one atomic step, [`domain::gate::Conversation::accept`] or `accept.lua`: check that the
//!    conversation is live, the item awaiting and the token unused; settle, release, append to the channel. Only here is
//!    the token spent. The step is completed and logged even if the client disconnects.
//! 6. `reply` makes the receipt; [`http::refusal`] renders a refusal. When the context is dropped, the request is logged,
//!    traced and counted.
//! 7. [`store::ChannelListener`] notifies the event streams of [`platform`], whose `events` reads on in the channel.
//!
//! A work item without a callback takes another way to the same rule: [`sweeper`], [`store::Store::expire`], `release`.
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
