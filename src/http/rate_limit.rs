//! Rate limits per client: at most N requests in a fixed window, which starts with the client's first request.
//!
//! Does not use the `governor` crate, because the memory for its keys is unbounded.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderValue, header};
use tokio::time::Instant;

use super::code::Code;
use super::refusal::Refusal;

/// Maximum number of clients per bucket.
const BUCKET_CAPACITY: usize = 8;
/// Number of buckets. A full bucket evicts the client with the lowest count.
const BUCKETS: usize = 8192;

/// The unit of counting: an IPv4 address, or the first `ipv6_prefix` bits of an IPv6 address. One client usually
/// controls a whole IPv6 network.
pub(super) fn network(address: IpAddr, ipv6_prefix: u64) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let host_bits = u64::from(Ipv6Addr::BITS).saturating_sub(ipv6_prefix);
            Ipv6Addr::from_bits(v6.to_bits() >> host_bits << host_bits).into()
        }
    }
}

/// The current window of a client.
#[derive(Clone, Copy, Debug)]
struct ClientWindow {
    client: IpAddr,
    until: Instant,
    count: u64,
}

/// A rate limit per client address, in at most 4 MiB of memory.
#[derive(Debug)]
pub struct AddressLimit {
    max: u64,
    window: Duration,
    ipv6_prefix: u64,
    hasher: RandomState,
    /// Empty if the limit is disabled.
    buckets: Box<[Mutex<Vec<ClientWindow>>]>,
}

impl AddressLimit {
    /// Allows `max` requests per `window`; 0 disables the limit. IPv6 addresses are grouped by their first
    /// `ipv6_prefix` bits.
    pub fn new(max: u64, window: Duration, ipv6_prefix: u64) -> Self {
        let buckets = if max > 0 { BUCKETS } else { 0 };
        Self {
            max,
            window,
            ipv6_prefix,
            hasher: RandomState::new(),
            buckets: (0..buckets).map(|_| Mutex::default()).collect(),
        }
    }

    /// Counts a request. If it is over the limit, the error is the time until the window ends.
    pub fn count(&self, address: IpAddr) -> Result<(), Duration> {
        self.count_at(address, Instant::now())
    }

    /// The time until the window ends, if the client has reached the limit. Does not count a request.
    pub fn exceeded(&self, address: IpAddr) -> Option<Duration> {
        self.exceeded_at(address, Instant::now())
    }

    fn count_at(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let Some((client, mut windows)) = self.windows(address, now) else { return Ok(()) };
        if let Some(own) = windows.iter_mut().find(|window| window.client == client) {
            if own.count >= self.max {
                return Err(own.until - now);
            }
            own.count += 1;
            return Ok(());
        }
        let new = ClientWindow { client, until: now + self.window, count: 1 };
        let is_full = windows.len() >= BUCKET_CAPACITY;
        match windows.iter_mut().min_by_key(|window| window.count) {
            Some(least) if is_full => *least = new,
            _ => windows.push(new),
        }
        Ok(())
    }

    fn exceeded_at(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let (client, windows) = self.windows(address, now)?;
        let own = windows.iter().find(|window| window.client == client && window.count >= self.max)?;
        Some(own.until - now)
    }

    /// The client's key, and the current windows of its bucket. `None`: the limit is disabled.
    fn windows(&self, address: IpAddr, now: Instant) -> Option<(IpAddr, MutexGuard<'_, Vec<ClientWindow>>)> {
        let client = network(address, self.ipv6_prefix);
        // Keyed hash: clients cannot choose colliding addresses.
        let bucket = self.hasher.hash_one(client).checked_rem(self.buckets.len() as u64)?;
        let bucket = self.buckets.get(usize::try_from(bucket).ok()?)?;
        let mut windows = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|window| window.until > now);
        Some((client, windows))
    }
}

/// The refusal `RATE_LIMITED`, with `Retry-After` in seconds, rounded up.
pub fn rate_limited(message: &'static str, wait: Duration) -> Refusal {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    Refusal::new(Code::RateLimited, message)
        .with_header(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    fn limit() -> AddressLimit {
        AddressLimit::new(3, WINDOW, 64)
    }

    fn v4(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn requests_over_the_limit_are_refused() {
        let limit = limit();
        let start = Instant::now();
        for second in 0..3 {
            assert_eq!(limit.exceeded_at(v4(1), start), None);
            assert_eq!(limit.count_at(v4(1), start + Duration::from_secs(second)), Ok(()));
        }
        let late = start + Duration::from_secs(50);
        assert_eq!(limit.count_at(v4(1), late), Err(Duration::from_secs(10)));
        assert_eq!(limit.exceeded_at(v4(1), late), Some(Duration::from_secs(10)));
        assert_eq!(limit.count_at(v4(2), late), Ok(()), "another address");
        assert_eq!(limit.count_at(v4(1), start + WINDOW), Ok(()), "another window");
    }

    #[test]
    fn ipv6_is_grouped_by_prefix_and_mapped_ipv4_is_ipv4() {
        let of = |text: &str, prefix| network(text.parse().unwrap(), prefix);
        assert_eq!(of("2001:db8::1", 64), of("2001:db8::ffff:0:0:1", 64));
        assert_ne!(of("2001:db8::1", 64), of("2001:db8:0:1::1", 64));
        assert_eq!(of("2001:db8::1", 48), of("2001:db8:0:1::1", 48));
        assert_ne!(of("2001:db8::1", 128), of("2001:db8::2", 128));
        assert_eq!(of("192.0.2.1", 64), of("::ffff:192.0.2.1", 64));
        assert_ne!(of("192.0.2.1", 64), of("192.0.2.2", 64));
    }

    #[test]
    fn full_bucket_evicts_the_lowest_count() {
        let limit = limit();
        let now = Instant::now();
        for _ in 0..3 {
            limit.count_at(v4(0), now).unwrap();
        }
        for number in 1..1_000_000 {
            assert_eq!(limit.count_at(v4(number), now), Ok(()), "other clients are not limited");
        }
        assert!(limit.count_at(v4(0), now).is_err());
    }
}
