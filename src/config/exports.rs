//! What is exported to an OTLP collector, as configured by OpenTelemetry's environment variables.

use std::fmt;

use opentelemetry_otlp::OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE as TEMPORALITY;
use opentelemetry_otlp::Protocol;
use opentelemetry_sdk::metrics::Temporality;
use thiserror::Error;

/// OpenTelemetry's default queue size.
const DEFAULT_QUEUE_SIZE: usize = 2_048;
/// Bounded because the SDK allocates a queue at its full size.
const MAX_QUEUE_SIZE: usize = 100_000;

/// The exported signals. `Default`: none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exports {
    /// The protocol for spans. `None`: they are not exported.
    pub traces: Option<Protocol>,
    /// The protocol for metrics. `None`: they are not exported.
    pub metrics: Option<Protocol>,
    /// The protocol for log records. `None`: they are not exported.
    pub logs: Option<Protocol>,
    /// Maximum number of queued spans.
    pub span_queue: usize,
    /// Maximum number of queued log records.
    pub log_queue: usize,
    /// Which metrics count from the last export, and which from the start of the process.
    pub temporality: Temporality,
}

impl Default for Exports {
    fn default() -> Self {
        let (traces, metrics, logs) = (None, None, None);
        let (span_queue, log_queue) = (DEFAULT_QUEUE_SIZE, DEFAULT_QUEUE_SIZE);
        // OpenTelemetry's default is cumulative, but backends do not count the first cumulative value of a series as an
        // increase. `LowMemory` uses delta values, except for observable counters: these remain cumulative, so that a
        // failed export does not lose their increase.
        Self { traces, metrics, logs, span_queue, log_queue, temporality: Temporality::LowMemory }
    }
}

/// A variable has an invalid or unsupported value. The message does not repeat the value.
#[derive(Debug, Error)]
#[error("{name}: must be {allowed}")]
pub struct InvalidVariable {
    name: String,
    allowed: &'static str,
}

/// The environment variables. An empty variable counts as missing.
struct Variables<F>(F);

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    fn get(&self, name: &str) -> Option<String> {
        self.0(name).filter(|value| !value.is_empty())
    }

    fn parsed<T>(
        &self,
        name: &str,
        allowed: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, InvalidVariable> {
        let refused = || InvalidVariable { name: name.to_owned(), allowed };
        self.get(name).map(|value| parse(&value).ok_or_else(refused)).transpose()
    }

    fn queue_size(&self, name: &str) -> Result<usize, InvalidVariable> {
        let size = |text: &str| text.parse().ok().filter(|size| (1..=MAX_QUEUE_SIZE).contains(size));
        Ok(self.parsed(name, "1 to 100000", size)?.unwrap_or(DEFAULT_QUEUE_SIZE))
    }

    /// The protocol for a signal. `None`: the signal is not exported.
    fn signal(&self, signal: &str) -> Result<Option<Protocol>, InvalidVariable> {
        let selected =
            self.parsed(&format!("OTEL_{signal}_EXPORTER"), "otlp or none", |text| match text {
                "otlp" => Some(true),
                "none" => Some(false),
                // The Prometheus endpoint is always enabled.
                "prometheus" if signal == "METRICS" => Some(false),
                _ => None,
            })?;
        let either = |what: &str| {
            let names = [format!("OTEL_EXPORTER_OTLP_{signal}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")];
            names.into_iter().find(|name| self.get(name).is_some())
        };
        if !selected.unwrap_or_else(|| either("ENDPOINT").is_some()) {
            return Ok(None);
        }
        let Some(variable) = either("PROTOCOL") else { return Ok(Some(Protocol::HttpBinary)) };
        self.parsed(&variable, "grpc or http/protobuf", |text| match text {
            "grpc" => Some(Protocol::Grpc),
            "http/protobuf" => Some(Protocol::HttpBinary),
            _ => None,
        })
    }
}

impl Exports {
    /// Reads each variable with `variable`. A signal is exported if `OTEL_<SIGNAL>_EXPORTER` is `otlp`, or if that
    /// variable is missing and the signal has an endpoint. The SDK itself reads all variables that are not read here.
    ///
    /// # Errors
    /// A variable has an invalid or unsupported value. Variables without effect, such as a queue size when nothing is
    /// exported, are not checked.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, InvalidVariable> {
        let variables = Variables(variable);
        if variables.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(Self::default());
        }
        let [traces, metrics, logs] = ["TRACES", "METRICS", "LOGS"].map(|signal| variables.signal(signal));
        let (traces, metrics, logs) = (traces?, metrics?, logs?);
        if traces.or(metrics).or(logs).is_none() {
            return Ok(Self::default());
        }
        let temporality = |text: &str| text.parse().ok();
        let temporality = variables.parsed(TEMPORALITY, "cumulative, delta or lowmemory", temporality)?;
        Ok(Self {
            traces,
            metrics,
            logs,
            span_queue: variables.queue_size("OTEL_BSP_MAX_QUEUE_SIZE")?,
            log_queue: variables.queue_size("OTEL_BLRP_MAX_QUEUE_SIZE")?,
            temporality: temporality.unwrap_or(Self::default().temporality),
        })
    }
}

impl fmt::Display for Exports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signals = [("traces", self.traces), ("metrics", self.metrics), ("logs", self.logs)];
        let exported: Vec<&str> =
            signals.into_iter().filter_map(|(name, protocol)| protocol.map(|_| name)).collect();
        f.write_str(&if exported.is_empty() { "none".to_owned() } else { exported.join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exports(variables: &[(&str, &str)]) -> Result<Exports, String> {
        let value = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Exports::from_variables(value).map_err(|error| error.to_string())
    }

    #[test]
    fn signals_are_selected_by_endpoint_or_exporter() {
        assert_eq!(exports(&[]), Ok(Exports::default()));
        assert_eq!(exports(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), Ok(Exports::default()));
        assert_eq!(exports(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]), Ok(Exports::default()));
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        assert_eq!(exports(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), Ok(Exports::default()));
        assert_eq!(exports(&[endpoint]).unwrap().to_string(), "traces, metrics, logs");
        let one =
            exports(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://localhost:4318/v1/traces")]).unwrap();
        assert_eq!(one.to_string(), "traces");
        assert_eq!(
            exports(&[endpoint, ("OTEL_LOGS_EXPORTER", "none")]).unwrap().to_string(),
            "traces, metrics"
        );
        assert_eq!(exports(&[("OTEL_METRICS_EXPORTER", "otlp")]).unwrap().to_string(), "metrics");
    }

    #[test]
    fn variable_of_a_signal_overrides_the_common_one() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        let read = exports(&[
            endpoint,
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/protobuf"),
        ]);
        let (grpc, http) = (Some(Protocol::Grpc), Some(Protocol::HttpBinary));
        assert_eq!(read, Ok(Exports { traces: grpc, metrics: grpc, logs: http, ..Exports::default() }));
    }

    #[test]
    fn queue_sizes_and_temporality_are_read_from_the_variables() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        let read = exports(&[endpoint, ("OTEL_BSP_MAX_QUEUE_SIZE", "8")]).unwrap();
        assert_eq!((read.span_queue, read.log_queue), (8, DEFAULT_QUEUE_SIZE));
        assert_eq!(read.temporality, Temporality::LowMemory);
        for (value, expected) in [
            ("cumulative", Temporality::Cumulative),
            ("Delta", Temporality::Delta),
            ("lowmemory", Temporality::LowMemory),
        ] {
            let read = exports(&[endpoint, (TEMPORALITY, value)]).unwrap();
            assert_eq!(read.temporality, expected);
        }
        let error = exports(&[endpoint, (TEMPORALITY, "both")]).unwrap_err();
        assert_eq!(error, format!("{TEMPORALITY}: must be cumulative, delta or lowmemory"));
    }

    #[test]
    fn unsupported_value_is_reported_with_its_variable() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        let error = exports(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]);
        assert_eq!(error, Err("OTEL_EXPORTER_OTLP_PROTOCOL: must be grpc or http/protobuf".to_owned()));
        let error = exports(&[("OTEL_TRACES_EXPORTER", "zipkin")]);
        assert_eq!(error, Err("OTEL_TRACES_EXPORTER: must be otlp or none".to_owned()));
    }
}
