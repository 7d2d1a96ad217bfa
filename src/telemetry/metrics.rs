//! Creates the instruments of the metrics, which are exported to both Prometheus and OTLP. Each module records its own
//! metrics.

use std::hash::Hash;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Meter, MeterProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder};

use super::keyed_histogram::KeyedHistogram;
use super::names::{self, Metric};

/// Histogram boundaries in seconds for requests and store calls.
pub const REQUEST_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
    10.0, 60.0,
];

/// Creates instruments and exports them. Clones share the instruments.
#[derive(Clone, Debug)]
pub struct Metrics {
    provider: SdkMeterProvider,
    meter: Meter,
    registry: Registry,
    panics: Counter<u64>,
}

impl Metrics {
    /// Metrics for Prometheus, and for an OTLP exporter if there is one.
    pub(super) fn new(resource: Resource, exporter: Option<impl PushMetricExporter>) -> Self {
        let registry = Registry::new();
        // The collector supports only Linux.
        #[cfg(target_os = "linux")]
        if let Err(error) = registry.register(Box::new(ProcessCollector::for_self())) {
            tracing::error!(name: "bug", %error, "cannot register the metrics of the process (this is a bug)");
        }
        let mut builder = SdkMeterProvider::builder().with_resource(resource);
        // Fails only if the registry already contains an exporter.
        match opentelemetry_prometheus::exporter().with_registry(registry.clone()).build() {
            Ok(prometheus) => builder = builder.with_reader(prometheus),
            Err(error) => {
                tracing::error!(name: "bug", %error, "cannot create the Prometheus exporter (this is a bug)");
            }
        }
        if let Some(exporter) = exporter {
            builder = builder.with_reader(PeriodicReader::builder(exporter).build());
        }
        let provider = builder.build();
        let meter = provider.meter(names::SERVICE);
        let panics = counter(&meter, names::PANICS);
        panics.add(0, &[]);
        let metrics = Self { provider, meter, registry, panics };
        let version = || Some(KeyValue::new(names::SERVICE_VERSION, env!("CARGO_PKG_VERSION")));
        metrics.observe(names::BUILD, move || [(1, version())]);
        metrics
    }

    /// The provider, for flushing and shutdown.
    pub(super) const fn provider(&self) -> &SdkMeterProvider {
        &self.provider
    }

    /// All metrics in the Prometheus text format, with those of the process (`process_*`).
    pub fn prometheus(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// Counts a panic.
    pub(super) fn record_panic(&self) {
        self.panics.add(1, &[]);
    }

    /// A counter. Add 0 to each known series at the start. Otherwise the first increment is the first value of its
    /// series, and backends do not count the first value as an increase.
    pub fn counter(&self, metric: Metric) -> Counter<u64> {
        counter(&self.meter, metric)
    }

    /// A histogram with these boundaries.
    pub fn histogram<K: Copy + Eq + Hash>(&self, metric: Metric, boundaries: &[f64]) -> KeyedHistogram<K> {
        let builder = self.meter.f64_histogram(metric.name).with_unit(metric.unit);
        let builder = builder.with_description(metric.meaning).with_boundaries(boundaries.to_vec());
        KeyedHistogram::new(builder.build())
    }

    /// Reads a metric at each collection. Each item that `read` returns is a data point: its value, and its attribute
    /// if it has one.
    pub fn observe<P: IntoIterator<Item = (u64, Option<KeyValue>)>>(
        &self,
        metric: Metric,
        read: impl Fn() -> P + Send + Sync + 'static,
    ) {
        macro_rules! register {
            ($instrument:ident) => {{
                let builder = self.meter.$instrument(metric.name).with_unit(metric.unit);
                let builder = builder.with_description(metric.meaning).with_callback(move |observer| {
                    for (value, attribute) in read() {
                        observer.observe(value.try_into().unwrap_or_default(), attribute.as_slice());
                    }
                });
                builder.build();
            }};
        }
        match metric.instrument {
            "counter" => register!(u64_observable_counter),
            "up-down counter" => register!(i64_observable_up_down_counter),
            _ => register!(u64_observable_gauge),
        }
    }
}

fn counter(meter: &Meter, metric: Metric) -> Counter<u64> {
    meter.u64_counter(metric.name).with_unit(metric.unit).with_description(metric.meaning).build()
}
