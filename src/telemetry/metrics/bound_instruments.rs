//! A cache of instruments that are bound to their attributes, which saves hashing the attributes for each record.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{PoisonError, RwLock};

/// Bound instruments by their attributes. Never evicts: the attributes have few values.
#[derive(Debug)]
pub(super) struct BoundInstruments<K, V>(RwLock<HashMap<K, V>>);

impl<K, V> Default for BoundInstruments<K, V> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Eq + Hash, V> BoundInstruments<K, V> {
    /// Records with the instruments of the key. Binds them on first use.
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
    fn each_key_is_bound_once() {
        let bound: BoundInstruments<String, usize> = BoundInstruments::default();
        assert_eq!(bound.with("one", || 1, |value| *value), 1);
        assert_eq!(bound.with("one", || 2, |value| *value), 1);
        assert_eq!(bound.with("two", || 2, |value| *value), 2);
    }
}
