//! `probe`: a round trip through a running deployment, as the platform and as a provider.
//!
//! Exits with 0 if every step succeeded, otherwise with 1 and the reason for the failed step. The probe ends the
//! conversation that it opened, also after a failed step. If it cannot, the idle timeout ends the conversation.

mod explain;
mod http_client;
mod report;
mod round_trip;

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::HeaderValue;
use clap::Args;
use rustls::ClientConfig;
use secrecy::ExposeSecret;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout};

use self::http_client::HttpClient;
use self::report::{Report, StepFailure};
use self::round_trip::{Endpoints, RoundTrip};
use super::client::ClientError;
use super::client_tls::{pinned, trusting};
use super::healthcheck::connectable;
use super::outcome::{Failure, note};
use super::platform_client::use_service_key_file;
use super::settings::SettingsArgs;
use crate::config::{LoadedConfig, parse_base_url};
use crate::public::CALLBACKS_PATH;

#[derive(Debug, Args)]
#[expect(clippy::doc_markdown, reason = "shown as help on the terminal")]
pub(super) struct ProbeArgs {
    /// Public base URL for providers; default: the URL in the service's `callback` object
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// URL of the platform listener; default: http.platform_addr
    #[arg(long, value_name = "URL")]
    platform_url: Option<String>,
    /// File with a service key, instead of platform.service_keys
    #[arg(long, value_name = "FILE")]
    service_key_file: Option<PathBuf>,
    /// PEM file with certificates to trust in addition to the public authorities
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Time limit for all steps in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1..))]
    timeout_ms: u64,
    /// Size of each result in bytes, to test the body limit of the gateway
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    bytes: usize,
    /// Print one JSON document instead of one line per step
    #[arg(long)]
    json: bool,
}

/// Time limit for ending the conversation after a failure.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(5);

impl ProbeArgs {
    /// Loads the settings for these arguments.
    pub(super) fn load(&self, mut settings: SettingsArgs) -> Result<LoadedConfig, Failure> {
        let used: &[&str] = if self.platform_url.is_some() {
            &["--config", "--set"]
        } else {
            &["--config", "--set", "--platform-addr"]
        };
        settings.refuse_unused("probe", used)?;
        use_service_key_file(&mut settings, self.service_key_file.as_deref())?;
        settings.load()
    }

    fn endpoints(&self, loaded: &LoadedConfig) -> Result<Endpoints, Failure> {
        let config = &loaded.config;
        let key = config.platform.service_keys.keys().first().ok_or_else(|| {
            let message = "probe needs a service key: give --service-key-file, or set platform.service_keys_file or \
                           platform.service_keys as for serve";
            Failure::Usage(message.into())
        })?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", key.expose_secret()))
            .map_err(|_| Failure::Usage("the service key is not a valid header value".into()))?;
        authorization.set_sensitive(true);
        let address = connectable(config.http.platform_addr);
        let own_tls = config.platform_tls().filter(|_| self.platform_url.is_none());
        let platform_url = match (&self.platform_url, &own_tls) {
            (Some(url), _) => base_url("--platform-url", url)?,
            (None, Some(_)) => format!("https://{address}"),
            (None, None) => format!("http://{address}"),
        };
        // The configured certificate is not for a loopback address, so it is compared instead of verified.
        let platform_tls = match own_tls {
            Some(files) => pinned(&files.chain).map_err(usage)?,
            None => self.tls()?,
        };
        let public_url = self.url.as_deref().map(|url| base_url("--url", url)).transpose()?;
        let public_url = public_url.map(|url| url.trim_end_matches(CALLBACKS_PATH).to_owned());
        Ok(Endpoints {
            platform: HttpClient::direct(platform_tls).map_err(usage)?,
            platform_url,
            authorization,
            public: HttpClient::with_environment_proxy(self.tls()?).map_err(usage)?,
            public_url,
        })
    }

    fn tls(&self) -> Result<ClientConfig, Failure> {
        trusting(self.ca.as_deref()).map_err(|error| {
            let file = self.ca.as_deref().unwrap_or(Path::new("")).display();
            Failure::Usage(format!("--ca {file}: {error}").into())
        })
    }
}

fn usage(error: ClientError) -> Failure {
    Failure::Usage(error)
}

fn base_url(flag: &str, text: &str) -> Result<String, Failure> {
    // The text is not repeated: it can contain a password.
    parse_base_url(text).map_err(|problem| Failure::Usage(format!("{flag} {problem}").into()))
}

pub(super) async fn run(loaded: LoadedConfig, arguments: ProbeArgs) -> Result<(), Failure> {
    let limit = Duration::from_millis(arguments.timeout_ms);
    let endpoints = arguments.endpoints(&loaded)?;
    let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
        .map(signal)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Failure::Runtime(error.into()))?;
    let mut interrupted = async || {
        let received = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
        futures_util::future::select_all(received).await;
    };
    let report = Report::new(arguments.json);
    let began = Instant::now();
    let round_trip = RoundTrip::new(endpoints, &report, arguments.bytes, limit);
    let result = tokio::select! {
        result = timeout(limit, round_trip.run()) => {
            result.unwrap_or_else(|_| Err(round_trip.timed_out(limit)))
        }
        () = interrupted() => Err(StepFailure::new("interrupted")),
    };
    let mut failure = result.err().map(|failure| (report.current_step(), failure));
    if let Some((step, _)) = &failure {
        let printed = report.failed(step);
        tokio::select! {
            cleaned = timeout(CLEANUP_TIMEOUT, round_trip.clean_up()) => {
                let left_behind = cleaned.unwrap_or_else(|_| round_trip.left_behind("no response"));
                if let Some(message) = left_behind {
                    note(&message);
                }
            }
            () = interrupted() => {}
        }
        printed?;
    }
    if let Some((_, failure)) = &mut failure {
        failure.reason = round_trip.without_secrets(&failure.reason);
    }
    report.finish(round_trip.conversation(), &round_trip.carriers(), failure, began.elapsed())
}
