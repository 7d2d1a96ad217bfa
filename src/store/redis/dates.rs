//! The dates around the server's time, which scripts write times with: Lua has no calendar.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::clock::Clock;
use crate::domain::time::Timestamp;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Yesterday, today, and the two days after it: a deadline is at most a day ahead.
const DATES: u64 = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Dates {
    clock: Clock,
    /// By how much the server's clock is ahead of this machine's, in milliseconds.
    ahead_ms: AtomicI64,
    written: RwLock<Written>,
}

/// Consecutive dates as text.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) first_day: u64,
    pub(super) dates: Arc<str>,
}

impl Written {
    fn around(now: Timestamp) -> Self {
        let first_day = (now.as_millis() / DAY_MS).saturating_sub(1);
        let date = |day| Timestamp::from_millis(day * DAY_MS).to_string()[..10].to_owned();
        let dates: String = (first_day..first_day + DATES).map(date).collect();
        Self { first_day, dates: dates.into() }
    }
}

impl Dates {
    pub(super) fn new(clock: Clock) -> Self {
        let written = RwLock::new(Written::around(clock.now()));
        Self { clock, ahead_ms: AtomicI64::new(0), written }
    }

    /// The server's time, as far as is known.
    pub(super) fn now(&self) -> Timestamp {
        let here = self.clock.now();
        Timestamp::from_millis(here.as_millis().saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed)))
    }

    /// The server has told its time.
    pub(super) fn learn(&self, server: Timestamp) {
        let here = i64::try_from(self.clock.now().as_millis()).unwrap_or(i64::MAX);
        let there = i64::try_from(server.as_millis()).unwrap_or(i64::MAX);
        self.ahead_ms.store(there.saturating_sub(here), Ordering::Relaxed);
    }

    /// The dates around the server's time.
    pub(super) fn around_now(&self) -> Written {
        let now = self.now();
        let written = self.written.read().unwrap_or_else(PoisonError::into_inner).clone();
        if now.as_millis() / DAY_MS == written.first_day + 1 {
            return written;
        }
        let new = Written::around(now);
        *self.written.write().unwrap_or_else(PoisonError::into_inner) = new.clone();
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn dates_are_those_around_the_servers_time() {
        let clock = ManualClock::at(Timestamp::from_millis(1_795_000_000_000));
        let dates = Dates::new(Clock::Manual(clock.clone()));
        let written = dates.around_now();
        assert_eq!(&*written.dates, "2026-11-172026-11-182026-11-192026-11-20");
        assert_eq!(written.first_day, 1_795_000_000_000 / DAY_MS - 1);
        dates.learn(Timestamp::from_millis(1_795_000_000_000 + 40 * DAY_MS));
        assert!(dates.around_now().dates.starts_with("2026-12-27"));
        clock.advance(DAY_MS);
        assert!(dates.around_now().dates.starts_with("2026-12-28"));
    }
}
