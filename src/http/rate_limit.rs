//! Rate limits per client: at most N requests in a window that starts with the first request.
//!
//! Does not use governor: its key map is unbounded.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderValue, header};
use tokio::time::Instant;

use super::code::Code;
use super::refusal::Refusal;

/// Number of clients per bucket.
const WAYS: usize = 8;
/// Number of buckets. When a bucket is full, the client with the lowest count is forgotten.
const BUCKETS: usize = 8192;

/// A limit.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Maximum number in a window.
    pub max: u64,
    /// Length of the window.
    pub window: Duration,
}

/// The unit of counting: an IPv4 address or an IPv6 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ClientKey(u128);

impl ClientKey {
    /// IPv6 addresses are reduced to `prefix` bits: one client usually controls a whole network.
    fn new(address: IpAddr, prefix: u32) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().to_bits()),
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(Ipv6Addr::BITS.saturating_sub(prefix)).unwrap_or_default();
                Self(v6.to_bits() & mask)
            }
        }
    }
}

/// The current windows of all clients, in memory of a fixed size.
#[derive(Debug)]
struct Windows {
    rate: Rate,
    hasher: RandomState,
    buckets: Box<[Mutex<[Option<Used>; WAYS]>]>,
}

#[derive(Clone, Copy, Debug)]
struct Used {
    by: ClientKey,
    until: Instant,
    count: u64,
}

impl Windows {
    /// A limiter without requests.
    fn new(rate: Rate) -> Self {
        let buckets = (0..BUCKETS).map(|_| Mutex::default()).collect();
        Self { rate, hasher: RandomState::new(), buckets }
    }

    /// Counts a request, or returns the time until the window ends.
    fn count(&self, by: ClientKey, now: Instant) -> Result<(), Duration> {
        self.look(by, |used| {
            let full = Used { by, until: now + self.rate.window, count: 1 };
            let current = |used: &Option<Used>| used.filter(|used| used.until > now);
            if let Some(own) = used.iter_mut().flatten().find(|used| used.by == by && used.until > now) {
                if own.count >= self.rate.max {
                    return Err(own.until - now);
                }
                own.count += 1;
            } else if let Some(least) =
                used.iter_mut().min_by_key(|used| current(used).map(|used| used.count))
            {
                *least = Some(full);
            }
            Ok(())
        })
    }

    /// Time until the window ends, if it is used up.
    fn exceeded(&self, by: ClientKey, now: Instant) -> Option<Duration> {
        self.look(by, |used| {
            let own = used.iter().flatten().find(|used| used.by == by && used.until > now)?;
            (own.count >= self.rate.max).then_some(own.until - now)
        })
    }

    fn look<T>(&self, by: ClientKey, see: impl FnOnce(&mut [Option<Used>; WAYS]) -> T) -> T {
        // Keyed hash: clients cannot choose colliding addresses.
        let bucket = usize::try_from(self.hasher.hash_one(by) % BUCKETS as u64).unwrap_or_default();
        see(&mut self.buckets[bucket].lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A limit per client address.
#[derive(Debug)]
pub struct AddressLimit {
    windows: Option<Windows>,
    ipv6_prefix: u32,
}

impl AddressLimit {
    /// A maximum of 0 disables it. IPv6 addresses are grouped by `ipv6_prefix` bits.
    pub fn new(rate: Rate, ipv6_prefix: u64) -> Self {
        Self {
            windows: (rate.max > 0).then(|| Windows::new(rate)),
            ipv6_prefix: u32::try_from(ipv6_prefix).unwrap_or(u32::MAX),
        }
    }

    /// Counts a request, or returns the time until the window ends.
    pub fn count(&self, address: IpAddr) -> Result<(), Duration> {
        let Some(windows) = &self.windows else { return Ok(()) };
        windows.count(ClientKey::new(address, self.ipv6_prefix), Instant::now())
    }

    /// Time until the window ends, if it is used up.
    pub fn exceeded(&self, address: IpAddr) -> Option<Duration> {
        self.windows.as_ref()?.exceeded(ClientKey::new(address, self.ipv6_prefix), Instant::now())
    }
}

/// The refusal of a client that has to wait.
pub fn rate_limited(message: &'static str, wait: Duration) -> Refusal {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    Refusal::new(Code::RateLimited, message)
        .with_header(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { max: 3, window: Duration::from_secs(60) };

    fn v4(number: u32) -> ClientKey {
        ClientKey::new(IpAddr::V4(number.into()), 64)
    }

    #[test]
    fn requests_over_the_limit_are_refused() {
        let windows = Windows::new(RATE);
        let start = Instant::now();
        for second in 0..3 {
            assert_eq!(windows.exceeded(v4(1), start), None);
            assert_eq!(windows.count(v4(1), start + Duration::from_secs(second)), Ok(()));
        }
        let late = start + Duration::from_secs(50);
        assert_eq!(windows.count(v4(1), late), Err(Duration::from_secs(10)));
        assert_eq!(windows.exceeded(v4(1), late), Some(Duration::from_secs(10)));
        assert_eq!(windows.count(v4(2), late), Ok(()), "another address");
        assert_eq!(windows.count(v4(1), start + RATE.window), Ok(()), "another window");
    }

    #[test]
    fn ipv6_is_grouped_by_prefix_and_mapped_ipv4_is_ipv4() {
        let of = |text: &str, prefix| ClientKey::new(text.parse().unwrap(), prefix);
        assert_eq!(of("2001:db8::1", 64), of("2001:db8::ffff:0:0:1", 64));
        assert_ne!(of("2001:db8::1", 64), of("2001:db8:0:1::1", 64));
        assert_eq!(of("2001:db8::1", 48), of("2001:db8:0:1::1", 48));
        assert_ne!(of("2001:db8::1", 128), of("2001:db8::2", 128));
        assert_eq!(of("192.0.2.1", 64), of("::ffff:192.0.2.1", 64));
        assert_ne!(of("192.0.2.1", 64), of("192.0.2.2", 64));
    }

    #[test]
    fn full_bucket_evicts_the_lowest_count() {
        let windows = Windows::new(RATE);
        let now = Instant::now();
        for _ in 0..3 {
            windows.count(v4(0), now).unwrap();
        }
        for number in 1..1_000_000 {
            assert_eq!(windows.count(v4(number), now), Ok(()), "nobody pays for others");
        }
        assert!(windows.count(v4(0), now).is_err());
    }
}
