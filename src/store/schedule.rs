//! When each partition next has a due timer, as far as this process knows.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// A second of the store's clock (Unix time) and a partition that has a timer in it.
pub(super) type Announcement = (u64, u16);

/// Shared by the platform API, which issues items, and the sweeper.
#[derive(Debug)]
pub struct Schedule {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    /// The earliest known timer of each partition.
    times: Vec<Option<Instant>>,
    by_time: BTreeSet<(Instant, u16)>,
    /// Not yet sent to other instances.
    announcements: Vec<Announcement>,
    /// Sent or about to be sent; avoids duplicates.
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
    /// A schedule in which every partition is due at `now`, because nothing is known yet.
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

    /// The partitions with a known timer.
    pub fn known(&self) -> Vec<u16> {
        let inner = self.inner();
        inner.by_time.iter().map(|(_, partition)| *partition).collect()
    }

    /// Notes that the partition has a timer at this time. An earlier known time stays.
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

    /// Queues an announcement to the other instances, once per second and partition.
    pub fn announce(&self, announcement: Announcement) {
        let mut inner = self.inner();
        if inner.announced.insert(announcement) {
            inner.announcements.push(announcement);
            self.changed.notify_one();
        }
    }

    /// Takes the queued announcements, and forgets those of seconds before `second`.
    pub fn take_announcements(&self, second: u64) -> Vec<Announcement> {
        let mut inner = self.inner();
        inner.announced.retain(|(of, _)| *of >= second);
        std::mem::take(&mut inner.announcements)
    }

    /// Takes the partitions that are due at `now`. They have no known timer afterwards.
    pub fn take_due(&self, now: Instant) -> Vec<u16> {
        let mut inner = self.inner();
        let due: Vec<u16> =
            inner.by_time.range(..=(now, u16::MAX)).map(|(_, partition)| *partition).collect();
        for &partition in &due {
            inner.set(partition, None);
        }
        due
    }

    /// Waits until a partition is due or an announcement is queued, for at most `longest`.
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
    async fn partition_is_due_at_its_earliest_time() {
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
    async fn each_second_of_a_partition_is_announced_once() {
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
