//! Composes each Lua script from its files and inserts the configured limits.

use redis::Script;

use crate::domain::gate::Limits;
use crate::domain::progress::PROGRESS_INTERVAL_MS;
use crate::store::CONTINUE_MS;

/// Time in milliseconds for which a key outlives the need for its data. The TTL only frees memory; no rule depends on
/// it.
const GRACE_MS: u64 = 60_000;
/// Longest time in milliseconds that a conversation can exist without a step: the maximum of
/// `gate.conversation_idle_ttl_ms` (a week), the longest deadline (a day) and the maximum of
/// `gate.ended_retention_ms` (a week).
const LONGEST_LIFE_MS: u64 = (7 + 1 + 7) * 24 * 60 * 60 * 1000;
/// Maximum number of items that one step releases; that takes Redis about 1 ms.
const STEP_ITEMS: u64 = 64;
/// A step stops releasing items once their results have this many bytes.
const STEP_BYTES: u64 = 1024 * 1024;
/// Maximum number of timers that one step removes for an ended conversation.
const STEP_TIMERS: u64 = 512;
/// Maximum number of items among which a retry of `issue` searches for the one that the first call issued.
const STEP_SEARCH: u64 = 512;
/// Maximum number of unreleased items that one step of `cancel_turn` examines; that takes Redis about 2 ms.
const STEP_TURN: u64 = 128;
/// Maximum number of unreleased items that one step reads to find the oldest held result. If there are more, the time
/// in the index can be too early.
const STEP_HELD: u64 = 128;

/// The scripts of a store, one per operation.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) open: Script,
    pub(super) issue: Script,
    pub(super) accept: Script,
    pub(super) heartbeat: Script,
    pub(super) cancel: Script,
    pub(super) cancel_turn: Script,
    pub(super) end: Script,
    pub(super) expire: Script,
    pub(super) inspect: Script,
    pub(super) work_item: Script,
    pub(super) read: Script,
    pub(super) due: Script,
    pub(super) totals: Script,
    pub(super) waiting: Script,
    pub(super) waiting_for: Script,
}

macro_rules! files {
    ($($name:literal),+ $(,)?) => { [$(($name, include_str!(concat!("scripts/", $name, ".lua")))),+] };
}

/// The script files by name.
const FILES: [(&str, &str); 24] = files![
    "clock",
    "conversation",
    "ttl",
    "timer",
    "item",
    "release",
    "cancel_item",
    "ending",
    "open",
    "issue",
    "accept",
    "heartbeat",
    "cancel",
    "cancel_turn",
    "end",
    "expire",
    "inspect",
    "work_item",
    "read",
    "due",
    "totals",
    "waiting",
    "waiting_for",
    "probe",
];

/// The files of each operation. They are concatenated in the order of `FILES`, the operation's own file last.
pub const OPERATIONS: [&[&str]; 15] = [
    &["clock", "conversation", "ttl", "timer", "open"],
    &["clock", "conversation", "ttl", "item", "issue"],
    &["clock", "conversation", "ttl", "item", "release", "accept"],
    &["clock", "conversation", "item", "heartbeat"],
    &["clock", "conversation", "ttl", "item", "release", "cancel_item", "cancel"],
    &["clock", "conversation", "ttl", "item", "release", "cancel_item", "cancel_turn"],
    &["clock", "conversation", "ttl", "timer", "item", "release", "ending", "end"],
    &["clock", "conversation", "ttl", "timer", "item", "release", "ending", "expire"],
    &["clock", "conversation", "inspect"],
    &["clock", "conversation", "item", "work_item"],
    &["clock", "conversation", "read"],
    &["due"],
    &["totals"],
    &["waiting"],
    &["clock", "conversation", "waiting_for"],
];

/// The script of an operation. `alter` gets the name and text of each file and returns the text to use.
pub fn text(files: &[&str], limits: &Limits, alter: impl Fn(&str, &str) -> String) -> String {
    let constants = [
        ("$default_idle_ttl", limits.conversation_idle_ttl_ms),
        ("$retention", limits.ended_retention_ms),
        ("$grace", GRACE_MS),
        ("$partition_ttl", LONGEST_LIFE_MS + GRACE_MS),
        ("$max_held_items", limits.max_held_items),
        ("$max_held_bytes", limits.max_held_bytes),
        ("$max_awaiting_items", limits.max_awaiting_items),
        ("$max_channel_length", limits.max_channel_length),
        ("$max_channel_bytes", limits.max_channel_bytes),
        ("$continue_after", CONTINUE_MS),
        ("$step_items", STEP_ITEMS),
        ("$step_bytes", STEP_BYTES),
        ("$step_timers", STEP_TIMERS),
        ("$step_search", STEP_SEARCH),
        ("$step_turn", STEP_TURN),
        ("$step_held", STEP_HELD),
        ("$progress_interval", PROGRESS_INTERVAL_MS),
    ];
    let included = FILES.iter().filter(|(name, _)| files.contains(name));
    let text: String = included.map(|(name, text)| alter(name, text) + "\n").collect();
    constants.iter().fold(text, |text, (name, value)| text.replace(name, &value.to_string()))
}

impl Scripts {
    pub(super) fn new(limits: &Limits) -> Self {
        let scripts = OPERATIONS.map(|files| Script::new(&text(files, limits, |_, text| text.to_owned())));
        let [
            open,
            issue,
            accept,
            heartbeat,
            cancel,
            cancel_turn,
            end,
            expire,
            inspect,
            work_item,
            read,
            due,
            totals,
            waiting,
            waiting_for,
        ] = scripts;
        Self {
            open,
            issue,
            accept,
            heartbeat,
            cancel,
            cancel_turn,
            end,
            expire,
            inspect,
            work_item,
            read,
            due,
            totals,
            waiting,
            waiting_for,
        }
    }
}
