//! What the parent asks of the load generator, one JSON value a line each way.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::plan::Plan;

/// Who answers, and who issues the work items.
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
    /// Opens conversations, in which the following items are issued. Replies with a `Tally`.
    Open { target: Target, plan: Plan },
    /// Issues the plan's work items, and keeps a request for each. Replies with a `Tally`.
    Issue,
    /// Posts requests of the plan, from one up to another. Replies with a `Tally`.
    Post { from: usize, to: usize, pace: Pace },
    /// Posts one result after the other while an event stream is open. Replies with `Latencies`.
    Follow { posts: usize, pause_ms: u64 },
}

/// How requests follow each other.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) enum Pace {
    /// Closed loop: each connection sends its next request when it has its reply. Ends early after so many seconds.
    Closed { connections: usize, seconds: f64 },
    /// Open loop: so many requests a second, whatever the replies take.
    Open { rate: f64 },
}

/// What a number of requests came to. Durations are microseconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    /// Replies by status.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Replies whose status is not the expected one.
    pub(crate) unexpected: u64,
    pub(crate) latency: Percentiles,
}

/// Of latencies, in microseconds. In an open loop they count from when the request was due.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

/// From when a result is sent.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Latencies {
    /// To the reply of the post.
    pub(crate) post: Percentiles,
    /// To the event on the platform's stream; zero for a peer, which has none.
    pub(crate) event: Percentiles,
    pub(crate) unexpected: u64,
}
