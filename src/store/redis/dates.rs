//! The date table that scripts use to format times, because Lua has no calendar.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::clock::Clock;
use crate::domain::time::Timestamp;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Number of dates in the table: yesterday, today and two more days. A deadline is at most one day ahead.
const DATES: u64 = 4;

/// The server's estimated time and the date table for it.
#[derive(Debug)]
pub(super) struct Dates {
    clock: Clock,
    /// Offset of the server's clock from the local clock in milliseconds.
    offset_ms: AtomicI64,
    table: RwLock<DateTable>,
}

/// Consecutive dates, `YYYY-MM-DD` each, from `first_day` (days since the Unix epoch) on.
#[derive(Clone, Debug)]
pub(super) struct DateTable {
    pub(super) first_day: u64,
    pub(super) dates: Arc<str>,
}

impl DateTable {
    fn around(now: Timestamp) -> Self {
        let first_day = (now.as_millis() / DAY_MS).saturating_sub(1);
        let date = |day| Timestamp::from_millis(day * DAY_MS).to_string()[..10].to_owned();
        let dates: String = (first_day..first_day + DATES).map(date).collect();
        Self { first_day, dates: dates.into() }
    }
}

impl Dates {
    pub(super) fn new(clock: Clock) -> Self {
        let table = RwLock::new(DateTable::around(clock.now()));
        Self { clock, offset_ms: AtomicI64::new(0), table }
    }

    /// The estimated time of the server's clock.
    pub(super) fn now(&self) -> Timestamp {
        let local = self.clock.now();
        Timestamp::from_millis(
            local.as_millis().saturating_add_signed(self.offset_ms.load(Ordering::Relaxed)),
        )
    }

    /// Sets the offset from a time that the server has just reported.
    pub(super) fn synchronize(&self, server: Timestamp) {
        let local = i64::try_from(self.clock.now().as_millis()).unwrap_or(i64::MAX);
        let remote = i64::try_from(server.as_millis()).unwrap_or(i64::MAX);
        self.offset_ms.store(remote.saturating_sub(local), Ordering::Relaxed);
    }

    /// The date table for the server's current day. Rebuilt once a day.
    pub(super) fn current(&self) -> DateTable {
        let now = self.now();
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner).clone();
        if now.as_millis() / DAY_MS == table.first_day + 1 {
            return table;
        }
        let new = DateTable::around(now);
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = new.clone();
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn date_table_follows_the_servers_clock() {
        let clock = ManualClock::at(Timestamp::from_millis(1_795_000_000_000));
        let dates = Dates::new(Clock::Manual(clock.clone()));
        let table = dates.current();
        assert_eq!(&*table.dates, "2026-11-172026-11-182026-11-192026-11-20");
        assert_eq!(table.first_day, 1_795_000_000_000 / DAY_MS - 1);
        dates.synchronize(Timestamp::from_millis(1_795_000_000_000 + 40 * DAY_MS));
        assert!(dates.current().dates.starts_with("2026-12-27"));
        clock.advance(DAY_MS);
        assert!(dates.current().dates.starts_with("2026-12-28"));
    }
}
