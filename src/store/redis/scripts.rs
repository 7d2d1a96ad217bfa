//! The scripts, each composed of the parts that it needs, with the configured limits written into it.

use redis::Script;

use crate::domain::gate::Limits;

/// How much longer than its data a key is kept, in milliseconds: TTLs only collect, they decide nothing.
const GRACE_MS: u64 = 60_000;
/// Longest time that a conversation lives without a step, in milliseconds: a week idle, the longest deadline, a week of
/// retention.
const LONGEST_LIFE_MS: u64 = (7 + 1 + 7) * 24 * 60 * 60 * 1000;
/// Most items that one step releases. They come to some 2 ms of the server's time.
const STEP_ITEMS: u64 = 128;
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

/// The text of an operation, after that of the parts it needs.
macro_rules! text {
    ($($part:literal),+) => {
        concat!($(include_str!(concat!("scripts/", $part, ".lua")), "\n"),+)
    };
}

impl Scripts {
    pub(super) fn new(limits: &Limits) -> Self {
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
        let script = |text: &str| {
            let with = |text: String, (name, value): &(&str, u64)| text.replace(name, &value.to_string());
            Script::new(&constants.iter().fold(text.to_owned(), with))
        };
        Self {
            open: script(text!("clock", "conversation", "keep", "open")),
            issue: script(text!("clock", "conversation", "keep", "item", "issue")),
            accept: script(text!("clock", "conversation", "keep", "item", "release", "accept")),
            cancel: script(text!("clock", "conversation", "keep", "item", "release", "cancel")),
            end: script(text!("clock", "conversation", "keep", "item", "release", "ending", "end")),
            expire: script(text!("clock", "conversation", "keep", "item", "release", "ending", "expire")),
            inspect: script(text!("clock", "conversation", "inspect")),
            work_item: script(text!("clock", "conversation", "item", "work_item")),
            read: script(text!("clock", "conversation", "read")),
            due: script(text!("due")),
            totals: script(text!("totals")),
        }
    }
}
