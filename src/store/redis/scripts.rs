//! The scripts, each composed of the parts that it needs, with the configured limits written into it.

use redis::Script;

use crate::domain::gate::Limits;

/// How much longer than its data a key is kept, in milliseconds: TTLs only collect, they decide nothing.
const GRACE_MS: u64 = 60_000;
/// Longest time that a conversation lives without a step, in milliseconds: a week idle, the longest deadline, a week of
/// retention.
const LONGEST_LIFE_MS: u64 = (7 + 1 + 7) * 24 * 60 * 60 * 1000;
/// Most items that one step releases. They come to some 1 ms of the server's time.
const STEP_ITEMS: u64 = 64;
/// A step releases no further items once their results have so many bytes.
const STEP_BYTES: u64 = 1024 * 1024;
/// Most markers that one step removes for a conversation that has ended.
const STEP_MARKERS: u64 = 512;

/// See the module.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) open: Script,
    pub(super) issue: Script,
    pub(super) accept: Script,
    pub(super) cancel: Script,
    pub(super) end: Script,
    pub(super) expire: Script,
    pub(super) inspect: Script,
    pub(super) work_item: Script,
    pub(super) read: Script,
    pub(super) due: Script,
    pub(super) totals: Script,
}

macro_rules! files {
    ($($name:literal),+ $(,)?) => { [$(($name, include_str!(concat!("scripts/", $name, ".lua")))),+] };
}

/// Every file, by its name.
const FILES: [(&str, &str); 18] = files![
    "clock",
    "conversation",
    "keep",
    "item",
    "release",
    "ending",
    "open",
    "issue",
    "accept",
    "cancel",
    "end",
    "expire",
    "inspect",
    "work_item",
    "read",
    "due",
    "totals",
    "probe",
];

/// What each operation consists of, in this order. Its own file is the last.
pub const OPERATIONS: [&[&str]; 11] = [
    &["clock", "conversation", "keep", "open"],
    &["clock", "conversation", "keep", "item", "issue"],
    &["clock", "conversation", "keep", "item", "release", "accept"],
    &["clock", "conversation", "keep", "item", "release", "cancel"],
    &["clock", "conversation", "keep", "item", "release", "ending", "end"],
    &["clock", "conversation", "keep", "item", "release", "ending", "expire"],
    &["clock", "conversation", "inspect"],
    &["clock", "conversation", "item", "work_item"],
    &["clock", "conversation", "read"],
    &["due"],
    &["totals"],
];

/// The text of an operation, with `alter` applied to each of its files by name.
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
        ("$step_items", STEP_ITEMS),
        ("$step_bytes", STEP_BYTES),
        ("$step_markers", STEP_MARKERS),
    ];
    let named = FILES.iter().filter(|(name, _)| files.contains(name));
    let text: String = named.map(|(name, text)| alter(name, text) + "\n").collect();
    constants.iter().fold(text, |text, (name, value)| text.replace(name, &value.to_string()))
}

impl Scripts {
    pub(super) fn new(limits: &Limits) -> Self {
        let [open, issue, accept, cancel, end, expire, inspect, work_item, read, due, totals] =
            OPERATIONS.map(|files| Script::new(&text(files, limits, |_, text| text.to_owned())));
        Self { open, issue, accept, cancel, end, expire, inspect, work_item, read, due, totals }
    }
}
