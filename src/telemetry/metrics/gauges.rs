//! Instruments whose values are read at each collection of the metrics.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use tracing_appender::non_blocking::ErrorCounter;

use crate::domain::gate::Totals;
use crate::telemetry::names;
use crate::telemetry::queue::ExportQueue;

/// Sources of the counter [`names::LOST`].
#[derive(Debug, Default)]
pub(in crate::telemetry) struct DropCounters {
    pub(in crate::telemetry) queues: Vec<Arc<ExportQueue>>,
    /// Log lines that could not be written to standard error.
    pub(in crate::telemetry) lines: Option<ErrorCounter>,
}

/// Reads the current value of a gauge.
type ReadGauge = Box<dyn Fn() -> u64 + Send + Sync>;

/// The latest values of the observable instruments.
#[derive(Default)]
pub(super) struct Gauges {
    active_requests: AtomicU64,
    awaiting: AtomicU64,
    held: AtomicU64,
    held_bytes: AtomicU64,
    /// 1 or 0. `None` before the first check of the store.
    reachable: OnceLock<AtomicU64>,
    /// Whether the last attempt to read the totals succeeded.
    has_totals: AtomicBool,
    event_streams: OnceLock<ReadGauge>,
    /// Incremented by the store.
    connections: OnceLock<Arc<AtomicU64>>,
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauges")
    }
}

fn load(value: &AtomicU64) -> u64 {
    value.load(Ordering::Relaxed)
}

/// Registers an instrument whose value is read at each collection. It has no data point while `read` returns `None`.
macro_rules! observe {
    ($meter:ident, $instrument:ident, $metric:expr, $gauges:ident, $read:expr) => {{
        let gauges = Arc::clone(&$gauges);
        let read: fn(&Gauges) -> Option<u64> = $read;
        let instrument = $meter.$instrument($metric.name).with_unit($metric.unit);
        let instrument = instrument.with_description($metric.meaning);
        instrument
            .with_callback(move |observer| {
                if let Some(value) = read(&gauges) {
                    observer.observe(value.try_into().unwrap_or_default(), &[]);
                }
            })
            .build();
    }};
}

impl Gauges {
    /// Registers the instruments. The store's have no data points before [`Gauges::set_store_state`].
    pub(super) fn new(meter: &Meter, drop_counters: DropCounters) -> Arc<Self> {
        let all = Arc::new(Self::default());
        observe!(meter, i64_observable_up_down_counter, names::ACTIVE_REQUESTS, all, |all| Some(load(
            &all.active_requests
        )));
        observe!(meter, u64_observable_gauge, names::AWAITING, all, |all| all.if_reachable(&all.awaiting));
        observe!(meter, u64_observable_gauge, names::HELD, all, |all| all.if_reachable(&all.held));
        observe!(meter, u64_observable_gauge, names::HELD_BYTES, all, |all| all
            .if_reachable(&all.held_bytes));
        observe!(meter, u64_observable_gauge, names::REACHABLE, all, |all| all.reachable.get().map(load));
        observe!(meter, u64_observable_gauge, names::EVENT_STREAMS, all, |all| all
            .event_streams
            .get()
            .map(|read| read()));
        observe!(meter, u64_observable_counter, names::CONNECTIONS, all, |all| all
            .connections
            .get()
            .map(|connections| load(connections)));
        meter
            .u64_observable_counter(names::LOST.name)
            .with_unit(names::LOST.unit)
            .with_description(names::LOST.meaning)
            .with_callback(move |observer| {
                let queues = drop_counters.queues.iter().map(|queue| (queue.signal, queue.lost()));
                let lines = drop_counters.lines.iter().map(|lines| ("stderr", lines.dropped_lines() as u64));
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
        all
    }

    fn is_reachable(&self) -> bool {
        self.reachable.get().is_some_and(|reachable| load(reachable) == 1)
    }

    fn if_reachable(&self, total: &AtomicU64) -> Option<u64> {
        (self.is_reachable() && self.has_totals.load(Ordering::Relaxed)).then(|| load(total))
    }

    pub(super) fn set_store_state(&self, reachable: bool, totals: Option<Totals>) {
        self.has_totals.store(totals.is_some(), Ordering::Relaxed);
        if let Some(totals) = totals {
            self.awaiting.store(totals.awaiting, Ordering::Relaxed);
            self.held.store(totals.held, Ordering::Relaxed);
            self.held_bytes.store(totals.held_bytes, Ordering::Relaxed);
        }
        self.reachable.get_or_init(AtomicU64::default).store(u64::from(reachable), Ordering::Relaxed);
    }

    pub(super) fn set_event_streams(&self, open: ReadGauge) {
        // There is one service per process; the first one stays.
        let _ = self.event_streams.set(open);
    }

    pub(super) fn set_connection_counter(&self, connections: Arc<AtomicU64>) {
        // There is one store per process; the first counter stays.
        let _ = self.connections.set(connections);
    }
}

/// Counts a request as active until it is dropped.
#[derive(Debug)]
pub struct ActiveRequest(Arc<Gauges>);

impl ActiveRequest {
    pub(super) fn new(gauges: &Arc<Gauges>) -> Self {
        gauges.active_requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(gauges))
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active_requests.fetch_sub(1, Ordering::Relaxed);
    }
}
