//! A random story, run on the memory store and on Redis side by side.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use bytes::Bytes;
use callback_ingress::clock::{Clock, ManualClock};
use callback_ingress::domain::gate::{
    Accept, Cancel, CancelTurn, ConversationView, Heartbeat, Issue, Limits, Open, WorkItemView,
};
use callback_ingress::domain::ids::{
    AttemptId, ConversationId, ConversationRef, Fingerprint, IdempotencyDigest, RequestId, Sequence,
    ToolCallId, ToolName, TraceParent, TurnId, WorkItemId,
};
use callback_ingress::domain::progress::Progress;
use callback_ingress::domain::reason::Reason;
use callback_ingress::domain::result::{CallbackResult, Payload};
use callback_ingress::domain::time::Timestamp;
use callback_ingress::domain::token::KeyId;
use callback_ingress::domain::work_item::{Kind, WorkItem};
use callback_ingress::store::memory::MemoryStore;
use callback_ingress::store::{Backend, DueConversation, InstrumentedStore, Store};
use futures_util::future::join_all;
use uuid::Uuid;

use super::command::{Command, Reply};
use super::step::{CONVERSATIONS, ITEMS, Item, Step, Wait, What, Who};
use crate::stage::instrumented;

/// Small limits, which a story of a few dozen steps reaches.
pub(super) const LIMITS: Limits = Limits {
    max_held_items: 3,
    max_held_bytes: 40,
    max_awaiting_items: 4,
    max_channel_length: 7,
    max_channel_bytes: 75,
    conversation_idle_ttl_ms: 10_000,
    ended_retention_ms: 2_000,
};

/// How often each kind of answer occurred.
pub(super) type Kinds = BTreeMap<String, u64>;

/// The two stores and the state of the story.
pub(super) struct Story<'a> {
    clock: &'a ManualClock,
    memory: InstrumentedStore,
    redis: &'a InstrumentedStore,
    partitions: u16,
    kinds: &'a mut Kinds,
    step: u128,
    last: Option<Command>,
    /// How often each conversation was created.
    lives: [u64; CONVERSATIONS + 1],
    views: [Option<ConversationView>; CONVERSATIONS + 1],
    issued: HashMap<(Who, WorkItemId), WorkItem>,
    /// The conversations that a command has ended.
    ended: [bool; CONVERSATIONS + 1],
    /// Whether a conversation has ended by being idle: its held items stay in the totals until its last deadline, or as
    /// long as the totals of its partition are kept.
    some_left_untouched: bool,
}

impl<'a> Story<'a> {
    /// Starts a story on an empty Redis.
    pub(super) fn new(
        clock: &'a ManualClock,
        redis: &'a InstrumentedStore,
        partitions: u16,
        kinds: &'a mut Kinds,
    ) -> Self {
        Self {
            clock,
            memory: instrumented(Backend::Memory(MemoryStore::new(Clock::Manual(clock.clone()), LIMITS))),
            redis,
            partitions,
            kinds,
            step: 0,
            last: None,
            lives: [0; CONVERSATIONS + 1],
            views: [const { None }; CONVERSATIONS + 1],
            issued: HashMap::new(),
            ended: [false; CONVERSATIONS + 1],
            some_left_untouched: false,
        }
    }

    /// Runs the story; the error is the first difference between the stores.
    pub(super) async fn play(&mut self, steps: &[Step]) -> Result<(), String> {
        for (number, step) in steps.iter().enumerate() {
            self.step += 1;
            self.take(step).await.map_err(|why| {
                let story: Vec<_> = steps[..=number].iter().map(|step| format!("  {step:?}\n")).collect();
                format!("after\n{}{why}", story.concat())
            })?;
        }
        Ok(())
    }

    async fn take(&mut self, step: &Step) -> Result<(), String> {
        if let Step::Wait(wait) = step {
            let now = self.clock.now();
            self.clock.advance(now.millis_until(self.time_of(*wait).unwrap_or(now)));
        }
        if let Step::Sweep = step {
            let limit = if self.partitions == 1 { 3 } else { 100 };
            if let Reply::Due(due) = self.both(Command::Due(limit)).await? {
                for of in due.conversations {
                    self.both(Command::Expire(of, self.trace())).await?;
                }
            }
        }
        if let Some(command) = self.command(step) {
            let reply = self.both(command.clone()).await?;
            self.learn(&command, &reply);
            self.last = Some(command);
        }
        self.compare_state().await
    }

    /// The same command as a new attempt.
    fn by_another(&self, mut command: Command) -> Command {
        let other = AttemptId::from_random(u64::MAX);
        match &mut command {
            Command::Open(open) => open.attempt = other,
            Command::Issue(issue) => {
                issue.work_item = self.attempt(ITEMS);
            }
            Command::Accept(accept) => (accept.attempt, accept.request_id) = (other, self.request_id()),
            Command::Cancel(cancel) => (cancel.attempt, cancel.request_id) = (other, self.request_id()),
            Command::CancelTurn(cancel) => (cancel.attempt, cancel.request_id) = (other, self.request_id()),
            Command::Heartbeat(_)
            | Command::End(..)
            | Command::Expire(..)
            | Command::Due(_)
            | Command::Inspect(_)
            | Command::WorkItem(..)
            | Command::Read(..) => {}
        }
        command
    }

    /// Runs a command on both stores and compares the answers.
    async fn both(&mut self, command: Command) -> Result<Reply, String> {
        let in_memory = command.clone().run(&self.memory).await;
        let in_redis = command.run(self.redis).await;
        self.compare(in_memory, &in_redis)
    }

    fn compare(&mut self, in_memory: Reply, in_redis: &Reply) -> Result<Reply, String> {
        if in_memory != *in_redis {
            return Err(format!("the memory store says\n  {in_memory:?}\nand Redis\n  {in_redis:?}"));
        }
        *self.kinds.entry(in_memory.kind()).or_default() += 1;
        Ok(in_memory)
    }

    /// Compares the visible state of every conversation and item.
    async fn compare_state(&mut self) -> Result<(), String> {
        let mut questions = Vec::new();
        for who in 0..CONVERSATIONS {
            let conversation = reference(who);
            questions.push(Command::Inspect(conversation));
            questions.push(Command::Read(conversation, None, 100));
            let items = self.issued.keys().filter(|(of, _)| *of == who).map(|(_, item)| *item);
            questions.extend(items.map(|item| Command::WorkItem(conversation, item)));
        }
        // Sent to Redis concurrently.
        let in_redis = join_all(questions.iter().cloned().map(|question| question.run(self.redis))).await;
        for (question, in_redis) in questions.into_iter().zip(in_redis) {
            let in_memory = question.clone().run(&self.memory).await;
            let reply = self
                .compare(in_memory, &in_redis)
                .map_err(|why| format!("asked then for {question:?}, {why}"))?;
            self.learn(&question, &reply);
        }
        self.compare_totals().await?;
        self.compare_waiting().await
    }

    async fn compare_waiting(&self) -> Result<(), String> {
        for limit in [1, 100] {
            let in_memory = self.memory.waiting(limit).await.unwrap();
            let in_redis = self.redis.waiting(limit).await.unwrap();
            if in_memory != in_redis {
                return Err(format!(
                    "of waiting conversations, the memory store lists\n  {in_memory:?}\nand Redis\n  {in_redis:?}"
                ));
            }
        }
        Ok(())
    }

    async fn compare_totals(&self) -> Result<(), String> {
        let (in_memory, in_redis) = (
            self.memory.totals(&[0]).await.unwrap(),
            self.redis.totals(&(0..self.partitions).collect::<Vec<_>>()).await.unwrap(),
        );
        if !self.some_left_untouched && in_memory != in_redis {
            return Err(format!("the memory store adds up\n  {in_memory:?}\nand Redis\n  {in_redis:?}"));
        }
        Ok(())
    }

    fn learn(&mut self, command: &Command, reply: &Reply) {
        match (command, reply) {
            (Command::Open(open), Reply::Open(Ok(_))) => {
                let who = who(open.conversation.reference());
                if self.views[who].is_none() {
                    self.lives[who] += 1;
                    self.issued.retain(|(of, _), _| *of != who);
                }
            }
            (Command::Issue(issue), Reply::Issue(Ok(issued))) => {
                let who = who(issue.conversation);
                self.issued.insert((who, issued.item.id), issued.item.clone());
            }
            (Command::End(reference, ..), Reply::End(Ok(_))) => {
                let who = who(*reference);
                self.ended[who] |= self.views[who].as_ref().is_some_and(|view| view.ended.is_none());
            }
            (Command::Inspect(reference), Reply::Inspect(view)) => {
                let who = who(*reference);
                let (before, now) = (self.views[who].take(), view.clone().ok());
                let is_live =
                    |view: &Option<ConversationView>| view.as_ref().is_some_and(|view| view.ended.is_none());
                self.some_left_untouched |= is_live(&before) && !is_live(&now) && !self.ended[who];
                self.ended[who] &= now.is_some();
                self.views[who] = now;
            }
            _ => {}
        }
    }

    fn time_of(&self, wait: Wait) -> Option<Timestamp> {
        let now = self.clock.now();
        let (time, before) = match wait {
            Wait::Millis(millis) => (now.plus_millis(millis), 0),
            Wait::Deadline { before } => {
                let deadlines = self.issued.values().map(|item| item.deadline);
                (deadlines.filter(|deadline| deadline.as_millis() > now.as_millis() + before).min()?, before)
            }
            Wait::Silence { before } => {
                let views = self.views.iter().flatten().flat_map(|view| &view.unreleased);
                let due = views.filter_map(WorkItemView::heartbeat_deadline);
                (due.filter(|due| due.as_millis() > now.as_millis() + before).min()?, before)
            }
            Wait::Expiry { who, item, before } => {
                (self.issued.get(&(who, self.item_id(who, item)))?.expires_at, before)
            }
            Wait::Idle { who, before } => (self.views[who].as_ref()?.idle_at, before),
            Wait::Gone { who, before } => {
                let view = self.views[who].as_ref()?;
                let ended_at = view.ended.map_or(view.idle_at, |ended| ended.ended_at);
                (ended_at.plus_millis(LIMITS.ended_retention_ms), before)
            }
        };
        Some(Timestamp::from_millis(time.as_millis() - before))
    }

    /// Two conversations share ids while they were created equally often; a recreated conversation never reuses its ids.
    fn item_id(&self, who: Who, item: Item) -> WorkItemId {
        let of_life = |life: u64, item: What| {
            let attempt =
                WorkItemId::from_uuid(Uuid::from_u128(u128::from(life) << 40 | u128::from(item) << 32));
            attempt.with_sequence(Sequence::new(u64::from(item) % 8))
        };
        match item {
            Item::Issued(number) => {
                let mut issued: Vec<_> =
                    self.issued.iter().filter(|((of, _), _)| *of == who).map(|(_, item)| item).collect();
                issued.sort_by_key(|item| item.sequence);
                match issued.len() {
                    0 => of_life(self.lives[who], 0),
                    len => issued[number % len].id,
                }
            }
            Item::Any(item) => of_life(self.lives[who], item),
            Item::Former(item) => of_life(self.lives[who].saturating_sub(1), item),
        }
    }

    /// A new attempt to issue an item. Only an immediate repetition has the same attempt.
    fn attempt(&self, item: What) -> WorkItemId {
        WorkItemId::from_uuid(Uuid::from_u128(self.step << 48 | u128::from(item) << 32))
    }

    /// The expiry of the item's token.
    fn expiry(&self, who: Who, work_item: WorkItemId) -> Timestamp {
        let issued = self.issued.get(&(who, work_item));
        issued.map_or_else(|| self.clock.now().plus_millis(100), |item| item.expires_at)
    }

    fn request_id(&self) -> RequestId {
        RequestId::from_uuid(Uuid::from_u128(self.step))
    }

    /// The trace context of a step that may settle an item; some steps have none.
    fn trace(&self) -> Option<TraceParent> {
        (!self.step.is_multiple_of(3)).then(|| traceparent(u8::try_from(self.step % 7 + 2).unwrap()))
    }

    /// The reason of a step that cancels or ends; some steps have none.
    fn reason(&self) -> Option<Reason> {
        self.step.is_multiple_of(2).then(|| Reason::parse(&format!("\"{}\" \\ é", self.step)).unwrap())
    }

    fn command(&self, step: &Step) -> Option<Command> {
        Some(match step {
            Step::Open { who, idle_ttl_ms, trace, attempt } => Command::Open(Open {
                conversation: id(*who),
                idle_ttl_ms: *idle_ttl_ms,
                traceparent: trace.map(traceparent),
                attempt: AttemptId::from_random(*attempt),
            }),
            Step::Issue { who, item, timeout_ms, heartbeat_timeout_ms, llm, trace, key } => {
                Command::Issue(Issue {
                    conversation: reference(*who),
                    work_item: self.attempt(*item),
                    kind: if *llm { Kind::Llm } else { Kind::Tool },
                    turn_id: llm.then(|| TurnId::parse("turn").unwrap()),
                    tool_call_id: (item % 3 == 0).then(|| ToolCallId::parse("\"call\"\\").unwrap()),
                    name: (item % 2 == 0).then(|| ToolName::parse("tool").unwrap()),
                    timeout_ms: *timeout_ms,
                    heartbeat_timeout_ms: *heartbeat_timeout_ms,
                    replay_window_ms: 500,
                    key_id: KeyId::parse("key").unwrap(),
                    traceparent: trace.map(traceparent),
                    request_traceparent: None,
                    idempotency: key.map(|(key, body)| {
                        (IdempotencyDigest::of(&key.to_string()).unwrap(), Fingerprint::of(&[body]))
                    }),
                })
            }
            Step::Accept { who, item, body, attempt } => {
                let work_item = self.item_id(*who, *item);
                Command::Accept(Accept {
                    conversation: reference(*who),
                    work_item,
                    sequence: work_item.sequence(),
                    expires_at: self.expiry(*who, work_item),
                    result: result(*body),
                    request_id: self.request_id(),
                    traceparent: self.trace(),
                    attempt: AttemptId::from_random(*attempt),
                })
            }
            Step::Heartbeat { who, item, progress } => {
                let work_item = self.item_id(*who, *item);
                Command::Heartbeat(Heartbeat {
                    conversation: reference(*who),
                    work_item,
                    expires_at: self.expiry(*who, work_item),
                    progress: Progress::new(progress.then_some("on \"it\""), None).unwrap(),
                })
            }
            Step::Cancel { who, item, attempt } => Command::Cancel(Cancel {
                conversation: reference(*who),
                work_item: self.item_id(*who, *item),
                reason: self.reason(),
                request_id: self.request_id(),
                traceparent: self.trace(),
                attempt: AttemptId::from_random(*attempt),
            }),
            Step::CancelTurn { who, attempt } => Command::CancelTurn(CancelTurn {
                conversation: reference(*who),
                turn_id: TurnId::parse("turn").unwrap(),
                reason: self.reason(),
                request_id: self.request_id(),
                traceparent: self.trace(),
                attempt: AttemptId::from_random(*attempt),
            }),
            Step::End { who } => Command::End(reference(*who), self.trace(), self.reason()),
            Step::Expire { who, items } => {
                let sequences = items.iter().map(|item| self.item_id(*who, *item).sequence()).collect();
                let whole = items.len().is_multiple_of(2);
                let due = DueConversation { conversation: reference(*who), sequences, whole };
                Command::Expire(due, self.trace())
            }
            // The limit applies to each partition, and the memory store has only one.
            Step::Due { limit } => Command::Due(if self.partitions == 1 { *limit } else { 100 }),
            Step::Inspect { who } => Command::Inspect(reference(*who)),
            Step::WorkItem { who, item } => Command::WorkItem(reference(*who), self.item_id(*who, *item)),
            Step::Read { who, after, count } => {
                let after = (*after > 0).then(|| Sequence::new(*after));
                Command::Read(reference(*who), after, *count)
            }
            Step::Repeat { as_new } => {
                let last = self.last.clone()?;
                if *as_new { self.by_another(last) } else { last }
            }
            Step::Sweep | Step::Wait(_) => return None,
        })
    }
}

/// Cached ids and references of the conversations.
static IDS: LazyLock<[(ConversationId, ConversationRef); CONVERSATIONS + 1]> = LazyLock::new(|| {
    std::array::from_fn(|who| {
        let id = ConversationId::parse(&format!("conversation-{who}")).unwrap();
        let reference = id.reference();
        (id, reference)
    })
});

fn id(who: Who) -> ConversationId {
    IDS[who].0.clone()
}

fn reference(who: Who) -> ConversationRef {
    IDS[who].1
}

fn who(reference: ConversationRef) -> Who {
    IDS.iter().position(|(_, known)| *known == reference).unwrap()
}

fn traceparent(number: u8) -> TraceParent {
    TraceParent::parse(&format!("00-{}-{}-01", number.to_string().repeat(32), "1".repeat(16))).unwrap()
}

/// Small results and errors, and some that reach the held-byte limit.
fn result(body: u8) -> CallbackResult {
    let bytes = match body {
        0 => Bytes::from_static(b"1"),
        1 => Bytes::from_static(b"\x00\xff\r\n"),
        2 => Bytes::from_static(b"a body of twenty-six bytes"),
        3 => Bytes::from_static(br#"{"code":"X","message":""}"#),
        _ => Bytes::new(),
    };
    let fingerprint = Fingerprint::of(&bytes);
    let payload = if body == 3 { Payload::Failed(bytes) } else { Payload::Succeeded(bytes) };
    CallbackResult { payload, fingerprint }
}

const _: () = assert!(ITEMS as u64 > LIMITS.max_channel_length, "a channel can be filled");
