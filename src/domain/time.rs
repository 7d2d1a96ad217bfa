//! Timestamps, as the API and the stores represent them.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Serialize, Serializer};

/// Milliseconds since the Unix epoch, in UTC. Displays as RFC 3339 with milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

/// The last millisecond of the year 9999, the latest time that RFC 3339 can represent.
const LAST_MILLISECOND: u64 = 253_402_300_799_999;

impl Timestamp {
    /// A timestamp from milliseconds since the Unix epoch, clamped to the end of the year 9999.
    pub const fn from_millis(millis: u64) -> Self {
        Self(if millis > LAST_MILLISECOND { LAST_MILLISECOND } else { millis })
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// This time plus a duration in milliseconds.
    #[must_use]
    pub const fn plus_millis(self, millis: u64) -> Self {
        Self::from_millis(self.0.saturating_add(millis))
    }

    /// Milliseconds from this time to `later`; 0 if `later` is not later.
    pub const fn millis_until(self, later: Self) -> u64 {
        later.0.saturating_sub(self.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(self.0)).fmt(f)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = humantime::TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let since_epoch = humantime::parse_rfc3339(text)?
            .duration_since(UNIX_EPOCH)
            .map_err(|_| humantime::TimestampError::OutOfRange)?;
        Ok(Self::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(LAST_MILLISECOND)))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamp_round_trips_with_milliseconds() {
        let time = Timestamp::from_millis(1_795_000_000_007);
        assert_eq!(time.to_string(), "2026-11-18T11:06:40.007Z");
        assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
    }

    #[test]
    fn timestamp_is_clamped_to_the_year_9999() {
        let last = Timestamp::from_millis(u64::MAX);
        assert_eq!(last.to_string(), "9999-12-31T23:59:59.999Z");
        assert_eq!(last.plus_millis(u64::MAX), last);
    }
}
