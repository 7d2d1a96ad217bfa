//! The clients' actions, derived from a seed.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::record::Says;

/// Milliseconds within which all actions of a history start.
pub(crate) const SPAN_MS: u64 = 1_200;
/// Number of turns in a conversation.
const TURNS: u8 = 2;
/// A timeout that expires only after a fault.
const AMPLE_MS: u64 = 1_000;

/// The actions of one history.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) conversations: Vec<ConversationPlan>,
}

/// One conversation. Times are milliseconds from the start of the history or of the preceding action.
#[derive(Debug)]
pub(crate) struct ConversationPlan {
    pub(crate) items: Vec<ItemPlan>,
    pub(crate) readers: Vec<ReaderPlan>,
    pub(crate) inspections: Vec<u64>,
    /// Times of ends, at most two.
    pub(crate) ends: Vec<u64>,
    /// Cancellations of turns: time and turn.
    pub(crate) turn_cancels: Vec<(u64, u8)>,
}

#[derive(Debug)]
pub(crate) struct ItemPlan {
    pub(crate) at: u64,
    /// One of [`TURNS`].
    pub(crate) turn: u8,
    pub(crate) name: Option<&'static str>,
    pub(crate) kind: &'static str,
    pub(crate) timeout_ms: u64,
    /// Heartbeats are needed at least this often.
    pub(crate) heartbeat_timeout_ms: Option<u64>,
    /// Heartbeats, at these times after the issue.
    pub(crate) beats: Vec<u64>,
    pub(crate) keyed: bool,
    /// Repeats the request after this time; only with an idempotency key.
    pub(crate) again: Option<u64>,
    /// Sends another request with the same key after this time.
    pub(crate) key_reused: Option<u64>,
    pub(crate) posts: Vec<PostPlan>,
    /// Cancellations, at these times after the issue.
    pub(crate) cancels: Vec<u64>,
    /// A cancellation through another conversation, at this time after the issue.
    pub(crate) cancelled_by_stranger: Option<u64>,
    /// Reads of the item, at these times after the issue.
    pub(crate) shown: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct PostPlan {
    pub(crate) after: u64,
    pub(crate) carrier: Carrier,
    pub(crate) what: PostKind,
}

/// The carrier of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Header,
    Query,
    Path,
    Body,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum PostKind {
    /// The body's number; equal numbers have equal bytes.
    Body(u8, Says),
    /// A forged token.
    Forged(Forgery),
}

/// How a token is forged.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Forgery {
    /// One character changed.
    Changed(usize),
    /// This token's claims with the signature of another conversation's token.
    Spliced,
    /// Truncated.
    Short,
}

/// A reader of the event stream whose connections are closed now and then.
#[derive(Debug)]
pub(crate) struct ReaderPlan {
    pub(crate) at: u64,
    /// Duration of each connection; the last one lasts until the end.
    pub(crate) cuts: Vec<u64>,
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let conversations = (0..random.random_range(2..=3)).map(|_| conversation(&mut random)).collect();
        Self { conversations }
    }

    /// The same plan with the long timeouts multiplied.
    pub(crate) fn patient(mut self, times: u64) -> Self {
        for item in self.conversations.iter_mut().flat_map(|conversation| &mut conversation.items) {
            if item.timeout_ms >= AMPLE_MS {
                item.timeout_ms *= times;
            }
        }
        self
    }
}

fn conversation(random: &mut StdRng) -> ConversationPlan {
    let items = (0..random.random_range(4..=8)).map(|_| item(random)).collect();
    let readers = (0..random.random_range(1..=2)).map(|_| reader(random)).collect();
    let inspections = times(random, 0..=2, SPAN_MS);
    // An end during other actions, sometimes two at once.
    let ends = if random.random_bool(0.35) { times(random, 1..=2, SPAN_MS) } else { Vec::new() };
    let turn_cancels = if random.random_bool(0.35) { times(random, 1..=2, SPAN_MS) } else { Vec::new() };
    let turn_cancels = turn_cancels.into_iter().map(|at| (at, random.random_range(0..TURNS))).collect();
    ConversationPlan { items, readers, inspections, ends, turn_cancels }
}

fn times(random: &mut StdRng, count: std::ops::RangeInclusive<usize>, before: u64) -> Vec<u64> {
    (0..random.random_range(count)).map(|_| random.random_range(0..before)).collect()
}

fn item(random: &mut StdRng) -> ItemPlan {
    // Short timeouts expire or nearly do; long ones expire only after a fault.
    let timeout_ms = match random.random_range(0..10) {
        0..=2 => random.random_range(20..120),
        3..=5 => random.random_range(120..500),
        _ => random.random_range(1_500..2_500),
    };
    let kind = if random.random_bool(0.3) { "llm" } else { "tool" };
    let keyed = random.random_bool(0.5);
    let soon = |random: &mut StdRng| random.random_range(0..250);
    let answered = timeout_ms >= AMPLE_MS || random.random_bool(0.75);
    let mut posts = Vec::new();
    if answered {
        let within = timeout_ms.min(500);
        let says = if random.random_bool(0.15) { Says::Failed } else { Says::Succeeded };
        // Just before or after the deadline, where races occur.
        let first = random.random_range(0..within + within / 10);
        posts.push(post(random, first, PostKind::Body(0, says)));
        for _ in 0..random.random_range(0..=2) {
            let after = first + soon(random);
            posts.push(post(random, after, PostKind::Body(0, says)));
        }
        if random.random_bool(0.4) {
            let after = random.random_range(0..within + 50);
            posts.push(post(random, after, PostKind::Body(1, Says::Succeeded)));
        }
        if random.random_bool(0.1) {
            let nonsense = if random.random_bool(0.5) {
                PostKind::Body(2, Says::Nonsense)
            } else {
                PostKind::Body(0, Says::TwoTokens)
            };
            let after = soon(random);
            posts.push(post(random, after, nonsense));
        }
    }
    if random.random_bool(0.15) {
        let forgery = match random.random_range(0..3) {
            0 => Forgery::Changed(random.random_range(4..112)),
            1 => Forgery::Spliced,
            _ => Forgery::Short,
        };
        let after = soon(random);
        posts.push(post(random, after, PostKind::Forged(forgery)));
    }
    let heartbeat_timeout_ms = random.random_bool(0.3).then(|| random.random_range(15..=timeout_ms.min(600)));
    let beats = if heartbeat_timeout_ms.is_some() || random.random_bool(0.1) {
        times(random, 0..=4, timeout_ms.min(600) + 50)
    } else {
        Vec::new()
    };
    ItemPlan {
        at: random.random_range(0..SPAN_MS * 2 / 3),
        turn: random.random_range(0..TURNS),
        name: [None, Some("maps.route"), Some("weather")][random.random_range(0..3)],
        kind,
        timeout_ms,
        heartbeat_timeout_ms,
        beats,
        keyed,
        again: (keyed && random.random_bool(0.4)).then(|| soon(random)),
        key_reused: (keyed && random.random_bool(0.1)).then(|| soon(random)),
        posts,
        cancels: if random.random_bool(0.2) { times(random, 1..=2, 300) } else { Vec::new() },
        cancelled_by_stranger: random.random_bool(0.05).then(|| soon(random)),
        shown: random.random_bool(0.3).then(|| soon(random)),
    }
}

fn post(random: &mut StdRng, after: u64, what: PostKind) -> PostPlan {
    // A token is never found in a body that is not JSON.
    let readable = !matches!(what, PostKind::Body(_, Says::Nonsense));
    let carrier = match random.random_range(0..10) {
        0 => Carrier::Query,
        1 => Carrier::Path,
        2 if readable => Carrier::Body,
        _ => Carrier::Header,
    };
    PostPlan { after, carrier, what }
}

fn reader(random: &mut StdRng) -> ReaderPlan {
    let cuts = times(random, 0..=3, 500);
    ReaderPlan { at: random.random_range(0..SPAN_MS / 2), cuts }
}

#[test]
fn plan_depends_only_on_the_seed() {
    let shown = |seed| format!("{:?}", Plan::of(seed));
    assert_eq!(shown(7), shown(7));
    assert_ne!(shown(7), shown(8));
}
