//! Rate limits per client: at most N requests in a fixed window, which starts with the client's first request.
//!
//! Does not use the `governor` crate, because its memory for keys is not bounded.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderValue, header};
use tokio::time::Instant;

use super::code::Code;
use super::refusal::Refusal;

/// Maximum number of clients with a window, current or ended. Beyond it, all windows are removed.
const MAX_CLIENTS: usize = 65536;

/// What counts as one client: an IPv4 address, or the first `ipv6_prefix` bits of an IPv6 address, because one client
/// usually controls a whole IPv6 network.
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
    until: Instant,
    count: u64,
}

/// A rate limit per client address. Its table uses at most about 6 MiB.
#[derive(Debug)]
pub struct AddressLimit {
    max: u64,
    window: Duration,
    ipv6_prefix: u64,
    windows: Mutex<HashMap<IpAddr, ClientWindow>>,
}

impl AddressLimit {
    /// Allows `max` requests per `window`; 0 disables the limit. IPv6 addresses with the same first `ipv6_prefix` bits
    /// count as one client.
    pub fn new(max: u64, window: Duration, ipv6_prefix: u64) -> Self {
        Self { max, window, ipv6_prefix, windows: Mutex::default() }
    }

    /// Counts a request. If it exceeds the limit, the error is the time until the window ends.
    pub fn count(&self, address: IpAddr) -> Result<(), Duration> {
        if self.max == 0 {
            return Ok(());
        }
        let (client, now) = (network(address, self.ipv6_prefix), Instant::now());
        let mut windows = self.windows();
        if windows.len() >= MAX_CLIENTS && !windows.contains_key(&client) {
            // This also resets current windows, but an attacker with this many addresses evades a limit per address
            // anyway.
            windows.clear();
        }
        let new = ClientWindow { until: now + self.window, count: 0 };
        let own = windows.entry(client).or_insert(new);
        if own.until <= now {
            *own = new;
        }
        if own.count >= self.max {
            return Err(own.until - now);
        }
        own.count += 1;
        Ok(())
    }

    /// The time until the window ends, if the client has reached the limit. Does not count a request.
    pub fn exceeded(&self, address: IpAddr) -> Option<Duration> {
        let client = network(address, self.ipv6_prefix);
        let own = *self.windows().get(&client)?;
        let wait = own.until.checked_duration_since(Instant::now())?;
        (own.count >= self.max && !wait.is_zero()).then_some(wait)
    }

    fn windows(&self) -> MutexGuard<'_, HashMap<IpAddr, ClientWindow>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
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
    use tokio::time::advance;

    use super::*;

    fn limit() -> AddressLimit {
        AddressLimit::new(3, Duration::from_secs(60), 64)
    }

    fn v4(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[tokio::test(start_paused = true)]
    async fn requests_over_the_limit_are_refused() {
        let limit = limit();
        for _ in 0..3 {
            assert_eq!(limit.exceeded(v4(1)), None);
            assert_eq!(limit.count(v4(1)), Ok(()));
        }
        advance(Duration::from_secs(50)).await;
        assert_eq!(limit.count(v4(1)), Err(Duration::from_secs(10)));
        assert_eq!(limit.exceeded(v4(1)), Some(Duration::from_secs(10)));
        assert_eq!(limit.count(v4(2)), Ok(()), "another address");
        advance(Duration::from_secs(10)).await;
        assert_eq!(limit.count(v4(1)), Ok(()), "another window");
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

    #[tokio::test(start_paused = true)]
    async fn number_of_windows_is_bounded() {
        let limit = limit();
        for number in 0..1_000_000 {
            assert_eq!(limit.count(v4(number)), Ok(()), "other clients are not limited");
        }
        assert!(limit.windows().len() <= MAX_CLIENTS);
    }
}
