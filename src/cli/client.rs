//! A small HTTP client for the program's own commands.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

/// What goes wrong with a request.
pub(super) type ClientError = Box<dyn std::error::Error>;

/// One request.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: &'a str,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Option<String>,
}

/// A reply, read whole.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Reply {
    /// The body as JSON; `null` when it is none.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Asks over plain HTTP, for at most `limit` a request.
pub(super) struct Client {
    client: HyperClient<HttpConnector, Body>,
    limit: Duration,
}

impl Client {
    pub(super) fn new(limit: Duration) -> Self {
        Self { client: HyperClient::builder(TokioExecutor::new()).build_http(), limit }
    }

    /// Sends a request and returns once the reply's head is there.
    pub(super) async fn send(&self, call: Call<'_>) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder().method(call.method).uri(call.url);
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        let body = match call.body {
            Some(text) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(text)
            }
            None => Body::empty(),
        };
        Ok(timeout(self.limit, self.client.request(request.body(body)?)).await??)
    }

    /// Sends a request and reads the reply whole.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Reply, ClientError> {
        let response = self.send(call).await?;
        let status = response.status();
        let body = timeout(self.limit, response.into_body().collect()).await??.to_bytes();
        Ok(Reply { status, body })
    }
}
