//! An OTLP collector, over gRPC or HTTP, that keeps what it receives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Received telemetry with its resource.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) resource: BTreeMap<String, String>,
    pub(crate) spans: Vec<Span>,
    pub(crate) logs: Vec<LogRecord>,
    pub(crate) metrics: Vec<Metric>,
    /// Every request body, unparsed.
    pub(crate) raw: Vec<Vec<u8>>,
    /// The value of the header `authorization`.
    pub(crate) credentials: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Received>>);

/// A running collector, stopped when dropped.
#[derive(Debug)]
pub(crate) struct Collector {
    shared: Shared,
    address: SocketAddr,
    protocol: Protocol,
    runtime: Runtime,
}

/// Its endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Protocol {
    Grpc,
    Http,
}

/// An attribute value as text.
pub(crate) fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

/// Attributes by name.
pub(crate) fn attributes(of: &[KeyValue]) -> BTreeMap<String, String> {
    of.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

/// An id in hexadecimal.
pub(crate) fn hex(id: &[u8]) -> String {
    id.iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

impl Shared {
    fn add(&self, request: &impl Message, keep: impl FnOnce(&mut Received)) {
        let mut received = self.0.lock().unwrap();
        received.raw.push(request.encode_to_vec());
        keep(&mut received);
    }

    fn credential(&self, headers: &HeaderMap) {
        let credential = headers.get("authorization").and_then(|value| value.to_str().ok());
        self.0.lock().unwrap().credentials.extend(credential.map(ToOwned::to_owned));
    }

    fn traces(&self, request: ExportTraceServiceRequest) {
        self.add(&request.clone(), |received| {
            for of in request.resource_spans {
                received.resource = attributes(&of.resource.unwrap_or_default().attributes);
                received.spans.extend(of.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        });
    }

    fn logs(&self, request: ExportLogsServiceRequest) {
        self.add(&request.clone(), |received| {
            for of in request.resource_logs {
                received.resource = attributes(&of.resource.unwrap_or_default().attributes);
                received.logs.extend(of.scope_logs.into_iter().flat_map(|scope| scope.log_records));
            }
        });
    }

    fn metrics(&self, request: ExportMetricsServiceRequest) {
        self.add(&request.clone(), |received| {
            for of in request.resource_metrics {
                received.resource = attributes(&of.resource.unwrap_or_default().attributes);
                received.metrics.extend(of.scope_metrics.into_iter().flat_map(|scope| scope.metrics));
            }
        });
    }
}

#[tonic::async_trait]
impl TraceService for Shared {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.credential(request.metadata().as_ref());
        self.traces(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Shared {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.credential(request.metadata().as_ref());
        self.logs(request.into_inner());
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Shared {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.credential(request.metadata().as_ref());
        self.metrics(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// A path of OTLP over HTTP.
fn over_http<M: Message + Default + 'static>(keep: fn(&Shared, M)) -> axum::routing::MethodRouter<Shared> {
    post(move |State(shared): State<Shared>, headers: HeaderMap, body: Bytes| async move {
        shared.credential(&headers);
        match M::decode(body) {
            Ok(message) => {
                keep(&shared, message);
                StatusCode::OK
            }
            Err(_) => StatusCode::BAD_REQUEST,
        }
    })
}

impl Collector {
    pub(crate) fn start(protocol: Protocol) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), protocol)
    }

    fn start_at(address: SocketAddr, protocol: Protocol) -> Self {
        let runtime = Runtime::new().unwrap();
        let shared = Shared::default();
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        match protocol {
            Protocol::Grpc => {
                let server = Server::builder()
                    .add_service(TraceServiceServer::new(shared.clone()))
                    .add_service(LogsServiceServer::new(shared.clone()))
                    .add_service(MetricsServiceServer::new(shared.clone()));
                runtime.spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
            }
            Protocol::Http => {
                let routes = Router::new()
                    .route("/v1/traces", over_http(Shared::traces))
                    .route("/v1/logs", over_http(Shared::logs))
                    .route("/v1/metrics", over_http(Shared::metrics))
                    .with_state(shared.clone());
                runtime.spawn(async { axum::serve(listener, routes).await });
            }
        }
        Self { shared, address, protocol, runtime }
    }

    /// Stops, runs `outage`, and starts again at the same address. Keeps what it has received.
    pub(crate) fn restart_after(self, outage: impl FnOnce()) -> Self {
        let Self { shared, address, protocol, runtime } = self;
        drop(runtime);
        outage();
        let restarted = Self::start_at(address, protocol);
        std::mem::swap(&mut *restarted.shared.0.lock().unwrap(), &mut *shared.0.lock().unwrap());
        restarted
    }

    /// Environment variables that make a service export here with a short delay.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let protocol = match self.protocol {
            Protocol::Grpc => "grpc",
            Protocol::Http => "http/protobuf",
        };
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", self.address)),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
            ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
            ("OTEL_BLRP_SCHEDULE_DELAY", "50".to_owned()),
            ("OTEL_METRIC_EXPORT_INTERVAL", "200".to_owned()),
        ]
    }

    /// Everything received so far.
    pub(crate) fn received(&self) -> MutexGuard<'_, Received> {
        self.shared.0.lock().unwrap()
    }
}
