//! Checks a history: a pure function of the requests, the replies and the final state.
//!
//! The checker decides whether some order of events explains all replies. Each attempt has a request id, which its
//! settlement carries, so the settling attempt is known. For each work item, every reply before its settlement must
//! report it as awaiting, and every reply after it must report that settlement.
//!
//! | rule | module |
//! |---|---|
//! | both forms of the channel are 1, 2, 3 …, with items of the conversation only; timeouts are not late | `channel` |
//! | an acknowledged result is on the channel once, unchanged; a token has one result; replies agree | `items` |
//! | an item times out before its deadline only without heartbeats; heartbeats report the state | `heartbeats` |
//! | a receipt reports the accepted attempt, and whether the result was on the channel at that time | `receipts` |
//! | cancelling a turn cancels all its awaiting items and no others, in one step | `turns` |
//! | a key has one item, and an item one sequence, in the order of issue | `issuing` |
//! | an end drops what it reports; readers get each part of the channel once, and continue there | `readers` |
//! | without a fault, the store is available | `unbroken` |
//! | a failover loses only what was written shortly before it | `loss` |

mod channel;
mod heartbeats;
mod issuing;
mod items;
mod loss;
mod readers;
mod receipts;
mod turns;
mod unbroken;

use std::collections::BTreeMap;

pub(crate) use unbroken::unfounded;

use crate::record::{Action, Asked, Conversation, Envelope, History, Operation, Post, Reply, Time, millis};

/// Largest apparent difference between the clocks of two processes on one machine.
const SAME_MOMENT: Time = 5_000;

/// The rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// The channel is 1, 2, 3 …
    Order,
    /// Both forms of the channel and all reports about an item agree.
    Agreement,
    /// A conversation contains only its own items.
    Crossed,
    /// A result is delivered byte for byte.
    Bytes,
    /// Acknowledged results are stored.
    Lost,
    /// A failover loses nothing that was replicated long before.
    Replicated,
    /// Refused results and results that nobody sent are not stored.
    Uncalled,
    /// A token accepts one result, once.
    OneWinner,
    /// A reply is consistent with earlier events.
    Reply,
    /// An idempotency key has one item.
    Idempotency,
    /// No result is accepted without its token.
    Forged,
    /// Nothing is accepted after the deadline or the heartbeat timeout, and items time out then.
    Deadline,
    /// After an end nothing is accepted, and the counts of dropped items are correct.
    Ending,
    /// Readers receive exactly the channel.
    Reading,
    /// The store is available unless a fault was injected.
    Available,
}

/// A violation of a rule.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) rule: Rule,
    pub(crate) conversation: String,
    pub(crate) what: String,
}

/// The result of a check.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) violations: Vec<Violation>,
    /// Number of acknowledged results that are missing.
    pub(crate) lost: usize,
    /// For each lost result, milliseconds from its acknowledgement to the failover.
    pub(crate) lost_before: Vec<u64>,
    /// Lateness of timeouts in milliseconds; during a fault, counted from its end.
    pub(crate) lateness: Vec<u64>,
}

/// A conversation that is being checked.
struct Case<'a> {
    history: &'a History,
    conversation: &'a Conversation,
    /// The channel, from the event stream.
    envelopes: Vec<Envelope>,
    items: BTreeMap<&'a str, Item<'a>>,
    verdict: Verdict,
}

/// A work item that a reply has named.
struct Item<'a> {
    id: &'a str,
    sequence: u64,
    issued: u64,
    deadline: u64,
    asked: &'a Asked,
    posts: Vec<(&'a Operation, &'a Post)>,
    beats: Vec<&'a Operation>,
    cancels: Vec<&'a Operation>,
    /// The cancellations of its turn.
    turn_cancels: Vec<&'a Operation>,
    shows: Vec<&'a Operation>,
    /// Its index on the channel.
    envelope: Option<usize>,
}

/// Checks a history.
pub(crate) fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    for conversation in &history.conversations {
        let mut case = Case::of(history, conversation);
        case.check();
        verdict.violations.append(&mut case.verdict.violations);
        verdict.lateness.append(&mut case.verdict.lateness);
        verdict.lost_before.append(&mut case.verdict.lost_before);
        verdict.lost += case.verdict.lost;
    }
    verdict
}

impl<'a> Case<'a> {
    fn of(history: &'a History, conversation: &'a Conversation) -> Self {
        let mut case = Self {
            history,
            conversation,
            envelopes: Vec::new(),
            items: BTreeMap::new(),
            verdict: Verdict::default(),
        };
        case.read_envelopes();
        case.collect_items();
        case
    }

    fn check(&mut self) {
        if self.conversation.truth.view.is_none() {
            self.check_gone();
            return;
        }
        self.check_channel();
        self.check_lateness();
        self.check_issuing();
        self.check_turns();
        for item in std::mem::take(&mut self.items).into_values() {
            self.check_item(&item);
        }
        self.check_ending();
        self.check_readers();
        self.check_progress();
        self.check_rest();
    }

    fn violated(&mut self, rule: Rule, what: impl Into<String>) {
        let conversation = self.conversation.id.clone();
        self.verdict.violations.push(Violation { rule, conversation, what: what.into() });
    }

    fn operations(&self) -> impl Iterator<Item = &'a Operation> + use<'a> {
        self.conversation.operations.iter()
    }

    fn collect_items(&mut self) {
        for operation in self.operations() {
            let Action::Issue { asked, .. } = &operation.action else { continue };
            for (_, reply) in operation.answers().filter(|(_, reply)| reply.status == 201) {
                let id = reply.text("workItemId");
                let item = Item {
                    id,
                    sequence: reply.number("sequence").unwrap_or_default(),
                    issued: reply.millis("issuedAt").unwrap_or_default(),
                    deadline: reply.millis("deadline").unwrap_or_default(),
                    asked,
                    posts: Vec::new(),
                    beats: Vec::new(),
                    cancels: Vec::new(),
                    turn_cancels: Vec::new(),
                    shows: Vec::new(),
                    envelope: self.envelopes.iter().position(|envelope| envelope.work_item_id == id),
                };
                self.items.entry(id).or_insert(item);
            }
        }
        for operation in self.operations() {
            match &operation.action {
                Action::Post(post) => {
                    if let Some(item) = self.items.get_mut(post.work_item.as_str()) {
                        item.posts.push((operation, post));
                    }
                }
                Action::Beat { work_item } => {
                    if let Some(item) = self.items.get_mut(work_item.as_str()) {
                        item.beats.push(operation);
                    }
                }
                Action::Cancel { work_item } => {
                    if let Some(item) = self.items.get_mut(work_item.as_str()) {
                        item.cancels.push(operation);
                    }
                }
                Action::CancelTurn { turn } => {
                    let of_turn = self.items.values_mut().filter(|item| item.asked.turn == *turn);
                    of_turn.for_each(|item| item.turn_cancels.push(operation));
                }
                Action::Show { work_item } => {
                    if let Some(item) = self.items.get_mut(work_item.as_str()) {
                        item.shows.push(operation);
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether an end may have taken effect before this time.
    fn may_have_ended_before(&self, time: Time) -> bool {
        self.operations().any(|other| matches!(other.action, Action::End) && other.may_count_before(time))
    }

    /// Time of the first acknowledged end.
    fn ended_by(&self) -> Option<Time> {
        let ends = self.operations().filter(|other| matches!(other.action, Action::End));
        ends.flat_map(Operation::answers)
            .filter(|(_, reply)| reply.status == 200)
            .map(|(attempt, _)| attempt.returned)
            .min()
    }

    fn has_ended(&self) -> bool {
        self.conversation.truth.view.as_ref().is_some_and(|view| view["state"] == "ended")
    }

    /// Time of the end by the store's clock, in milliseconds.
    fn ended_at(&self) -> Option<u64> {
        let view = self.conversation.truth.view.as_ref()?;
        view["endedAt"].as_str().and_then(millis)
    }

    /// The store does not know the conversation: correct only if no reply has confirmed it.
    fn check_gone(&mut self) {
        let opened = self.operations().any(|operation| {
            matches!(operation.action, Action::Open)
                && operation.answers().any(|(_, reply)| reply.status < 300)
        });
        if opened {
            self.violated(Rule::Lost, "the conversation was opened, and is not there");
        }
        for operation in self.operations() {
            let taken = operation.answers().find(|(_, reply)| reply.status == 202);
            if let (Action::Post(_), Some((attempt, _))) = (&operation.action, taken) {
                self.lose(attempt.returned);
            }
        }
    }

    /// Requests without an item: forged tokens, items of other conversations, and the opening.
    fn check_rest(&mut self) {
        for operation in self.operations() {
            let bugs = operation.attempts.iter().filter_map(|attempt| attempt.reply.as_ref());
            for bug in bugs.filter(|reply| matches!(reply.status, 408 | 429 | 500)) {
                self.violated(Rule::Reply, format!("answered {} {}", bug.status, bug.code()));
            }
            for (attempt, reply) in operation.answers() {
                if reply.request_id != attempt.request_id {
                    self.violated(Rule::Agreement, format!("a reply bears another request's id: {reply:?}"));
                }
                let (status, code) = (reply.status, reply.code());
                match &operation.action {
                    Action::Forged { how } if code != "CALLBACK_TOKEN_INVALID" => {
                        self.violated(Rule::Forged, format!("a {how} token was answered {status} {code}"));
                    }
                    Action::CancelForeign if code != "WORK_ITEM_NOT_FOUND" => {
                        let what = format!("cancelling another conversation's item: {status} {code}");
                        self.violated(Rule::Crossed, what);
                    }
                    Action::Open
                        if code == "CONVERSATION_ENDED" && self.may_have_ended_before(attempt.returned) => {}
                    Action::Open if status >= 300 => {
                        self.violated(Rule::Reply, format!("opening: {status} {code}"));
                    }
                    Action::Inspect => self.check_inspection(attempt.invoked, attempt.returned, reply),
                    _ => {}
                }
            }
        }
    }

    fn check_inspection(&mut self, invoked: Time, returned: Time, reply: &Reply) {
        if reply.status != 200 {
            let rule = if reply.code() == "CONVERSATION_NOT_FOUND" { Rule::Lost } else { Rule::Reply };
            self.violated(rule, format!("inspecting: {} {}", reply.status, reply.code()));
        } else if reply.text("state") == "ended" && !self.may_have_ended_before(returned) {
            self.violated(Rule::Ending, "it shows as ended, and nobody has ended it");
        } else if reply.text("state") == "live" && self.ended_by().is_some_and(|ended| ended < invoked) {
            self.violated(Rule::Ending, "it shows as live after an end was acknowledged");
        }
    }
}

impl Rule {
    /// Whether lost writes of the store explain this violation.
    pub(crate) const fn is_explained_by_loss(self) -> bool {
        match self {
            Self::Order
            | Self::Agreement
            | Self::Lost
            | Self::OneWinner
            | Self::Reply
            | Self::Uncalled
            | Self::Idempotency
            | Self::Deadline
            | Self::Ending
            | Self::Reading => true,
            Self::Crossed | Self::Bytes | Self::Forged | Self::Replicated | Self::Available => false,
        }
    }
}
