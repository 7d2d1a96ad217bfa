//! The memory that requests' bodies may take up together, from their first byte until they are answered.
//!
//! When there is none left, the body that has been on its way for longest gives way, if that is long: so whoever is
//! slow on purpose keeps nobody else out, and slow bodies alone are never refused for being slow.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// What a body counts as at least: it bounds how many there are.
const LEAST: usize = 4096;
/// A body that has been on its way for less than this gives way to nobody.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shared by all bodies of one kind.
#[derive(Clone, Debug)]
pub struct Room(Arc<Mutex<Books>>);

#[derive(Debug)]
struct Books {
    free: usize,
    next: u64,
    /// Those on their way, the oldest first.
    arriving: BTreeMap<u64, Arriving>,
}

#[derive(Debug)]
struct Arriving {
    since: Instant,
    held: usize,
    gives_way: Arc<Notify>,
}

/// One body's part of the room; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    room: Room,
    number: u64,
    /// Once it has arrived: what it takes up.
    held: usize,
    gives_way: Arc<Notify>,
}

impl Room {
    /// Room for so many bytes.
    pub fn of(bytes: usize) -> Self {
        Self(Arc::new(Mutex::new(Books { free: bytes, next: 0, arriving: BTreeMap::new() })))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A share for a body that begins to arrive; `None` when there is no room.
    pub(super) fn enter(&self, now: Instant) -> Option<Share> {
        let mut books = self.books();
        let number = books.next;
        books.next += 1;
        if !books.make_free(LEAST, number, now) {
            return None;
        }
        books.free -= LEAST;
        let gives_way = Arc::new(Notify::new());
        let arriving = Arriving { since: now, held: LEAST, gives_way: Arc::clone(&gives_way) };
        books.arriving.insert(number, arriving);
        drop(books);
        Some(Share { room: self.clone(), number, held: 0, gives_way })
    }
}

impl Books {
    /// Has older bodies give way until so much is free; `false` when that does not do.
    fn make_free(&mut self, wanted: usize, own: u64, now: Instant) -> bool {
        while self.free < wanted {
            let oldest = self.arriving.iter().find(|(number, _)| **number != own);
            let Some((&number, _)) = oldest.filter(|(_, oldest)| now - oldest.since >= PATIENCE) else {
                return false;
            };
            if let Some(evicted) = self.arriving.remove(&number) {
                self.free += evicted.held;
                evicted.gives_way.notify_one();
            }
        }
        true
    }
}

impl Share {
    /// Takes up so much in all; `false` when there is no room, or when this body had to give way.
    pub(super) fn grow(&mut self, to: usize, now: Instant) -> bool {
        let mut books = self.room.books();
        let Some(held) = books.arriving.get(&self.number).map(|own| own.held) else { return false };
        let more = to.saturating_sub(held);
        if !books.make_free(more, self.number, now) {
            return false;
        }
        books.free -= more;
        if let Some(own) = books.arriving.get_mut(&self.number) {
            own.held += more;
        }
        true
    }

    /// Tells when this body has to give way.
    pub(super) fn gives_way(&self) -> Arc<Notify> {
        Arc::clone(&self.gives_way)
    }

    /// The body is whole: it gives way no more.
    pub(super) fn arrived(&mut self) {
        let arrived = self.room.books().arriving.remove(&self.number);
        self.held = arrived.map_or(0, |arrived| arrived.held);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut books = self.room.books();
        let arriving = books.arriving.remove(&self.number);
        books.free += arriving.map_or(self.held, |arriving| arriving.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_longest_on_the_way_gives_way_and_who_has_arrived_does_not() {
        let room = Room::of(4 * LEAST);
        let now = Instant::now();
        let mut whole = room.enter(now).unwrap();
        whole.arrived();
        let mut slow = room.enter(now).unwrap();
        assert!(slow.grow(2 * LEAST, now));
        let mut other = room.enter(now).unwrap();
        assert!(room.enter(now).is_none(), "nobody has been here for long");
        let later = now + PATIENCE;
        assert!(other.grow(2 * LEAST, later));
        slow.gives_way().notified().await;
        assert!(!slow.grow(3 * LEAST, later), "it has given way");
        assert!(!other.grow(4 * LEAST, later), "what has arrived does not give way");
        drop((whole, slow, other));
        assert_eq!(room.books().free, 4 * LEAST);
    }
}
