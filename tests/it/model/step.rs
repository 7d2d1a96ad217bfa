//! One step of a random story. Ids are small numbers, so that steps often concern the same item.

use std::iter;

use proptest::prelude::*;
use proptest::sample::select;

/// A conversation of the story.
pub(super) type Who = usize;
/// A work item of the story.
pub(super) type What = u8;

/// Conversations in a story. One more, with this number, is never opened.
pub(super) const CONVERSATIONS: Who = 2;
/// Work items in a story; conversations share some ids.
pub(super) const ITEMS: What = 12;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Open {
        who: Who,
        idle_ttl_ms: Option<u64>,
        trace: Option<u8>,
        attempt: u64,
    },
    Issue {
        who: Who,
        item: What,
        timeout_ms: u64,
        heartbeat_timeout_ms: Option<u64>,
        llm: bool,
        trace: Option<u8>,
        key: Option<(u8, u8)>,
    },
    Accept {
        who: Who,
        item: Item,
        body: u8,
        attempt: u64,
    },
    Heartbeat {
        who: Who,
        item: Item,
        progress: bool,
    },
    Cancel {
        who: Who,
        item: Item,
        attempt: u64,
    },
    CancelTurn {
        who: Who,
        attempt: u64,
    },
    End {
        who: Who,
    },
    Expire {
        who: Who,
        items: Vec<Item>,
    },
    Due {
        limit: usize,
    },
    /// Claims the due timers and fires them.
    Sweep,
    Inspect {
        who: Who,
    },
    WorkItem {
        who: Who,
        item: Item,
    },
    Read {
        who: Who,
        after: u64,
        count: usize,
    },
    /// Repeats the last command, as the same attempt or a new one.
    Repeat {
        as_new: bool,
    },
    Wait(Wait),
}

/// The work item of a step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item {
    /// An item of the conversation, if it has any: its index in order of issue, modulo their number.
    Issued(usize),
    /// An item that may belong to no or another conversation.
    Any(What),
    /// An item from before the conversation was deleted and opened again.
    Former(What),
}

/// How far to advance the clock.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    Millis(u64),
    /// To this many milliseconds before the next deadline.
    Deadline {
        before: u64,
    },
    /// To this many milliseconds before the next heartbeat is due.
    Silence {
        before: u64,
    },
    /// To this many milliseconds before the expiry of an item's token.
    Expiry {
        who: Who,
        item: Item,
        before: u64,
    },
    /// To this many milliseconds before the conversation is idle for too long.
    Idle {
        who: Who,
        before: u64,
    },
    /// To this many milliseconds before the conversation is deleted.
    Gone {
        who: Who,
        before: u64,
    },
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![12 => Just(0), 6 => Just(1), 1 => Just(CONVERSATIONS)]
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        14 => (0..12usize).prop_map(Item::Issued),
        1 => (0..ITEMS).prop_map(Item::Any),
        1 => (0..ITEMS).prop_map(Item::Former),
    ]
}

fn trace() -> impl Strategy<Value = Option<u8>> {
    prop::option::weighted(0.3, 1..3u8)
}

fn wait() -> impl Strategy<Value = Wait> {
    let before = || select(vec![0, 0, 1]);
    prop_oneof![
        16 => select(vec![0, 1, 10, 60]).prop_map(Wait::Millis),
        12 => before().prop_map(|before| Wait::Deadline { before }),
        6 => before().prop_map(|before| Wait::Silence { before }),
        2 => (who(), item(), before()).prop_map(|(who, item, before)| Wait::Expiry { who, item, before }),
        1 => (who(), before()).prop_map(|(who, before)| Wait::Idle { who, before }),
        1 => (who(), before()).prop_map(|(who, before)| Wait::Gone { who, before }),
    ]
}

/// A random step; steps with more effect are more likely.
fn step() -> impl Strategy<Value = Step> {
    let attempt = || 0..4u64;
    let idle = prop::option::weighted(0.2, select(vec![300, 5_000, 30_000]));
    let key = prop::option::weighted(0.3, (0..3u8, select(vec![0, 0, 0, 1u8])));
    let heartbeat = prop::option::weighted(0.3, select(vec![10, 50, 600, 600, 2_000]));
    let timeouts = (select(vec![20, 100, 1_000, 1_000, 1_000, 1_000]), heartbeat);
    prop_oneof![
        8 => (who(), idle, trace(), attempt())
            .prop_map(|(who, idle_ttl_ms, trace, attempt)| Step::Open { who, idle_ttl_ms, trace, attempt }),
        24 => (who(), 0..ITEMS, timeouts, any::<bool>(), trace(), key)
            .prop_map(|(who, item, (timeout_ms, heartbeat_timeout_ms), llm, trace, key)| {
                Step::Issue { who, item, timeout_ms, heartbeat_timeout_ms, llm, trace, key }
            }),
        6 => (who(), item(), any::<bool>())
            .prop_map(|(who, item, progress)| Step::Heartbeat { who, item, progress }),
        30 => (who(), item(), select(vec![0, 0, 3, 3, 2, 1, 4]), attempt())
            .prop_map(|(who, item, body, attempt)| Step::Accept { who, item, body, attempt }),
        7 => (who(), item(), attempt()).prop_map(|(who, item, attempt)| Step::Cancel { who, item, attempt }),
        2 => (who(), attempt()).prop_map(|(who, attempt)| Step::CancelTurn { who, attempt }),
        1 => who().prop_map(|who| Step::End { who }),
        3 => (who(), prop::collection::vec(item(), 0..4)).prop_map(|(who, items)| Step::Expire { who, items }),
        2 => select(vec![0, 1, 2, 100]).prop_map(|limit| Step::Due { limit }),
        3 => Just(Step::Sweep),
        1 => who().prop_map(|who| Step::Inspect { who }),
        1 => (who(), item()).prop_map(|(who, item)| Step::WorkItem { who, item }),
        2 => (who(), 0..6u64, 0..4usize)
            .prop_map(|(who, after, count)| Step::Read { who, after, count }),
        7 => any::<bool>().prop_map(|as_new| Step::Repeat { as_new }),
        11 => wait().prop_map(Step::Wait),
    ]
}

/// A random story, which starts by opening a conversation. A failing story is shrunk by removing steps.
pub(super) fn story(steps: usize) -> impl Strategy<Value = Vec<Step>> {
    // Always true, except while a failure is shrunk.
    let told = prop::bool::weighted(1.0);
    prop::collection::vec((told, step()), steps - 1).prop_map(|steps| {
        let opened = Step::Open { who: 0, idle_ttl_ms: None, trace: None, attempt: 0 };
        let told = steps.into_iter().filter(|(told, _)| *told).map(|(_, step)| step);
        iter::once(opened).chain(told).collect()
    })
}
