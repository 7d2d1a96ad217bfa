//! The metrics. One set of instruments feeds both Prometheus and OTLP.

mod bound_histograms;
mod gauges;
mod tool_labels;

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Meter, MeterProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{MeterProviderBuilder, SdkMeterProvider};
#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder};

use self::bound_histograms::BoundHistograms;
pub use self::gauges::ActiveRequest;
pub(super) use self::gauges::DropCounters;
use self::gauges::Gauges;
use self::tool_labels::ToolLabels;
use super::names::{self, Metric};
use crate::domain::gate::{Released, Totals};
use crate::domain::time::Timestamp;
use crate::domain::work_item::{Kind, Outcome, TimeoutCause, WorkItem};

/// Histogram boundaries in seconds for requests and store calls.
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

/// [`names::BUILD`] as the exporter for Prometheus spells it. Prometheus' own convention is the suffix `_info`.
const BUILD_IN_PROMETHEUS: &str = "callback_ingress_build";

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

impl ResponseLabels {
    fn attributes(&self, route: &str) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new(names::HTTP_REQUEST_METHOD, self.method),
            KeyValue::new(names::URL_SCHEME, self.scheme),
            KeyValue::new(names::HTTP_RESPONSE_STATUS_CODE, i64::from(self.status)),
        ];
        attributes.extend((!route.is_empty()).then(|| KeyValue::new(names::HTTP_ROUTE, route.to_owned())));
        attributes.extend(self.failure.map(|kind| KeyValue::new(names::ERROR_TYPE, kind)));
        attributes
    }

    fn decision(&self) -> [KeyValue; 2] {
        [KeyValue::new(names::CODE, self.code), KeyValue::new(names::OUTCOME, self.outcome)]
    }
}

#[derive(Debug)]
struct Instruments {
    provider: SdkMeterProvider,
    registry: Registry,
    gauges: Arc<Gauges>,
    /// Keyed by route and response labels, like the next two.
    request_duration: BoundHistograms<ResponseLabels, f64>,
    request_body_size: BoundHistograms<ResponseLabels, u64>,
    accept_duration: BoundHistograms<ResponseLabels, f64>,
    refused: Counter<u64>,
    /// By tool.
    turnaround: BoundHistograms<(Kind, Outcome), f64>,
    hold_time: BoundHistograms<(Kind, Outcome), f64>,
    end_to_end: BoundHistograms<(Kind, Outcome), f64>,
    released: Counter<u64>,
    issued: Counter<u64>,
    dropped: Counter<u64>,
    lateness: BoundHistograms<(Kind, TimeoutCause), f64>,
    /// Keyed by command and script. Successful calls only.
    store_duration: BoundHistograms<(&'static str, &'static str), f64>,
    panics: Counter<u64>,
    tools: ToolLabels,
}

/// The metrics of a service. Clones share the instruments.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Instruments>);

fn seconds<K: Copy + Eq + Hash>(meter: &Meter, metric: Metric, bounds: &[f64]) -> BoundHistograms<K, f64> {
    let histogram = meter.f64_histogram(metric.name).with_unit(metric.unit);
    BoundHistograms::new(histogram.with_description(metric.meaning).with_boundaries(bounds.to_vec()).build())
}

fn counter(meter: &Meter, metric: Metric) -> Counter<u64> {
    meter.u64_counter(metric.name).with_unit(metric.unit).with_description(metric.meaning).build()
}

fn kind_attribute(kind: Kind) -> KeyValue {
    KeyValue::new(names::WORK_ITEM_KIND, kind.as_str())
}

fn work_item_attributes((kind, outcome): (Kind, Outcome)) -> Vec<KeyValue> {
    vec![kind_attribute(kind), KeyValue::new(names::OUTCOME, outcome.as_str())]
}

/// `tool`: the label of its name; empty without one.
fn tool_attributes(key: (Kind, Outcome), tool: &str) -> Vec<KeyValue> {
    let mut attributes = work_item_attributes(key);
    attributes.extend((!tool.is_empty()).then(|| KeyValue::new(names::TOOL_NAME, tool.to_owned())));
    attributes
}

/// The attributes of a refusal. `failure`: `error.type`, for 5xx codes.
fn refusal_attributes(code: &'static str, failure: Option<&'static str>) -> Vec<KeyValue> {
    let failure = failure.map(|code| KeyValue::new(names::ERROR_TYPE, code));
    [KeyValue::new(names::CODE, code)].into_iter().chain(failure).collect()
}

impl Instruments {
    fn new(provider: SdkMeterProvider, registry: Registry, drop_counters: DropCounters) -> Self {
        let meter = provider.meter(names::SCOPE);
        let size = names::REQUEST_BODY_SIZE;
        let body_size = meter.u64_histogram(size.name).with_unit(size.unit).with_description(size.meaning);
        Self {
            request_duration: seconds(&meter, names::REQUEST_DURATION, REQUEST_SECONDS),
            request_body_size: BoundHistograms::new(body_size.with_boundaries(BODY_BYTES.to_vec()).build()),
            accept_duration: seconds(&meter, names::ACCEPT_DURATION, REQUEST_SECONDS),
            refused: counter(&meter, names::REFUSED),
            turnaround: seconds(&meter, names::TURNAROUND, WORK_ITEM_SECONDS),
            hold_time: seconds(&meter, names::HOLD_TIME, WORK_ITEM_SECONDS),
            end_to_end: seconds(&meter, names::END_TO_END, WORK_ITEM_SECONDS),
            released: counter(&meter, names::WORK_ITEM_RELEASED),
            issued: counter(&meter, names::ISSUED),
            dropped: counter(&meter, names::DROPPED),
            lateness: seconds(&meter, names::LATENESS, REQUEST_SECONDS),
            store_duration: seconds(&meter, names::STORE_DURATION, REQUEST_SECONDS),
            panics: counter(&meter, names::PANICS),
            tools: ToolLabels::default(),
            gauges: Gauges::new(&meter, drop_counters),
            provider,
            registry,
        }
    }

    /// Initialises the known series to 0. Otherwise the first increment would be the first value of its series, which
    /// does not count as an increase.
    fn init_counters(&self) {
        self.panics.add(0, &[]);
        for state in ["held", "awaiting"] {
            self.dropped.add(0, &[KeyValue::new(names::STATE, state)]);
        }
        for kind in Kind::ALL {
            self.issued.add(0, &[kind_attribute(kind)]);
            for outcome in Outcome::ALL {
                self.released.add(0, &work_item_attributes((kind, outcome)));
            }
        }
    }
}

impl Metrics {
    /// Metrics for Prometheus, and for the readers that `with_readers` adds.
    pub(super) fn new(
        resource: Resource,
        drop_counters: DropCounters,
        with_readers: impl FnOnce(MeterProviderBuilder) -> MeterProviderBuilder,
    ) -> Self {
        let registry = Registry::new();
        // Only Linux has these numbers.
        #[cfg(target_os = "linux")]
        if let Err(error) = registry.register(Box::new(ProcessCollector::for_self())) {
            tracing::error!(name: "bug", %error, "cannot register the metrics of the process (this is a bug)");
        }
        // Fails only if the registry already contains an exporter.
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).build();
        let mut builder = SdkMeterProvider::builder().with_resource(resource);
        match exporter {
            Ok(exporter) => builder = builder.with_reader(exporter),
            Err(error) => {
                tracing::error!(name: "bug", %error, "cannot create the Prometheus exporter (this is a bug)");
            }
        }
        let instruments = Instruments::new(with_readers(builder).build(), registry, drop_counters);
        instruments.init_counters();
        Self(Arc::new(instruments))
    }

    /// Metrics for Prometheus only.
    pub fn local() -> Self {
        Self::new(Resource::builder_empty().build(), DropCounters::default(), |builder| builder)
    }

    /// The provider, to flush it and to shut it down.
    pub(super) fn provider(&self) -> &SdkMeterProvider {
        &self.0.provider
    }

    /// All metrics in Prometheus' text format, with those of the process (`process_*`).
    pub fn prometheus(&self) -> String {
        let mut families = self.0.registry.gather();
        for family in &mut families {
            if family.name() == BUILD_IN_PROMETHEUS {
                family.set_name(format!("{BUILD_IN_PROMETHEUS}_info"));
            }
        }
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }

    /// Counts a request as active until the guard is dropped.
    pub fn active_request(&self) -> ActiveRequest {
        ActiveRequest::new(&self.0.gauges)
    }

    /// Initialises the count of refusals with a code to 0. `failure`: `error.type`, for 5xx codes.
    pub fn init_refused_counter(&self, code: &'static str, failure: Option<&'static str>) {
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
        let attributes = || labels.attributes(route);
        all.request_duration.record(route, labels, duration.as_secs_f64(), || {
            [&attributes()[..], &labels.decision()].concat()
        });
        if let Some(bytes) = body {
            all.request_body_size.record(route, labels, bytes as u64, attributes);
        }
        if let Some(duration) = decision {
            all.accept_duration.record("", labels, duration.as_secs_f64(), || labels.decision().to_vec());
        }
        if !labels.code.is_empty() {
            all.refused.add(1, &refusal_attributes(labels.code, labels.failure));
        }
    }

    /// Records the time from the issue of a work item to its accepted result.
    pub fn record_turnaround(&self, item: &WorkItem, outcome: Outcome, turnaround_ms: u64) {
        let (key, turnaround) = ((item.kind, outcome), Duration::from_millis(turnaround_ms).as_secs_f64());
        let tool = self.0.tools.label(item.name.as_ref());
        self.0.turnaround.record(tool, key, turnaround, || tool_attributes(key, tool));
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
        let key = (envelope.kind, envelope.outcome);
        let attributes = || work_item_attributes(key);
        self.0.released.add(1, &tool_attributes(key, self.0.tools.label(envelope.name.as_ref())));
        self.0.hold_time.record("", key, since(envelope.received_at), attributes);
        self.0.end_to_end.record("", key, since(envelope.issued_at), attributes);
    }

    /// Records how late the sweeper timed out a work item.
    pub fn record_timed_out(&self, key: (Kind, TimeoutCause), late_ms: u64) {
        let late = Duration::from_millis(late_ms).as_secs_f64();
        let attributes = || vec![kind_attribute(key.0), KeyValue::new(names::TIMEOUT_CAUSE, key.1.as_str())];
        self.0.lateness.record("", key, late, attributes);
    }

    /// Records a call to Redis with its command and the name of its script, which is empty for other commands.
    /// `error`: the additional attributes of a failed call.
    pub fn record_redis_call(
        &self,
        duration: Duration,
        (command, script): (&'static str, &'static str),
        server: &[KeyValue],
        error: &[KeyValue],
    ) {
        let attributes = || [&redis_call_attributes((command, script))[..], server, error].concat();
        let (store, seconds) = (&self.0.store_duration, duration.as_secs_f64());
        if error.is_empty() {
            store.record("", (command, script), seconds, attributes);
        } else {
            store.histogram().record(seconds, &attributes());
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

    /// Sets how the number of open event streams is read.
    pub fn set_event_streams(&self, open: impl Fn() -> u64 + Send + Sync + 'static) {
        self.0.gauges.set_event_streams(Box::new(open));
    }

    /// Sets the counter of connections to the store, which is read at each collection.
    pub fn set_connection_counter(&self, connections: Arc<AtomicU64>) {
        self.0.gauges.set_connection_counter(connections);
    }
}

/// The attributes of a call to Redis. `script` is empty for commands other than `EVALSHA`.
pub fn redis_call_attributes((command, script): (&'static str, &'static str)) -> Vec<KeyValue> {
    let mut all =
        vec![KeyValue::new(names::DB_SYSTEM_NAME, "redis"), KeyValue::new(names::DB_OPERATION_NAME, command)];
    all.extend((!script.is_empty()).then(|| KeyValue::new(names::DB_STORED_PROCEDURE_NAME, script)));
    all
}
