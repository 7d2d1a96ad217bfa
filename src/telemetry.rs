//! Logs: one line a request, as text for people or JSON for machines, on standard error.

use std::io::{IsTerminal, stderr};

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::config::{LogFormat, Telemetry};
use crate::domain::gate::Released;
use crate::domain::ids::ConversationRef;
use crate::domain::work_item::Outcome;

/// Writes what is still to be written when dropped, for at most a second.
#[must_use = "lines are written in the background until this is dropped"]
#[derive(Debug)]
pub struct Flush {
    _log: WorkerGuard,
}

/// Starts logging, once for the process. Lines are written in the background, so that a slow reader of them delays no
/// request; when far too many wait, further ones are dropped.
pub fn start(config: &Telemetry) -> Flush {
    let (writer, log) = tracing_appender::non_blocking(stderr());
    // The configuration holds directives that were parsed before.
    let filter = EnvFilter::try_new(&config.log_level).unwrap_or_default();
    let terminal = stderr().is_terminal();
    let json = match config.log_format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_target(false)
        .with_span_events(FmtSpan::NONE);
    // A second start changes nothing: the first one's settings stay.
    let _ = if json {
        lines.json().flatten_event(true).with_span_list(false).try_init()
    } else {
        let colour = anstream::AutoStream::choice(&stderr()) != anstream::ColorChoice::Never;
        lines.with_ansi(colour).try_init()
    };
    std::panic::set_hook(Box::new(|panic| {
        // What a panic says may hold anything; where it happened does not.
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(location, "a bug: something panicked");
    }));
    Flush { _log: log }
}

/// One line for each envelope that was held before a step released it: the answer to "why did it come so late?". What
/// was not held is told by the line of its own request.
pub fn released(conversation: ConversationRef, envelopes: &[Released]) {
    for envelope in envelopes {
        let held_ms = envelope.received_at.millis_until(envelope.released_at);
        // What timed out was received at its deadline and not held: the sweeper has a line for it.
        if held_ms > 0 && envelope.outcome != Outcome::TimedOut {
            tracing::info!(
                "conversation.reference" = %conversation,
                "work_item.id" = %envelope.work_item,
                "work_item.sequence" = envelope.sequence.get(),
                "callback.outcome" = envelope.outcome.as_str(),
                held_ms,
                "released"
            );
        }
    }
}
