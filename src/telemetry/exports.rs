//! Which signals go to a collector, and how: OpenTelemetry's own variables say it.

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

/// How OTLP travels.
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

/// OpenTelemetry's own default for the room of a queue.
const QUEUE: usize = 2_048;

/// The signals that go to a collector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exports {
    /// Spans.
    pub traces: Option<Protocol>,
    /// Metrics.
    pub metrics: Option<Protocol>,
    /// Log records.
    pub logs: Option<Protocol>,
    /// Most spans that wait to be sent.
    pub(super) span_queue: usize,
    /// Most log records that wait to be sent.
    pub(super) log_queue: usize,
    /// Which share of new traces is sampled.
    ratio: f64,
    /// Whether a caller's trace is sampled if, and only if, the caller samples it.
    parent_based: bool,
}

impl Default for Exports {
    fn default() -> Self {
        Self {
            traces: None,
            metrics: None,
            logs: None,
            span_queue: QUEUE,
            log_queue: QUEUE,
            ratio: 1.0,
            parent_based: true,
        }
    }
}

/// Why nothing can be exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// A variable says what cannot be done.
    #[error("{name}: must be {allowed}")]
    Variable {
        /// The variable.
        name: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// An exporter cannot be made of what the variables say. What the library says to that would repeat their values.
    #[error("OTLP cannot be exported as the OTEL_EXPORTER_OTLP_ variables say")]
    Exporter,
    /// The HTTP client cannot be made.
    #[error("OTLP cannot be exported over HTTP: {0}")]
    Client(String),
}

impl From<ExporterBuildError> for ExportError {
    fn from(_: ExporterBuildError) -> Self {
        Self::Exporter
    }
}

impl Exports {
    /// What the variables say. A signal is exported when an endpoint is named, or `OTEL_<SIGNAL>_EXPORTER` is `otlp`.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ExportError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let signal = |signal: &str| -> Result<Option<Protocol>, ExportError> {
            let exporter = format!("OTEL_{signal}_EXPORTER");
            let named = match variable(&exporter).as_deref() {
                None => false,
                Some("otlp") => true,
                // Prometheus can ask at any time.
                Some("none") => return Ok(None),
                Some("prometheus") if signal == "METRICS" => return Ok(None),
                Some(_) => return Err(ExportError::Variable { name: exporter, allowed: "otlp or none" }),
            };
            let either = |what: &str| {
                [format!("OTEL_EXPORTER_OTLP_{signal}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")]
                    .into_iter()
                    .find_map(|name| Some((variable(&name)?, name)))
            };
            if !named && either("ENDPOINT").is_none() {
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
        let queue = |name: &str| variable(name).and_then(|text| text.parse().ok()).unwrap_or(QUEUE);
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

    /// The sampler that the variables name.
    pub(super) fn sampler(&self) -> Sampler {
        let sampler = Sampler::TraceIdRatioBased(self.ratio);
        if self.parent_based { Sampler::ParentBased(Box::new(sampler)) } else { sampler }
    }
}

impl fmt::Display for Exports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = [("traces", self.traces), ("metrics", self.metrics), ("logs", self.logs)];
        let on: Vec<&str> = on.into_iter().filter_map(|(name, protocol)| protocol.map(|_| name)).collect();
        f.write_str(&if on.is_empty() { "none".to_owned() } else { on.join(", ") })
    }
}

/// Who exports: the variables' resource, under our name where they name none.
pub(super) fn resource() -> Resource {
    let from_variables = Resource::builder().build();
    let name = from_variables.get(&names::SERVICE_NAME.into()).map(|name| name.to_string());
    let named = name.is_some_and(|name| !name.starts_with("unknown_service"));
    let instance = from_variables.get(&names::SERVICE_INSTANCE_ID.into());
    let mut builder = Resource::builder()
        .with_attribute(KeyValue::new(names::SERVICE_VERSION, env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new(
            names::SERVICE_INSTANCE_ID,
            instance.map_or_else(|| Entropy.request_id().to_string(), |id| id.to_string()),
        ));
    if !named {
        builder = builder.with_service_name(names::SERVICE);
    }
    builder.build()
}

/// A client with certificate authorities of its own: a slim image has none. Made on a thread of its own, since it may
/// not be made within a runtime.
fn client() -> Result<reqwest::blocking::Client, ExportError> {
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
        .with_no_client_auth();
    let made = std::thread::spawn(|| {
        reqwest::blocking::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .build()
    });
    let made = made.join().map_err(|_| ExportError::Client("no client".to_owned()))?;
    made.map_err(|error| ExportError::Client(error.to_string()))
}

/// An exporter of one signal, for the protocol.
macro_rules! exporter {
    ($exporter:ident, $protocol:expr) => {{
        let builder = $exporter::builder();
        Ok(match $protocol {
            Protocol::Grpc => builder.with_tonic().build()?,
            Protocol::HttpProtobuf => builder
                .with_http()
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .with_http_client(client()?)
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

    fn of(variables: &[(&str, &str)]) -> Result<Exports, String> {
        let value = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Exports::of(value).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_exported_unless_a_collector_is_named() {
        assert_eq!(of(&[]), Ok(Exports::default()));
        assert_eq!(of(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), Ok(Exports::default()));
        assert_eq!(of(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]), Ok(Exports::default()));
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        assert_eq!(of(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), Ok(Exports::default()));
        assert_eq!(of(&[endpoint]).unwrap().to_string(), "traces, metrics, logs");
        let one = of(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://localhost:4318/v1/traces")]).unwrap();
        assert_eq!(one.to_string(), "traces");
        assert_eq!(of(&[endpoint, ("OTEL_LOGS_EXPORTER", "none")]).unwrap().to_string(), "traces, metrics");
        assert_eq!(of(&[("OTEL_METRICS_EXPORTER", "otlp")]).unwrap().to_string(), "metrics");
    }

    #[test]
    fn a_signals_own_variable_goes_before_the_common_one() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        let exports = of(&[
            endpoint,
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/protobuf"),
        ]);
        let (grpc, http) = (Some(Protocol::Grpc), Some(Protocol::HttpProtobuf));
        assert_eq!(exports, Ok(Exports { traces: grpc, metrics: grpc, logs: http, ..Exports::default() }));
    }

    #[test]
    fn the_sampler_and_the_queues_are_what_the_variables_say() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        let tenth = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.1")];
        let exports = of(&[endpoint, tenth[0], tenth[1], ("OTEL_BSP_MAX_QUEUE_SIZE", "8")]).unwrap();
        let said = (exports.ratio.to_bits(), exports.parent_based, exports.span_queue, exports.log_queue);
        assert_eq!(said, (0.1_f64.to_bits(), true, 8, QUEUE));
        let off = of(&[endpoint, ("OTEL_TRACES_SAMPLER", "always_off")]).unwrap();
        assert_eq!((off.ratio.to_bits(), off.parent_based), (0.0_f64.to_bits(), false));
    }

    #[test]
    fn what_cannot_be_done_is_said_by_the_variables_name() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        let wrong = of(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]);
        assert_eq!(wrong, Err("OTEL_EXPORTER_OTLP_PROTOCOL: must be grpc or http/protobuf".to_owned()));
        let wrong = of(&[("OTEL_TRACES_EXPORTER", "zipkin")]);
        assert_eq!(wrong, Err("OTEL_TRACES_EXPORTER: must be otlp or none".to_owned()));
    }
}
