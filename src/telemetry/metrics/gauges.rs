//! Instruments whose values are read at each collection of the metrics.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use tracing_appender::non_blocking::ErrorCounter;

use super::names::{self, Metric};
use crate::domain::gate::Totals;
use crate::telemetry::queue::ExportQueue;

/// Where telemetry is lost.
#[derive(Debug, Default)]
pub(in crate::telemetry) struct Losses {
    pub(in crate::telemetry) queues: Vec<Arc<ExportQueue>>,
    /// Log lines that could not be written to standard error.
    pub(in crate::telemetry) lines: Option<ErrorCounter>,
}

/// The latest values of the observable gauges.
#[derive(Debug)]
pub(super) struct Gauges {
    awaiting: AtomicU64,
    held: AtomicU64,
    held_bytes: AtomicU64,
    /// 1 or 0; -1 before the first check of the store.
    reachable: AtomicI64,
    event_streams: AtomicU64,
    /// Incremented by the store.
    connections: OnceLock<Arc<AtomicU64>>,
}

/// A gauge without a data point while `value` returns `None`.
fn observable_gauge(meter: &Meter, metric: Metric, value: impl Fn() -> Option<u64> + Send + Sync + 'static) {
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
    /// Registers the instruments. The store's have no data points before [`Gauges::set_store_state`].
    pub(super) fn new(meter: &Meter, losses: Losses) -> Arc<Self> {
        let gauges = Arc::new(Self {
            awaiting: AtomicU64::new(0),
            held: AtomicU64::new(0),
            held_bytes: AtomicU64::new(0),
            reachable: AtomicI64::new(-1),
            event_streams: AtomicU64::new(0),
            connections: OnceLock::new(),
        });
        let store_total = |metric, read: fn(&Self) -> &AtomicU64| {
            let gauges = Arc::clone(&gauges);
            let is_reachable = move |gauges: &Self| gauges.reachable.load(Ordering::Relaxed) == 1;
            observable_gauge(meter, metric, move || {
                is_reachable(&gauges).then(|| read(&gauges).load(Ordering::Relaxed))
            });
        };
        store_total(names::AWAITING, |gauges| &gauges.awaiting);
        store_total(names::HELD, |gauges| &gauges.held);
        store_total(names::HELD_BYTES, |gauges| &gauges.held_bytes);
        let shared = Arc::clone(&gauges);
        observable_gauge(meter, names::REACHABLE, move || {
            u64::try_from(shared.reachable.load(Ordering::Relaxed)).ok()
        });
        let shared = Arc::clone(&gauges);
        observable_gauge(meter, names::EVENT_STREAMS, move || {
            Some(shared.event_streams.load(Ordering::Relaxed))
        });
        gauges.register_counters(meter, losses);
        gauges
    }

    fn register_counters(self: &Arc<Self>, meter: &Meter, losses: Losses) {
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
                let queues = losses.queues.iter().map(|queue| (queue.signal, queue.lost()));
                let lines = losses.lines.iter().map(|lines| ("stderr", lines.dropped_lines() as u64));
                for (signal, items) in queues.chain(lines) {
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

    pub(super) fn set_store_state(&self, reachable: bool, totals: Option<Totals>) {
        if let Some(totals) = totals {
            self.awaiting.store(totals.awaiting, Ordering::Relaxed);
            self.held.store(totals.held, Ordering::Relaxed);
            self.held_bytes.store(totals.held_bytes, Ordering::Relaxed);
        }
        self.reachable.store(i64::from(reachable), Ordering::Relaxed);
    }

    pub(super) fn set_open_event_streams(&self, open: u64) {
        self.event_streams.store(open, Ordering::Relaxed);
    }

    pub(super) fn set_connection_counter(&self, connections: Arc<AtomicU64>) {
        // There is one store per process; the first counter stays.
        let _ = self.connections.set(connections);
    }
}
