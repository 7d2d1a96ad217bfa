//! `demo`: the whole story in one process over real HTTP, in a few seconds.
//!
//! Each step prints what was sent, what was answered, and what the conversation saw. Anything that comes out otherwise
//! than it should ends the demo with exit code 1.

mod screen;
mod session;
mod watcher;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use self::session::{Session, Wrong, expect};
use super::{Failure, Settings};
use crate::app;
use crate::clock::Clock;
use crate::config::LoadedConfig;
use crate::telemetry::{self, Exports};

/// How long the work item that is never answered may take.
const SHORT_TIMEOUT_MS: u64 = 1_500;

/// On free ports of loopback, and without a log between the lines, whatever else is configured.
pub(super) fn settings(mut settings: Settings) -> Settings {
    settings.public_addr = Some("127.0.0.1:0".into());
    settings.platform_addr = Some("127.0.0.1:0".into());
    settings.log_level.get_or_insert("error".into());
    let forced = [
        ("http.drain_grace_ms", "0"),
        ("http.public_base_url", ""),
        ("http.public_tls_cert", ""),
        ("http.public_tls_key", ""),
        ("http.platform_tls_cert", ""),
        ("http.platform_tls_key", ""),
        ("rate_limit.max", "0"),
        ("token.carriers", r#"["header","query","body","path"]"#),
    ];
    settings.set.extend(forced.map(|(key, value)| format!("{key}={value}")));
    settings
}

pub(super) async fn run(loaded: LoadedConfig) -> Result<(), Failure> {
    let (telemetry, _flush) = telemetry::start(&loaded.config.telemetry, Exports::default())?;
    let app = app::build(&loaded.config, Clock::System, telemetry).await?;
    let mut session = Session::new(&app, &loaded.config).map_err(|wrong| Failure::Failed(wrong.into()))?;
    let (done, ended) = oneshot::channel::<()>();
    let running = tokio::spawn(app.run(async {
        let _ = ended.await;
    }));
    let store = loaded.redacted_store_url();
    let result = story(&mut session, &store).await;
    let _ = done.send(());
    // A panic was told of where it happened, without what it said.
    running.await.map_err(|_| Failure::Failed("the service ended early".into()))??;
    result.map_err(|wrong| {
        screen::problem(&wrong.to_string());
        Failure::Failed("the demo did not go as it should".into())
    })
}

/// The story. Every step says what it expects.
async fn story(session: &mut Session, store: &str) -> Result<(), Wrong> {
    screen::title(&format!("callback-ingress {} on {store}", env!("CARGO_PKG_VERSION")));

    screen::step("The platform opens a conversation and follows its channel.");
    session.open().await?;

    screen::step("It hands out five pieces of work. Each gets a one-shot token, and a place in the order.");
    let first = session.issue(1, json!({"kind": "llm", "carrier": "body"})).await?;
    let second = session.issue(2, json!({"kind": "tool", "carrier": "path"})).await?;
    let third = session.issue(3, json!({"kind": "tool", "timeoutMs": SHORT_TIMEOUT_MS})).await?;
    let fourth = session.issue(4, json!({"kind": "tool", "carrier": "header"})).await?;
    let fifth = session.issue(5, json!({"kind": "llm", "carrier": "query"})).await?;

    screen::step("The second provider is faster than the first: its result is held.");
    let weather = r#"{"temperature": 21.5, "unit": "C"}"#;
    let reply = session.post(&second, weather, 202).await?;
    expect(&reply, "status", "held")?;
    expect(&reply, "waitingFor", 1)?;

    screen::step("The first answers: both are released, in order.");
    let greeting = r#"{"content": "Here is the weather.", "model": "m-1"}"#;
    let reply = session.post(&first, greeting, 202).await?;
    expect(&reply, "status", "delivered")?;
    session.channel(&[(1, "succeeded"), (2, "succeeded")]).await?;

    screen::step("The first did not hear the answer and sends the same again: it is recognised.");
    let reply = session.post(&first, greeting, 200).await?;
    expect(&reply, "replayed", true)?;

    screen::step("Another body under the same token is refused: the first result stands.");
    session.refused(&first, r#"{"content": "Something else."}"#, 409, "CALLBACK_TOKEN_USED").await?;

    screen::step("A forged token is refused without asking the store.");
    session.refused(&fourth.forged(), r#""let me in""#, 401, "CALLBACK_TOKEN_INVALID").await?;

    screen::step("The fourth sends a broken body: refused, its token not spent. Corrected, it is taken.");
    session.refused(&fourth, r#"{"rows": [1, 2"#, 400, "BODY_MALFORMED").await?;
    let failure = r#"{"error": {"code": "NO_SUCH_TABLE", "message": "there is no table 'rows'"}}"#;
    let reply = session.post(&fourth, failure, 202).await?;
    expect(&reply, "outcome", "failed")?;
    expect(&reply, "waitingFor", 3)?;

    screen::step("The platform needs the fifth no more, and cancels it.");
    session.cancel(&fifth).await?;
    session.refused(&fifth, r#""too late""#, 409, "WORK_ITEM_CANCELLED").await?;

    screen::step(
        "The third never answers. At its deadline it times out, and what waited behind it moves on.",
    );
    session.channel(&[(3, "timed_out"), (4, "failed"), (5, "cancelled")]).await?;
    session.refused(&third, "1", 409, "WORK_ITEM_TIMED_OUT").await?;

    screen::step("The conversation ends.");
    session.end().await?;
    let envelopes = session.ended().await?;

    screen::step("The channel, as the platform saw it:");
    screen::table(&envelopes);
    let results: Vec<Option<&Value>> = envelopes.iter().map(|envelope| envelope.get("result")).collect();
    let sent = [greeting, weather].map(|text| serde_json::from_str::<Value>(text).ok());
    if results[..2] != sent.each_ref().map(Option::as_ref) || results[2..].iter().any(Option::is_some) {
        return Err(Wrong("the channel does not hold the results that were sent".into()));
    }
    screen::done("Five pieces of work, five envelopes, in order, each exactly once.");
    Ok(())
}
