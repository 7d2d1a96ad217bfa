//! Values that are read when somebody asks for the metrics.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use super::names::{self, Metric};
use crate::domain::gate::Totals;
use crate::telemetry::outage::Losses;

/// See the module.
#[derive(Debug)]
pub(super) struct Gauges {
    awaiting: AtomicU64,
    held: AtomicU64,
    held_bytes: AtomicU64,
    /// -1 until it is known.
    reachable: AtomicI64,
    event_streams: AtomicU64,
    /// Counted by the store.
    connections: OnceLock<Arc<AtomicU64>>,
}

/// Shows nothing while the value is not known.
fn gauge(meter: &Meter, metric: Metric, value: impl Fn() -> Option<u64> + Send + Sync + 'static) {
    meter
        .u64_observable_gauge(metric.name)
        .with_unit(metric.unit)
        .with_description(metric.meaning)
        .with_callback(move |observer| {
            if let Some(value) = value() {
                observer.observe(value, &[]);
            }
        })
        .build();
}

impl Gauges {
    /// Gauges of which nothing is known yet, for who asks this meter.
    pub(super) fn new(meter: &Meter, losses: Arc<Losses>) -> Arc<Self> {
        let gauges = Arc::new(Self {
            awaiting: AtomicU64::new(0),
            held: AtomicU64::new(0),
            held_bytes: AtomicU64::new(0),
            reachable: AtomicI64::new(-1),
            event_streams: AtomicU64::new(0),
            connections: OnceLock::new(),
        });
        let total = |metric, read: fn(&Self) -> &AtomicU64| {
            let gauges = Arc::clone(&gauges);
            let known = move |gauges: &Self| gauges.reachable.load(Ordering::Relaxed) == 1;
            gauge(meter, metric, move || known(&gauges).then(|| read(&gauges).load(Ordering::Relaxed)));
        };
        total(names::AWAITING, |gauges| &gauges.awaiting);
        total(names::HELD, |gauges| &gauges.held);
        total(names::HELD_BYTES, |gauges| &gauges.held_bytes);
        let shared = Arc::clone(&gauges);
        gauge(meter, names::REACHABLE, move || u64::try_from(shared.reachable.load(Ordering::Relaxed)).ok());
        let shared = Arc::clone(&gauges);
        gauge(meter, names::EVENT_STREAMS, move || Some(shared.event_streams.load(Ordering::Relaxed)));
        gauges.count(meter, losses);
        gauges
    }

    fn count(self: &Arc<Self>, meter: &Meter, losses: Arc<Losses>) {
        let shared = Arc::clone(self);
        meter
            .u64_observable_counter(names::CONNECTIONS.name)
            .with_unit(names::CONNECTIONS.unit)
            .with_description(names::CONNECTIONS.meaning)
            .with_callback(move |observer| {
                if let Some(connections) = shared.connections.get() {
                    observer.observe(connections.load(Ordering::Relaxed), &[]);
                }
            })
            .build();
        meter
            .u64_observable_counter(names::LOST.name)
            .with_unit(names::LOST.unit)
            .with_description(names::LOST.meaning)
            .with_callback(move |observer| {
                for (signal, items) in losses.counts() {
                    observer.observe(items, &[KeyValue::new(names::SIGNAL, signal)]);
                }
            })
            .build();
        meter
            .u64_observable_gauge(names::BUILD.name)
            .with_unit(names::BUILD.unit)
            .with_description(names::BUILD.meaning)
            .with_callback(|observer| {
                observer.observe(1, &[KeyValue::new(names::SERVICE_VERSION, env!("CARGO_PKG_VERSION"))]);
            })
            .build();
    }

    pub(super) fn store_holds(&self, reachable: bool, totals: Option<Totals>) {
        if let Some(totals) = totals {
            self.awaiting.store(totals.awaiting, Ordering::Relaxed);
            self.held.store(totals.held, Ordering::Relaxed);
            self.held_bytes.store(totals.held_bytes, Ordering::Relaxed);
        }
        self.reachable.store(i64::from(reachable), Ordering::Relaxed);
    }

    pub(super) fn event_streams(&self, open: u64) {
        self.event_streams.store(open, Ordering::Relaxed);
    }

    pub(super) fn count_connections(&self, connections: Arc<AtomicU64>) {
        // A second store would be a second service.
        let _ = self.connections.set(connections);
    }
}
