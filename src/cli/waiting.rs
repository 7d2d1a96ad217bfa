//! `waiting`: the conversations that hold results, and the work item that each waits for.

use clap::Args;
use serde::Deserialize;

use super::outcome::{Failure, print};
use super::platform_client::{PlatformArgs, PlatformClient, optional_time, time};
use super::text::{count, duration, json_line, plain, size};
use super::width::{fits, wrapped};
use crate::clock::Clock;
use crate::config::LoadedConfig;
use crate::domain::time::Timestamp;

#[derive(Debug, Args)]
pub(super) struct WaitingArgs {
    #[command(flatten)]
    pub(super) platform: PlatformArgs,
    /// Maximum number of conversations, 1 to 100
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=100))]
    limit: u8,
    /// Print the reply of the API
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Waiting {
    conversations: Vec<WaitingConversation>,
    truncated: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WaitingConversation {
    conversation_id: String,
    waiting_for: WaitingFor,
    held: Held,
    #[serde(deserialize_with = "time")]
    since: Timestamp,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WaitingFor {
    sequence: u64,
    kind: String,
    name: Option<String>,
    #[serde(deserialize_with = "time")]
    deadline: Timestamp,
    #[serde(default, deserialize_with = "optional_time")]
    heartbeat_deadline: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Held {
    count: u64,
    bytes: u64,
}

pub(super) async fn run(loaded: LoadedConfig, arguments: WaitingArgs) -> Result<(), Failure> {
    let client = PlatformClient::new(&arguments.platform, &loaded)?;
    let reply = client.get(&format!("/conversations?waiting=true&limit={}", arguments.limit)).await?;
    let waiting: Waiting = client.parse(&reply)?;
    if arguments.json {
        return print(&format!("{}\n", json_line(&reply)));
    }
    if waiting.conversations.is_empty() {
        let text = if waiting.truncated {
            "no conversation was found, but the list is incomplete: a part of the store may not have responded"
        } else {
            "no conversation is waiting"
        };
        return print(&format!("{text}\n"));
    }
    let rows: Vec<[String; 7]> =
        waiting.conversations.iter().map(|conversation| row(conversation, Clock::System.now())).collect();
    print(&table(&rows))?;
    if waiting.truncated {
        print("more conversations may be waiting; --limit shows up to 100\n")?;
    }
    Ok(())
}

const HEAD: [&str; 7] = ["CONVERSATION", "WAITS FOR", "NAME", "KIND", "WAITED", "TIMES OUT IN", "HELD"];

fn row(conversation: &WaitingConversation, now: Timestamp) -> [String; 7] {
    let WaitingConversation { conversation_id, waiting_for, held, since } = conversation;
    [
        plain(conversation_id),
        format!("#{}", waiting_for.sequence),
        waiting_for.name.as_deref().map_or_else(|| "-".to_owned(), plain),
        plain(&waiting_for.kind),
        duration(since.millis_until(now)),
        duration(now.millis_until(waiting_for.heartbeat_deadline.unwrap_or(waiting_for.deadline))),
        format!("{} ({})", held.count, size(held.bytes)),
    ]
}

/// A table. If the terminal is too narrow, each row as a sentence.
fn table(rows: &[[String; 7]]) -> String {
    let mut widths = HEAD.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if !fits(widths.iter().sum::<usize>() + 2 * (HEAD.len() - 1)) {
        return rows.iter().map(sentence).collect();
    }
    let line = |cells: [&str; 7]| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let lines = rows.iter().map(|row| line(row.each_ref().map(String::as_str)));
    std::iter::once(line(HEAD)).chain(lines).collect()
}

fn sentence([conversation, sequence, name, kind, waited, deadline, held]: &[String; 7]) -> String {
    let text = format!(
        "{conversation} has waited {waited} for {sequence} {name} ({kind}), which times out in {deadline}; held: {held}"
    );
    format!("{}\n", wrapped(&text, 0, 2))
}

/// `#3 weather (tool)`.
pub(super) fn label(sequence: u64, name: Option<&str>, kind: &str) -> String {
    match name {
        Some(name) => format!("#{sequence} {} ({})", plain(name), plain(kind)),
        None => format!("#{sequence} ({})", plain(kind)),
    }
}

/// `2 results (1.2 KiB)`.
pub(super) fn results(number: u64, bytes: u64) -> String {
    format!("{} ({})", count(number, "result"), size(bytes))
}
