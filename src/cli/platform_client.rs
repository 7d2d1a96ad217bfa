//! Requests of the subcommands to the platform listener of a running service.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Limited};
use reqwest::{Client, Response};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use tokio::time::timeout;
use url::Url;

use super::client::{builder, root_cause};
use super::client_tls::{pinned, trusting};
use super::healthcheck::connectable;
use super::outcome::Failure;
use super::settings::SettingsArgs;
use super::text::plain;
use crate::config::LoadedConfig;
use crate::domain::ids::ConversationId;
use crate::domain::time::Timestamp;
use crate::platform::PLATFORM_PATH;

/// Maximum size of a response. The inspection of a conversation at its limits is about 10 MB.
const MAX_REPLY: usize = 64 * 1024 * 1024;

#[derive(Debug, Args)]
#[expect(clippy::doc_markdown, reason = "shown as help on the terminal")]
pub(super) struct PlatformArgs {
    /// URL of the platform listener, such as http://127.0.0.1:8081, instead of http.platform_addr
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// File with a service key, instead of platform.service_keys
    #[arg(long, value_name = "FILE")]
    service_key_file: Option<PathBuf>,
    /// PEM file with certificates to trust in addition to the public authorities
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
    /// Timeout of a request in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    timeout_ms: u64,
}

impl PlatformArgs {
    /// Loads the settings for these arguments. A service key in a file replaces the configured ones.
    pub(super) fn load(&self, command: &str, mut settings: SettingsArgs) -> Result<LoadedConfig, Failure> {
        let used: &[&str] = if self.url.is_some() {
            &["--config", "--set"]
        } else {
            &["--config", "--set", "--platform-addr"]
        };
        settings.refuse_unused(command, used)?;
        use_service_key_file(&mut settings, self.service_key_file.as_deref())?;
        settings.load()
    }
}

/// Replaces the configured service keys with those in a file.
pub(super) fn use_service_key_file(settings: &mut SettingsArgs, file: Option<&Path>) -> Result<(), Failure> {
    let Some(file) = file else { return Ok(()) };
    let file = file.to_str().ok_or_else(|| Failure::Usage("--service-key-file is not UTF-8".into()))?;
    settings.set.push("platform.service_keys=[]".into());
    settings.set.push(format!("platform.service_keys_file={file}"));
    Ok(())
}

/// Why a request has no usable response.
#[derive(Debug)]
pub(super) enum CallError {
    /// The connection failed, the response ended early or was too large, or it took too long.
    Failed { url: String, cause: String },
    /// The service refused the request.
    Refused { url: String, status: StatusCode, error: ErrorBody },
    /// The response is not one that this version of callback-ingress can read.
    Unexpected { url: String, why: String },
}

/// The `error` of a refusal.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ErrorBody {
    code: String,
    message: String,
    request_id: String,
}

/// The body of a refusal.
#[derive(Debug, Default, Deserialize)]
struct ErrorEnvelope {
    error: ErrorBody,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { url, cause } => write!(f, "the request to {url} failed: {}", plain(cause)),
            Self::Refused { url, status, error } if error.code.is_empty() => {
                write!(f, "{url} responded with {status}: is it the platform listener of callback-ingress?")
            }
            // The public listener has no such path.
            Self::Refused { url, error, .. } if error.code == "NOT_FOUND" => {
                write!(f, "{url} responded with 404 NOT_FOUND: is it the platform listener?")
            }
            Self::Refused { url, status, error } => write!(
                f,
                "{url} responded with {} {}: {} (request {})",
                status.as_u16(),
                plain(&error.code),
                plain(&error.message),
                plain(&error.request_id)
            ),
            Self::Unexpected { url, why } => {
                write!(
                    f,
                    "the response from {url} cannot be read by callback-ingress {}: ",
                    env!("CARGO_PKG_VERSION")
                )?;
                f.write_str(&plain(why))
            }
        }
    }
}

impl std::error::Error for CallError {}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::Runtime(error.into())
    }
}

impl CallError {
    /// Whether the same request can succeed later: the service is unavailable, draining or overloaded.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            Self::Failed { .. } => true,
            Self::Refused { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Unexpected { .. } => false,
        }
    }
}

/// A client of one platform listener.
pub(super) struct PlatformClient {
    client: Client,
    /// Scheme, host and port, as shown.
    url: String,
    /// The part of paths before [`PLATFORM_PATH`].
    prefix: String,
    timeout: Duration,
}

impl PlatformClient {
    pub(super) fn new(arguments: &PlatformArgs, loaded: &LoadedConfig) -> Result<Self, Failure> {
        let own_tls = loaded.config.platform_tls().filter(|_| arguments.url.is_none());
        let url = if let Some(url) = &arguments.url {
            parse_url(url)?
        } else {
            let scheme = if own_tls.is_some() { "https" } else { "http" };
            parse_url(&format!("{scheme}://{}", connectable(loaded.config.http.platform_addr)))?
        };
        if arguments.ca.is_some() && url.scheme() != "https" {
            return Err(Failure::Usage("--ca is only valid with an https:// URL".into()));
        }
        let tls = match own_tls {
            Some(files) => pinned(&files.chain),
            None => trusting(arguments.ca.as_deref()),
        };
        let key = loaded.config.platform.service_keys.keys().first().ok_or_else(|| {
            Failure::Usage(
                "no service key: set platform.service_keys or platform.service_keys_file, or use --service-key-file"
                    .into(),
            )
        })?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", key.expose_secret()))
            .map_err(|_| Failure::Usage("the service key is not a valid header value".into()))?;
        authorization.set_sensitive(true);
        let client = builder(tls.map_err(Failure::Usage)?)
            .no_proxy()
            // Each request opens a connection.
            .pool_max_idle_per_host(0)
            .default_headers(HeaderMap::from_iter([(AUTHORIZATION, authorization)]))
            .build();
        let path = url.path().trim_end_matches('/');
        Ok(Self {
            client: client.map_err(|error| Failure::Usage(error.into()))?,
            url: format!("{}://{}", url.scheme(), url.authority()),
            prefix: path.strip_suffix(PLATFORM_PATH).unwrap_or(path).to_owned(),
            timeout: Duration::from_millis(arguments.timeout_ms),
        })
    }

    /// Requests a path below `/platform/v1`. Returns a successful response with its body unread.
    pub(super) async fn open(&self, path: &str, last_event_id: Option<&str>) -> Result<Response, CallError> {
        let mut request = self.client.get(format!("{}{}{PLATFORM_PATH}{path}", self.url, self.prefix));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = match timeout(self.timeout, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.no_response(root_cause(&error))),
            Err(elapsed) => return Err(self.no_response(elapsed)),
        };
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let body = self.collect(response).await?;
        let error = serde_json::from_slice::<ErrorEnvelope>(&body).unwrap_or_default().error;
        Err(CallError::Refused { url: self.url.clone(), status, error })
    }

    async fn collect(&self, response: Response) -> Result<Bytes, CallError> {
        let body = Limited::new(reqwest::Body::from(response), MAX_REPLY).collect();
        match timeout(self.timeout, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(self.no_response(root_cause(&*error))),
            Err(elapsed) => Err(self.no_response(elapsed)),
        }
    }

    /// Requests a path below `/platform/v1` and returns the reply, which is JSON.
    pub(super) async fn get(&self, path: &str) -> Result<String, CallError> {
        let response = self.open(path, None).await?;
        let body = self.collect(response).await?;
        String::from_utf8(body.into()).map_err(|_| self.unexpected("it is not UTF-8"))
    }

    /// Parses a reply.
    pub(super) fn parse<'a, T: Deserialize<'a>>(&self, json: &'a str) -> Result<T, CallError> {
        serde_json::from_str(json).map_err(|error| self.unexpected(&error.to_string()))
    }

    /// Timeout of a request.
    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The error for a connection that failed, or a stream that ended early.
    pub(super) fn no_response(&self, cause: impl fmt::Display) -> CallError {
        CallError::Failed { url: self.url.clone(), cause: cause.to_string() }
    }

    fn unexpected(&self, why: &str) -> CallError {
        CallError::Unexpected { url: self.url.clone(), why: why.to_owned() }
    }
}

fn invalid_url() -> Failure {
    Failure::Usage("--url must be http://HOST:PORT or https://HOST:PORT, the platform listener".into())
}

/// Parses `--url`. The error does not show it, because it can contain a password.
fn parse_url(text: &str) -> Result<Url, Failure> {
    let url = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    });
    url.ok_or_else(invalid_url)
}

/// The id of a conversation on the command line.
pub(super) fn conversation_id(text: &str) -> Result<ConversationId, String> {
    ConversationId::parse(text).map_err(|error| error.to_string())
}

/// Deserializes a time.
pub(super) fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(|_| D::Error::custom("not a time"))
}

/// Like [`time`]; can be missing.
pub(super) fn optional_time<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Timestamp>, D::Error> {
    time(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_must_be_http_without_credentials_or_query() {
        for url in ["http://127.0.0.1:8081", "https://ingress.internal", "http://[::1]:1/prefix/"] {
            assert!(parse_url(url).is_ok(), "{url}");
        }
        for url in [
            "",
            "127.0.0.1:8081",
            "localhost:8081",
            "ftp://a",
            "http://user:hunter2@a",
            "http://a/?b",
            "http://",
        ] {
            let Err(Failure::Usage(error)) = parse_url(url) else { panic!("{url} is accepted") };
            assert!(!error.to_string().contains("hunter2"));
        }
    }
}
