//! `tail`: follows the channel of a conversation, one line per envelope.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::time::sleep;

use super::event_stream::{EventStream, StreamEvent};
use super::outcome::{Failure, note, stdout_closed, write};
use super::platform_client::{CallError, PlatformArgs, PlatformClient, conversation_id, time};
use super::show::inspect;
use super::text::{clock_time, json_line, plain, size};
use super::waiting::label;
use crate::clock::Clock;
use crate::config::LoadedConfig;
use crate::domain::ids::ConversationId;
use crate::domain::time::Timestamp;

/// Maximum time without data: the service sends a comment every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// Delay before the first reconnection. It doubles up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

#[derive(Debug, Args)]
pub(super) struct TailArgs {
    /// Id of the conversation
    #[arg(value_parser = conversation_id)]
    conversation: ConversationId,
    #[command(flatten)]
    pub(super) platform: PlatformArgs,
    /// Start after this sequence; 0 is the start of the channel. Default: only new envelopes
    #[arg(long, value_name = "SEQUENCE")]
    from: Option<u32>,
    /// Also print the results
    #[arg(long)]
    results: bool,
    /// Print each envelope as one line of JSON, with its result only if --results is given
    #[arg(long)]
    json: bool,
}

/// An envelope.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    sequence: u64,
    kind: String,
    name: Option<String>,
    outcome: String,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    reason: Option<String>,
    #[serde(deserialize_with = "time")]
    released_at: Timestamp,
}

pub(super) async fn run(loaded: LoadedConfig, arguments: TailArgs) -> Result<(), Failure> {
    let client = PlatformClient::new(&arguments.platform, &loaded)?;
    tokio::select! {
        result = follow(&client, &arguments) => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
        () = stdout_closed() => Ok(()),
    }
}

/// Follows the channel to its end, or until standard output is closed.
async fn follow(client: &PlatformClient, arguments: &TailArgs) -> Result<(), Failure> {
    // If the connection is lost before the first event, the next connection starts at the same place.
    let (_, inspection) = inspect(client, &arguments.conversation).await?;
    let from = arguments.from.map_or_else(|| inspection.released(), u64::from);
    let path = format!("/conversations/{}/events?from={}", arguments.conversation, inspection.event_id(from));
    let mut last_event_id: Option<String> = None;
    let mut pause = PAUSE;
    let mut is_first = true;
    loop {
        let failure = match client.open(&path, last_event_id.as_deref()).await {
            Err(error) if is_first || !error.is_temporary() => return Err(error.into()),
            Err(error) => error,
            Ok(response) => {
                is_first = false;
                let mut events = EventStream::new(response, SILENCE);
                loop {
                    match events.next().await {
                        Ok(Some(event)) => {
                            pause = PAUSE;
                            if !print_event(client, &event, arguments)? || event.is_end() {
                                return Ok(());
                            }
                            last_event_id = event.id.or(last_event_id);
                        }
                        Ok(None) => break client.no_response("the event stream was closed"),
                        Err(error) => break client.no_response(error),
                    }
                }
            }
        };
        // Printed once per outage.
        if pause == PAUSE {
            note(&format!("{failure}; reconnecting"));
        }
        sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Prints an envelope or the end. Ignores other events. Returns false if standard output is a closed pipe.
fn print_event(client: &PlatformClient, event: &StreamEvent, arguments: &TailArgs) -> Result<bool, Failure> {
    let line = match (event.is_envelope(), event.is_end()) {
        (true, _) => envelope_line(client, &event.data, arguments)?,
        (_, true) if arguments.json => json_line(&event.data),
        (_, true) => format!("{} has ended", arguments.conversation),
        _ => return Ok(true),
    };
    write(&format!("{line}\n"))
}

fn envelope_line(client: &PlatformClient, json: &str, arguments: &TailArgs) -> Result<String, CallError> {
    let envelope: Envelope<'_> = client.parse(json)?;
    let content = envelope.result.or(envelope.error).map(RawValue::get);
    if arguments.json {
        if arguments.results {
            return Ok(json_line(json));
        }
        let mut members: Map<String, Value> = client.parse(json)?;
        members.retain(|name, _| name != "result" && name != "error");
        return Ok(json_line(&Value::Object(members).to_string()));
    }
    let mut columns = vec![
        clock_time(envelope.released_at, Clock::System.now()),
        label(envelope.sequence, envelope.name.as_deref(), &envelope.kind),
        plain(&envelope.outcome),
    ];
    columns.extend(content.map(|content| size(content.len() as u64)));
    columns.extend(envelope.reason.map(|reason| format!("reason: {}", plain(&reason))));
    columns.extend(content.filter(|_| arguments.results).map(json_line));
    Ok(columns.join("  "))
}
