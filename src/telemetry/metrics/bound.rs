//! Instruments that know their attributes already: a record then costs no look at each of them.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{PoisonError, RwLock};

/// What was bound before, by what it was bound to. Keys are bounded, since attributes are.
#[derive(Debug)]
pub(super) struct Bound<K, V>(RwLock<HashMap<K, V>>);

impl<K, V> Default for Bound<K, V> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Eq + Hash, V> Bound<K, V> {
    /// Uses what is bound to the key, after binding it the first time.
    pub(super) fn with<Q, R>(&self, key: &Q, bind: impl FnOnce() -> V, record: impl FnOnce(&V) -> R) -> R
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(bound) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(key) {
            return record(bound);
        }
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        record(all.entry(key.to_owned()).or_insert_with(bind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bound_to_a_key_is_bound_once() {
        let bound: Bound<String, usize> = Bound::default();
        assert_eq!(bound.with("one", || 1, |value| *value), 1);
        assert_eq!(bound.with("one", || 2, |value| *value), 1);
        assert_eq!(bound.with("two", || 2, |value| *value), 2);
    }
}
