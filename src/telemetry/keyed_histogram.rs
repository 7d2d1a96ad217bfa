//! A histogram with bound series, which avoids hashing the attributes for each recorded value.

use std::hash::Hash;
use std::sync::{PoisonError, RwLock};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{BoundHistogram, Histogram};
use rustc_hash::FxHashMap;

/// A histogram that keeps a bound series for each pair of a text, which can be empty, and a key. A series is bound when
/// its first value is recorded, because a bound series without values would be exported with an infinite minimum and
/// maximum. Series are never evicted, because there are few.
#[derive(Debug)]
pub struct KeyedHistogram<K> {
    histogram: Histogram<f64>,
    bound: RwLock<FxHashMap<String, FxHashMap<K, BoundHistogram<f64>>>>,
}

impl<K: Copy + Eq + Hash> KeyedHistogram<K> {
    pub(super) fn new(histogram: Histogram<f64>) -> Self {
        Self { histogram, bound: RwLock::default() }
    }

    /// The histogram itself, for values whose attributes have no key.
    pub const fn unbound(&self) -> &Histogram<f64> {
        &self.histogram
    }

    /// Records a value. `attributes` returns the attributes of this text and key. Called only for the first value.
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
