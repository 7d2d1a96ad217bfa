//! What is counted and timed. One set of instruments feeds Prometheus and, where it is configured, OTLP.

mod bound;
mod gauges;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{
    BoundCounter, BoundHistogram, BoundUpDownCounter, Counter, Histogram, Meter, MeterProvider, UpDownCounter,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{MeterProviderBuilder, SdkMeterProvider};
use prometheus::{Registry, TextEncoder};

use self::bound::Bound;
use self::gauges::Gauges;
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

/// A request, as metrics tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Answered {
    /// Its method.
    pub method: &'static str,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Its reply's status.
    pub status: u16,
    /// The refusal's code, or nothing.
    pub code: &'static str,
    /// How it settled a work item, or nothing.
    pub outcome: &'static str,
    /// What failed, if it is ours.
    pub failure: Option<&'static str>,
}

#[derive(Debug)]
struct Requests {
    duration: BoundHistogram<f64>,
    body_size: BoundHistogram<u64>,
    accept_duration: BoundHistogram<f64>,
}

#[derive(Debug)]
struct Work {
    turnaround: BoundHistogram<f64>,
    hold_time: BoundHistogram<f64>,
    end_to_end: BoundHistogram<f64>,
    released: BoundCounter<u64>,
}

#[derive(Debug)]
struct Instruments {
    provider: SdkMeterProvider,
    registry: Registry,
    gauges: Arc<Gauges>,
    request_duration: Histogram<f64>,
    request_body_size: Histogram<u64>,
    accept_duration: Histogram<f64>,
    /// By route, and by what became of the request.
    requests: Bound<String, Bound<Answered, Requests>>,
    active_requests: UpDownCounter<i64>,
    /// By method and scheme.
    active: Bound<(&'static str, &'static str), BoundUpDownCounter<i64>>,
    turnaround: Histogram<f64>,
    hold_time: Histogram<f64>,
    end_to_end: Histogram<f64>,
    released: Counter<u64>,
    work: Bound<(Kind, Outcome), Work>,
    issued: Counter<u64>,
    dropped: Counter<u64>,
    lateness: Histogram<f64>,
    store_duration: Histogram<f64>,
    /// By command and script.
    store: Bound<(&'static str, &'static str), BoundHistogram<f64>>,
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

fn of_kind(kind: Kind) -> KeyValue {
    KeyValue::new(names::WORK_ITEM_KIND, kind.as_str())
}

impl Instruments {
    fn new(provider: SdkMeterProvider, registry: Registry, losses: Arc<Losses>) -> Self {
        let meter = provider.meter(names::SCOPE);
        let (size, active) = (names::REQUEST_BODY_SIZE, names::ACTIVE_REQUESTS);
        Self {
            request_duration: seconds(&meter, names::REQUEST_DURATION, SHORT),
            request_body_size: meter
                .u64_histogram(size.name)
                .with_unit(size.unit)
                .with_description(size.meaning)
                .with_boundaries(SIZES.to_vec())
                .build(),
            accept_duration: seconds(&meter, names::ACCEPT_DURATION, SHORT),
            requests: Bound::default(),
            active_requests: meter
                .i64_up_down_counter(active.name)
                .with_unit(active.unit)
                .with_description(active.meaning)
                .build(),
            active: Bound::default(),
            turnaround: seconds(&meter, names::TURNAROUND, LONG),
            hold_time: seconds(&meter, names::HOLD_TIME, LONG),
            end_to_end: seconds(&meter, names::END_TO_END, LONG),
            released: counter(&meter, names::WORK_ITEM_RELEASED),
            work: Bound::default(),
            issued: counter(&meter, names::ISSUED),
            dropped: counter(&meter, names::DROPPED),
            lateness: seconds(&meter, names::LATENESS, SHORT),
            store_duration: seconds(&meter, names::STORE_DURATION, SHORT),
            store: Bound::default(),
            shed: counter(&meter, names::SHED),
            panics: counter(&meter, names::PANICS),
            gauges: Gauges::new(&meter, losses),
            provider,
            registry,
        }
    }

    fn bind_requests(&self, route: &str, answered: &Answered) -> Requests {
        let mut request = vec![
            KeyValue::new(names::HTTP_REQUEST_METHOD, answered.method),
            KeyValue::new(names::URL_SCHEME, answered.scheme),
            KeyValue::new(names::HTTP_RESPONSE_STATUS_CODE, i64::from(answered.status)),
        ];
        request.extend((!route.is_empty()).then(|| KeyValue::new(names::HTTP_ROUTE, route.to_owned())));
        request.extend(answered.failure.map(|why| KeyValue::new(names::ERROR_TYPE, why)));
        let decided =
            [KeyValue::new(names::CODE, answered.code), KeyValue::new(names::OUTCOME, answered.outcome)];
        let body_size = self.request_body_size.bind(&request);
        request.extend(decided.clone());
        Requests {
            duration: self.request_duration.bind(&request),
            body_size,
            accept_duration: self.accept_duration.bind(&decided),
        }
    }

    fn bind_work(&self, kind: Kind, outcome: Outcome) -> Work {
        let attributes = [of_kind(kind), KeyValue::new(names::OUTCOME, outcome.as_str())];
        Work {
            turnaround: self.turnaround.bind(&attributes),
            hold_time: self.hold_time.bind(&attributes),
            end_to_end: self.end_to_end.bind(&attributes),
            released: self.released.bind(&attributes),
        }
    }

    fn with_work(&self, kind: Kind, outcome: Outcome, record: impl FnOnce(&Work)) {
        self.work.with(&(kind, outcome), || self.bind_work(kind, outcome), record);
    }
}

impl Metrics {
    /// Instruments that Prometheus can ask, and whatever reader `with_readers` adds.
    pub(super) fn new(
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
        Self(Arc::new(Instruments::new(with_readers(builder).build(), registry, losses)))
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

    /// Counts a request as active until the guard is dropped.
    pub fn active_request(&self, method: &'static str, scheme: &'static str) -> ActiveRequest {
        let bind = || {
            let attributes =
                [KeyValue::new(names::HTTP_REQUEST_METHOD, method), KeyValue::new(names::URL_SCHEME, scheme)];
            self.0.active_requests.bind(&attributes)
        };
        let active = self.0.active.with(&(method, scheme), bind, Clone::clone);
        active.add(1);
        ActiveRequest(active)
    }

    /// A request to a route was answered after so long. Its body, if it was read to its end, had so many bytes, and if
    /// it was a callback's, it was decided on so long after its last byte.
    pub fn answered(
        &self,
        route: &str,
        answered: Answered,
        duration: Duration,
        body: Option<usize>,
        decided: Option<Duration>,
    ) {
        let record = |bound: &Requests| {
            bound.duration.record(duration.as_secs_f64());
            if let Some(bytes) = body {
                bound.body_size.record(bytes as u64);
            }
            if let Some(duration) = decided {
                bound.accept_duration.record(duration.as_secs_f64());
            }
        };
        self.0.requests.with(route, Bound::default, |of_route| {
            of_route.with(&answered, || self.0.bind_requests(route, &answered), record);
        });
    }

    /// A result was taken so long after its work item was issued.
    pub fn taken(&self, kind: Kind, outcome: Outcome, turnaround_ms: u64) {
        let turnaround = Duration::from_millis(turnaround_ms).as_secs_f64();
        self.0.with_work(kind, outcome, |work| work.turnaround.record(turnaround));
    }

    /// A work item was issued.
    pub fn issued(&self, kind: Kind) {
        self.0.issued.add(1, &[of_kind(kind)]);
    }

    /// An end of a conversation dropped so many settled and awaiting items.
    pub fn dropped(&self, settled: u64, awaiting: u64) {
        for (items, state) in [(settled, "held"), (awaiting, "awaiting")] {
            if items > 0 {
                self.0.dropped.add(items, &[KeyValue::new(names::STATE, state)]);
            }
        }
    }

    /// An envelope is on its channel.
    pub fn released(&self, envelope: &Released) {
        let since =
            |start: Timestamp| Duration::from_millis(start.millis_until(envelope.released_at)).as_secs_f64();
        self.0.with_work(envelope.kind, envelope.outcome, |work| {
            work.released.add(1);
            work.hold_time.record(since(envelope.received_at));
            work.end_to_end.record(since(envelope.issued_at));
        });
    }

    /// The sweeper timed out a work item, so late.
    pub fn timed_out(&self, kind: Kind, late_ms: u64) {
        self.0.lateness.record(Duration::from_millis(late_ms).as_secs_f64(), &[of_kind(kind)]);
    }

    /// This Redis was called, with a command and the name of its script. An error has attributes of its own.
    pub fn redis_called(
        &self,
        duration: Duration,
        (command, script): (&'static str, &'static str),
        server: &[KeyValue],
        error: &[KeyValue],
    ) {
        let attributes = || {
            let mut all = vec![
                KeyValue::new(names::DB_SYSTEM_NAME, "redis"),
                KeyValue::new(names::DB_OPERATION_NAME, command),
            ];
            all.extend((!script.is_empty()).then(|| KeyValue::new(names::DB_STORED_PROCEDURE_NAME, script)));
            all.extend_from_slice(server);
            all.extend_from_slice(error);
            all
        };
        let seconds = duration.as_secs_f64();
        if error.is_empty() {
            let bind = || self.0.store_duration.bind(&attributes());
            self.0.store.with(&(command, script), bind, |bound| bound.record(seconds));
        } else {
            self.0.store_duration.record(seconds, &attributes());
        }
    }

    /// A request was refused for want of room.
    pub fn shed(&self, code: &'static str) {
        self.0.shed.add(1, &[KeyValue::new(names::CODE, code)]);
    }

    /// A panic was caught.
    pub fn panicked(&self) {
        self.0.panics.add(1, &[]);
    }

    /// Whether the store answered, and what it holds, if that could be added up.
    pub fn store_holds(&self, reachable: bool, totals: Option<Totals>) {
        self.0.gauges.store_holds(reachable, totals);
    }

    /// So many event streams are open.
    pub fn event_streams(&self, open: usize) {
        self.0.gauges.event_streams(open as u64);
    }

    /// Shows this count of connections to the store, from now on.
    pub fn count_connections(&self, connections: Arc<AtomicU64>) {
        self.0.gauges.count_connections(connections);
    }
}

/// Counts a request as active until it is dropped.
#[derive(Debug)]
pub struct ActiveRequest(BoundUpDownCounter<i64>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}
