//! Composes each Lua script from its files and inserts the configured limits.

use redis::Script;

use crate::domain::gate::Limits;
use crate::domain::progress::PROGRESS_INTERVAL_MS;
use crate::store::CONTINUE_MS;

/// Time in milliseconds for which a key outlives the need for its data. The TTL only frees memory; no rule depends on
/// it.
const GRACE_MS: u64 = 60_000;
/// Longest time in milliseconds that a conversation can exist without a step.
const LONGEST_LIFE_MS: u64 = Limits::MAX_IDLE_TTL_MS + Limits::MAX_TIMEOUT_MS + Limits::MAX_RETENTION_MS;
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

/// Defines the operations: the name of each and the files of its script.
macro_rules! operations {
    ($($operation:ident: $($file:ident)+;)+) => {
        /// The scripts of a store, one per operation.
        #[derive(Debug)]
        pub(super) struct Scripts {
            $(pub(super) $operation: Script,)+
        }

        impl Scripts {
            pub(super) fn new(limits: &Limits) -> Self {
                let script = |files| Script::new(&text(files, limits, |_, text| text.to_owned()));
                Self { $($operation: script(&[$(stringify!($file)),+]),)+ }
            }
        }

        /// The files of each operation.
        pub const OPERATIONS: &[&[&str]] = &[$(&[$(stringify!($file)),+]),+];
    };
}

// The files are concatenated in the order of `FILES`, the operation's own file last.
operations! {
    open: clock conversation ttl timer open;
    issue: clock conversation ttl item issue;
    accept: clock conversation ttl item release accept;
    heartbeat: clock conversation item heartbeat;
    cancel: clock conversation ttl item release cancel_item cancel;
    cancel_turn: clock conversation ttl item release cancel_item cancel_turn;
    end: clock conversation ttl timer item release ending end;
    expire: clock conversation ttl timer item release ending expire;
    inspect: clock conversation inspect;
    work_item: clock conversation item work_item;
    read: clock conversation read;
    due: due;
    totals: totals;
    waiting: waiting;
    waiting_for: clock conversation waiting_for;
}

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
