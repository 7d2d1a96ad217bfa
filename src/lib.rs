//! Accepts callbacks from asynchronous LLM and tool providers, and delivers the results of each conversation on its
//! routing channel, in the order in which the work items were issued.
//!
//! # Where to change a rule
//!
//! | to change | look at |
//! |---|---|
//! | which results are released, and when (**the gate**) | `release`, in [`domain::gate`] and `store/redis/scripts/release.lua` |
//! | whether a callback is accepted | `accept`, in [`domain::gate`] and `store/redis/scripts/accept.lua` |
//! | whether a token was used | `accept`, in the same places; in Redis, the key `used` |
//! | whether a heartbeat is accepted | `heartbeat`, in [`domain::gate`] and `store/redis/scripts/heartbeat.lua` |
//! | what progress a provider can report | [`domain::progress`] |
//! | what the cancellation of a turn cancels | `cancel_turn`, in [`domain::gate`] and `store/redis/scripts/cancel_turn.lua` |
//! | when a work item has timed out | `outcome_at`, in [`domain::gate`] and `item.lua`; [`domain::work_item::WorkItem::times_out_at`] |
//! | when a conversation has ended | `ended_at`, in [`domain::gate`] and `conversation.lua` |
//! | which conversations are listed as waiting | `waiting`, in [`domain::gate`], `waiting_for.lua` and `index_waiting` in `release.lua` |
//! | the contents and the verification of a token | [`domain::token`]; the store checks its expiry again, by its own clock |
//! | whether a body is a result or a failure | [`domain::result`], from the scan by [`domain::json`] |
//! | the contents of an envelope, and how it gets on the channel | [`domain::envelope`], and `append` in `release.lua` |
//! | the format of the data in Redis | `conversation.lua` and `item.lua`, decoded by `store/redis/stored.rs` |
//! | when a timer fires | [`sweeper`], with [`store::Schedule`] and `due.lua` |
//! | what `/health` reports about the store | `store/health.rs` |
//! | the console | `platform/console/`: a page, a script and a style sheet, served by `platform/console.rs` |
//! | the size of a page of a channel | `platform/pages.rs`; its bytes, `PAGE_BYTES` in `store.rs` |
//! | how the client's address is determined | [`http::client_address`] |
//! | rate limits | [`http::rate_limit`], `public/client_limits.rs`, `platform/auth.rs` |
//! | connection limits and timeouts | [`http::connection`], [`http::server`] |
//! | limits on the size, the time and the memory of a body | [`http::body`]; heartbeats in `public/heartbeat.rs` |
//! | which Content-Type and Content-Encoding are accepted | [`http::media_type`] |
//! | an error code, its status, and whether to retry | [`http::code`] |
//! | what the OpenAPI documents say | `public/openapi.rs` and `platform/openapi.rs`, from the parts in [`openapi`] |
//! | which code a refusal of the store becomes | `public/reply.rs`, `platform/refusals.rs`; unavailability in [`http::refusal`] |
//! | what happens at SIGTERM | `Signals` in `cli/serve.rs`, then the end of [`app::App::run`], then `flush` in [`telemetry`] |
//! | a setting | `config/default.toml`, then [`config::Config`] |
//! | what an `OTEL_` variable selects | [`config::Exports`]; the SDK reads the others |
//! | a name in a span, a metric or a log line | [`telemetry::names`], and the tables in `config/signoz/README.md` |
//! | a Redis key | `store/redis/keys.rs`, the only place that builds keys |
//!
//! Each rule of the gate exists twice: as a pure function, which [`store::memory`] calls, and in Lua, which Redis runs.
//! Change both together. Paths are relative to `src`, those in `config/` to the repository.
//!
//! # Modules
//!
//! All modules may use [`domain`], which uses none of the others. Otherwise, each module uses only modules below it,
//! with two exceptions: `config` creates the settings of `http` and `store`, and `platform` puts the paths of `public`
//! into its responses.
//!
//! ```text
//! cli                      one file per subcommand
//!  └ app                   builds the service, binds, runs, drains
//!     ├ public             the provider's listener: carrier → callback → reply
//!     ├ platform           the platform's listener: conversations, work items, events, console
//!     ├ sweeper            times out work items and ends idle conversations
//!     └ store              the trait with its numbered guarantees
//!        ├ memory          a mutex around domain::gate
//!        ├ redis           one Lua script per operation
//!        └ domain          ids, token, work item, result, envelope, gate: pure
//!
//! used by these, from top to bottom: openapi (documents of both listeners), http (shared by both listeners; reports
//! the store's health and errors), store, telemetry (log lines, spans, metrics), config, clock
//! ```
//!
//! # The path of a callback
//!
//! 1. [`http::server`] accepts the connection, and hyper parses the request. [`http::observe`] assigns the request id,
//!    the span and a [`http::context::RequestContext`], which collects the facts for the log line.
//! 2. [`public`] routes the request to `callback`, which performs the following steps in this order. `carrier` extracts
//!    the token from the header, query or path, and [`domain::token::Keyring::verify`] verifies it without the store.
//! 3. [`http::admission`] refuses the request with `DRAINING` during the shutdown, and `client_limits` refuses it with
//!    `RATE_LIMITED` over the rate limit. [`http::body`] reads the body within its limits, or refuses it with
//!    `OVERLOADED` if the memory for bodies is used up. The request then gets an in-flight permit, or is refused with
//!    `OVERLOADED`. [`http::media_type`] checks the `Content-Type`.
//! 4. If the head has no token and the body contains no authentic one, a client that has sent too many bad tokens is
//!    refused with `RATE_LIMITED`. [`domain::json`] then scans the body once, and a token in it is verified.
//!    [`domain::result::CallbackResult`] decides whether the body is a result or a failure, and which bytes go to the
//!    channel.
//! 5. [`store::Store::accept`] is one atomic step ([`domain::gate::Conversation::accept`] or `accept.lua`). It checks
//!    that the token has not expired, the conversation is live, the item is awaiting and the token is unused. It then
//!    settles the item, and appends what the gate releases to the channel. Only this step uses up the token. A
//!    repetition with the same body gets the receipt again, with the current delivery. The step is completed and logged
//!    even if the client disconnects.
//! 6. `reply` builds the receipt, or [`http::refusal`] renders a refusal. When the context is dropped, the request is
//!    logged, traced and counted.
//! 7. `store/notifier.rs` wakes the event streams in `platform/events.rs`, which wait on a [`store::ChannelListener`].
//!    They read the new envelopes.
//!
//! For a work item without a callback, the [`sweeper`] calls [`store::Store::expire`], which applies the same
//! `release`.
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod http;
pub mod openapi;
pub mod platform;
pub mod public;
pub mod store;
pub mod sweeper;
pub mod telemetry;
