//! The only place that asks the system for randomness and, except for telemetry, for the date and time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use uuid::Uuid;

use crate::domain::ids::{AttemptId, RequestId, WorkItemId};
use crate::domain::time::Timestamp;

/// The source of the current time.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The system clock.
    #[default]
    System,
    /// A clock that changes only when it is advanced, for tests.
    Manual(ManualClock),
}

impl Clock {
    /// The current time in whole milliseconds.
    pub fn now(&self) -> Timestamp {
        match self {
            #[expect(clippy::disallowed_methods, reason = "the only place that asks the system")]
            Self::System => {
                let since_epoch = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
            }
            Self::Manual(clock) => clock.now(),
        }
    }
}

/// A clock whose time changes only with [`ManualClock::advance`]. Clones share the time.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock with the time `start`.
    pub fn at(start: Timestamp) -> Self {
        Self(Arc::new(AtomicU64::new(start.as_millis())))
    }

    /// The current time of this clock.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }

    /// Advances the clock by a number of milliseconds.
    pub fn advance(&self, millis: u64) {
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
}

/// Random bytes and ids from the operating system's generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entropy;

/// The operating system's generator failed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the operating system's random generator failed")]
pub struct NoEntropy;

impl Entropy {
    /// `N` cryptographically secure random bytes.
    pub fn bytes<const N: usize>(self) -> Result<[u8; N], NoEntropy> {
        let mut bytes = [0; N];
        #[expect(clippy::disallowed_methods, reason = "the only place that asks the system")]
        getrandom::fill(&mut bytes).map_err(|_| NoEntropy)?;
        Ok(bytes)
    }

    /// A new request id: a random UUID (version 4).
    #[expect(clippy::disallowed_methods, reason = "the only place that asks the system")]
    pub fn request_id(self) -> RequestId {
        RequestId::from_uuid(Uuid::new_v4())
    }

    /// A new work item id: a UUID of version 7, which sorts by time.
    #[expect(clippy::disallowed_methods, reason = "the only place that asks the system")]
    pub fn work_item_id(self) -> WorkItemId {
        WorkItemId::from_uuid(Uuid::now_v7())
    }

    /// A new attempt id: 64 random bits.
    #[expect(clippy::disallowed_methods, reason = "the only place that asks the system")]
    pub fn attempt_id(self) -> AttemptId {
        AttemptId::from_random(Uuid::new_v4().as_u64_pair().0)
    }

    /// A new trace id, never zero.
    #[expect(clippy::disallowed_methods, reason = "the only place that asks the system")]
    pub fn trace_id(self) -> u128 {
        Uuid::new_v4().as_u128()
    }

    /// A new span id, never zero.
    #[expect(clippy::disallowed_methods, reason = "the only place that asks the system")]
    pub fn span_id(self) -> u64 {
        Uuid::new_v4().as_u64_pair().1
    }
}
