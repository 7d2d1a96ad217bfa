//! The protocol between the benchmark and the load generator: one JSON value per line in each direction.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::plan::Plan;

/// The server to load, and the source of its work items.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Target {
    /// Where results are posted.
    pub(crate) public: SocketAddr,
    pub(crate) issuer: Issuer,
}

/// Where work items come from.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Issuer {
    /// The platform listener of the service, and its service key.
    Service { platform: SocketAddr, key: String },
    /// A hand-written peer: tokens are signed with its secret; items are written to its Redis, if it has one.
    Peer { redis: Option<u16>, secret: String },
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Command {
    /// Opens the conversations of the items that are issued next. Replies with a `Tally`.
    Open { target: Target, plan: Plan },
    /// Issues the work items of the plan, and prepares a request for each. Replies with a `Tally`.
    Issue,
    /// Posts a range of the requests of the plan. Replies with a `Tally`.
    Post { from: usize, to: usize, pace: Pace },
    /// Posts results one by one while an event stream is open. Replies with `Latencies`.
    Follow { posts: usize, pause_ms: u64 },
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) enum Pace {
    /// Closed loop: each connection sends its next request after the reply. Stops after this many seconds.
    Closed { connections: usize, seconds: f64 },
    /// Open loop: this many requests per second, independent of the replies.
    Open { rate: f64 },
}

/// The figures of a number of requests. Durations are in microseconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    /// Number of replies by status.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Number of replies with an unexpected status.
    pub(crate) unexpected: u64,
    pub(crate) latency: Percentiles,
}

/// Percentiles of latencies, in microseconds. In an open loop, a latency starts at the scheduled time of its request.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

/// Latencies from the post of a result.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Latencies {
    /// Until the reply to the post.
    pub(crate) post: Percentiles,
    /// Until the event on the platform's stream.
    pub(crate) event: Percentiles,
    pub(crate) unexpected: u64,
}
