//! The OTLP exporters, configured by OpenTelemetry's own environment variables.

mod variables;

use std::fmt;
use std::str::FromStr;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::Sampler;
use thiserror::Error;

use super::names;
use crate::clock::Entropy;

/// Transport of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// Protobuf over HTTP.
    HttpProtobuf,
}

impl FromStr for Protocol {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "grpc" => Ok(Self::Grpc),
            "http/protobuf" => Ok(Self::HttpProtobuf),
            _ => Err(()),
        }
    }
}

/// OpenTelemetry's default size of a queue.
const DEFAULT_QUEUE_SIZE: usize = 2_048;

/// The exported signals with their protocols. `Default`: none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exports {
    /// Spans.
    pub traces: Option<Protocol>,
    /// Metrics.
    pub metrics: Option<Protocol>,
    /// Log records.
    pub logs: Option<Protocol>,
    /// Maximum number of queued spans.
    pub(super) span_queue: usize,
    /// Maximum number of queued log records.
    pub(super) log_queue: usize,
    /// Sampled ratio of new traces, 0 to 1.
    ratio: f64,
    /// Whether the caller's sampling decision is used if there is one.
    parent_based: bool,
}

impl Default for Exports {
    fn default() -> Self {
        Self {
            traces: None,
            metrics: None,
            logs: None,
            span_queue: DEFAULT_QUEUE_SIZE,
            log_queue: DEFAULT_QUEUE_SIZE,
            ratio: 1.0,
            parent_based: true,
        }
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
    /// is `otlp`.
    ///
    /// # Errors
    /// A variable has an invalid or unsupported value, and at least one signal is exported.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ExportError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let signal = |signal: &str| -> Result<Option<Protocol>, ExportError> {
            let exporter = format!("OTEL_{signal}_EXPORTER");
            let selected = match variable(&exporter).as_deref() {
                None => false,
                Some("otlp") => true,
                // The endpoint for Prometheus is always on.
                Some("none") => return Ok(None),
                Some("prometheus") if signal == "METRICS" => return Ok(None),
                Some(_) => return Err(ExportError::Variable { name: exporter, allowed: "otlp or none" }),
            };
            let either = |what: &str| {
                [format!("OTEL_EXPORTER_OTLP_{signal}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")]
                    .into_iter()
                    .find_map(|name| Some((variable(&name)?, name)))
            };
            if !selected && either("ENDPOINT").is_none() {
                return Ok(None);
            }
            let Some((protocol, name)) = either("PROTOCOL") else { return Ok(Some(Protocol::HttpProtobuf)) };
            let allowed = "grpc or http/protobuf";
            protocol.parse().map(Some).map_err(|()| ExportError::Variable { name, allowed })
        };
        if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(Self::default());
        }
        let (traces, metrics, logs) = (signal("TRACES")?, signal("METRICS")?, signal("LOGS")?);
        if traces.or(metrics).or(logs).is_none() {
            return Ok(Self::default());
        }
        variables::check(variable)?;
        let queue =
            |name: &str| variable(name).and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_QUEUE_SIZE);
        let sampler = variable("OTEL_TRACES_SAMPLER").unwrap_or_else(|| "parentbased_always_on".to_owned());
        let given = variable("OTEL_TRACES_SAMPLER_ARG").and_then(|text| text.parse().ok());
        let parent_based = sampler.strip_prefix("parentbased_");
        let ratio = match parent_based.unwrap_or(&sampler) {
            "always_off" => 0.0,
            "traceidratio" => given.unwrap_or(1.0),
            _ => 1.0,
        };
        Ok(Self {
            traces,
            metrics,
            logs,
            span_queue: queue("OTEL_BSP_MAX_QUEUE_SIZE"),
            log_queue: queue("OTEL_BLRP_MAX_QUEUE_SIZE"),
            ratio,
            parent_based: parent_based.is_some(),
        })
    }

    /// The sampler that the variables select.
    pub(super) fn sampler(&self) -> Sampler {
        let sampler = Sampler::TraceIdRatioBased(self.ratio);
        if self.parent_based { Sampler::ParentBased(Box::new(sampler)) } else { sampler }
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
    let name = from_variables.get(&names::SERVICE_NAME.into()).map(|name| name.to_string());
    let has_name = name.is_some_and(|name| !name.starts_with("unknown_service"));
    let instance = from_variables.get(&names::SERVICE_INSTANCE_ID.into());
    let mut builder = Resource::builder()
        .with_attribute(KeyValue::new(names::SERVICE_VERSION, env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new(
            names::SERVICE_INSTANCE_ID,
            instance.map_or_else(|| Entropy.request_id().to_string(), |id| id.to_string()),
        ));
    if !has_name {
        builder = builder.with_service_name(names::SERVICE);
    }
    builder.build()
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
    ($exporter:ident, $protocol:expr) => {{
        let builder = $exporter::builder();
        Ok(match $protocol {
            Protocol::Grpc => builder.with_tonic().build()?,
            Protocol::HttpProtobuf => builder
                .with_http()
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .with_http_client(http_client()?)
                .build()?,
        })
    }};
}

pub(super) fn spans(protocol: Protocol) -> Result<SpanExporter, ExportError> {
    exporter!(SpanExporter, protocol)
}

pub(super) fn metrics(protocol: Protocol) -> Result<MetricExporter, ExportError> {
    exporter!(MetricExporter, protocol)
}

pub(super) fn logs(protocol: Protocol) -> Result<LogExporter, ExportError> {
    exporter!(LogExporter, protocol)
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
        let (grpc, http) = (Some(Protocol::Grpc), Some(Protocol::HttpProtobuf));
        assert_eq!(read, Ok(Exports { traces: grpc, metrics: grpc, logs: http, ..Exports::default() }));
    }

    #[test]
    fn sampler_and_queue_sizes_are_read_from_the_variables() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        let tenth = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.1")];
        let read = exports(&[endpoint, tenth[0], tenth[1], ("OTEL_BSP_MAX_QUEUE_SIZE", "8")]).unwrap();
        let values = (read.ratio.to_bits(), read.parent_based, read.span_queue, read.log_queue);
        assert_eq!(values, (0.1_f64.to_bits(), true, 8, DEFAULT_QUEUE_SIZE));
        let off = exports(&[endpoint, ("OTEL_TRACES_SAMPLER", "always_off")]).unwrap();
        assert_eq!((off.ratio.to_bits(), off.parent_based), (0.0_f64.to_bits(), false));
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
