//! The OTLP exporters, configured by OpenTelemetry's own environment variables.

use std::fmt;

use opentelemetry::KeyValue;
use opentelemetry_otlp::OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE as TEMPORALITY;
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::Temporality;
use thiserror::Error;

use super::names;
use crate::clock::Entropy;

/// OpenTelemetry's default size of a queue.
const DEFAULT_QUEUE_SIZE: usize = 2_048;
/// The SDK allocates a queue at its full size.
const MAX_QUEUE_SIZE: usize = 100_000;

/// The exported signals. `Default`: none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exports {
    pub(super) traces: Option<Protocol>,
    pub(super) metrics: Option<Protocol>,
    pub(super) logs: Option<Protocol>,
    /// Maximum number of queued spans.
    pub(super) span_queue: usize,
    /// Maximum number of queued log records.
    pub(super) log_queue: usize,
    /// Whether metrics count from the last export or from the start of the process.
    temporality: Temporality,
}

impl Default for Exports {
    fn default() -> Self {
        let (traces, metrics, logs) = (None, None, None);
        let (span_queue, log_queue) = (DEFAULT_QUEUE_SIZE, DEFAULT_QUEUE_SIZE);
        // Delta values, unlike OpenTelemetry's default: of cumulative values, the first one of a series does not count as
        // an increase. Except for observable counters, of which a failed export would otherwise lose the increase.
        Self { traces, metrics, logs, span_queue, log_queue, temporality: Temporality::LowMemory }
    }
}

/// Why the exporters could not be created.
#[derive(Debug, Error)]
pub enum ExportError {
    /// A variable has an invalid or unsupported value, which is not shown.
    #[error("{name}: must be {allowed}")]
    Variable {
        /// The variable.
        name: String,
        /// The values that are supported.
        allowed: &'static str,
    },
    /// The SDK refused the variables. Its message is left out, because it would repeat their values.
    #[error("the OTEL_EXPORTER_OTLP_ variables are invalid")]
    Exporter,
    /// The HTTP client could not be created.
    #[error("cannot create the HTTP client for OTLP: {0}")]
    Client(String),
}

impl From<ExporterBuildError> for ExportError {
    fn from(_: ExporterBuildError) -> Self {
        Self::Exporter
    }
}

impl Exports {
    /// Reads the variables with `variable`. A signal is exported if it has an endpoint, or if `OTEL_<SIGNAL>_EXPORTER`
    /// is `otlp`. The SDK reads all other variables by itself.
    ///
    /// # Errors
    /// A variable has an invalid or unsupported value, and at least one signal is exported.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ExportError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let refused = |name: &str, allowed| ExportError::Variable { name: name.to_owned(), allowed };
        let signal = |signal: &str| {
            let exporter = format!("OTEL_{signal}_EXPORTER");
            let selected = match variable(&exporter).as_deref() {
                None => false,
                Some("otlp") => true,
                // The Prometheus endpoint is always enabled.
                Some("none") => return Ok(None),
                Some("prometheus") if signal == "METRICS" => return Ok(None),
                Some(_) => return Err(refused(&exporter, "otlp or none")),
            };
            let either = |what: &str| {
                [format!("OTEL_EXPORTER_OTLP_{signal}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")]
                    .into_iter()
                    .find_map(|name| Some((variable(&name)?, name)))
            };
            if !selected && either("ENDPOINT").is_none() {
                return Ok(None);
            }
            match either("PROTOCOL") {
                None => Ok(Some(Protocol::HttpBinary)),
                Some((text, _)) if text == "http/protobuf" => Ok(Some(Protocol::HttpBinary)),
                Some((text, _)) if text == "grpc" => Ok(Some(Protocol::Grpc)),
                Some((_, name)) => Err(refused(&name, "grpc or http/protobuf")),
            }
        };
        if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(Self::default());
        }
        let (traces, metrics, logs) = (signal("TRACES")?, signal("METRICS")?, signal("LOGS")?);
        if traces.or(metrics).or(logs).is_none() {
            return Ok(Self::default());
        }
        let queue_size = |name: &str| match variable(name).map(|text| text.parse()) {
            None => Ok(DEFAULT_QUEUE_SIZE),
            Some(Ok(size)) if (1..=MAX_QUEUE_SIZE).contains(&size) => Ok(size),
            Some(_) => Err(refused(name, "1 to 100000")),
        };
        let temporality = match variable(TEMPORALITY).map(|text| text.parse()) {
            None => Self::default().temporality,
            Some(parsed) => parsed.map_err(|()| refused(TEMPORALITY, "cumulative, delta or lowmemory"))?,
        };
        Ok(Self {
            traces,
            metrics,
            logs,
            span_queue: queue_size("OTEL_BSP_MAX_QUEUE_SIZE")?,
            log_queue: queue_size("OTEL_BLRP_MAX_QUEUE_SIZE")?,
            temporality,
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

/// The resource: attributes from the variables, with defaults for the service's name, version and instance id.
pub(super) fn resource() -> Resource {
    let from_variables = Resource::builder().build();
    let given = |name: &'static str| from_variables.get(&name.into()).map(|value| value.to_string());
    let name = given(names::SERVICE_NAME).filter(|name| !name.starts_with("unknown_service"));
    let instance = given(names::SERVICE_INSTANCE_ID);
    let environment =
        given(names::DEPLOYMENT_ENVIRONMENT).or_else(|| given(names::DEPLOYMENT_ENVIRONMENT_OLD));
    let mut attributes = vec![
        KeyValue::new(names::SERVICE_NAME, name.unwrap_or_else(|| names::SERVICE.to_owned())),
        KeyValue::new(names::SERVICE_VERSION, env!("CARGO_PKG_VERSION")),
        KeyValue::new(
            names::SERVICE_INSTANCE_ID,
            instance.unwrap_or_else(|| Entropy.request_id().to_string()),
        ),
    ];
    for name in [names::DEPLOYMENT_ENVIRONMENT, names::DEPLOYMENT_ENVIRONMENT_OLD] {
        attributes.extend(environment.clone().map(|value| KeyValue::new(name, value)));
    }
    Resource::builder().with_attributes(attributes).build()
}

/// A client with built-in certificate authorities, because slim container images have none. Created on a separate
/// thread, because a blocking client panics when it is created within a runtime.
fn http_client() -> Result<reqwest::blocking::Client, ExportError> {
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
        .with_no_client_auth();
    let client = std::thread::spawn(|| {
        reqwest::blocking::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .build()
    });
    let client = client.join().map_err(|_| ExportError::Client("panic".to_owned()))?;
    client.map_err(|error| ExportError::Client(error.to_string()))
}

/// Builds the exporter of one signal.
macro_rules! exporter {
    ($builder:expr, $protocol:expr) => {
        Ok(match $protocol {
            Protocol::Grpc => $builder.with_tonic().build()?,
            protocol => {
                let builder = $builder.with_http().with_protocol(protocol);
                builder.with_http_client(http_client()?).build()?
            }
        })
    };
}

pub(super) fn spans(protocol: Protocol) -> Result<SpanExporter, ExportError> {
    exporter!(SpanExporter::builder(), protocol)
}

pub(super) fn logs(protocol: Protocol) -> Result<LogExporter, ExportError> {
    exporter!(LogExporter::builder(), protocol)
}

impl Exports {
    pub(super) fn metric_exporter(&self, protocol: Protocol) -> Result<MetricExporter, ExportError> {
        exporter!(MetricExporter::builder().with_temporality(self.temporality), protocol)
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
    fn nothing_is_exported_without_an_endpoint() {
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
