//! When which partition has a timer that is due, as far as this process knows.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// A second of the store's clock, and a partition that has a timer in it.
pub(super) type Announcement = (u64, u16);

/// Shared by who issues items and who sweeps.
#[derive(Debug)]
pub struct Schedule {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    /// Of each partition.
    times: Vec<Option<Instant>>,
    by_time: BTreeSet<(Instant, u16)>,
    /// To be told to other instances.
    announcements: Vec<Announcement>,
    /// Told already, or about to be.
    announced: HashSet<Announcement>,
}

impl Inner {
    fn set(&mut self, partition: u16, time: Option<Instant>) {
        let Some(known) = self.times.get_mut(usize::from(partition)) else { return };
        if let Some(before) = std::mem::replace(known, time) {
            self.by_time.remove(&(before, partition));
        }
        self.by_time.extend(time.map(|time| (time, partition)));
    }
}

impl Schedule {
    /// A schedule by which every partition has to be looked at now: nothing is known of any.
    pub fn new(partitions: u16, now: Instant) -> Self {
        let inner = Inner {
            times: vec![Some(now); partitions.into()],
            by_time: (0..partitions).map(|partition| (now, partition)).collect(),
            announcements: Vec::new(),
            announced: HashSet::new(),
        };
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The partitions that have timers, as far as is known.
    pub fn known(&self) -> Vec<u16> {
        let inner = self.inner();
        inner.by_time.iter().map(|(_, partition)| *partition).collect()
    }

    /// The partition has a timer then.
    pub fn arm(&self, partition: u16, time: Instant) {
        let mut inner = self.inner();
        if inner.times.get(usize::from(partition)).copied().flatten().is_some_and(|known| known <= time) {
            return;
        }
        let first = inner.by_time.first().is_none_or(|(first, _)| time < *first);
        inner.set(partition, Some(time));
        if first {
            self.changed.notify_one();
        }
    }

    /// Other instances should know that the partition has a timer in this second.
    pub fn announce(&self, announcement: Announcement) {
        let mut inner = self.inner();
        if inner.announced.insert(announcement) {
            inner.announcements.push(announcement);
            self.changed.notify_one();
        }
    }

    /// Takes what is to be announced, and forgets what was announced of seconds before this one.
    pub fn take_announcements(&self, second: u64) -> Vec<Announcement> {
        let mut inner = self.inner();
        inner.announced.retain(|(of, _)| *of >= second);
        std::mem::take(&mut inner.announcements)
    }

    /// Takes the partitions whose time has come.
    pub fn take_due(&self, now: Instant) -> Vec<u16> {
        let mut inner = self.inner();
        let due: Vec<u16> =
            inner.by_time.range(..=(now, u16::MAX)).map(|(_, partition)| *partition).collect();
        for &partition in &due {
            inner.set(partition, None);
        }
        due
    }

    /// Waits until a partition's time has come, something is to be announced, or so long.
    pub async fn wait(&self, longest: Duration) {
        let until = Instant::now() + longest;
        loop {
            let changed = self.changed.notified();
            let (first, announcing) = {
                let inner = self.inner();
                (inner.by_time.first().map(|(time, _)| *time), !inner.announcements.is_empty())
            };
            let wake_at = first.map_or(until, |first| first.min(until));
            if announcing || wake_at <= Instant::now() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(wake_at) => {}
                () = changed => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_partition_is_due_at_the_earliest_of_its_times() {
        let now = Instant::now();
        let schedule = Schedule::new(3, now);
        assert_eq!(schedule.take_due(now), [0, 1, 2]);
        assert_eq!(schedule.take_due(now), Vec::<u16>::new());
        let at = |ms| now + Duration::from_millis(ms);
        schedule.arm(1, at(20));
        schedule.arm(1, at(10));
        schedule.arm(1, at(30));
        schedule.arm(2, at(15));
        schedule.arm(9, at(1));
        schedule.wait(Duration::from_secs(1)).await;
        assert_eq!(Instant::now(), at(10));
        assert_eq!(schedule.take_due(at(10)), [1]);
        assert_eq!(schedule.take_due(at(40)), [2]);
        schedule.wait(Duration::from_millis(5)).await;
        assert_eq!(Instant::now(), at(15));
    }

    #[tokio::test]
    async fn a_second_of_a_partition_is_announced_once() {
        let schedule = Schedule::new(1, Instant::now());
        schedule.announce((7, 0));
        schedule.announce((7, 0));
        schedule.announce((8, 0));
        assert_eq!(schedule.take_announcements(7), [(7, 0), (8, 0)]);
        schedule.announce((8, 0));
        assert_eq!(schedule.take_announcements(9), []);
        schedule.announce((9, 0));
        assert_eq!(schedule.take_announcements(9), [(9, 0)]);
    }
}
