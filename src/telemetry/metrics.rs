//! The metrics. One set of instruments feeds both Prometheus and OTLP.

mod bound_instruments;
mod gauges;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{
    BoundCounter, BoundHistogram, BoundUpDownCounter, Counter, Histogram, Meter, MeterProvider, UpDownCounter,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{MeterProviderBuilder, SdkMeterProvider};
use prometheus::{Registry, TextEncoder};

use self::bound_instruments::BoundInstruments;
use self::gauges::Gauges;
pub(super) use self::gauges::Losses;
use super::names::{self, Metric};
use crate::domain::gate::{Released, Totals};
use crate::domain::time::Timestamp;
use crate::domain::work_item::{Kind, Outcome};

/// Histogram boundaries in seconds for requests and calls of the store.
const REQUEST_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
    10.0, 60.0,
];
/// Histogram boundaries in seconds for work items, up to the maximum deadline of a day.
const WORK_ITEM_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0,
    3600.0, 86400.0,
];
/// Histogram boundaries in bytes for bodies, up to the maximum of `http.max_body_bytes`.
const BODY_BYTES: &[f64] = &[
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

/// The attributes of an answered request in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResponseLabels {
    /// The method, `_OTHER` if it is not a standard one.
    pub method: &'static str,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The response's status.
    pub status: u16,
    /// The code of a refusal; otherwise empty.
    pub code: &'static str,
    /// The outcome that a callback or cancellation set; otherwise empty.
    pub outcome: &'static str,
    /// `error.type`, for failures of the service.
    pub failure: Option<&'static str>,
}

/// A histogram is bound when its first value is recorded: without values, it would be exported with infinite extremes.
#[derive(Debug)]
struct LazyHistogram<T>(OnceLock<BoundHistogram<T>>);

impl<T> Default for LazyHistogram<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<T> LazyHistogram<T> {
    fn of(&self, histogram: &Histogram<T>, attributes: impl FnOnce() -> Vec<KeyValue>) -> &BoundHistogram<T> {
        self.0.get_or_init(|| histogram.bind(&attributes()))
    }
}

/// What is recorded for the requests with the same attributes.
#[derive(Debug)]
struct RequestInstruments {
    attributes: Vec<KeyValue>,
    decision: [KeyValue; 2],
    duration: LazyHistogram<f64>,
    body_size: LazyHistogram<u64>,
    accept_duration: LazyHistogram<f64>,
}

/// What is recorded for the work items of a kind that have an outcome.
#[derive(Debug)]
struct WorkItemInstruments {
    attributes: [KeyValue; 2],
    turnaround: LazyHistogram<f64>,
    hold_time: LazyHistogram<f64>,
    end_to_end: LazyHistogram<f64>,
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
    /// By route, then by response.
    requests: BoundInstruments<String, BoundInstruments<ResponseLabels, RequestInstruments>>,
    active_requests: UpDownCounter<i64>,
    /// By method and scheme.
    active: BoundInstruments<(&'static str, &'static str), BoundUpDownCounter<i64>>,
    refused: Counter<u64>,
    turnaround: Histogram<f64>,
    hold_time: Histogram<f64>,
    end_to_end: Histogram<f64>,
    released: Counter<u64>,
    work_items: BoundInstruments<(Kind, Outcome), WorkItemInstruments>,
    issued: Counter<u64>,
    dropped: Counter<u64>,
    lateness: Histogram<f64>,
    store_duration: Histogram<f64>,
    /// By command and script; successful calls only.
    store: BoundInstruments<(&'static str, &'static str), BoundHistogram<f64>>,
    panics: Counter<u64>,
}

/// The metrics of a service. Clones share the instruments.
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

fn kind_attribute(kind: Kind) -> KeyValue {
    KeyValue::new(names::WORK_ITEM_KIND, kind.as_str())
}

/// The attributes of a refusal. `failure`: the code again, if the service is at fault.
fn refusal_attributes(code: &'static str, failure: Option<&'static str>) -> Vec<KeyValue> {
    let failure = failure.map(|code| KeyValue::new(names::ERROR_TYPE, code));
    [KeyValue::new(names::CODE, code)].into_iter().chain(failure).collect()
}

impl Instruments {
    fn new(provider: SdkMeterProvider, registry: Registry, losses: Losses) -> Self {
        let meter = provider.meter(names::SCOPE);
        let (size, active) = (names::REQUEST_BODY_SIZE, names::ACTIVE_REQUESTS);
        Self {
            request_duration: seconds(&meter, names::REQUEST_DURATION, REQUEST_SECONDS),
            request_body_size: meter
                .u64_histogram(size.name)
                .with_unit(size.unit)
                .with_description(size.meaning)
                .with_boundaries(BODY_BYTES.to_vec())
                .build(),
            accept_duration: seconds(&meter, names::ACCEPT_DURATION, REQUEST_SECONDS),
            requests: BoundInstruments::default(),
            active_requests: meter
                .i64_up_down_counter(active.name)
                .with_unit(active.unit)
                .with_description(active.meaning)
                .build(),
            active: BoundInstruments::default(),
            refused: counter(&meter, names::REFUSED),
            turnaround: seconds(&meter, names::TURNAROUND, WORK_ITEM_SECONDS),
            hold_time: seconds(&meter, names::HOLD_TIME, WORK_ITEM_SECONDS),
            end_to_end: seconds(&meter, names::END_TO_END, WORK_ITEM_SECONDS),
            released: counter(&meter, names::WORK_ITEM_RELEASED),
            work_items: BoundInstruments::default(),
            issued: counter(&meter, names::ISSUED),
            dropped: counter(&meter, names::DROPPED),
            lateness: seconds(&meter, names::LATENESS, REQUEST_SECONDS),
            store_duration: seconds(&meter, names::STORE_DURATION, REQUEST_SECONDS),
            store: BoundInstruments::default(),
            panics: counter(&meter, names::PANICS),
            gauges: Gauges::new(&meter, losses),
            provider,
            registry,
        }
    }

    /// Begins the known series at 0. The first increment would otherwise be a series' first value, which does not count
    /// as an increase.
    fn begin_at_zero(&self) {
        self.panics.add(0, &[]);
        for state in ["held", "awaiting"] {
            self.dropped.add(0, &[KeyValue::new(names::STATE, state)]);
        }
        for kind in Kind::ALL {
            self.issued.add(0, &[kind_attribute(kind)]);
            for outcome in Outcome::ALL {
                self.with_work_item(kind, outcome, |instruments| instruments.released.add(0));
            }
        }
    }

    fn bind_request(route: &str, labels: &ResponseLabels) -> RequestInstruments {
        let mut attributes = vec![
            KeyValue::new(names::HTTP_REQUEST_METHOD, labels.method),
            KeyValue::new(names::URL_SCHEME, labels.scheme),
            KeyValue::new(names::HTTP_RESPONSE_STATUS_CODE, i64::from(labels.status)),
        ];
        attributes.extend((!route.is_empty()).then(|| KeyValue::new(names::HTTP_ROUTE, route.to_owned())));
        attributes.extend(labels.failure.map(|kind| KeyValue::new(names::ERROR_TYPE, kind)));
        RequestInstruments {
            attributes,
            decision: [
                KeyValue::new(names::CODE, labels.code),
                KeyValue::new(names::OUTCOME, labels.outcome),
            ],
            duration: LazyHistogram::default(),
            body_size: LazyHistogram::default(),
            accept_duration: LazyHistogram::default(),
        }
    }

    fn with_work_item(&self, kind: Kind, outcome: Outcome, record: impl FnOnce(&WorkItemInstruments)) {
        let bind = || {
            let attributes = [kind_attribute(kind), KeyValue::new(names::OUTCOME, outcome.as_str())];
            WorkItemInstruments {
                released: self.released.bind(&attributes),
                attributes,
                turnaround: LazyHistogram::default(),
                hold_time: LazyHistogram::default(),
                end_to_end: LazyHistogram::default(),
            }
        };
        self.work_items.with(&(kind, outcome), bind, record);
    }
}

impl Metrics {
    /// Metrics for Prometheus, and for the readers that `with_readers` adds.
    pub(super) fn new(
        resource: Resource,
        losses: Losses,
        with_readers: impl FnOnce(MeterProviderBuilder) -> MeterProviderBuilder,
    ) -> Self {
        let registry = Registry::new();
        // Fails only if the registry already contains an exporter.
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).build();
        let mut builder = SdkMeterProvider::builder().with_resource(resource);
        match exporter {
            Ok(exporter) => builder = builder.with_reader(exporter),
            Err(error) => {
                tracing::error!(name: "bug", %error, "a bug: cannot create the exporter for Prometheus");
            }
        }
        let instruments = Instruments::new(with_readers(builder).build(), registry, losses);
        instruments.begin_at_zero();
        Self(Arc::new(instruments))
    }

    /// Metrics for Prometheus only.
    pub fn local() -> Self {
        Self::new(Resource::builder_empty().build(), Losses::default(), |builder| builder)
    }

    /// The provider, to flush it and to shut it down.
    pub(super) fn provider(&self) -> &SdkMeterProvider {
        &self.0.provider
    }

    /// All metrics in Prometheus' text format.
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

    /// Begins the count of refusals with a code at 0. `failure`: the code again, if the service is at fault.
    pub fn begin_refused_at_zero(&self, code: &'static str, failure: Option<&'static str>) {
        self.0.refused.add(0, &refusal_attributes(code, failure));
    }

    /// Records an answered request. `body`: its size in bytes, if it was read to its end. `decision`: for a callback,
    /// the time from the last byte of its body to its acceptance or refusal.
    pub fn record_request(
        &self,
        route: &str,
        labels: ResponseLabels,
        duration: Duration,
        body: Option<usize>,
        decision: Option<Duration>,
    ) {
        let all = &self.0;
        let record = |bound: &RequestInstruments| {
            let attributes = || [&bound.attributes[..], &bound.decision].concat();
            bound.duration.of(&all.request_duration, attributes).record(duration.as_secs_f64());
            if let Some(bytes) = body {
                bound.body_size.of(&all.request_body_size, || bound.attributes.clone()).record(bytes as u64);
            }
            if let Some(duration) = decision {
                let decided = bound.accept_duration.of(&all.accept_duration, || bound.decision.to_vec());
                decided.record(duration.as_secs_f64());
            }
        };
        all.requests.with(route, BoundInstruments::default, |by_response| {
            by_response.with(&labels, || Instruments::bind_request(route, &labels), record);
        });
        if !labels.code.is_empty() {
            all.refused.add(1, &refusal_attributes(labels.code, labels.failure));
        }
    }

    /// Records the time from the issue of a work item to its accepted result.
    pub fn record_turnaround(&self, kind: Kind, outcome: Outcome, turnaround_ms: u64) {
        let turnaround = Duration::from_millis(turnaround_ms).as_secs_f64();
        self.0.with_work_item(kind, outcome, |bound| {
            bound.turnaround.of(&self.0.turnaround, || bound.attributes.to_vec()).record(turnaround);
        });
    }

    /// Counts an issued work item.
    pub fn record_issued(&self, kind: Kind) {
        self.0.issued.add(1, &[kind_attribute(kind)]);
    }

    /// Counts the items that the end of a conversation dropped.
    pub fn record_dropped(&self, held: u64, awaiting: u64) {
        for (items, state) in [(held, "held"), (awaiting, "awaiting")] {
            if items > 0 {
                self.0.dropped.add(items, &[KeyValue::new(names::STATE, state)]);
            }
        }
    }

    /// Records an envelope that was written to its channel.
    pub fn record_released(&self, envelope: &Released) {
        let since =
            |start: Timestamp| Duration::from_millis(start.millis_until(envelope.released_at)).as_secs_f64();
        self.0.with_work_item(envelope.kind, envelope.outcome, |bound| {
            let attributes = || bound.attributes.to_vec();
            bound.released.add(1);
            bound.hold_time.of(&self.0.hold_time, attributes).record(since(envelope.received_at));
            bound.end_to_end.of(&self.0.end_to_end, attributes).record(since(envelope.issued_at));
        });
    }

    /// Records how long after its deadline the sweeper timed out a work item.
    pub fn record_timed_out(&self, kind: Kind, late_ms: u64) {
        self.0.lateness.record(Duration::from_millis(late_ms).as_secs_f64(), &[kind_attribute(kind)]);
    }

    /// Records a call of Redis with its command and the name of its script, which is empty for other commands.
    /// `error`: the additional attributes of a failed call.
    pub fn record_redis_call(
        &self,
        duration: Duration,
        (command, script): (&'static str, &'static str),
        server: &[KeyValue],
        error: &[KeyValue],
    ) {
        let attributes = || [&redis_call_attributes((command, script))[..], server, error].concat();
        let seconds = duration.as_secs_f64();
        if error.is_empty() {
            let bind = || self.0.store_duration.bind(&attributes());
            self.0.store.with(&(command, script), bind, |bound| bound.record(seconds));
        } else {
            self.0.store_duration.record(seconds, &attributes());
        }
    }

    /// Counts a panic.
    pub fn record_panic(&self) {
        self.0.panics.add(1, &[]);
    }

    /// Sets whether the last check reached the store, and the store's totals if they could be read.
    pub fn set_store_state(&self, reachable: bool, totals: Option<Totals>) {
        self.0.gauges.set_store_state(reachable, totals);
    }

    /// Sets the number of open event streams.
    pub fn set_open_event_streams(&self, open: usize) {
        self.0.gauges.set_open_event_streams(open as u64);
    }

    /// Sets the counter of connections to the store, which is read at each collection.
    pub fn set_connection_counter(&self, connections: Arc<AtomicU64>) {
        self.0.gauges.set_connection_counter(connections);
    }
}

/// The attributes of a call of Redis. `script` is empty for other commands than `EVALSHA`.
pub fn redis_call_attributes((command, script): (&'static str, &'static str)) -> Vec<KeyValue> {
    let mut all =
        vec![KeyValue::new(names::DB_SYSTEM_NAME, "redis"), KeyValue::new(names::DB_OPERATION_NAME, command)];
    all.extend((!script.is_empty()).then(|| KeyValue::new(names::DB_STORED_PROCEDURE_NAME, script)));
    all
}

/// Counts a request as active until it is dropped.
#[derive(Debug)]
pub struct ActiveRequest(BoundUpDownCounter<i64>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}
