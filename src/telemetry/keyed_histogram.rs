//! A histogram that is bound to its attributes, which saves hashing them for each record.

use std::hash::Hash;
use std::sync::{PoisonError, RwLock};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{BoundHistogram, Histogram};
use rustc_hash::FxHashMap;

/// A histogram whose series are bound to their attributes, by a text (can be empty) and a key. They are never evicted,
/// because there are few. Binds at the first record: a bound histogram without values would be exported with infinite
/// extremes.
#[derive(Debug)]
pub struct KeyedHistogram<K> {
    histogram: Histogram<f64>,
    bound: RwLock<FxHashMap<String, FxHashMap<K, BoundHistogram<f64>>>>,
}

impl<K: Copy + Eq + Hash> KeyedHistogram<K> {
    pub(super) fn new(histogram: Histogram<f64>) -> Self {
        Self { histogram, bound: RwLock::default() }
    }

    /// The histogram, for attributes that have no key.
    pub const fn unbound(&self) -> &Histogram<f64> {
        &self.histogram
    }

    /// Records a value. `attributes` belong to the text and the key.
    pub fn record(&self, text: &str, key: K, value: f64, attributes: impl FnOnce() -> Vec<KeyValue>) {
        let bound = self.bound.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = bound.get(text).and_then(|keys| keys.get(&key)) {
            return series.record(value);
        }
        drop(bound);
        let mut bound = self.bound.write().unwrap_or_else(PoisonError::into_inner);
        let keys = bound.entry(text.to_owned()).or_default();
        keys.entry(key).or_insert_with(|| self.histogram.bind(&attributes())).record(value);
    }
}
