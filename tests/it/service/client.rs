//! An HTTP client whose replies are checked against the contract.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

use super::PATIENCE;

type Pool = hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>;

/// Maximum idle time of a connection that is used again. Far below every `http.keep_alive_timeout_ms` of the tests: a
/// request on a connection that the service closes at that moment gets no reply.
const REUSE: Duration = Duration::from_millis(250);

/// A client with its own connections.
#[derive(Clone, Debug)]
pub(crate) struct Client(Pool);

impl Default for Client {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let mut client = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
        Self(client.pool_idle_timeout(REUSE).build(connector))
    }
}

/// A request that has not been sent yet.
#[derive(Clone, Debug)]
pub(crate) struct Call<'a> {
    client: &'a Client,
    method: String,
    url: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Bytes,
}

impl<'a> Call<'a> {
    pub(crate) fn new(client: &'a Client, method: &str, url: String) -> Self {
        Self { client, method: method.to_owned(), url, headers: Vec::new(), body: Bytes::new() }
    }

    /// Adds a header; names may repeat.
    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Sets a body without a content type.
    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets a body with the content type of JSON.
    pub(crate) fn json(self, body: impl Into<Bytes>) -> Self {
        self.header("content-type", "application/json").body(body)
    }

    /// Sends it and returns the reply before its body is read.
    pub(crate) async fn begin(self) -> Response<Incoming> {
        let mut request = Request::builder().method(self.method.as_str()).uri(&self.url);
        for (name, value) in &self.headers {
            request = request.header(name.as_str(), value.as_slice());
        }
        let request = request.body(Full::new(self.body)).unwrap();
        timeout(PATIENCE, self.client.0.request(request)).await.expect("a reply in time").unwrap()
    }

    /// Sends it and reads the whole reply.
    pub(crate) async fn send(self) -> Reply {
        let (head, body) = self.begin().await.into_parts();
        let body = timeout(PATIENCE, body.collect()).await.expect("a whole reply in time").unwrap();
        Reply { status: head.status, headers: head.headers, body: body.to_bytes() }
    }

    /// Sends it and returns the reply's verdict.
    pub(crate) async fn verdict(self) -> (u16, String) {
        self.send().await.verdict()
    }
}

/// A complete reply.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// A header that occurs at most once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map(|value| value.to_str().unwrap());
        assert_eq!(values.next(), None, "{name} stands twice");
        value
    }

    /// The status, with the code of a refusal or the status in a receipt. Also checks what the contract demands of every
    /// reply.
    pub(crate) fn verdict(&self) -> (u16, String) {
        let status = self.status.as_u16();
        let request_id = self.header("x-request-id").expect("every reply has a request id");
        assert_eq!(uuid::Uuid::try_parse(request_id).map(|id| id.to_string()), Ok(request_id.to_owned()));
        let trace_id = self.header("x-trace-id").expect("every reply has a trace id");
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        assert!(trace_id.len() == 32 && trace_id.bytes().all(hex), "{trace_id}");
        let trace = self.header("traceresponse").expect("every reply has its span");
        assert_eq!(self.header("server-timing"), Some(format!("trace;desc={trace}").as_str()));
        assert_ne!(self.status, StatusCode::GONE);
        assert!(!self.status.is_redirection(), "{status}");
        if self.status.is_success() {
            let word = if self.body.is_empty() { Value::Null } else { self.json()["status"].clone() };
            return (status, word.as_str().unwrap_or_default().to_owned());
        }
        assert_eq!(self.header("content-type"), Some("application/json"));
        let envelope = self.json();
        let envelope = envelope.as_object().unwrap();
        assert_eq!(envelope.keys().collect::<Vec<_>>(), ["error"]);
        let error = envelope["error"].as_object().unwrap();
        for key in error.keys() {
            let known = ["code", "message", "requestId", "retryable", "traceId", "outcome"];
            assert!(known.contains(&key.as_str()), "{key} is not TelAPI's");
        }
        assert_eq!(error["requestId"], request_id);
        assert_eq!(error["traceId"], trace_id);
        assert!(!error["message"].as_str().unwrap().is_empty());
        let retryable = matches!(status, 408 | 429 | 500 | 503);
        assert_eq!(error["retryable"], retryable, "{status}");
        assert_eq!(self.header("www-authenticate").is_some(), status == 401, "{status}");
        assert_eq!(self.header("accept").is_some(), status == 415, "{status}");
        assert_eq!(self.header("webhook-delivery"), (!retryable).then_some("abort-message"), "{status}");
        let retry_after = self.header("retry-after").map(|seconds| seconds.parse::<u32>().unwrap());
        assert_eq!(retry_after.is_some_and(|seconds| seconds > 0), matches!(status, 429 | 503), "{status}");
        (status, error["code"].as_str().unwrap().to_owned())
    }

    /// The message of a refusal.
    pub(crate) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }

    /// The methods in `Allow`.
    pub(crate) fn allowed_methods(&self) -> Vec<&str> {
        let mut methods: Vec<&str> =
            self.header(header::ALLOW.as_str()).unwrap_or_default().split(',').map(str::trim).collect();
        methods.sort_unstable();
        methods
    }
}
