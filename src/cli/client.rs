//! The HTTP client of the subcommands.

use std::error::Error;
use std::time::Duration;

use axum::http::StatusCode;
use bytes::Bytes;
use reqwest::redirect::Policy;
use reqwest::{ClientBuilder, RequestBuilder};
use rustls::ClientConfig;
use serde_json::Value;

/// Why a client cannot be created, or why a request failed.
pub(super) type ClientError = Box<dyn Error>;

/// A client that follows no redirects.
pub(super) fn builder(tls: ClientConfig) -> ClientBuilder {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(Policy::none())
        // A connection that was idle for longer is not reused, because the server may be about to close it.
        .pool_idle_timeout(Duration::from_secs(1))
        .user_agent(concat!("callback-ingress/", env!("CARGO_PKG_VERSION")))
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

/// Sends a request and reads the whole response.
pub(super) async fn call(request: RequestBuilder) -> Result<ClientResponse, ClientError> {
    let read = async {
        let response = request.send().await?;
        let status = response.status();
        Ok(ClientResponse { status, body: response.bytes().await? })
    };
    read.await.map_err(|error: reqwest::Error| root_cause(&error).into())
}

/// The innermost error of a chain. The outer errors of a failed request say only that it failed.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
