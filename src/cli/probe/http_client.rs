//! An HTTP client with TLS. Its errors say what an operator can check. They never contain a URL, because
//! a callback URL can contain a token.

use std::error::Error;
use std::io;

use axum::http::{HeaderMap, StatusCode};
use rustls::ClientConfig;
use serde_json::Value;

use super::report::StepFailure;
use crate::cli::client::{self, ClientError, root_cause};
use crate::cli::text::plain;
use crate::http::code::Code;

/// Number of bytes of a response after which reading stops, because the error page of a gateway can be long.
const MAX_BODY: usize = 64 * 1024;
/// Maximum number of characters that are shown of a text from a server.
const MAX_SHOWN: usize = 200;

/// Which listener a request is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Platform,
    Public,
}

impl Side {
    /// The name in messages.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Platform => "the platform URL",
            Self::Public => "the public URL",
        }
    }
}

#[derive(Debug)]
pub(super) struct HttpClient(reqwest::Client);

impl HttpClient {
    /// A client that connects to the host of the URL.
    pub(super) fn direct(tls: ClientConfig) -> Result<Self, ClientError> {
        Self::build(client::builder(tls).no_proxy())
    }

    /// A client that uses the proxy from the environment, for example from `HTTPS_PROXY`.
    pub(super) fn with_environment_proxy(tls: ClientConfig) -> Result<Self, ClientError> {
        Self::build(client::builder(tls))
    }

    fn build(builder: reqwest::ClientBuilder) -> Result<Self, ClientError> {
        Ok(Self(builder.user_agent(concat!("callback-ingress-probe/", env!("CARGO_PKG_VERSION"))).build()?))
    }

    pub(super) fn request(&self, method: reqwest::Method, url: &str) -> reqwest::RequestBuilder {
        self.0.request(method, url)
    }
}

/// Sends a request. Returns the response with its body unread.
pub(super) async fn send(
    side: Side,
    request: reqwest::RequestBuilder,
) -> Result<reqwest::Response, StepFailure> {
    request.send().await.map_err(|error| no_response(side, error))
}

/// Sends a request and reads the response.
pub(super) async fn call(side: Side, request: reqwest::RequestBuilder) -> Result<ProbeResponse, StepFailure> {
    ProbeResponse::read(side, send(side, request).await?).await
}

/// A response. Its body is `null` if it is not JSON.
#[derive(Debug)]
pub(super) struct ProbeResponse {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    pub(super) json: Value,
}

/// An error envelope of callback-ingress.
#[derive(Debug)]
pub(super) struct OwnError {
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) request_id: String,
}

impl ProbeResponse {
    pub(super) async fn read(side: Side, mut response: reqwest::Response) -> Result<Self, StepFailure> {
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| no_response(side, error))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_BODY {
                break;
            }
        }
        Ok(Self { status, headers, json: serde_json::from_slice(&body).unwrap_or_default() })
    }

    pub(super) fn text(&self, field: &str) -> &str {
        self.json[field].as_str().unwrap_or_default()
    }

    /// A header as printable text.
    pub(super) fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).map(|value| shown(&String::from_utf8_lossy(value.as_bytes())))
    }

    /// The error envelope. `None`: the response is a success or not from callback-ingress. The trace id and the code
    /// distinguish it from similar envelopes of gateways.
    pub(super) fn own_error(&self) -> Option<OwnError> {
        let error = &self.json["error"];
        let text = |field: &str| error[field].as_str().map(shown);
        let code = error["code"].as_str()?;
        let code = *Code::ALL.iter().find(|known| known.as_str() == code)?;
        let _trace_id = text("traceId")?;
        (self.status == code.status()).then_some(OwnError {
            code,
            message: text("message")?,
            request_id: text("requestId")?,
        })
    }
}

/// Text from a server, truncated and without control characters.
pub(super) fn shown(text: &str) -> String {
    plain(&text.chars().take(MAX_SHOWN).collect::<String>())
}

/// Explains a missing or incomplete response.
fn no_response(side: Side, error: reqwest::Error) -> StepFailure {
    let host =
        error.url().and_then(|url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?)));
    let host = host.unwrap_or_default();
    let error = error.without_url();
    let what = match connection_cause(&error) {
        ConnectionCause::Tls(rustls::Error::InvalidMessage(_)) => {
            format!("{host} does not speak TLS: is the URL http://?")
        }
        ConnectionCause::Tls(problem @ rustls::Error::InvalidCertificate(_)) => {
            format!("TLS error at {host}: {problem} (--ca FILE adds trusted certificates)")
        }
        ConnectionCause::Tls(problem) => format!("TLS error at {host}: {problem}"),
        ConnectionCause::Io(io::ErrorKind::ConnectionRefused) => format!("connection refused by {host}"),
        ConnectionCause::Io(io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => {
            format!("{host} closed the connection without a response")
        }
        ConnectionCause::Other(text) if error.is_connect() => format!("cannot connect to {host}: {text}"),
        ConnectionCause::Other(text) => format!("no usable response from {host}: {text}"),
        ConnectionCause::Io(kind) => format!("no response from {host}: {kind}"),
    };
    StepFailure::new(format!("{}: {what}", side.as_str()))
}

enum ConnectionCause<'a> {
    Tls(&'a rustls::Error),
    Io(io::ErrorKind),
    Other(String),
}

/// The TLS error or the kind of the I/O error in the chain, or else the root cause.
fn connection_cause<'a>(error: &'a (dyn Error + 'static)) -> ConnectionCause<'a> {
    let chain = || std::iter::successors(Some(error), |error| source(*error));
    if let Some(tls) = chain().find_map(|error| error.downcast_ref()) {
        return ConnectionCause::Tls(tls);
    }
    let io = chain().filter_map(|error| error.downcast_ref::<io::Error>()).map(io::Error::kind);
    match io.filter(|kind| *kind != io::ErrorKind::Other).last() {
        Some(kind) => ConnectionCause::Io(kind),
        None => ConnectionCause::Other(shown(&root_cause(error))),
    }
}

/// Like [`Error::source`], but also returns the error inside an I/O error, which that method skips.
fn source<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}
