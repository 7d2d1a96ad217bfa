//! Waits until replicas have what was written.
//!
//! `WAIT` holds up what is sent behind it on its connection, so it has one of its own. A small write goes before it:
//! what replicas have of that they have of everything that the server executed earlier, for whoever it was. One `WAIT`
//! serves all who began to wait before it was sent. It counts only if the same run of the server answers: after a
//! failover another one would confirm what it never had.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::{FromRedisValue, cmd};
use thiserror::Error;
use tokio::sync::Mutex;

use super::link::{ConnectionLimits, Link, Request, RunId, Target};
use crate::store::Cause;

/// How long the small write is kept, in milliseconds.
const KEPT_MS: u64 = 60_000;

/// How many replicas must have a write before it is acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Replicas {
    /// So many.
    pub count: u64,
    /// For so long they are waited for.
    pub timeout: Duration,
}

/// Why it is not confirmed that enough replicas have a write.
#[derive(Debug, Error)]
pub(in crate::store) enum NotConfirmed {
    #[error("replicas could not be waited for: {0}")]
    NotAsked(String),
    #[error("the server is another one than that which executed it")]
    AnotherServer,
    #[error("{count} of {wanted} replicas have it in time")]
    TooFew { count: u64, wanted: u64 },
}

/// What a `WAIT` came to: how many replicas of which run, or why that is not known.
type Outcome = Result<(u64, Option<RunId>), String>;

/// The connection of a node that waits.
#[derive(Debug)]
pub(super) struct Fence {
    link: Link,
    replicas: Replicas,
    sent: AtomicU64,
    last: Mutex<Option<(u64, Outcome)>>,
}

impl Fence {
    pub(super) fn new(
        target: Target,
        mut limits: ConnectionLimits,
        replicas: Replicas,
        connections: Arc<AtomicU64>,
    ) -> Self {
        limits.response += replicas.timeout;
        Self {
            link: Link::new(target, limits, true, connections),
            replicas,
            sent: AtomicU64::new(0),
            last: Mutex::default(),
        }
    }

    /// Waits until enough replicas have everything that this run of the server executed before the call. `key` is one
    /// that the node owns.
    pub(super) async fn confirm(&self, run: Option<&RunId>, key: &str) -> Result<(), Cause> {
        let before = self.sent.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        let outcome = match &*last {
            Some((number, outcome)) if *number > before => outcome.clone(),
            _ => {
                let number = self.sent.fetch_add(1, Ordering::SeqCst) + 1;
                let outcome = self.wait(key).await;
                *last = Some((number, outcome.clone()));
                outcome
            }
        };
        drop(last);
        match outcome {
            Err(error) => Err(NotConfirmed::NotAsked(error).into()),
            Ok((_, other)) if other.as_ref() != run || run.is_none() => {
                Err(NotConfirmed::AnotherServer.into())
            }
            Ok((count, _)) if count < self.replicas.count => {
                Err(NotConfirmed::TooFew { count, wanted: self.replicas.count }.into())
            }
            Ok(_) => Ok(()),
        }
    }

    async fn wait(&self, key: &str) -> Outcome {
        let write = cmd("SET").arg(key).arg("").arg("PX").arg(KEPT_MS).to_owned();
        let timeout = u64::try_from(self.replicas.timeout.as_millis()).unwrap_or(u64::MAX);
        let wait = cmd("WAIT").arg(self.replicas.count).arg(timeout).to_owned();
        let answered = self
            .link
            .send(Request::command(&wait).after(&write))
            .await
            .map_err(|failed| failed.error.to_string())?;
        let count = u64::from_redis_value(answered.value).map_err(|error| error.to_string())?;
        Ok((count, answered.run))
    }
}
