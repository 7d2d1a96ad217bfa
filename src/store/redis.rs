//! The store in Redis or Valkey: one Lua script an operation.
//!
//! `scripts/gate.lua` holds the rules of the gate and stands before every operation's own script; `keys` spells the
//! keys; `link` is the connection; `script` calls and decodes; `watcher` wakes event streams.

mod keys;
mod layout;
mod link;
mod script;
mod watcher;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
pub use layout::NotUsable;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisError, Script, Value,
};
use tokio::sync::mpsc;

use self::keys::Keys;
use self::link::{Link, Request, Timeouts};
use self::script::{Call, Fields, Reply, broken, list, string};
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

/// How many partitions one call looks through for what is due.
const PARTITIONS_AT_ONCE: u16 = 64;

/// A page of a channel takes no further envelopes once it has so many bytes.
const PAGE_BYTES: usize = 256 * 1024;

/// How Redis is reached and used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `redis://` or `rediss://` URL.
    pub url: secrecy::SecretString,
    /// Number of partitions, fixed for a deployment.
    pub partitions: u16,
    /// Longest time to a connection.
    pub connect_timeout: Duration,
    /// Longest time to an answer.
    pub response_timeout: Duration,
    /// What a conversation may take up.
    pub limits: Limits,
}

/// Where a Redis is, without its credentials.
#[derive(Clone, Debug)]
pub struct Address {
    /// Its host, or the path of its socket.
    pub host: String,
    /// Its port.
    pub port: Option<u16>,
    /// The number of the database.
    pub database: i64,
}

impl Address {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the library may add kinds of addresses")]
    fn of(info: &ConnectionInfo) -> Self {
        let (host, port) = match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                (host.clone(), Some(*port))
            }
            other => (other.to_string(), None),
        };
        Self { host, port, database: info.redis_settings().db() }
    }
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
    /// For what changes something; nothing large comes back on it.
    commands: Link,
    /// For what reads, so that a large channel delays no callback.
    reads: Link,
    address: Address,
    connections: Arc<AtomicU64>,
    wakes: Wakes,
    verified: Arc<AtomicBool>,
}

fn connection_info(url: &str) -> Result<ConnectionInfo, RedisError> {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(Duration::from_secs(10));
    let info = url.into_connection_info()?;
    // RESP3: a connection that the server closed says so at once, and not with the next request.
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(info.set_tcp_settings(tcp).set_redis_settings(settings))
}

impl RedisStore {
    /// A store that connects when it is first used; [`RedisStore::verify`] must have passed before.
    ///
    /// Must be called within a tokio runtime. With `Clock::System` the server's clock counts.
    pub fn new(settings: &Settings, clock: Clock) -> Result<Self, RedisError> {
        use secrecy::ExposeSecret;
        // The library takes the process's provider, and none is built in. One that is set already stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let info = connection_info(settings.url.expose_secret())?;
        let address = Address::of(&info);
        let client = Client::open(info)?;
        let connections = Arc::default();
        let timeouts = Timeouts { connect: settings.connect_timeout, response: settings.response_timeout };
        let keys = Keys { partitions: settings.partitions };
        let (sender, interest) = mpsc::unbounded_channel();
        let wakes = Wakes::new(Some(sender));
        let verified = Arc::new(AtomicBool::new(false));
        let watching = wakes.without_interest();
        tokio::spawn(watcher::listen(
            client.clone(),
            timeouts,
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
            commands: Link::new(client.clone(), timeouts, Arc::clone(&connections)),
            reads: Link::new(client, timeouts, Arc::clone(&connections)),
            address,
            connections,
            wakes,
            verified,
        })
    }

    /// Checks that this Redis can be used. Until it has passed, every operation is refused as unavailable.
    pub async fn verify(&self) -> Result<(), NotUsable> {
        let verdict = layout::check(&self.commands, self.keys.partitions).await;
        match &verdict {
            Ok(()) => self.verified.store(true, Ordering::Release),
            Err(NotUsable::Refused(_)) => self.verified.store(false, Ordering::Release),
            Err(NotUsable::NotThere(_)) => {}
        }
        verdict
    }

    /// Where it is.
    pub const fn address(&self) -> &Address {
        &self.address
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
        Call::new(script)
            .keys(self.keys.conversation(conversation))
            .arg("now", self.now())
            .arg("reference", conversation)
            .arg("retention", self.limits.ended_retention_ms)
            .arg("grace", GRACE_MS)
            .arg("wake", self.keys.wake(conversation))
    }

    /// All partitions, in groups that one call looks through.
    fn groups(&self) -> impl Iterator<Item = Range<u16>> {
        let partitions = self.keys.partitions;
        let starts = (0..partitions).step_by(usize::from(PARTITIONS_AT_ONCE));
        starts.map(move |start| start..partitions.min(start.saturating_add(PARTITIONS_AT_ONCE)))
    }

    async fn totals_of(&self, partitions: Range<u16>) -> Result<Totals, StoreError> {
        let keys = partitions.flat_map(|partition| [Keys::deadlines(partition), Keys::totals(partition)]);
        let values = list(Call::new(&self.scripts.totals).keys(keys).send(&self.reads).await?)?;
        let [awaiting, held, held_bytes] =
            <[Value; 3]>::try_from(values).map_err(|_| broken("totals without their three parts"))?;
        let count = |value| string(value)?.parse().map_err(|_| broken("totals"));
        Ok(Totals { awaiting: count(awaiting)?, held: count(held)?, held_bytes: count(held_bytes)? })
    }

    async fn due_in(&self, partitions: Range<u16>, limit: usize) -> Result<Due, StoreError> {
        let call = Call::new(&self.scripts.due).keys(partitions.map(Keys::deadlines));
        let mut values = list(call.plain(self.now()).plain(limit).send(&self.commands).await?)?.into_iter();
        let (Some(next), Some(more)) = (values.next(), values.next()) else {
            return Err(broken("a list without its head"));
        };
        let (next, more) = (string(next)?, string(more)? == "1");
        let mut found: BTreeMap<ConversationRef, Vec<WorkItemId>> = BTreeMap::new();
        for member in values {
            // What is no marker of ours must not stop the others.
            let Some((conversation, work_item)) = keys::deadline_member(&string(member)?) else {
                tracing::debug!("a member of the deadlines is no awaiting marker");
                continue;
            };
            found.entry(conversation).or_default().push(work_item);
        }
        Ok(Due {
            conversations: found
                .into_iter()
                .map(|(conversation, work_items)| DueConversation { conversation, work_items })
                .collect(),
            next_in_ms: next.parse().ok(),
            more,
        })
    }
}

impl Store for RedisStore {
    async fn open(&self, command: Open) -> Answer<Opened, OpenRefused> {
        self.check_verified()?;
        let reply = self
            .call(&self.scripts.open, command.conversation.reference())
            .arg("id", &command.conversation)
            .option("idle_ttl", command.idle_ttl_ms)
            .arg("default_idle_ttl", self.limits.conversation_idle_ttl_ms)
            .option("traceparent", command.traceparent.as_ref().map(TraceParent::as_str))
            .arg("attempt", command.attempt)
            .reply(&self.commands)
            .await?;
        match reply.word.as_str() {
            "opened" => Ok(Ok(Opened { created: reply.fields()?.flag("created")? })),
            "conversation_ended" => Ok(Err(OpenRefused::ConversationEnded)),
            _ => Err(reply.unexpected()),
        }
    }

    async fn issue(&self, command: Issue) -> Answer<Issued, IssueRefused> {
        self.check_verified()?;
        let reply = self
            .call(&self.scripts.issue, command.conversation)
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
            .arg("max_channel_length", self.limits.max_channel_length)
            .reply(&self.commands)
            .await?;
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
        let reply = self
            .call(&self.scripts.accept, command.conversation)
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
            .arg("max_held_bytes", self.limits.max_held_bytes)
            .reply(&self.commands)
            .await?;
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
        let reply = self
            .call(&self.scripts.cancel, command.conversation)
            .arg("work_item", command.work_item)
            .arg("request_id", command.request_id)
            .option("trace", command.traceparent.as_ref().map(TraceParent::as_str))
            .arg("attempt", command.attempt)
            .reply(&self.commands)
            .await?;
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
        let reply = self
            .call(&self.scripts.end, conversation)
            .option("trace", traceparent.as_ref().map(TraceParent::as_str))
            .reply(&self.commands)
            .await?;
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
        let reply = self
            .call(&self.scripts.expire, due.conversation)
            .arg("work_items", work_items.join(" "))
            .option("trace", traceparent.as_ref().map(TraceParent::as_str))
            .reply(&self.commands)
            .await?;
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
        let mut all = Due::default();
        for due in try_join_all(self.groups().map(|partitions| self.due_in(partitions, limit))).await? {
            all.conversations.extend(due.conversations);
            all.next_in_ms = [all.next_in_ms, due.next_in_ms].into_iter().flatten().min();
            all.more |= due.more;
        }
        Ok(all)
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        self.check_verified()?;
        let mut all = Totals::default();
        for totals in try_join_all(self.groups().map(|partitions| self.totals_of(partitions))).await? {
            all.awaiting += totals.awaiting;
            all.held += totals.held;
            all.held_bytes += totals.held_bytes;
        }
        Ok(all)
    }

    async fn inspect(&self, conversation: ConversationRef) -> Answer<ConversationView, ConversationNotFound> {
        self.check_verified()?;
        let reply = self.call(&self.scripts.inspect, conversation).reply(&self.reads).await?;
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
            .reply(&self.reads)
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
            .reply(&self.reads)
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
        self.commands.call(Request::Command(&redis::cmd("PING"))).await.map(|_| ())
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
