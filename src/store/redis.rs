//! The store in Redis or Valkey: one Lua script an operation.
//!
//! `scripts/gate.lua` holds the rules of the gate and stands before every operation's own script; `keys` spells the
//! keys; `script` calls and decodes; `watcher` wakes event streams.
//!
//! The way of a request: `nodes` finds who is to be asked (`cluster` by `slots`, `sentinel` by asking), `link` is the
//! connection to it, `fate` tells what became of it, and `replicas` waits until others have it, too. `servers` reads
//! the URL; `layout`, `rights` and `durability` look at the servers before they are used.

mod cluster;
mod durability;
pub(super) mod fate;
mod keys;
mod layout;
mod link;
mod nodes;
mod partitions;
pub(super) mod replicas;
mod rights;
mod script;
mod sentinel;
mod servers;
mod slots;
mod watcher;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use durability::Remark;
pub use layout::NotUsable;
use redis::{Script, Value};
pub use replicas::Replicas;
use secrecy::SecretString;
pub use servers::{InvalidServers, Place, Tls, asks_for_tls, check_url, names_sentinels, password};
use tokio::sync::mpsc;

use self::keys::Keys;
use self::link::ConnectionLimits;
use self::nodes::{Lane, Nodes};
use self::partitions::{WhatIsDue, WhatIsHeld};
use self::script::{Call, Fields, Reply, broken, list, string};
use self::servers::Servers;
use super::wakes::Wakes;
use super::{Answer, ChannelAddress, Due, DueConversation, Page, Store, StoreError, Wake};
use crate::clock::Clock;
use crate::domain::envelope::Envelope;
use crate::domain::gate::{
    Accept, AcceptRefused, Cancel, CancelRefused, Cancelled, ConversationNotFound, ConversationView,
    Delivery, EndReceipt, Ended, Expired, Issue, IssueRefused, Issued, Known, Limits, LookupRefused,
    NotAccepted, Open, OpenRefused, Opened, Receipt, Totals, WorkItemView,
};
use crate::domain::ids::{
    ConversationId, ConversationRef, RequestId, Sequence, TraceParent, TurnId, WorkItemId,
};
use crate::domain::result::Payload;
use crate::domain::work_item::{Kind, Outcome};

/// How much longer than its data a key is kept: TTLs only collect, they decide nothing.
const GRACE_MS: u64 = 60_000;

/// A page of a channel takes no further envelopes once it has so many bytes.
const PAGE_BYTES: usize = 256 * 1024;

/// How Redis is reached and used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which servers: see `servers`.
    pub url: SecretString,
    /// What TLS needs, where the URL asks for it.
    pub tls: Tls,
    /// User and password of the sentinels, where the URL names some.
    pub sentinel_username: Option<String>,
    /// See `sentinel_username`.
    pub sentinel_password: Option<SecretString>,
    /// Replicas that must have a write before it is acknowledged.
    pub replicas: Option<Replicas>,
    /// Number of partitions, fixed for a deployment.
    pub partitions: u16,
    /// Longest time to a connection.
    pub connect_timeout: Duration,
    /// Longest time to an answer; reads, which may bring much, have longer.
    pub response_timeout: Duration,
    /// How many requests each listener has under way: so many find a place in a connection's queue.
    pub max_requests_in_flight: usize,
    /// What a conversation may take up.
    pub limits: Limits,
}

#[derive(Debug)]
struct Scripts {
    open: Script,
    issue: Script,
    accept: Script,
    cancel: Script,
    end: Script,
    expire: Script,
    inspect: Script,
    work_item: Script,
    read: Script,
    due: Script,
    totals: Script,
}

/// An operation's script, with the rules of the gate before it.
macro_rules! operation {
    ($file:literal) => {
        Script::new(concat!(include_str!("redis/scripts/gate.lua"), "\n", include_str!($file)))
    };
}

impl Scripts {
    fn new() -> Self {
        Self {
            open: operation!("redis/scripts/open.lua"),
            issue: operation!("redis/scripts/issue.lua"),
            accept: operation!("redis/scripts/accept.lua"),
            cancel: operation!("redis/scripts/cancel.lua"),
            end: operation!("redis/scripts/end.lua"),
            expire: operation!("redis/scripts/expire.lua"),
            inspect: operation!("redis/scripts/inspect.lua"),
            work_item: operation!("redis/scripts/work_item.lua"),
            read: operation!("redis/scripts/read.lua"),
            due: Script::new(include_str!("redis/scripts/due.lua")),
            totals: Script::new(include_str!("redis/scripts/totals.lua")),
        }
    }
}

/// Conversations in Redis.
#[derive(Debug)]
pub struct RedisStore {
    keys: Keys,
    limits: Limits,
    /// `Clock::System` stands for the server's own clock.
    clock: Clock,
    scripts: Scripts,
    nodes: Arc<Nodes>,
    connection_limits: ConnectionLimits,
    replicas: Option<Replicas>,
    place: Place,
    connections: Arc<AtomicU64>,
    wakes: Wakes,
    verified: Arc<AtomicBool>,
    remarked: Mutex<Vec<Remark>>,
    /// Whether a part of a cluster is away.
    partly_away: AtomicBool,
}

impl RedisStore {
    /// A store that connects when it is first used; [`RedisStore::verify`] must have passed before.
    ///
    /// Must be called within a tokio runtime. With `Clock::System` the server's clock counts.
    pub fn new(settings: &Settings, clock: Clock) -> Result<Self, InvalidServers> {
        // The library takes the process's provider, and none is built in. One that is set already stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let servers = Servers::new(
            &settings.url,
            &settings.tls,
            settings.sentinel_username.as_deref(),
            settings.sentinel_password.as_ref(),
        )?;
        let place = servers.place();
        let connections = Arc::default();
        let connection_limits = ConnectionLimits::new(
            settings.connect_timeout,
            settings.response_timeout,
            // There are two listeners.
            settings.max_requests_in_flight.saturating_mul(2),
        );
        let nodes = Arc::new(Nodes::new(servers, connection_limits, settings.replicas, &connections));
        let keys = Keys { partitions: settings.partitions };
        let (sender, interest) = mpsc::unbounded_channel();
        let wakes = Wakes::new(Some(sender));
        let verified = Arc::new(AtomicBool::new(false));
        let watching = wakes.without_interest();
        tokio::spawn(watcher::listen(
            Arc::clone(&nodes),
            connection_limits,
            keys,
            watching,
            interest,
            Arc::clone(&verified),
        ));
        Ok(Self {
            keys,
            limits: settings.limits,
            clock,
            scripts: Scripts::new(),
            nodes,
            connection_limits,
            replicas: settings.replicas,
            place,
            connections,
            wakes,
            verified,
            remarked: Mutex::default(),
            partly_away: AtomicBool::new(false),
        })
    }

    /// Checks that this Redis can be used. Until it has passed, every operation is refused as unavailable.
    pub async fn verify(&self) -> Result<(), NotUsable> {
        match layout::check(&self.nodes, self.keys.partitions).await {
            Ok(missing) => {
                if missing.wakes {
                    tracing::debug!(
                        "the Redis user may not publish: readers of a channel look again by themselves"
                    );
                }
                self.verified.store(true, Ordering::Release);
                Ok(())
            }
            Err(refused @ NotUsable::Refused(_)) => {
                self.verified.store(false, Ordering::Release);
                Err(refused)
            }
            Err(away @ NotUsable::NotThere(_)) => Err(away),
        }
    }

    /// What an operator should know of the servers' settings, and has not been told before.
    pub async fn new_remarks(&self) -> Vec<Remark> {
        let now = durability::remarks(&self.nodes, self.replicas).await;
        let mut before = self.remarked.lock().unwrap_or_else(PoisonError::into_inner);
        let new = now.iter().filter(|remark| !before.contains(remark)).cloned().collect();
        *before = now;
        new
    }

    /// Where it is.
    pub const fn place(&self) -> &Place {
        &self.place
    }

    /// How many connections were made, but those of the watcher.
    pub fn connections(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.connections)
    }

    fn check_verified(&self) -> Result<(), StoreError> {
        if self.verified.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(StoreError::Unavailable("the store has not been checked yet".into()))
        }
    }

    fn now(&self) -> String {
        match &self.clock {
            Clock::System => String::new(),
            Clock::Manual(clock) => clock.now().as_millis().to_string(),
        }
    }

    /// A call with the keys and arguments that all operations share.
    fn call<'a>(&self, script: &'a Script, conversation: ConversationRef) -> Call<'a> {
        Call::new(script, self.keys.conversation(conversation))
            .arg("now", self.now())
            .arg("reference", conversation)
            .arg("retention", self.limits.ended_retention_ms)
            .arg("grace", GRACE_MS)
            .arg("wake", self.keys.wake(conversation))
    }

    /// The reply to what changes something, once enough replicas have that and all before it: a refusal, too, tells of
    /// what must not be undone.
    async fn write(&self, call: Call<'_>, conversation: ConversationRef) -> Result<Reply, StoreError> {
        let answer = call.send(&self.nodes, Lane::Commands).await?;
        if let Some(fence) = &answer.node.fence {
            let confirmed = fence.confirm(answer.run.as_ref(), &self.keys.fence(conversation)).await;
            confirmed.map_err(StoreError::OutcomeUnknown)?;
        }
        Reply::read(answer.value)
    }

    /// Says once that a part of a cluster is away, and once that it is back.
    fn tell_of_parts(&self, some_answer: bool, failure: Option<&StoreError>) {
        let away = some_answer && failure.is_some();
        if self.partly_away.swap(away, Ordering::Relaxed) == away {
            return;
        }
        if let Some(error) = failure {
            tracing::warn!(error = error.chain(), "a part of the store does not answer");
        } else {
            tracing::info!("all parts of the store answer again");
        }
    }
}

impl Store for RedisStore {
    async fn open(&self, command: Open) -> Answer<Opened, OpenRefused> {
        self.check_verified()?;
        let conversation = command.conversation.reference();
        let call = self
            .call(&self.scripts.open, conversation)
            .arg("id", &command.conversation)
            .option("idle_ttl", command.idle_ttl_ms)
            .arg("default_idle_ttl", self.limits.conversation_idle_ttl_ms)
            .option("traceparent", command.traceparent.as_ref().map(TraceParent::as_str))
            .arg("attempt", command.attempt);
        let reply = self.write(call, conversation).await?;
        match reply.word.as_str() {
            "opened" => Ok(Ok(Opened { created: reply.fields()?.flag("created")? })),
            "conversation_ended" => Ok(Err(OpenRefused::ConversationEnded)),
            _ => Err(reply.unexpected()),
        }
    }

    async fn issue(&self, command: Issue) -> Answer<Issued, IssueRefused> {
        self.check_verified()?;
        let conversation = command.conversation;
        let call = self
            .call(&self.scripts.issue, conversation)
            .arg("work_item", command.work_item)
            .arg("kind", command.kind.as_str())
            .arg("timeout", command.timeout_ms)
            .arg("replay_window", command.replay_window_ms)
            .arg("key_id", command.key_id)
            .option("turn_id", command.turn_id.as_ref())
            .option("traceparent", command.traceparent.as_ref().map(TraceParent::as_str))
            .option("request_traceparent", command.request_traceparent.as_ref().map(TraceParent::as_str))
            .option("idempotency", command.idempotency.map(|(key, _)| key))
            .option("fingerprint", command.idempotency.map(|(_, fingerprint)| fingerprint))
            .arg("max_awaiting_items", self.limits.max_awaiting_items)
            .arg("max_channel_length", self.limits.max_channel_length);
        let reply = self.write(call, conversation).await?;
        Ok(Err(match reply.word.as_str() {
            "issued" => {
                let fields = reply.fields()?;
                return Ok(Ok(Issued { item: fields.work_item()?, repeated: fields.flag("repeated")? }));
            }
            "conversation_not_found" => IssueRefused::ConversationNotFound,
            "conversation_ended" => IssueRefused::ConversationEnded,
            "idempotency_conflict" => IssueRefused::IdempotencyConflict,
            "awaiting_limit" => IssueRefused::AwaitingLimit,
            "channel_limit" => IssueRefused::ChannelLimit,
            _ => return Err(reply.unexpected()),
        }))
    }

    async fn accept(&self, command: Accept) -> Answer<Receipt, NotAccepted> {
        self.check_verified()?;
        let (outcome, payload) = match &command.result.payload {
            Payload::Succeeded(result) => (Outcome::Succeeded, result),
            Payload::Failed(error) => (Outcome::Failed, error),
        };
        let conversation = command.conversation;
        let call = self
            .call(&self.scripts.accept, conversation)
            .key(self.keys.used(command.conversation, command.work_item))
            .arg("work_item", command.work_item)
            .arg("expires_at", command.expires_at.as_millis())
            .arg("fingerprint", command.result.fingerprint)
            .arg("outcome", outcome)
            .bytes("payload", payload)
            .arg("request_id", command.request_id)
            .option("trace", command.traceparent.as_ref().map(TraceParent::as_str))
            .arg("attempt", command.attempt)
            .arg("max_held_items", self.limits.max_held_items)
            .arg("max_held_bytes", self.limits.max_held_bytes);
        let reply = self.write(call, conversation).await?;
        let why = match reply.word.as_str() {
            "taken" => return Ok(Ok(receipt(&reply.fields()?)?)),
            "token_expired" => AcceptRefused::TokenExpired,
            "conversation_ended" => AcceptRefused::ConversationEnded,
            "work_item_unknown" => AcceptRefused::WorkItemUnknown,
            "token_used" => AcceptRefused::TokenUsed,
            "work_item_timed_out" => AcceptRefused::WorkItemTimedOut,
            "work_item_cancelled" => AcceptRefused::WorkItemCancelled,
            "held_limit" => AcceptRefused::HeldLimit,
            _ => return Err(reply.unexpected()),
        };
        Ok(Err(NotAccepted { why, known: known(&reply.fields()?)?.map(Box::new) }))
    }

    async fn cancel(&self, command: Cancel) -> Answer<Cancelled, CancelRefused> {
        self.check_verified()?;
        let conversation = command.conversation;
        let call = self
            .call(&self.scripts.cancel, conversation)
            .arg("work_item", command.work_item)
            .arg("request_id", command.request_id)
            .option("trace", command.traceparent.as_ref().map(TraceParent::as_str))
            .arg("attempt", command.attempt);
        let reply = self.write(call, conversation).await?;
        Ok(Err(match reply.word.as_str() {
            "cancelled" => {
                let fields = reply.fields()?;
                return Ok(Ok(Cancelled { item: fields.work_item_view()?, released: fields.released()? }));
            }
            "conversation_not_found" => CancelRefused::ConversationNotFound,
            "conversation_ended" => CancelRefused::ConversationEnded,
            "work_item_not_found" => CancelRefused::WorkItemNotFound,
            "work_item_settled" => {
                CancelRefused::WorkItemSettled(reply.fields()?.required("outcome", Outcome::parse)?)
            }
            _ => return Err(reply.unexpected()),
        }))
    }

    async fn end(
        &self,
        conversation: ConversationRef,
        traceparent: Option<TraceParent>,
    ) -> Answer<EndReceipt, ConversationNotFound> {
        self.check_verified()?;
        let trace = traceparent.as_ref().map(TraceParent::as_str);
        let call = self.call(&self.scripts.end, conversation).option("trace", trace);
        let reply = self.write(call, conversation).await?;
        match reply.word.as_str() {
            "ended" => {
                let fields = reply.fields()?;
                Ok(Ok(EndReceipt {
                    ended: ended(&fields)?,
                    repeated: fields.flag("repeated")?,
                    released: fields.released()?,
                }))
            }
            "conversation_not_found" => Ok(Err(ConversationNotFound)),
            _ => Err(reply.unexpected()),
        }
    }

    async fn expire(
        &self,
        due: DueConversation,
        traceparent: Option<TraceParent>,
    ) -> Result<Expired, StoreError> {
        self.check_verified()?;
        let work_items: Vec<String> = due.work_items.iter().map(ToString::to_string).collect();
        let answer = self
            .call(&self.scripts.expire, due.conversation)
            .arg("work_items", work_items.join(" "))
            .option("trace", traceparent.as_ref().map(TraceParent::as_str))
            .send(&self.nodes, Lane::Commands)
            .await?;
        // Acknowledged to nobody: replicas are not waited for.
        let reply = Reply::read(answer.value)?;
        if reply.word != "expired" {
            return Err(reply.unexpected());
        }
        let fields = reply.fields()?;
        Ok(Expired {
            conversation_id: conversation_id(&fields)?,
            timed_out: fields.timed_out()?,
            dropped_held: fields.optional("dropped_held", |text| text.parse().ok())?.unwrap_or_default(),
            released: fields.released()?,
        })
    }

    async fn due(&self, limit: usize) -> Result<Due, StoreError> {
        self.check_verified()?;
        let answers = self.ask_all(&WhatIsDue { limit }).await;
        let mut all: Option<Due> = None;
        let mut failure = None;
        for answer in answers {
            match answer {
                Ok(due) => {
                    let all = all.get_or_insert_default();
                    all.conversations.extend(due.conversations);
                    all.next_in_ms = [all.next_in_ms, due.next_in_ms].into_iter().flatten().min();
                    all.more |= due.more;
                }
                Err(error) => failure = Some(error),
            }
        }
        self.tell_of_parts(all.is_some(), failure.as_ref());
        match (all, failure) {
            (Some(all), None) => Ok(all),
            // A node that is away must not stop the timers of the others.
            (Some(all), Some(_)) if self.nodes.is_cluster() => Ok(all),
            (_, Some(error)) => Err(error),
            (None, None) => Ok(Due::default()),
        }
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        self.check_verified()?;
        let mut all = Totals::default();
        for totals in self.ask_all(&WhatIsHeld).await {
            // A sum without a part of it would be a wrong one.
            let totals = totals?;
            all.awaiting += totals.awaiting;
            all.held += totals.held;
            all.held_bytes += totals.held_bytes;
        }
        Ok(all)
    }

    async fn inspect(&self, conversation: ConversationRef) -> Answer<ConversationView, ConversationNotFound> {
        self.check_verified()?;
        let reply = self.call(&self.scripts.inspect, conversation).read(&self.nodes).await?;
        match reply.word.as_str() {
            "conversation" => Ok(Ok(conversation_view(reply)?)),
            "conversation_not_found" => Ok(Err(ConversationNotFound)),
            _ => Err(reply.unexpected()),
        }
    }

    async fn work_item(
        &self,
        conversation: ConversationRef,
        work_item: WorkItemId,
    ) -> Answer<WorkItemView, LookupRefused> {
        self.check_verified()?;
        let reply = self
            .call(&self.scripts.work_item, conversation)
            .arg("work_item", work_item)
            .read(&self.nodes)
            .await?;
        Ok(Err(match reply.word.as_str() {
            "work_item" => return Ok(Ok(reply.fields()?.work_item_view()?)),
            "conversation_not_found" => LookupRefused::ConversationNotFound,
            "work_item_not_found" => LookupRefused::WorkItemNotFound,
            _ => return Err(reply.unexpected()),
        }))
    }

    async fn read(
        &self,
        conversation: ConversationRef,
        after: Option<Sequence>,
        count: usize,
    ) -> Answer<Page, ConversationNotFound> {
        self.check_verified()?;
        let reply = self
            .call(&self.scripts.read, conversation)
            .arg("after", after.map_or(0, Sequence::get))
            .arg("count", count)
            .arg("max_bytes", PAGE_BYTES)
            .read(&self.nodes)
            .await?;
        match reply.word.as_str() {
            "page" => Ok(Ok(page(reply)?)),
            "conversation_not_found" => Ok(Err(ConversationNotFound)),
            _ => Err(reply.unexpected()),
        }
    }

    fn watch(&self, conversation: ConversationRef) -> Wake {
        self.wakes.watch(conversation)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.check_verified()?;
        self.nodes.ping(self.keys.partitions).await
    }

    fn channel(&self, conversation: ConversationRef) -> ChannelAddress {
        ChannelAddress::RedisStream(self.keys.channel(conversation))
    }
}

fn conversation_id(fields: &Fields) -> Result<Option<ConversationId>, StoreError> {
    fields.optional("conversation_id", |text| ConversationId::parse(text).ok())
}

/// What `refuse` of `accept.lua` wrote.
fn known(fields: &Fields) -> Result<Option<Known>, StoreError> {
    let item = if fields.has("id") { Some(fields.work_item()?) } else { None };
    Ok(conversation_id(fields)?.map(|conversation_id| Known { conversation_id, item }))
}

fn receipt(fields: &Fields) -> Result<Receipt, StoreError> {
    let item = fields.work_item()?;
    let gate = fields.parsed("gate").map(Sequence::new)?;
    let delivery =
        if item.sequence < gate { Delivery::Delivered } else { Delivery::Held { waiting_for: gate } };
    Ok(Receipt {
        delivery,
        conversation_id: fields.required("conversation_id", |text| ConversationId::parse(text).ok())?,
        outcome: fields.required("outcome", Outcome::parse)?,
        received_at: fields.time("received_at")?,
        replayed: fields.flag("replayed")?,
        released: fields.released()?,
        item,
    })
}

fn ended(fields: &Fields) -> Result<Ended, StoreError> {
    Ok(Ended {
        ended_at: fields.time("ended_at")?,
        dropped_held: fields.parsed("dropped_held")?,
        dropped_awaiting: fields.parsed("dropped_awaiting")?,
    })
}

fn conversation_view(reply: Reply) -> Result<ConversationView, StoreError> {
    let mut parts = reply.rest.into_iter();
    let head = parts.next().ok_or_else(|| broken("no conversation"))?;
    let head = Fields::read(list(head)?)?;
    let unreleased: Result<Vec<WorkItemView>, StoreError> =
        parts.map(|item| Fields::read(list(item)?)?.work_item_view()).collect();
    let unreleased = unreleased?;
    let next_sequence = head.parsed("next").map(Sequence::new)?;
    let awaited = unreleased.iter().find(|view| view.settled.is_none());
    let has_ended = head.optional("ended_at", |text| text.parse::<u64>().ok())?.is_some();
    Ok(ConversationView {
        conversation_id: head.required("id", |text| ConversationId::parse(text).ok())?,
        opened_at: head.time("opened_at")?,
        idle_at: head.time("idle_at")?,
        ended: if has_ended { Some(ended(&head)?) } else { None },
        traceparent: head.optional("traceparent", |text| TraceParent::parse(text).ok())?,
        next_sequence,
        waiting_for: awaited.map_or(next_sequence, |view| view.item.sequence),
        now: head.time("now")?,
        unreleased,
    })
}

fn page(reply: Reply) -> Result<Page, StoreError> {
    let [released, has_ended, idle_in, entries] =
        <[Value; 4]>::try_from(reply.rest).map_err(|_| broken("a page without its four parts"))?;
    let envelopes: Result<Vec<Envelope>, StoreError> = list(entries)?.into_iter().map(envelope).collect();
    Ok(Page {
        envelopes: envelopes?,
        released: string(released)?.parse().map_err(|_| broken("released"))?,
        ended: string(has_ended)? == "1",
        idle_in_ms: string(idle_in)?.parse().map_err(|_| broken("idle_in"))?,
    })
}

/// An entry of the stream: its id and its fields.
fn envelope(entry: Value) -> Result<Envelope, StoreError> {
    let [_, fields] = <[Value; 2]>::try_from(list(entry)?).map_err(|_| broken("an entry without fields"))?;
    let mut fields = Fields::read(list(fields)?)?;
    let payload = fields
        .take("result")
        .map(|result| Payload::Succeeded(result.into()))
        .or_else(|| fields.take("error").map(|error| Payload::Failed(error.into())));
    Ok(Envelope {
        sequence: fields.parsed("sequence").map(Sequence::new)?,
        conversation_id: fields.required("conversationId", |text| ConversationId::parse(text).ok())?,
        work_item_id: fields.required("workItemId", WorkItemId::parse)?,
        turn_id: fields.optional("turnId", |text| TurnId::parse(text).ok())?,
        kind: fields.required("kind", Kind::parse)?,
        outcome: fields.required("outcome", Outcome::parse)?,
        payload,
        issued_at: fields.parsed("issuedAt")?,
        received_at: fields.parsed("receivedAt")?,
        released_at: fields.parsed("releasedAt")?,
        request_id: fields.optional("requestId", RequestId::parse)?,
        traceparent: fields.optional("traceparent", |text| TraceParent::parse(text).ok())?,
    })
}
