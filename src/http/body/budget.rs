//! A limit on the total memory of a group of request bodies.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bytes that a group of bodies shares, for example all callbacks without an authentic token in their head. Clones
/// share them.
#[derive(Clone, Debug)]
pub struct BodyBudget(Arc<Semaphore>);

/// A body's reservation, released on drop.
#[derive(Debug)]
pub struct Reservation(OwnedSemaphorePermit);

impl BodyBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// Reserves `bytes`. `None` if the budget is used up.
    pub(super) fn reserve(&self, bytes: usize) -> Option<Reservation> {
        acquire(&self.0, bytes).map(Reservation)
    }
}

impl Reservation {
    /// Grows to at least `bytes`. `false` if the budget is used up.
    pub(super) fn grow_to(&mut self, bytes: usize) -> bool {
        let missing = bytes.saturating_sub(self.0.num_permits());
        let more = acquire(self.0.semaphore(), missing);
        more.map(|more| self.0.merge(more)).is_some()
    }
}

fn acquire(budget: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    Arc::clone(budget).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_is_not_exceeded_and_is_released() {
        let budget = BodyBudget::new(100);
        let mut first = budget.reserve(60).unwrap();
        assert!(budget.reserve(41).is_none());
        let second = budget.reserve(30).unwrap();
        assert!(first.grow_to(50) && first.grow_to(70), "10 bytes were left");
        assert!(!first.grow_to(71));
        drop(second);
        assert!(first.grow_to(100));
        drop(first);
        assert!(budget.reserve(100).is_some());
    }
}
