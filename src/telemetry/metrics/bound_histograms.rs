//! A histogram that is bound to its attributes, which saves hashing them for each record.

use std::hash::Hash;
use std::sync::{PoisonError, RwLock};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{BoundHistogram, Histogram};
use rustc_hash::FxHashMap;

/// Histograms bound to their attributes, by route (can be empty) and key. Entries are never evicted, because there are
/// few. Binds at the first record: a bound histogram without values would be exported with infinite extremes.
#[derive(Debug)]
pub(super) struct BoundHistograms<K, T> {
    histogram: Histogram<T>,
    bound: RwLock<FxHashMap<String, FxHashMap<K, BoundHistogram<T>>>>,
}

impl<K: Copy + Eq + Hash, T> BoundHistograms<K, T> {
    pub(super) fn new(histogram: Histogram<T>) -> Self {
        Self { histogram, bound: RwLock::default() }
    }

    /// The unbound histogram, for other attributes.
    pub(super) const fn histogram(&self) -> &Histogram<T> {
        &self.histogram
    }

    /// Records a value. `attributes` belong to the route and the key.
    pub(super) fn record(&self, route: &str, key: K, value: T, attributes: impl FnOnce() -> Vec<KeyValue>) {
        let bound = self.bound.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(bound) = bound.get(route).and_then(|of_route| of_route.get(&key)) {
            return bound.record(value);
        }
        drop(bound);
        let mut bound = self.bound.write().unwrap_or_else(PoisonError::into_inner);
        let of_route = bound.entry(route.to_owned()).or_default();
        of_route.entry(key).or_insert_with(|| self.histogram.bind(&attributes())).record(value);
    }
}
