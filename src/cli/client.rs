//! The HTTP client of the subcommands.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::time::timeout;

use crate::http::tls;

/// A failed request.
pub(super) type ClientError = Box<dyn std::error::Error>;

/// Trusts the built-in certificate authorities and the certificates in this file.
pub(super) fn trusting(ca: Option<&Path>) -> Result<ClientConfig, ClientError> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for certificate in ca.map(tls::chain).transpose()?.unwrap_or_default() {
        roots.add(certificate)?;
    }
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// A request; a body is sent as JSON.
pub(super) struct ClientRequest<'a> {
    pub(super) method: Method,
    pub(super) url: &'a str,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Option<String>,
}

/// A response with its whole body.
pub(super) struct ClientResponse {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl ClientResponse {
    /// The body as JSON; `null` if it is not JSON.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// A client for plain HTTP. `timeout` applies to the response's head, and again to its body.
pub(super) struct Client {
    client: HyperClient<HttpConnector, Body>,
    timeout: Duration,
}

impl Client {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { client: HyperClient::builder(TokioExecutor::new()).build_http(), timeout }
    }

    /// Sends a request and returns the response with its body unread.
    pub(super) async fn send(&self, request: ClientRequest<'_>) -> Result<Response<Incoming>, ClientError> {
        let mut builder = Request::builder().method(request.method).uri(request.url);
        for (name, value) in request.headers {
            builder = builder.header(name, value);
        }
        let body = match request.body {
            Some(text) => {
                builder = builder.header(header::CONTENT_TYPE, "application/json");
                Body::from(text)
            }
            None => Body::empty(),
        };
        Ok(timeout(self.timeout, self.client.request(builder.body(body)?)).await??)
    }

    /// Sends a request and reads the whole response.
    pub(super) async fn call(&self, request: ClientRequest<'_>) -> Result<ClientResponse, ClientError> {
        let response = self.send(request).await?;
        let status = response.status();
        let body = timeout(self.timeout, response.into_body().collect()).await??.to_bytes();
        Ok(ClientResponse { status, body })
    }
}
