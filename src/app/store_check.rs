//! Checks the store at startup and while the service runs, and logs when it does not respond.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::AppError;
use crate::config::StoreConfig;
use crate::store::redis::{DurabilityWarning, PreflightError, diagnosis};
use crate::store::{Backend, InstrumentedStore, StoreError, StoreHealth};

/// Interval of the preflight checks, once they have succeeded.
const PREFLIGHT_INTERVAL: Duration = Duration::from_secs(60);
/// Interval of the preflight checks while the store does not respond.
const PREFLIGHT_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Interval at which the result of the health checks is polled. If the store is unreachable, the preflight checks run
/// at once.
const HEALTH_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time limit of the first health check, which delays the start.
const FIRST_HEALTH_CHECK: Duration = Duration::from_secs(1);
/// First and longest pause between two log lines of an outage. Each pause is twice as long as the one before.
const LOG_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The checks of a store.
#[derive(Debug)]
pub(super) struct StoreCheck {
    store: Arc<InstrumentedStore>,
    /// The servers' addresses, for log lines.
    servers: String,
    outage: Option<Outage>,
}

/// A period in which the store does not respond.
#[derive(Clone, Copy, Debug)]
struct Outage {
    since: Instant,
    next_line: Instant,
    pause: Duration,
}

impl Outage {
    fn begin(now: Instant) -> Self {
        Self { since: now, next_line: now, pause: LOG_PAUSE.0 }
    }

    /// Returns whether a log line is due. If so, schedules the next one.
    fn is_line_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next_line;
        if due {
            self.next_line = now + self.pause;
            self.pause = (self.pause * 2).min(LOG_PAUSE.1);
        }
        due
    }
}

impl StoreCheck {
    pub(super) fn new(store: Arc<InstrumentedStore>, config: &StoreConfig) -> Self {
        Self { store, servers: config.servers(), outage: None }
    }

    /// Checks the store before the first request, so that `/health` is correct from the start.
    pub(super) async fn first(&mut self) -> Result<(), AppError> {
        self.check().await?;
        // A check that takes longer is repeated while the service runs.
        let _: Result<(), _> = timeout(FIRST_HEALTH_CHECK, self.store.check_health()).await;
        Ok(())
    }

    /// Checks the store at intervals. Returns when it fails a preflight check.
    pub(super) async fn check_periodically(mut self) -> AppError {
        loop {
            match self.check().await {
                Ok(true) => {
                    self.store.check_health().await;
                    self.next_interval().await;
                }
                Ok(false) => sleep(PREFLIGHT_RETRY_DELAY).await,
                Err(error) => return error,
            }
        }
    }

    /// Waits until the interval has passed or a health check cannot reach the store.
    async fn next_interval(&self) {
        let end = Instant::now() + PREFLIGHT_INTERVAL;
        while Instant::now() < end {
            sleep(HEALTH_POLL_INTERVAL).await;
            if self.store.health() == StoreHealth::Unreachable {
                return;
            }
        }
    }

    /// Runs the preflight checks. `false`: the store does not respond.
    async fn check(&mut self) -> Result<bool, AppError> {
        let store = Arc::clone(&self.store);
        let Backend::Redis(redis) = store.backend() else { return Ok(true) };
        match redis.verify().await {
            Ok(()) => {
                self.log_recovery();
                for warning in redis.new_warnings().await {
                    match warning {
                        DurabilityWarning::Risk(text) => tracing::warn!(name: "store.durability", "{text}"),
                        DurabilityWarning::Unchecked(text) => {
                            tracing::info!(name: "store.durability", "{text}");
                        }
                    }
                }
                Ok(true)
            }
            Err(PreflightError::Refused(why)) => Err(AppError::StoreRefused(why)),
            Err(PreflightError::Unavailable(error)) => {
                self.log_outage(&error);
                Ok(false)
            }
        }
    }

    fn log_outage(&mut self, error: &StoreError) {
        let now = Instant::now();
        let outage = self.outage.get_or_insert_with(|| Outage::begin(now));
        if outage.is_line_due(now) {
            tracing::warn!(
                name: "store.unavailable",
                seconds = outage.since.elapsed().as_secs(),
                error = diagnosis(error),
                "Redis at {} does not respond; retrying",
                self.servers
            );
        }
    }

    fn log_recovery(&mut self) {
        if let Some(outage) = self.outage.take() {
            tracing::info!(
                name: "store.available",
                seconds = outage.since.elapsed().as_secs(),
                "Redis at {} responds again",
                self.servers
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_between_log_lines_grow_up_to_a_minute() {
        let start = Instant::now();
        let mut outage = Outage::begin(start);
        let seconds = (0..400).filter(|second| outage.is_line_due(start + Duration::from_secs(*second)));
        assert_eq!(seconds.collect::<Vec<_>>(), [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363]);
    }
}
