//! How often a client address may ask: at most so many times in a window, which begins with the first.
//!
//! Own code rather than governor: its store of keys has no bound, and it leaks tokens where the platform counts in
//! windows.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many addresses are remembered side by side, of all that fall into one place.
const WAYS: usize = 8;
/// How many places there are. With more addresses than both make, those that asked least are forgotten.
const PLACES: usize = 8192;

/// At most so many in a window.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Most of them.
    pub max: u64,
    /// How long they count.
    pub window: Duration,
}

/// An address as it counts: of IPv6, its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Counted(u128);

impl Counted {
    /// Of IPv6, the first `prefix` bits count: whoever has an address of a network has all of them.
    pub fn of(address: IpAddr, prefix: u32) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().to_bits()),
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(Ipv6Addr::BITS.saturating_sub(prefix)).unwrap_or_default();
                Self(v6.to_bits() & mask)
            }
        }
    }
}

/// What each address has used of its window, in memory of a fixed size.
#[derive(Debug)]
pub struct Windows {
    rate: Rate,
    hasher: RandomState,
    places: Box<[Mutex<[Option<Used>; WAYS]>]>,
}

#[derive(Clone, Copy, Debug)]
struct Used {
    by: Counted,
    until: Instant,
    count: u64,
}

impl Windows {
    /// Nobody has asked yet.
    pub fn new(rate: Rate) -> Self {
        let places = (0..PLACES).map(|_| Mutex::default()).collect();
        Self { rate, hasher: RandomState::new(), places }
    }

    /// Counts one more, or tells how long the address has to wait.
    pub fn count(&self, by: Counted, now: Instant) -> Result<(), Duration> {
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

    /// How long an address that has used up its window has to wait.
    pub fn wait(&self, by: Counted, now: Instant) -> Option<Duration> {
        self.look(by, |used| {
            let own = used.iter().flatten().find(|used| used.by == by && used.until > now)?;
            (own.count >= self.rate.max).then_some(own.until - now)
        })
    }

    fn look<T>(&self, by: Counted, see: impl FnOnce(&mut [Option<Used>; WAYS]) -> T) -> T {
        // A stranger cannot tell which addresses fall into one place: the hash has a secret of this process.
        let place = usize::try_from(self.hasher.hash_one(by) % PLACES as u64).unwrap_or_default();
        see(&mut self.places[place].lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { max: 3, window: Duration::from_secs(60) };

    fn v4(number: u32) -> Counted {
        Counted::of(IpAddr::V4(number.into()), 64)
    }

    #[test]
    fn so_many_are_let_in_in_a_window_and_no_more() {
        let windows = Windows::new(RATE);
        let start = Instant::now();
        for second in 0..3 {
            assert_eq!(windows.wait(v4(1), start), None);
            assert_eq!(windows.count(v4(1), start + Duration::from_secs(second)), Ok(()));
        }
        let late = start + Duration::from_secs(50);
        assert_eq!(windows.count(v4(1), late), Err(Duration::from_secs(10)));
        assert_eq!(windows.wait(v4(1), late), Some(Duration::from_secs(10)));
        assert_eq!(windows.count(v4(2), late), Ok(()), "another address");
        assert_eq!(windows.count(v4(1), start + RATE.window), Ok(()), "another window");
    }

    #[test]
    fn a_network_of_ipv6_is_one_and_an_address_of_ipv4_is_one_in_either_spelling() {
        let of = |text: &str, prefix| Counted::of(text.parse().unwrap(), prefix);
        assert_eq!(of("2001:db8::1", 64), of("2001:db8::ffff:0:0:1", 64));
        assert_ne!(of("2001:db8::1", 64), of("2001:db8:0:1::1", 64));
        assert_eq!(of("2001:db8::1", 48), of("2001:db8:0:1::1", 48));
        assert_ne!(of("2001:db8::1", 128), of("2001:db8::2", 128));
        assert_eq!(of("192.0.2.1", 64), of("::ffff:192.0.2.1", 64));
        assert_ne!(of("192.0.2.1", 64), of("192.0.2.2", 64));
    }

    #[test]
    fn whoever_asked_most_is_remembered_longest_when_there_are_too_many() {
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
