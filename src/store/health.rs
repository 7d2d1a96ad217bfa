//! Whether callbacks can be taken, as last seen. A check in the background finds out, so that asking costs the store
//! nothing.

use std::time::Duration;

use redis::RedisError;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::StoreError;
use super::redis::fate::refusal;
use super::redis::replicas::NotConfirmed;

/// How long after a check the next one begins, while no call fails.
const PAUSE: Duration = Duration::from_secs(1);
/// How long after it when calls fail, however many do.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);

/// Whether the store can take callbacks, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreHealth {
    /// It can.
    Healthy,
    /// The first check has not ended yet.
    Unchecked,
    /// It cannot be reached, or does not answer.
    Away,
    /// It loads its data, or a script holds it up.
    Busy,
    /// It is a replica, or a primary that was demoted.
    ReadOnly,
    /// Its memory limit is reached, and it evicts nothing.
    Full,
    /// It refuses writes that it cannot save to its disk.
    CannotSave,
    /// Fewer replicas than it, or this service, asks for have what is written.
    TooFewReplicas,
}

impl StoreHealth {
    fn of(checked: &Result<(), StoreError>) -> Self {
        let cause = match checked {
            Ok(()) => return Self::Healthy,
            Err(StoreError::Unavailable(cause) | StoreError::OutcomeUnknown(cause)) => cause,
            Err(StoreError::Broken(_)) => return Self::Away,
        };
        match cause.downcast_ref::<RedisError>().and_then(refusal) {
            Some("OOM") => Self::Full,
            Some("READONLY" | "MASTERDOWN") => Self::ReadOnly,
            Some("MISCONF") => Self::CannotSave,
            Some("NOREPLICAS") => Self::TooFewReplicas,
            Some("BUSY" | "LOADING") => Self::Busy,
            None if cause.is::<NotConfirmed>() => Self::TooFewReplicas,
            Some(_) | None => Self::Away,
        }
    }

    /// Why no callback can be taken, for people; nothing when one can.
    pub const fn problem(self) -> Option<&'static str> {
        match self {
            Self::Healthy => None,
            Self::Unchecked => Some("the store has not been checked yet"),
            Self::Away => Some("the store cannot be reached"),
            Self::Busy => Some("the store is busy: it loads its data, or runs a long script"),
            Self::ReadOnly => Some("the store is read-only: a replica, or a primary that was demoted"),
            Self::Full => Some("the store is full: its memory limit is reached"),
            Self::CannotSave => Some("the store refuses writes: it cannot save them to its disk"),
            Self::TooFewReplicas => Some("the store has too few replicas that follow"),
        }
    }
}

/// What the last check saw, and when the next one is due.
#[derive(Debug)]
pub(super) struct LastSeen {
    health: watch::Sender<StoreHealth>,
    doubt: Notify,
}

impl LastSeen {
    pub(super) fn new() -> Self {
        Self { health: watch::Sender::new(StoreHealth::Unchecked), doubt: Notify::new() }
    }

    pub(super) fn health(&self) -> StoreHealth {
        *self.health.borrow()
    }

    /// A call failed that should not have: brings the next check forward. Whether callbacks can be taken is the check's
    /// to say, since another node may take them.
    pub(super) fn doubt(&self) {
        if self.health() == StoreHealth::Healthy {
            self.doubt.notify_one();
        }
    }

    /// Waits until the next check is due.
    pub(super) async fn next_check(&self) {
        let doubted = async {
            sleep(SHORTEST_PAUSE).await;
            self.doubt.notified().await;
        };
        tokio::select! {
            () = sleep(PAUSE) => {}
            () = doubted => {}
        }
    }

    /// Remembers what a check came to, and logs what changed.
    pub(super) fn note(&self, checked: &Result<(), StoreError>) {
        let now = StoreHealth::of(checked);
        let before = self.health.send_replace(now);
        match (checked, now.problem()) {
            _ if now == before => {}
            (Err(error), Some(problem)) => {
                tracing::warn!(error = error.chain(), "no callback can be taken: {problem}");
            }
            _ if before == StoreHealth::Unchecked => {}
            _ => tracing::info!("callbacks can be taken again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a check says that the server refused like this.
    fn refused(reply: &str) -> StoreHealth {
        let reply = redis::parse_redis_value(format!("-{reply}\r\n").as_bytes()).unwrap();
        let error = reply.extract_error().unwrap_err();
        StoreHealth::of(&Err(StoreError::Unavailable(error.into())))
    }

    #[test]
    fn a_refusal_tells_why_no_callback_can_be_taken() {
        for (reply, health) in [
            ("OOM command not allowed when used memory > 'maxmemory'.", StoreHealth::Full),
            ("READONLY You can't write against a read only replica.", StoreHealth::ReadOnly),
            ("MASTERDOWN Link with MASTER is down", StoreHealth::ReadOnly),
            ("MISCONF Redis is configured to save RDB snapshots", StoreHealth::CannotSave),
            ("NOREPLICAS Not enough good replicas to write.", StoreHealth::TooFewReplicas),
            ("BUSY Redis is busy running a script.", StoreHealth::Busy),
            ("LOADING Redis is loading the dataset in memory", StoreHealth::Busy),
            ("CLUSTERDOWN The cluster is down", StoreHealth::Away),
        ] {
            assert_eq!(refused(reply), health, "{reply}");
            assert!(health.problem().is_some(), "{reply}");
        }
        assert_eq!((StoreHealth::of(&Ok(())), StoreHealth::Healthy.problem()), (StoreHealth::Healthy, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_fails_brings_the_next_check_forward_and_many_do_no_more() {
        let seen = LastSeen::new();
        seen.note(&Ok(()));
        let since = tokio::time::Instant::now();
        for _ in 0..100 {
            seen.doubt();
        }
        seen.next_check().await;
        assert_eq!(since.elapsed(), SHORTEST_PAUSE);
        seen.next_check().await;
        assert_eq!(since.elapsed(), SHORTEST_PAUSE + PAUSE);
        // While it is known to be away, failures are no news.
        seen.note(&Err(StoreError::Unavailable("away".into())));
        seen.doubt();
        seen.next_check().await;
        assert_eq!(since.elapsed(), SHORTEST_PAUSE + 2 * PAUSE);
    }
}
