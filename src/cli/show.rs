//! `show`: the work items of a conversation as a timeline, one line per item.
//!
//! The inspection returns the awaiting and held items. The released items are read from the channel.

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::event_stream::EventStream;
use super::outcome::{Failure, print};
use super::platform_client::{CallError, PlatformArgs, PlatformClient, conversation_id, optional_time, time};
use super::text::{clock_time, count, duration, json_line, plain, size};
use super::waiting::{label, results};
use super::width::{fits, wrapped};
use crate::clock::Clock;
use crate::config::LoadedConfig;
use crate::domain::ids::ConversationId;
use crate::domain::time::Timestamp;

/// Columns that a row needs besides its label: for the state, the gaps and some text.
const OTHER_COLUMNS: usize = 40;

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Id of the conversation
    #[arg(value_parser = conversation_id)]
    conversation: ConversationId,
    #[command(flatten)]
    pub(super) platform: PlatformArgs,
    /// Maximum number of released items, 0 to 1000; the latest are shown
    #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u16).range(0..=1000))]
    limit: u16,
    /// Print the response of the API and the released items, without their results
    #[arg(long)]
    json: bool,
}

/// The reply to the inspection of a conversation.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Inspection {
    state: String,
    #[serde(deserialize_with = "time")]
    opened_at: Timestamp,
    #[serde(default, deserialize_with = "optional_time")]
    ended_at: Option<Timestamp>,
    reason: Option<String>,
    next_sequence: u64,
    awaiting: Vec<Item>,
    held: Vec<Item>,
    held_bytes: u64,
    #[serde(default)]
    dropped_held: u64,
    #[serde(default)]
    dropped_awaiting: u64,
}

impl Inspection {
    /// Number of envelopes on the channel, which is also the sequence of the last one.
    pub(super) fn released(&self) -> u64 {
        let unreleased =
            self.awaiting.len() as u64 + self.held.len() as u64 + self.dropped_held + self.dropped_awaiting;
        self.next_sequence.saturating_sub(1 + unreleased)
    }

    /// The id of the event with this sequence.
    pub(super) fn event_id(&self, sequence: u64) -> String {
        format!("{}-{sequence}", self.opened_at.as_millis())
    }

    /// The item at the gate. `None`: nothing is awaiting.
    fn waiting_for(&self) -> Option<&Item> {
        self.awaiting.first()
    }
}

/// A work item of the inspection, or an envelope.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    sequence: u64,
    work_item_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    turn_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(deserialize_with = "time")]
    issued_at: Timestamp,
    #[serde(default, deserialize_with = "optional_time", skip_serializing_if = "Option::is_none")]
    deadline: Option<Timestamp>,
    #[serde(default, deserialize_with = "optional_time", skip_serializing_if = "Option::is_none")]
    heartbeat_deadline: Option<Timestamp>,
    #[serde(default, deserialize_with = "optional_time", skip_serializing_if = "Option::is_none")]
    received_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "optional_time", skip_serializing_if = "Option::is_none")]
    released_at: Option<Timestamp>,
    /// Size of a held result.
    #[serde(default, skip_serializing)]
    bytes: u64,
}

impl Item {
    fn label(&self) -> String {
        label(self.sequence, self.name.as_deref(), &self.kind)
    }

    /// When it times out.
    fn due(&self, now: Timestamp) -> String {
        let left = |at: Timestamp| duration(now.millis_until(at));
        let deadline = format!("deadline in {}", self.deadline.map_or_else(|| left(now), left));
        match self.heartbeat_deadline.filter(|heartbeat| Some(*heartbeat) < self.deadline) {
            Some(heartbeat) => format!("heartbeat due in {}, {deadline}", left(heartbeat)),
            None => deadline,
        }
    }
}

/// Requests the inspection of a conversation. Returns the response and its parsed form.
pub(super) async fn inspect(
    client: &PlatformClient,
    conversation: &ConversationId,
) -> Result<(String, Inspection), CallError> {
    let reply = client.get(&format!("/conversations/{conversation}")).await?;
    let inspection = client.parse(&reply)?;
    Ok((reply, inspection))
}

pub(super) async fn run(loaded: LoadedConfig, arguments: ShowArgs) -> Result<(), Failure> {
    let client = PlatformClient::new(&arguments.platform, &loaded)?;
    let (reply, inspection) = inspect(&client, &arguments.conversation).await?;
    let (released, failure) =
        read_released(&client, &arguments.conversation, &inspection, arguments.limit.into()).await;
    if arguments.json {
        let mut shown: Value = client.parse(&reply)?;
        shown["released"] = json!(released);
        print(&format!("{}\n", json_line(&shown.to_string())))?;
    } else {
        print(&timeline(&arguments.conversation, &inspection, &released, Clock::System.now()))?;
    }
    match failure {
        Some(failure) => Err(Failure::Runtime(
            format!(
                "released items are missing, because the channel could not be read to its end: {failure}"
            )
            .into(),
        )),
        None => Ok(()),
    }
}

/// The last `limit` items that were on the channel at the inspection, and the error if some could not be read.
async fn read_released(
    client: &PlatformClient,
    conversation: &ConversationId,
    inspection: &Inspection,
    limit: u64,
) -> (Vec<Item>, Option<CallError>) {
    let last = inspection.released();
    let after = last.saturating_sub(limit);
    let mut items: Vec<Item> = Vec::new();
    if after == last {
        return (items, None);
    }
    let path = format!("/conversations/{conversation}/events?from={}", inspection.event_id(after));
    let mut events = match client.open(&path, None).await {
        Ok(response) => EventStream::new(response, client.timeout()),
        Err(error) => return (items, Some(error)),
    };
    while items.last().is_none_or(|item| item.sequence < last) {
        match events.next().await {
            Ok(Some(event)) if event.is_envelope() => match client.parse(&event.data) {
                Ok(item) => items.push(item),
                Err(error) => return (items, Some(error)),
            },
            Ok(Some(event)) if !event.is_end() => {}
            Ok(_) => return (items, Some(client.no_response("the event stream was closed"))),
            Err(error) => return (items, Some(client.no_response(error))),
        }
    }
    (items, None)
}

/// The summary, what the gate waits for, and one line per item.
fn timeline(
    conversation: &ConversationId,
    inspection: &Inspection,
    released: &[Item],
    now: Timestamp,
) -> String {
    let mut lines =
        vec![summary(conversation, inspection, now), waiting_line(inspection, now), String::new()];
    let left_out = inspection.released().saturating_sub(released.len() as u64);
    if left_out > 0 {
        lines.push(format!("{} not shown (see --limit)", count(left_out, "released item")));
    }
    let behind = blockers(released);
    let mut unreleased: Vec<&Item> = inspection.awaiting.iter().chain(&inspection.held).collect();
    unreleased.sort_by_key(|item| item.sequence);
    let rows: Vec<(String, &str, String)> = released
        .iter()
        .zip(behind)
        .map(|(item, behind)| row(item, released_text(item, behind, now)))
        .chain(unreleased.into_iter().map(|item| row(item, unreleased_text(item, inspection, now))))
        .collect();
    let width = rows.iter().map(|(label, ..)| label.chars().count()).max().unwrap_or_default();
    // With a long name, a narrow terminal has no room for columns.
    let [width, state_width] = if fits(width + OTHER_COLUMNS) { [width, 9] } else { [0, 0] };
    lines.extend(
        rows.into_iter().map(|(label, state, text)| {
            wrapped(&format!("{label:width$}  {state:state_width$}  {text}"), 0, 6)
        }),
    );
    lines.join("\n").trim_end().to_owned() + "\n"
}

fn row(item: &Item, text: String) -> (String, &str, String) {
    (item.label(), item.outcome.as_deref().map_or("awaiting", known_outcome), text)
}

/// A known outcome, or `?`.
fn known_outcome(outcome: &str) -> &'static str {
    crate::domain::work_item::Outcome::parse(outcome).map_or("?", crate::domain::work_item::Outcome::as_str)
}

fn summary(conversation: &ConversationId, inspection: &Inspection, now: Timestamp) -> String {
    let mut parts = vec![
        format!(
            "{conversation} is {}: opened {}",
            plain(&inspection.state),
            clock_time(inspection.opened_at, now)
        ),
        format!("{} issued", count(inspection.next_sequence.saturating_sub(1), "item")),
        format!("{} released", inspection.released()),
    ];
    if let Some(ended_at) = inspection.ended_at {
        parts.push(format!("ended {}", clock_time(ended_at, now)));
        parts.push(format!(
            "{} held and {} awaiting dropped",
            inspection.dropped_held, inspection.dropped_awaiting
        ));
    } else {
        parts.push(format!("{} held, {} awaiting", inspection.held.len(), inspection.awaiting.len()));
    }
    parts.extend(inspection.reason.as_deref().map(reason));
    wrapped(&parts.join(", "), 0, 2)
}

fn reason(text: &str) -> String {
    format!("reason: {}", plain(text))
}

/// One sentence on what the gate waits for.
fn waiting_line(inspection: &Inspection, now: Timestamp) -> String {
    let text = match inspection.waiting_for() {
        _ if inspection.ended_at.is_some() => "it has ended and waits for nothing".to_owned(),
        None => "it waits for nothing: no work item is awaiting".to_owned(),
        Some(item) => {
            let held = match inspection.held.len() as u64 {
                0 => "nothing is held".to_owned(),
                held => format!("{} held behind it", results(held, inspection.held_bytes)),
            };
            format!(
                "it waits for {}, issued {} ago, {}; {held}",
                item.label(),
                duration(item.issued_at.millis_until(now)),
                item.due(now)
            )
        }
    };
    wrapped(&text, 0, 2)
}

/// `issued …`, `received … (+1.2 s)`: how an item was settled.
fn settled(item: &Item, now: Timestamp) -> Vec<String> {
    let mut parts = vec![format!("issued {}", clock_time(item.issued_at, now))];
    if let Some(received_at) = item.received_at {
        let verb = match item.outcome.as_deref() {
            Some("timed_out") => "timed out",
            Some("cancelled") => "cancelled",
            _ => "received",
        };
        let after = duration(item.issued_at.millis_until(received_at));
        parts.push(format!("{verb} {} (+{after})", clock_time(received_at, now)));
    }
    parts.extend(item.reason.as_deref().map(reason));
    parts
}

fn released_text(item: &Item, behind: Option<u64>, now: Timestamp) -> String {
    let mut parts = settled(item, now);
    parts.extend(behind.map(|behind| format!("held behind #{behind}")));
    if let (Some(received_at), Some(released_at)) = (item.received_at, item.released_at) {
        let after = duration(received_at.millis_until(released_at));
        parts.push(format!("released {} (+{after})", clock_time(released_at, now)));
    }
    parts.join(", ")
}

fn unreleased_text(item: &Item, inspection: &Inspection, now: Timestamp) -> String {
    let mut parts = settled(item, now);
    if let Some(received_at) = item.received_at {
        // If no item is awaiting, the next operation on the conversation releases it.
        let behind = inspection.waiting_for().map(|item| format!(" behind #{}", item.sequence));
        let (behind, waited) = (behind.unwrap_or_default(), duration(received_at.millis_until(now)));
        parts.push(format!("held{behind} for {waited} ({})", size(item.bytes)));
    } else {
        parts.push(item.due(now));
    }
    parts.join(", ")
}

/// For each released item, the earlier item that it waited for: the one that was settled last. `None` if the item
/// itself was settled after all earlier items.
fn blockers(released: &[Item]) -> Vec<Option<u64>> {
    let mut latest: Option<(Timestamp, u64)> = None;
    let blocker = |item: &Item| {
        let received_at = item.received_at?;
        let behind = latest.filter(|(settled_at, _)| *settled_at > received_at).map(|(_, sequence)| sequence);
        if behind.is_none() {
            latest = Some((received_at, item.sequence));
        }
        behind
    };
    released.iter().map(blocker).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);

    fn item(sequence: u64, received: Option<u64>, released: Option<u64>) -> Item {
        Item {
            sequence,
            work_item_id: String::new(),
            turn_id: None,
            tool_call_id: None,
            name: (sequence % 2 == 1).then(|| "weather".to_owned()),
            kind: "tool".into(),
            outcome: received.map(|_| "succeeded".into()),
            reason: None,
            issued_at: START,
            deadline: Some(START.plus_millis(60_000)),
            heartbeat_deadline: None,
            received_at: received.map(|millis| START.plus_millis(millis)),
            released_at: released.map(|millis| START.plus_millis(millis)),
            bytes: 2_000,
        }
    }

    #[test]
    fn blocker_is_the_earlier_item_that_was_settled_last() {
        let released = [
            item(1, Some(50), None),
            item(2, Some(20), None),
            item(3, Some(70), None),
            item(4, Some(60), None),
        ];
        assert_eq!(blockers(&released), [None, Some(1), None, Some(3)]);
    }

    #[test]
    fn earlier_heartbeat_deadline_is_shown() {
        let due = |heartbeat| {
            let heartbeat_deadline = Some(START.plus_millis(heartbeat));
            Item { heartbeat_deadline, ..item(1, None, None) }.due(START)
        };
        assert_eq!(due(5_000), "heartbeat due in 5.0 s, deadline in 1 min 0 s");
        assert_eq!(due(60_000), "deadline in 1 min 0 s");
    }

    #[test]
    fn timeline_has_one_line_per_item() {
        let inspection = Inspection {
            state: "live".into(),
            opened_at: START,
            ended_at: None,
            reason: None,
            next_sequence: 7,
            awaiting: vec![item(4, None, None)],
            held: vec![item(5, Some(3_000), None), item(6, Some(2_000), None)],
            held_bytes: 4_000,
            dropped_held: 0,
            dropped_awaiting: 0,
        };
        let released = [item(2, Some(1_200), Some(1_200)), item(3, Some(400), Some(1_200))];
        let conversation = ConversationId::parse("call-7").unwrap();
        let text = timeline(&conversation, &inspection, &released, START.plus_millis(10_000));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "call-7 is live: opened 11:06:40.000, 6 items issued, 3 released, 2 held, 1 awaiting",
                "it waits for #4 (tool), issued 10.0 s ago, deadline in 50.0 s; 2 results (3.9 KiB) held behind it",
                "",
                "1 released item not shown (see --limit)",
                "#2 (tool)          succeeded  issued 11:06:40.000, received 11:06:41.200 (+1.2 s), released 11:06:41.200 (+0 ms)",
                "#3 weather (tool)  succeeded  issued 11:06:40.000, received 11:06:40.400 (+400 ms), held behind #2, released 11:06:41.200 (+800 ms)",
                "#4 (tool)          awaiting   issued 11:06:40.000, deadline in 50.0 s",
                "#5 weather (tool)  succeeded  issued 11:06:40.000, received 11:06:43.000 (+3.0 s), held behind #4 for 7.0 s (1.9 KiB)",
                "#6 (tool)          succeeded  issued 11:06:40.000, received 11:06:42.000 (+2.0 s), held behind #4 for 8.0 s (1.9 KiB)",
            ]
        );
    }
}
