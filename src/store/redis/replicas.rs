//! Waits until enough replicas have confirmed a write (`store.wait_replicas`).
//!
//! `WAIT` blocks its connection, so it uses a separate one. But `WAIT` covers only the writes of its own connection.
//! Therefore a small write precedes it. A replica that has this write also has everything that the server executed
//! before it, for any connection. One `WAIT` serves all callers that began to wait before it was sent. The result
//! counts only if the `run_id` is that of the server that executed the caller's write, because after a failover the new
//! primary may not have the write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redis::{FromRedisValue, cmd};
use thiserror::Error;
use tokio::sync::Mutex;

use super::connection::{Endpoint, ReconnectingConnection, Request, RunId};
use super::settings::{ConnectionSettings, Replicas};
use crate::store::Cause;

/// TTL of the key of the small write, in milliseconds.
const BARRIER_TTL_MS: u64 = 60_000;

/// Why a write is not confirmed.
#[derive(Debug, Error)]
pub(in crate::store) enum NotReplicated {
    #[error("waiting for replicas failed: {0}")]
    WaitFailed(String),
    #[error("the primary changed after the write")]
    ServerChanged,
    #[error("{count} of {wanted} replicas have the write")]
    TooFew { count: u64, wanted: u64 },
}

/// The number of replicas that confirmed, and the `run_id` of the server; or the error of the `WAIT`.
type WaitResult = Result<(u64, Option<RunId>), String>;

/// Confirms that replicas have the writes of a node.
#[derive(Debug)]
pub(super) struct ReplicationBarrier {
    connection: ReconnectingConnection,
    replicas: Replicas,
    sent: AtomicU64,
    last: Mutex<Option<(u64, WaitResult)>>,
}

impl ReplicationBarrier {
    pub(super) fn new(
        endpoint: Endpoint,
        mut settings: ConnectionSettings,
        replicas: Replicas,
        connections: Arc<AtomicU64>,
    ) -> Self {
        settings.response += replicas.timeout;
        Self {
            connection: ReconnectingConnection::new(endpoint, settings, true, connections),
            replicas,
            sent: AtomicU64::new(0),
            last: Mutex::default(),
        }
    }

    /// Waits until enough replicas have everything that the server with this `run_id` executed before the call. `key`
    /// must be in a slot of the node. Fails with [`NotReplicated`].
    pub(super) async fn confirm(&self, run_id: Option<&RunId>, key: &str) -> Result<(), Cause> {
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
            Err(error) => Err(NotReplicated::WaitFailed(error).into()),
            Ok((_, other)) if other.as_ref() != run_id || run_id.is_none() => {
                Err(NotReplicated::ServerChanged.into())
            }
            Ok((count, _)) if count < self.replicas.count => {
                Err(NotReplicated::TooFew { count, wanted: self.replicas.count }.into())
            }
            Ok(_) => Ok(()),
        }
    }

    async fn wait(&self, key: &str) -> WaitResult {
        let write = cmd("SET").arg(key).arg("").arg("PX").arg(BARRIER_TTL_MS).to_owned();
        let timeout = u64::try_from(self.replicas.timeout.as_millis()).unwrap_or(u64::MAX);
        let wait = cmd("WAIT").arg(self.replicas.count).arg(timeout).to_owned();
        let reply = self
            .connection
            .send(Request::command(&wait).preceded_by(&write))
            .await
            .map_err(|failed| failed.error.to_string())?;
        let count = u64::from_redis_value(reply.value).map_err(|error| error.to_string())?;
        Ok((count, reply.run_id))
    }
}
