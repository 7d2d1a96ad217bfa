//! What is counted and timed. One set of instruments feeds Prometheus and, where it is configured, OTLP.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter, MeterProvider, UpDownCounter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{MeterProviderBuilder, SdkMeterProvider};
use prometheus::{Registry, TextEncoder};

use super::names::{self, Metric};
use super::outage::Losses;
use crate::domain::gate::{Released, Totals};
use crate::domain::time::Timestamp;
use crate::domain::work_item::{Kind, Outcome};

/// Bounds of what takes from half a millisecond to a minute: requests, and the store.
const SHORT: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
    10.0, 60.0,
];
/// Bounds of what takes from no time at all to a day: work.
const LONG: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0,
    3600.0, 86400.0,
];
/// Bounds of sizes, to the largest that can be allowed.
const SIZES: &[f64] = &[
    0.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// Values that are read when somebody asks for the metrics.
#[derive(Debug, Default)]
struct Gauges {
    awaiting: AtomicU64,
    held: AtomicU64,
    held_bytes: AtomicU64,
    /// -1 until it is known.
    reachable: AtomicI64,
    event_streams: AtomicU64,
    /// Counted by the store.
    connections: OnceLock<Arc<AtomicU64>>,
}

#[derive(Debug)]
struct Instruments {
    provider: SdkMeterProvider,
    registry: Registry,
    gauges: Arc<Gauges>,
    request_duration: Histogram<f64>,
    request_body_size: Histogram<u64>,
    active_requests: UpDownCounter<i64>,
    accept_duration: Histogram<f64>,
    turnaround: Histogram<f64>,
    hold_time: Histogram<f64>,
    end_to_end: Histogram<f64>,
    issued: Counter<u64>,
    released: Counter<u64>,
    lateness: Histogram<f64>,
    store_duration: Histogram<f64>,
    shed: Counter<u64>,
    panics: Counter<u64>,
}

/// The instruments of one service. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Instruments>);

fn seconds(meter: &Meter, metric: Metric, bounds: &[f64]) -> Histogram<f64> {
    meter
        .f64_histogram(metric.name)
        .with_unit(metric.unit)
        .with_description(metric.meaning)
        .with_boundaries(bounds.to_vec())
        .build()
}

fn counter(meter: &Meter, metric: Metric) -> Counter<u64> {
    meter.u64_counter(metric.name).with_unit(metric.unit).with_description(metric.meaning).build()
}

/// A gauge that shows nothing while the value is not known.
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

fn work(kind: Kind, outcome: Outcome) -> [KeyValue; 2] {
    [KeyValue::new(names::WORK_ITEM_KIND, kind.as_str()), KeyValue::new(names::OUTCOME, outcome.as_str())]
}

fn observe_gauges(meter: &Meter, gauges: &Arc<Gauges>) {
    let known = |gauges: &Gauges| gauges.reachable.load(Ordering::Relaxed) == 1;
    let total = |metric, read: fn(&Gauges) -> &AtomicU64| {
        let gauges = Arc::clone(gauges);
        gauge(meter, metric, move || known(&gauges).then(|| read(&gauges).load(Ordering::Relaxed)));
    };
    total(names::AWAITING, |gauges| &gauges.awaiting);
    total(names::HELD, |gauges| &gauges.held);
    total(names::HELD_BYTES, |gauges| &gauges.held_bytes);
    let shared = Arc::clone(gauges);
    gauge(meter, names::REACHABLE, move || u64::try_from(shared.reachable.load(Ordering::Relaxed)).ok());
    let shared = Arc::clone(gauges);
    gauge(meter, names::EVENT_STREAMS, move || Some(shared.event_streams.load(Ordering::Relaxed)));
    let shared = Arc::clone(gauges);
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
        .u64_observable_gauge(names::BUILD.name)
        .with_unit(names::BUILD.unit)
        .with_description(names::BUILD.meaning)
        .with_callback(|observer| {
            observer.observe(1, &[KeyValue::new(names::SERVICE_VERSION, env!("CARGO_PKG_VERSION"))]);
        })
        .build();
}

fn observe_losses(meter: &Meter, losses: Arc<Losses>) {
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
}

impl Metrics {
    /// Instruments that Prometheus can ask, and whatever reader `with_readers` adds.
    pub fn new(
        resource: Resource,
        losses: Arc<Losses>,
        with_readers: impl FnOnce(MeterProviderBuilder) -> MeterProviderBuilder,
    ) -> Self {
        let registry = Registry::new();
        // It fails only if the registry holds one already.
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).build();
        let mut builder = SdkMeterProvider::builder().with_resource(resource);
        match exporter {
            Ok(exporter) => builder = builder.with_reader(exporter),
            Err(error) => tracing::error!(error = %error, "a bug: no metrics for Prometheus"),
        }
        let provider = with_readers(builder).build();
        let meter = provider.meter(names::SCOPE);
        let gauges = Arc::new(Gauges { reachable: AtomicI64::new(-1), ..Gauges::default() });
        observe_gauges(&meter, &gauges);
        observe_losses(&meter, losses);
        let size = names::REQUEST_BODY_SIZE;
        let active = names::ACTIVE_REQUESTS;
        Self(Arc::new(Instruments {
            request_duration: seconds(&meter, names::REQUEST_DURATION, SHORT),
            request_body_size: meter
                .u64_histogram(size.name)
                .with_unit(size.unit)
                .with_description(size.meaning)
                .with_boundaries(SIZES.to_vec())
                .build(),
            active_requests: meter
                .i64_up_down_counter(active.name)
                .with_unit(active.unit)
                .with_description(active.meaning)
                .build(),
            accept_duration: seconds(&meter, names::ACCEPT_DURATION, SHORT),
            turnaround: seconds(&meter, names::TURNAROUND, LONG),
            hold_time: seconds(&meter, names::HOLD_TIME, LONG),
            end_to_end: seconds(&meter, names::END_TO_END, LONG),
            issued: counter(&meter, names::ISSUED),
            released: counter(&meter, names::WORK_ITEM_RELEASED),
            lateness: seconds(&meter, names::LATENESS, SHORT),
            store_duration: seconds(&meter, names::STORE_DURATION, SHORT),
            shed: counter(&meter, names::SHED),
            panics: counter(&meter, names::PANICS),
            provider,
            registry,
            gauges,
        }))
    }

    /// Instruments that only Prometheus can ask.
    pub fn local() -> Self {
        Self::new(Resource::builder_empty().build(), Arc::default(), |builder| builder)
    }

    /// Where the instruments come from.
    pub(super) fn provider(&self) -> &SdkMeterProvider {
        &self.0.provider
    }

    /// All of it, as Prometheus reads it.
    pub fn prometheus(&self) -> String {
        TextEncoder::new().encode_to_string(&self.0.registry.gather()).unwrap_or_default()
    }

    /// A request is under way until the guard is dropped.
    pub fn under_way(&self, method: &'static str) -> UnderWay {
        let attributes =
            [KeyValue::new(names::HTTP_REQUEST_METHOD, method), KeyValue::new(names::URL_SCHEME, "http")];
        self.0.active_requests.add(1, &attributes);
        UnderWay { metrics: self.clone(), attributes }
    }

    /// A request was answered. These are its method, route, scheme, status and failure, and then what else counts it.
    pub fn answered(&self, duration: Duration, request: &[KeyValue], more: &[KeyValue]) {
        self.0.request_duration.record(duration.as_secs_f64(), &[request, more].concat());
    }

    /// A request was answered that could not be read.
    pub fn unreadable(&self, status: u16, code: &'static str) {
        let request = [
            KeyValue::new(names::HTTP_REQUEST_METHOD, "_OTHER"),
            KeyValue::new(names::URL_SCHEME, "http"),
            KeyValue::new(names::HTTP_RESPONSE_STATUS_CODE, i64::from(status)),
        ];
        let more = [KeyValue::new(names::CODE, code), KeyValue::new(names::OUTCOME, "")];
        self.answered(Duration::ZERO, &request, &more);
    }

    /// A body of so many bytes was read to its end.
    pub fn body_read(&self, bytes: usize, request: &[KeyValue]) {
        self.0.request_body_size.record(bytes as u64, request);
    }

    /// A callback was decided on so long after its last byte.
    pub fn decided(&self, duration: Duration, code: &'static str, outcome: &'static str) {
        let attributes = [KeyValue::new(names::CODE, code), KeyValue::new(names::OUTCOME, outcome)];
        self.0.accept_duration.record(duration.as_secs_f64(), &attributes);
    }

    /// A result was taken so long after its work item was issued.
    pub fn taken(&self, kind: Kind, outcome: Outcome, turnaround_ms: u64) {
        self.0.turnaround.record(Duration::from_millis(turnaround_ms).as_secs_f64(), &work(kind, outcome));
    }

    /// A work item was issued.
    pub fn issued(&self, kind: Kind) {
        self.0.issued.add(1, &[KeyValue::new(names::WORK_ITEM_KIND, kind.as_str())]);
    }

    /// An envelope is on its channel.
    pub fn released(&self, envelope: &Released) {
        let attributes = work(envelope.kind, envelope.outcome);
        let since =
            |start: Timestamp| Duration::from_millis(start.millis_until(envelope.released_at)).as_secs_f64();
        self.0.released.add(1, &attributes);
        self.0.hold_time.record(since(envelope.received_at), &attributes);
        self.0.end_to_end.record(since(envelope.issued_at), &attributes);
    }

    /// The sweeper timed out a work item, so late.
    pub fn timed_out(&self, kind: Kind, late_ms: u64) {
        let attributes = [KeyValue::new(names::WORK_ITEM_KIND, kind.as_str())];
        self.0.lateness.record(Duration::from_millis(late_ms).as_secs_f64(), &attributes);
    }

    /// The store was called.
    pub fn store_called(&self, duration: Duration, attributes: &[KeyValue]) {
        self.0.store_duration.record(duration.as_secs_f64(), attributes);
    }

    /// A request was refused for want of room.
    pub fn shed(&self, code: &'static str) {
        self.0.shed.add(1, &[KeyValue::new(names::CODE, code)]);
    }

    /// A panic was caught.
    pub fn panicked(&self) {
        self.0.panics.add(1, &[]);
    }

    /// What the whole store holds, if it answered.
    pub fn store_holds(&self, totals: Option<Totals>) {
        let gauges = &self.0.gauges;
        if let Some(totals) = totals {
            gauges.awaiting.store(totals.awaiting, Ordering::Relaxed);
            gauges.held.store(totals.held, Ordering::Relaxed);
            gauges.held_bytes.store(totals.held_bytes, Ordering::Relaxed);
        }
        gauges.reachable.store(i64::from(totals.is_some()), Ordering::Relaxed);
    }

    /// So many event streams are open.
    pub fn event_streams(&self, open: usize) {
        self.0.gauges.event_streams.store(open as u64, Ordering::Relaxed);
    }

    /// Shows this count of connections to the store, from now on.
    pub fn count_connections(&self, connections: Arc<AtomicU64>) {
        // A second store would be a second service.
        let _ = self.0.gauges.connections.set(connections);
    }
}

/// Counts a request as under way while it lives.
#[derive(Debug)]
pub struct UnderWay {
    metrics: Metrics,
    attributes: [KeyValue; 2],
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.metrics.0.active_requests.add(-1, &self.attributes);
    }
}
