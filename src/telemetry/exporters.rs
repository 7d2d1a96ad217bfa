//! The OTLP exporters. The SDK reads their environment variables, except for those that [`Exports`] reads.

use opentelemetry_otlp::{
    LogExporter, MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use thiserror::Error;

use super::attributes::{attributes, text};
use super::names;
use crate::clock::Entropy;
use crate::config::Exports;

/// The SDK refused the variables, or cannot create an HTTP client. Its message is left out, because it would repeat the
/// variables' values.
#[derive(Debug, Error)]
#[error("cannot create the OTLP exporters; check the OTEL_EXPORTER_OTLP_ variables")]
pub struct ExportError;

/// The resource: attributes from the variables, with defaults for the service's name, version and instance id.
pub(super) fn resource() -> Resource {
    let variables = Resource::builder().build();
    let given = |name: &'static str| variables.get(&name.into());
    let name = given(names::SERVICE_NAME).filter(|name| !name.as_str().starts_with("unknown_service"));
    let instance = given(names::SERVICE_INSTANCE_ID).unwrap_or_else(|| text(Entropy.request_id()));
    let environment =
        given(names::DEPLOYMENT_ENVIRONMENT).or_else(|| given(names::DEPLOYMENT_ENVIRONMENT_OLD));
    let own = attributes([
        (names::SERVICE_NAME, Some(name.unwrap_or_else(|| names::SERVICE.into()))),
        (names::SERVICE_VERSION, Some(env!("CARGO_PKG_VERSION").into())),
        (names::SERVICE_INSTANCE_ID, Some(instance)),
        (names::DEPLOYMENT_ENVIRONMENT, environment.clone()),
        (names::DEPLOYMENT_ENVIRONMENT_OLD, environment),
    ]);
    Resource::builder().with_attributes(own).build()
}

/// A client that trusts built-in certificate authorities, because slim container images have none. It is created on a
/// separate thread, because creating a blocking client within a runtime panics.
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
    let client = client.join().map_err(|_| ExportError)?;
    client.map_err(|_| ExportError)
}

/// Builds the exporter of one signal.
macro_rules! exporter {
    ($builder:expr, $protocol:expr) => {
        match $protocol {
            Protocol::Grpc => $builder.with_tonic().build(),
            protocol => {
                let builder = $builder.with_http().with_protocol(protocol);
                builder.with_http_client(http_client()?).build()
            }
        }
        .map_err(|_| ExportError)
    };
}

pub(super) fn spans(protocol: Protocol) -> Result<SpanExporter, ExportError> {
    exporter!(SpanExporter::builder(), protocol)
}

pub(super) fn logs(protocol: Protocol) -> Result<LogExporter, ExportError> {
    exporter!(LogExporter::builder(), protocol)
}

pub(super) fn metrics(exports: &Exports, protocol: Protocol) -> Result<MetricExporter, ExportError> {
    exporter!(MetricExporter::builder().with_temporality(exports.temporality), protocol)
}
