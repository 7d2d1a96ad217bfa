//! The health of the store, checked in the background. `/health` returns the last result and sends nothing to the
//! store.

use std::time::Duration;

use redis::RedisError;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::StoreError;
use super::redis::failure::rejection_code;
use super::redis::replicas::NotReplicated;

/// Time between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum time between two checks. After a failed call, the next check runs as soon as this time has passed.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Whether the store accepts callbacks, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreHealth {
    /// It accepts callbacks.
    Healthy,
    /// The first check has not finished.
    Unchecked,
    /// No connection, no response, or an error that has no variant of its own.
    Unreachable,
    /// It is loading its data, or a script has run for too long (`LOADING`, `BUSY`).
    Busy,
    /// It is a replica, or a demoted primary (`READONLY`, `MASTERDOWN`).
    ReadOnly,
    /// It has reached `maxmemory` (`OOM`).
    Full,
    /// It rejects writes because persisting failed (`MISCONF`).
    CannotSave,
    /// Fewer replicas than `min-replicas-to-write` or `store.wait_replicas` are in sync.
    TooFewReplicas,
}

impl StoreHealth {
    fn of(checked: &Result<(), StoreError>) -> Self {
        let cause = match checked {
            Ok(()) => return Self::Healthy,
            Err(StoreError::Unavailable(cause) | StoreError::OutcomeUnknown(cause)) => cause,
            Err(StoreError::Broken(_)) => return Self::Unreachable,
        };
        match cause.downcast_ref::<RedisError>().and_then(rejection_code) {
            Some("OOM") => Self::Full,
            Some("READONLY" | "MASTERDOWN") => Self::ReadOnly,
            Some("MISCONF") => Self::CannotSave,
            Some("NOREPLICAS") => Self::TooFewReplicas,
            Some("BUSY" | "LOADING") => Self::Busy,
            None if cause.is::<NotReplicated>() => Self::TooFewReplicas,
            Some(_) | None => Self::Unreachable,
        }
    }

    /// A message for the log and for the response of `/health`. `None` if healthy.
    pub const fn problem(self) -> Option<&'static str> {
        match self {
            Self::Healthy => None,
            Self::Unchecked => Some("the store has not been checked yet"),
            Self::Unreachable => Some("the store cannot be reached"),
            Self::Busy => Some("the store is busy: it is loading its data or running a long script"),
            Self::ReadOnly => Some("the store is read-only: a replica or a demoted primary"),
            Self::Full => Some("the store is full: its memory limit is reached"),
            Self::CannotSave => Some("the store rejects writes: it cannot save them to disk"),
            Self::TooFewReplicas => Some("the store has too few replicas that are in sync"),
        }
    }
}

/// The result of the last check, and the schedule of the next one.
#[derive(Debug)]
pub(super) struct HealthMonitor {
    health: watch::Sender<StoreHealth>,
    failure: Notify,
}

impl HealthMonitor {
    pub(super) fn new() -> Self {
        Self { health: watch::Sender::new(StoreHealth::Unchecked), failure: Notify::new() }
    }

    pub(super) fn health(&self) -> StoreHealth {
        *self.health.borrow()
    }

    /// Brings the next check forward after a failed call. Does not change the health, because other cluster nodes may
    /// still accept callbacks.
    pub(super) fn report_failure(&self) {
        if self.health() == StoreHealth::Healthy {
            self.failure.notify_one();
        }
    }

    /// Waits until the next check is due.
    pub(super) async fn next_check(&self) {
        let failure_reported = async {
            sleep(MIN_CHECK_INTERVAL).await;
            self.failure.notified().await;
        };
        tokio::select! {
            () = sleep(CHECK_INTERVAL) => {}
            () = failure_reported => {}
        }
    }

    /// Records the result of a check and logs a change.
    pub(super) fn record(&self, checked: &Result<(), StoreError>) {
        let now = StoreHealth::of(checked);
        let before = self.health.send_replace(now);
        match (checked, now.problem()) {
            _ if now == before => {}
            (Err(error), Some(problem)) => {
                tracing::warn!(name: "store.unusable", error = error.chain(), "cannot accept callbacks: {problem}");
            }
            _ if before == StoreHealth::Unchecked => {}
            _ => tracing::info!(name: "store.recovered", "accepting callbacks again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The health after a check that failed with this error reply.
    fn rejected(reply: &str) -> StoreHealth {
        let reply = redis::parse_redis_value(format!("-{reply}\r\n").as_bytes()).unwrap();
        let error = reply.extract_error().unwrap_err();
        StoreHealth::of(&Err(StoreError::Unavailable(error.into())))
    }

    #[test]
    fn error_codes_map_to_health() {
        for (reply, health) in [
            ("OOM command not allowed when used memory > 'maxmemory'.", StoreHealth::Full),
            ("READONLY You can't write against a read only replica.", StoreHealth::ReadOnly),
            ("MASTERDOWN Link with MASTER is down", StoreHealth::ReadOnly),
            ("MISCONF Redis is configured to save RDB snapshots", StoreHealth::CannotSave),
            ("NOREPLICAS Not enough good replicas to write.", StoreHealth::TooFewReplicas),
            ("BUSY Redis is busy running a script.", StoreHealth::Busy),
            ("LOADING Redis is loading the dataset in memory", StoreHealth::Busy),
            ("CLUSTERDOWN The cluster is down", StoreHealth::Unreachable),
        ] {
            assert_eq!(rejected(reply), health, "{reply}");
            assert!(health.problem().is_some(), "{reply}");
        }
        assert_eq!((StoreHealth::of(&Ok(())), StoreHealth::Healthy.problem()), (StoreHealth::Healthy, None));
    }

    #[tokio::test(start_paused = true)]
    async fn failed_calls_trigger_one_early_check() {
        let monitor = HealthMonitor::new();
        monitor.record(&Ok(()));
        let since = tokio::time::Instant::now();
        for _ in 0..100 {
            monitor.report_failure();
        }
        monitor.next_check().await;
        assert_eq!(since.elapsed(), MIN_CHECK_INTERVAL);
        monitor.next_check().await;
        assert_eq!(since.elapsed(), MIN_CHECK_INTERVAL + CHECK_INTERVAL);
        // While the store is unhealthy, failed calls change nothing.
        monitor.record(&Err(StoreError::Unavailable("unreachable".into())));
        monitor.report_failure();
        monitor.next_check().await;
        assert_eq!(since.elapsed(), MIN_CHECK_INTERVAL + 2 * CHECK_INTERVAL);
    }
}
