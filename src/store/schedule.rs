//! The schedule of the sweeper: when, as far as this process knows, the next timer of each partition is due.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::domain::time::Timestamp;

/// A second of the store's clock (Unix time), and a partition with a timer in that second.
pub(super) type Announcement = (u64, u16);

/// Maximum difference between the store's clock and its expected time. A larger one means that the clock was changed.
const CLOCK_TOLERANCE_MS: u64 = 200;

/// The earliest known timer of each partition. The platform API adds timers, and the sweeper takes them.
#[derive(Debug)]
pub struct Schedule {
    state: Mutex<ScheduleState>,
    due_changed: Notify,
    announcements_changed: Notify,
}

#[derive(Debug)]
struct ScheduleState {
    /// The earliest known timer of each partition.
    times: Vec<Option<Instant>>,
    by_time: BTreeSet<(Instant, u16)>,
    /// Announcements to send to the other instances.
    announcements: Vec<Announcement>,
    /// Announcements that were queued or sent, by second, to avoid duplicates.
    announced: BTreeMap<u64, HashSet<u16>>,
    /// The last time received from the store's clock, and when it was received.
    clock: Option<(Timestamp, Instant)>,
}

impl ScheduleState {
    fn set(&mut self, partition: u16, time: Option<Instant>) {
        let Some(known) = self.times.get_mut(usize::from(partition)) else { return };
        if let Some(before) = std::mem::replace(known, time) {
            self.by_time.remove(&(before, partition));
        }
        self.by_time.extend(time.map(|time| (time, partition)));
    }

    fn known(&self) -> Vec<u16> {
        self.by_time.iter().map(|(_, partition)| *partition).collect()
    }

    fn now_ms(&self) -> Option<u64> {
        let (time, received) = self.clock?;
        Some(time.as_millis() + u64::try_from(received.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

impl Schedule {
    /// A schedule in which every partition is due at `now`, because no timer is known yet.
    pub fn new(partitions: u16, now: Instant) -> Self {
        let state = ScheduleState {
            times: vec![Some(now); partitions.into()],
            by_time: (0..partitions).map(|partition| (now, partition)).collect(),
            announcements: Vec::new(),
            announced: BTreeMap::new(),
            clock: None,
        };
        Self { state: Mutex::new(state), due_changed: Notify::new(), announcements_changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, ScheduleState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The partitions with a known timer.
    pub fn known(&self) -> Vec<u16> {
        self.state().known()
    }

    /// The store's time in milliseconds (Unix time). `None` before the store has reported it.
    pub fn store_now_ms(&self) -> Option<u64> {
        self.state().now_ms()
    }

    /// Records the store's time. If its clock was changed, makes every partition with a known timer due immediately.
    pub fn set_store_time(&self, time: Timestamp) {
        let now = Instant::now();
        let mut state = self.state();
        let expected = state.now_ms().unwrap_or(time.as_millis());
        if state.clock.replace((time, now)).is_none() {
            self.announcements_changed.notify_one();
        }
        if time.as_millis().abs_diff(expected) > CLOCK_TOLERANCE_MS {
            for partition in state.known() {
                state.set(partition, Some(now));
            }
        }
    }

    /// Records a timer of the partition, unless an earlier one is known.
    pub fn arm(&self, partition: u16, time: Instant) {
        let mut state = self.state();
        if state.times.get(usize::from(partition)).copied().flatten().is_some_and(|known| known <= time) {
            return;
        }
        let first = state.by_time.first().is_none_or(|(first, _)| time < *first);
        state.set(partition, Some(time));
        if first {
            self.due_changed.notify_one();
        }
    }

    /// Queues an announcement to the other instances, unless the same one was queued before.
    pub fn announce(&self, (second, partition): Announcement) {
        let mut state = self.state();
        if state.announced.entry(second).or_default().insert(partition) {
            state.announcements.push((second, partition));
            self.announcements_changed.notify_one();
        }
    }

    /// Takes the queued announcements. Waits until there are some and the store's time is known.
    pub async fn take_announcements(&self) -> Vec<Announcement> {
        loop {
            let changed = self.announcements_changed.notified();
            {
                let mut state = self.state();
                if let Some(now) = state.now_ms() {
                    state.announced = state.announced.split_off(&(now / 1000));
                    if !state.announcements.is_empty() {
                        return std::mem::take(&mut state.announcements);
                    }
                }
            }
            changed.await;
        }
    }

    /// Takes at most `limit` partitions that are due at `now`. They have no known timer afterwards.
    pub fn take_due(&self, now: Instant, limit: usize) -> Vec<u16> {
        let mut state = self.state();
        let due = state.by_time.range(..=(now, u16::MAX)).take(limit);
        let due: Vec<u16> = due.map(|(_, partition)| *partition).collect();
        for &partition in &due {
            state.set(partition, None);
        }
        due
    }

    /// Waits until a partition is due.
    pub async fn due(&self) {
        loop {
            let changed = self.due_changed.notified();
            let first = self.state().by_time.first().map(|(time, _)| *time);
            let Some(first) = first else {
                changed.await;
                continue;
            };
            tokio::select! {
                () = sleep_until(first) => return,
                () = changed => {}
            }
        }
    }

    /// Waits until the next second of the store's clock begins. If its time is unknown, waits for one second.
    pub async fn next_second(&self) {
        let into_second = self.store_now_ms().map_or(0, |now| now % 1000);
        tokio::time::sleep(Duration::from_millis(1000 - into_second)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn partition_is_due_at_its_earliest_time() {
        let now = Instant::now();
        let schedule = Schedule::new(3, now);
        assert_eq!(schedule.take_due(now, 2), [0, 1]);
        assert_eq!(schedule.take_due(now, 2), [2]);
        assert_eq!(schedule.take_due(now, 2), Vec::<u16>::new());
        let at = |ms| now + Duration::from_millis(ms);
        schedule.arm(1, at(20));
        schedule.arm(1, at(10));
        schedule.arm(1, at(30));
        schedule.arm(2, at(15));
        schedule.arm(9, at(1));
        schedule.due().await;
        assert_eq!(Instant::now(), at(10));
        assert_eq!(schedule.take_due(at(10), 9), [1]);
        schedule.due().await;
        assert_eq!(Instant::now(), at(15));
        assert_eq!(schedule.known(), [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn changed_clock_makes_every_timer_due() {
        let now = Instant::now();
        let schedule = Schedule::new(2, now);
        schedule.take_due(now, 9);
        schedule.arm(1, now + Duration::from_secs(60));
        schedule.set_store_time(Timestamp::from_millis(1_000_000));
        schedule.set_store_time(Timestamp::from_millis(1_000_100));
        assert_eq!(schedule.take_due(now, 9), Vec::<u16>::new());
        schedule.set_store_time(Timestamp::from_millis(1_050_000));
        assert_eq!(schedule.take_due(now, 9), [1]);
        assert_eq!(schedule.store_now_ms(), Some(1_050_000));
        schedule.next_second().await;
        assert_eq!(now.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn second_and_partition_are_announced_once() {
        let schedule = Schedule::new(1, Instant::now());
        schedule.set_store_time(Timestamp::from_millis(7_000));
        schedule.announce((7, 0));
        schedule.announce((7, 0));
        schedule.announce((8, 0));
        assert_eq!(schedule.take_announcements().await, [(7, 0), (8, 0)]);
        schedule.set_store_time(Timestamp::from_millis(9_000));
        schedule.announce((8, 0));
        schedule.announce((9, 0));
        assert_eq!(schedule.take_announcements().await, [(9, 0)]);
    }
}
