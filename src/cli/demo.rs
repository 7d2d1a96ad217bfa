//! `demo`: runs the service in this process, and calls it over HTTP as the platform and as providers.
//!
//! Each step prints its requests, responses and envelopes. An unexpected response ends the demo with exit code 1.

mod event_reader;
mod screen;
mod session;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use self::session::{DemoError, Session, expect};
use super::outcome::Failure;
use super::settings::SettingsArgs;
use crate::app;
use crate::clock::Clock;
use crate::config::{Exports, LoadedConfig};
use crate::telemetry;

/// Timeout of the work item whose callback is late.
const SHORT_TIMEOUT_MS: u64 = 1_500;

/// Overrides what the demo depends on: free loopback ports, plain HTTP, all carriers, no rate limit. Logs only
/// errors, unless `--log-level` is given.
pub(super) fn settings(mut settings: SettingsArgs) -> Result<SettingsArgs, Failure> {
    settings.refuse_unused("demo", &["--config", "--set", "--store", "--log-level"])?;
    settings.log_level.get_or_insert("error".into());
    let forced = [
        ("http.public_addr", "127.0.0.1:0"),
        ("http.platform_addr", "127.0.0.1:0"),
        ("http.drain_grace_ms", "0"),
        ("http.public_base_url", ""),
        ("http.public_tls_cert", ""),
        ("http.public_tls_key", ""),
        ("http.platform_tls_cert", ""),
        ("http.platform_tls_key", ""),
        ("rate_limit.max", "0"),
        ("token.carriers", r#"["header","query","body","path"]"#),
    ];
    if let Some(key) = settings.set_keys().find(|key| forced.iter().any(|(forced, _)| forced == key)) {
        return Err(Failure::Usage(format!("demo does not use {key}: it sets its own value").into()));
    }
    settings.set.extend(forced.map(|(key, value)| format!("{key}={value}")));
    Ok(settings)
}

pub(super) async fn run(loaded: LoadedConfig) -> Result<(), Failure> {
    let (telemetry, _guard) = telemetry::start(&loaded.config.telemetry, Exports::default())?;
    let app = app::build(&loaded.config, Clock::System, telemetry).await?;
    let mut session = Session::new(&app, &loaded.config).map_err(|error| Failure::Runtime(error.into()))?;
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(app.run(async {
        let _ = stopped.await;
    }));
    let store = loaded.redacted_store_url();
    let result = run_steps(&mut session, &store).await;
    let _ = stop.send(());
    // The panic hook has already logged the location of a panic.
    running.await.map_err(|_| Failure::Runtime("the service stopped early".into()))??;
    result.map_err(|error| {
        screen::problem(&error.to_string());
        Failure::Runtime("the demo failed".into())
    })
}

/// All steps of the demo, each with its expected responses.
async fn run_steps(session: &mut Session, store: &str) -> Result<(), DemoError> {
    screen::title(&format!("callback-ingress {} on {store}", env!("CARGO_PKG_VERSION")));

    screen::step("The platform opens a conversation and follows its channel.");
    session.open().await?;

    screen::step("It issues five work items. Each has a single-use token and a sequence.");
    let first = session.issue(1, json!({"kind": "llm", "carrier": "body"})).await?;
    let second = session.issue(2, json!({"kind": "tool", "carrier": "header"})).await?;
    let third =
        session.issue(3, json!({"kind": "tool", "carrier": "query", "timeoutMs": SHORT_TIMEOUT_MS})).await?;
    let fourth = session.issue(4, json!({"kind": "tool", "carrier": "header"})).await?;
    let fifth = session.issue(5, json!({"kind": "llm", "carrier": "path"})).await?;

    screen::step("The second provider responds before the first: its result is held.");
    let weather = r#"{"temperature": 21.5, "unit": "C"}"#;
    let receipt = session.expect_accepted(&second, weather, 202).await?;
    expect(&receipt, "status", "held")?;
    expect(&receipt, "waitingFor", 1)?;

    screen::step("The first provider responds: both results are released in order.");
    let greeting = r#"{"content": "Here is the weather.", "model": "m-1"}"#;
    let receipt = session.expect_accepted(&first, greeting, 202).await?;
    expect(&receipt, "status", "delivered")?;
    session.expect_envelopes(&[(1, "succeeded"), (2, "succeeded")]).await?;

    screen::step("The first provider lost the response and retries: it gets the same receipt.");
    let receipt = session.expect_accepted(&first, greeting, 200).await?;
    expect(&receipt, "replayed", true)?;

    screen::step("A different body with the same token is refused.");
    session.expect_refused(&first, r#"{"content": "Something else."}"#, 409, "CALLBACK_TOKEN_USED").await?;

    screen::step("A forged token is refused without a call to the store.");
    session.expect_refused(&fourth.forged(), r#""let me in""#, 401, "CALLBACK_TOKEN_INVALID").await?;

    screen::step(
        "The fourth provider sends malformed JSON, which does not use up its token. The corrected body is accepted.",
    );
    session.expect_refused(&fourth, r#"{"rows": [1, 2"#, 400, "BODY_MALFORMED").await?;
    let failure = r#"{"error": {"code": "NO_SUCH_TABLE", "message": "there is no table 'rows'"}}"#;
    let receipt = session.expect_accepted(&fourth, failure, 202).await?;
    expect(&receipt, "outcome", "failed")?;
    expect(&receipt, "waitingFor", 3)?;

    screen::step("The platform cancels the fifth work item.");
    session.cancel(&fifth).await?;
    session.expect_refused(&fifth, r#""too late""#, 409, "WORK_ITEM_CANCELLED").await?;

    screen::step(
        "The third provider is too late: its work item times out, and the results held behind it are released.",
    );
    session.expect_envelopes(&[(3, "timed_out"), (4, "failed"), (5, "cancelled")]).await?;
    session.expect_refused(&third, "1", 409, "WORK_ITEM_TIMED_OUT").await?;

    screen::step("The platform ends the conversation.");
    session.end().await?;
    let envelopes = session.expect_end().await?;

    screen::step("The envelopes that the platform received:");
    screen::table(&envelopes);
    let results: Vec<Option<&Value>> = envelopes.iter().map(|envelope| envelope.get("result")).collect();
    let sent = [greeting, weather].map(|text| serde_json::from_str::<Value>(text).ok());
    if results[..2] != sent.each_ref().map(Option::as_ref) || results[2..].iter().any(Option::is_some) {
        return Err(DemoError("the envelopes do not contain the results that were sent".into()));
    }
    screen::done("Five work items, five envelopes, in order, each exactly once.");
    screen::next(&[
        "callback-ingress serve runs the service and prints commands to paste",
        "callback-ingress keys new creates keys for a deployment",
        "callback-ingress config check validates a configuration and checks its store",
    ]);
    Ok(())
}
