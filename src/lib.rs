//! Takes the callbacks of asynchronous LLM and tool providers and puts each conversation's results, in the order of
//! issue, on its routing channel.
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
//! | what travels on the channel | [`domain::envelope`], and `append` in `release.lua` |
//! | what is stored in Redis, and in which form | `conversation.lua` and `item.lua`, which `store/redis/stored.rs` decodes |
//! | when a timer fires | [`sweeper`], by [`store::Schedule`] and `due.lua` |
//! | what `/health` says of the store | `store/health.rs` |
//! | how much of a channel is read at once | `platform/pages.rs` |
//! | which client address counts, and how often | [`http::client_address`], [`http::rate`] |
//! | what is HTTP/1.1 and what is refused | `http/framing.rs` |
//! | a code, its status, whether to retry | [`http::code`] |
//! | a setting | `config/default.toml`, then [`config::Config`] |
//! | a name in a span, a metric or a log line | [`telemetry::names`], and the tables in `config/signoz/README.md` |
//! | a key of Redis | `store/redis/keys.rs`, which alone spells them |
//!
//! The rules of the gate stand twice, under the same names: as pure functions, which [`store::memory`] calls, and in
//! Lua, which runs inside Redis. Whoever changes one changes the other.
//!
//! # The map
//!
//! Arrows run downward only; [`domain`] knows none of the others.
//!
//! ```text
//! cli                      one file a subcommand
//!  └ app                   puts the parts together, binds, runs, drains
//!     ├ public             the provider's listener: carrier → callback → reply
//!     ├ platform           the platform's listener: conversations, work items, events
//!     ├ sweeper            times out what nobody answered
//!     └ store              the trait with its numbered promises
//!        ├ memory          a mutex around domain::gate
//!        ├ redis           one Lua script an operation
//!        └ domain          ids, token, work item, result, envelope, gate: pure
//!
//! beside them: http (what both listeners share), config, clock, telemetry (log lines, spans, metrics)
//! ```
//!
//! # The walk of one callback
//!
//! 1. [`http::server`] accepts the connection. [`http::observe`] gives the request its id and its place in a trace, and
//!    will write its one log line, end its span and count it, from what [`http::context`] has learned by then;
//!    [`http::lifecycle`] lets it in, or says `DRAINING`; `public::throttle` says `RATE_LIMITED` to an address that
//!    asks too often.
//! 2. [`public`] routes it to its `callback`, which goes through the steps below in this order. [`http::body`] reads
//!    the body within its limits, where [`http::room`] has room for it, and checks its type. Then the request takes its
//!    slot, or hears `OVERLOADED`.
//! 3. `carrier` finds the token in the header, query, path or body. [`domain::token::Keyring::verify`] checks it
//!    without asking the store.
//! 4. [`domain::result::CallbackResult`] judges the body: succeeded or failed, and which bytes travel on.
//! 5. [`store::Store::accept`] does the rest in one atomic step, [`domain::gate::Conversation::accept`] or
//!    `accept.lua`: live, awaiting, not used before; settle, release, append to the channel. Only here is the token
//!    spent.
//! 6. `reply` makes the receipt, or the refusal that [`http::refusal`] renders.
//! 7. [`store::ChannelListener`] wakes the event streams of [`platform`], whose `events` reads the channel on.
//!
//! A work item that is never answered goes another way to the same rule: [`sweeper`], [`store::Store::expire`],
//! `release`.
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
