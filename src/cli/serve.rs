//! `serve`: runs the service until SIGTERM or SIGINT.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use secrecy::ExposeSecret;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::config::{exports, public_url_warnings};
use super::outcome::{Failure, print};
use super::width::wrapped;
use crate::app::{self, App, AppError};
use crate::clock::Clock;
use crate::config::{Carrier, Exports, InvalidVariable, LoadedConfig, TokenConfig};
use crate::public::CALLBACKS_PATH;
use crate::telemetry::{self, ExportError, Telemetry};

impl From<AppError> for Failure {
    fn from(error: AppError) -> Self {
        match error {
            AppError::Store(_) | AppError::StoreRefused(_) | AppError::Tls { .. } => {
                Self::Usage(error.into())
            }
            AppError::Bind { .. }
            | AppError::TaskEnded(_)
            | AppError::NoEntropy(_)
            | AppError::KeyTooShort(_)
            | AppError::KeyId(_) => Self::Runtime(error.into()),
        }
    }
}

impl From<InvalidVariable> for Failure {
    fn from(error: InvalidVariable) -> Self {
        Self::Usage(error.into())
    }
}

impl From<ExportError> for Failure {
    fn from(error: ExportError) -> Self {
        Self::Usage(error.into())
    }
}

pub(super) async fn run(loaded: LoadedConfig) -> Result<(), Failure> {
    let exports = exports()?;
    let (telemetry, telemetry_guard) = telemetry::start(&loaded.config.telemetry, exports)?;
    let signals = Signals::listen().map_err(|error| Failure::Runtime(error.into()))?;
    let result = serve(&loaded, exports, telemetry, &signals).await;
    tokio::select! {
        () = telemetry_guard.flush(loaded.config.http.flush_timeout()) => result,
        () = signals.received(2) => Err(second_signal()),
    }
}

fn second_signal() -> Failure {
    Failure::Runtime("terminated by a second signal".into())
}

async fn serve(
    loaded: &LoadedConfig,
    exports: Exports,
    telemetry: Telemetry,
    signals: &Signals,
) -> Result<(), Failure> {
    let open_files = raise_open_files(loaded.config.http.max_connections.get());
    let connections = open_files.saturating_sub(RESERVED_FILES.min(open_files / 2));
    let app = app::build(&loaded.config, Clock::System, telemetry).await?;
    let app = app.with_max_connections(usize::try_from(connections).unwrap_or(usize::MAX));
    let mut hangup = signal(SignalKind::hangup()).map_err(|error| Failure::Runtime(error.into()))?;
    let (certificates, key_files) = (app.check_certificates(), app.key_files());
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            certificates.notify_waiters();
            key_files.reload();
        }
    });
    let store = loaded.redacted_store_url();
    tracing::info!(
        name: "serving",
        version = env!("CARGO_PKG_VERSION"),
        public = %app.public_addr(),
        platform = %app.platform_addr(),
        store,
        otlp = %exports,
        "serving"
    );
    if loaded.config.redis().is_none() {
        tracing::warn!(name: "store.memory", "store.url is memory: conversations are lost when this process exits");
    } else if loaded.config.token.keys.is_empty() {
        tracing::warn!(
            name: "token_keys.generated",
            "token.keys is empty: tokens are invalid after this run and on other instances"
        );
    }
    for warning in public_url_warnings(&loaded.config.http) {
        tracing::warn!(name: "public_url", "{warning}");
    }
    if let Some(key) = app.generated_service_key() {
        print(&quick_start(&app, &loaded.config.token, key.expose_secret()))?;
    }
    tokio::select! {
        result = app.run(signals.received(1)) => Ok(result?),
        () = signals.received(2) => Err(second_signal()),
    }
}

/// File descriptors for everything except client connections: Redis, the log, telemetry, certificates.
const RESERVED_FILES: u64 = 64;

/// Raises the soft limit on open files as far as `http.max_connections` needs and the hard limit allows. The default
/// soft limit is low, for compatibility with programs that use `select`. Returns the new limit.
fn raise_open_files(connections: u64) -> u64 {
    let needed = connections.saturating_mul(2).saturating_add(RESERVED_FILES);
    let limit = getrlimit(Resource::Nofile);
    let (soft, hard) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    let raised = hard.min(needed).max(soft);
    if raised > soft
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), ..limit })
    {
        tracing::warn!(name: "open_files.limited", error = %error, "cannot raise the limit on open files");
        return soft;
    }
    if raised < connections.saturating_add(RESERVED_FILES) {
        tracing::warn!(
            name: "open_files.limited",
            open_files = raised,
            connections,
            "the limit on open files allows fewer connections than http.max_connections"
        );
    }
    raised
}

/// The number of received SIGTERM and SIGINT signals.
struct Signals(watch::Receiver<usize>);

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (sender, receiver) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                sender.send_modify(|count| *count += 1);
                let next = match *sender.borrow() {
                    1 => "draining; a second signal exits immediately",
                    _ => "exiting immediately",
                };
                tracing::info!(name: "signal", signal = name, "signal received, {next}");
            }
        });
        Ok(Self(receiver))
    }

    /// Waits until `wanted` signals have been received in total.
    fn received(&self, wanted: usize) -> impl Future<Output = ()> + use<> {
        let mut receiver = self.0.clone();
        async move {
            // Never fails: the counting task runs until the process exits.
            let _ = receiver.wait_for(|count| *count >= wanted).await;
        }
    }
}

/// Shell commands for a first try, for bash and zsh. They contain no comments, which an interactive zsh does not
/// accept.
fn quick_start(app: &App, token: &TokenConfig, key: &str) -> String {
    let platform = format!("{}://{}", app.platform_scheme(), app.platform_addr());
    let url = format!("{}://{}{CALLBACKS_PATH}", app.public_scheme(), app.public_addr());
    let (header, query, field) = (&token.header_name.text, &token.query_name, &token.body_field);
    let plain = r#"{"answer":42}"#.to_owned();
    let (to, body) = match token.default_carrier {
        Carrier::Header => (format!(r#""$CALLBACKS" -H "{header}: $TOKEN""#), plain),
        Carrier::Query => (format!(r#""$CALLBACKS?{query}=$TOKEN""#), plain),
        Carrier::Path => (r#""$CALLBACKS/$TOKEN""#.to_owned(), plain),
        Carrier::Body => (r#""$CALLBACKS""#.to_owned(), format!(r#"{{"answer":42,"{field}":"'$TOKEN'"}}"#)),
    };
    let intro = wrapped(
        "No service key is configured, so one was generated for this run. These lines open a conversation, issue a \
         work item, post its result as the provider, and read the channel of the conversation. Paste them into \
         another terminal:",
        0,
        0,
    );
    let next = [
        "continue in that terminal with docs/platform.md",
        "callback-ingress keys new creates keys that stay valid after this run",
        "callback-ingress config check lists what a deployment still needs",
    ]
    .map(|line| format!("  - {}\n", wrapped(line, 4, 4)))
    .concat();
    format!(
        r#"
{intro}

KEY={key}
API={platform}/platform/v1/conversations
CALLBACKS={url}
AUTH="Authorization: Bearer $KEY"
JSON="Content-Type: application/json"
curl -sS -X PUT "$API/call-1" -H "$AUTH"; echo
ISSUED=$(curl -sS "$API/call-1/work-items" -H "$AUTH" -H "$JSON" \
  -d '{{"kind":"tool","timeoutMs":600000}}'); echo "$ISSUED"
TOKEN=$(echo "$ISSUED" | grep -o 'cbt_[A-Za-z0-9_-]*' | head -n 1)
curl -sS {to} -H "$JSON" \
  -d '{body}'; echo
curl -sN --max-time 1 "$API/call-1/events?from=0" -H "$AUTH"; echo

Next:
{next}
"#
    )
}
