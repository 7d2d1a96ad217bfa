//! The store in Redis or Valkey: one Lua script per operation.
//!
//! `scripts` composes the scripts, `keys` builds the keys, `script` calls a script and reads its reply, `stored`
//! decodes stored values, `dates` is the scripts' date table, `partitions` queries many partitions at once, and
//! `watcher` receives the notifications for event streams.
//!
//! The path of a call: `nodes` selects the `node`. In a cluster, `cluster` finds it by hash slot (`slots`); with
//! sentinels, `sentinel` asks them for the primary. `connection` sends the request, `failure` classifies a failure, and
//! `replicas` waits until replicas have the write. `servers` parses the URL. `preflight` and `acl` check the servers at
//! startup and every minute; `durability` warns about their settings.

mod acl;
mod cluster;
mod connection;
mod dates;
mod diagnosis;
mod durability;
pub(super) mod failure;
mod keys;
mod node;
mod nodes;
mod partitions;
mod preflight;
pub(super) mod replicas;
mod script;
pub mod scripts;
mod sentinel;
mod servers;
mod settings;
mod slots;
mod stored;
mod watcher;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use diagnosis::{diagnosis, hosts};
pub use durability::DurabilityWarning;
use futures_util::future::{join, join_all};
pub use preflight::PreflightError;
use redis::{FromRedisValue, Script, cmd};
pub use servers::{
    InvalidServers, StoreLocation, TlsFiles, check_url, password_range, uses_sentinels, uses_tls,
    with_password,
};
pub use settings::{RedisSettings, Replicas};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::connection::Request;
use self::dates::Dates;
use self::keys::{Keys, timer_member};
use self::node::ConnectionRole;
use self::nodes::{NodeReply, Nodes};
use self::partitions::{DueQuery, Partitions, TotalsQuery, WaitingQuery};
use self::script::{ScriptCall, ScriptReply, broken, bytes, number, text};
use self::scripts::Scripts;
use self::servers::Servers;
use self::settings::ConnectionSettings;
use self::slots::HashSlot;
use self::stored::{StoredConversation, StoredItem, StoredState};
use super::notifier::ChannelNotifier;
use super::{Answer, ChannelListener, Due, DueConversation, PAGE_BYTES, Page, Store, StoreError, Waiting};
use crate::clock::Clock;
use crate::domain::envelope::{EnvelopeJson, members_at_issue, turn_member};
use crate::domain::gate::{
    Accept, AcceptRefused, CallbackTarget, Cancel, CancelRefused, CancelTurn, CancelTurnRefused, Cancelled,
    CancelledTurn, ConversationNotFound, ConversationView, Delivery, EndReceipt, Expired, Heartbeat,
    HeartbeatReceipt, HeartbeatRefused, Issue, IssueRefused, Issued, LookupRefused, MAX_REPORTED, Open,
    OpenRefused, Opened, Receipt, RefusedCallback, RefusedHeartbeat, Released, Totals, WaitingConversation,
    WorkItemView,
};
use crate::domain::ids::{ConversationRef, Sequence, TraceParent, WorkItemId};
use crate::domain::progress::Progress;
use crate::domain::reason::Reason;
use crate::domain::result::Payload;
use crate::domain::time::Timestamp;

/// Number of items per call of `inspect.lua`.
const ITEMS_PER_INSPECT: u64 = 512;

/// Length of a work item id without the 8 digits of its sequence.
const ATTEMPT_CHARS: usize = 28;

/// Number of conversations that [`Store::waiting`] examines beyond its limit, because some may no longer be waiting.
const SPARE_CANDIDATES: usize = 16;

/// Delay in milliseconds before a partition that did not respond is queried again.
const RETRY_QUERY_MS: u64 = 250;

/// Time in milliseconds that the announcements of a second are kept after that second.
const ANNOUNCEMENT_TTL_MS: u64 = 60_000;

/// The Redis store.
#[derive(Debug)]
pub struct RedisStore {
    keys: Keys,
    /// With `Clock::System` the scripts use the server's clock.
    clock: Clock,
    dates: Dates,
    scripts: Scripts,
    nodes: Arc<Nodes>,
    connection_settings: ConnectionSettings,
    replicas: Option<Replicas>,
    location: StoreLocation,
    connections: Arc<AtomicU64>,
    notifier: ChannelNotifier,
    verified: Arc<AtomicBool>,
    last_warnings: Mutex<Vec<DurabilityWarning>>,
    /// The task that listens for changes to channels. It ends when the store is dropped.
    watcher: Mutex<Option<JoinHandle<()>>>,
    /// Whether some partitions did not respond to the last query. Prevents repeated log messages.
    partly_unavailable: AtomicBool,
}

impl RedisStore {
    /// Takes the task that listens for changes to channels, for supervision. `None` after the first call.
    pub fn take_watcher(&self) -> Option<JoinHandle<()>> {
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A store that connects at its first use. Operations fail as unavailable until [`RedisStore::verify`] has
    /// succeeded.
    ///
    /// Must be called within a tokio runtime. With `Clock::System` the scripts use the server's clock.
    pub fn new(settings: &RedisSettings, clock: Clock) -> Result<Self, InvalidServers> {
        // The redis crate uses the process-wide crypto provider. If one is already installed, this call fails, and the
        // installed one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let servers = Servers::new(
            &settings.url,
            &settings.tls,
            settings.sentinel_username.as_deref(),
            settings.sentinel_password.as_ref(),
        )?;
        let location = servers.location();
        let connections = Arc::default();
        let connection_settings = ConnectionSettings::new(
            settings.connect_timeout,
            settings.response_timeout,
            // The public and the platform listener.
            settings.max_requests_in_flight.saturating_mul(2),
        );
        let nodes = Arc::new(Nodes::new(servers, connection_settings, settings.replicas, &connections));
        let keys = Keys { partitions: settings.partitions };
        let (sender, events) = mpsc::unbounded_channel();
        let notifier = ChannelNotifier::new(Some(sender));
        let verified = Arc::new(AtomicBool::new(false));
        let watcher = tokio::spawn(watcher::listen(
            Arc::clone(&nodes),
            connection_settings,
            keys,
            notifier.without_events(),
            events,
            Arc::clone(&verified),
        ));
        Ok(Self {
            keys,
            dates: Dates::new(clock.clone()),
            clock,
            scripts: Scripts::new(&settings.limits),
            nodes,
            connection_settings,
            replicas: settings.replicas,
            location,
            connections,
            notifier,
            verified,
            watcher: Mutex::new(Some(watcher)),
            last_warnings: Mutex::default(),
            partly_unavailable: AtomicBool::new(false),
        })
    }

    /// Checks the data layout and the permissions of the Redis user. Until it succeeds, every operation fails as
    /// unavailable.
    pub async fn verify(&self) -> Result<(), PreflightError> {
        match preflight::check(&self.nodes, self.keys.partitions).await {
            Ok(missing) => {
                if missing.publish {
                    tracing::debug!(
                        name: "store.no_publish",
                        "the Redis user has no permission to publish; event streams fall back to polling"
                    );
                }
                self.verified.store(true, Ordering::Release);
                Ok(())
            }
            Err(refused @ PreflightError::Refused(_)) => {
                self.verified.store(false, Ordering::Release);
                Err(refused)
            }
            Err(unavailable @ PreflightError::Unavailable(_)) => Err(unavailable),
        }
    }

    /// Checks the servers' settings. Returns the warnings that the previous check did not find.
    pub async fn new_warnings(&self) -> Vec<DurabilityWarning> {
        let now = durability::warnings(&self.nodes, self.replicas).await;
        let mut before = self.last_warnings.lock().unwrap_or_else(PoisonError::into_inner);
        let new = now.iter().filter(|warning| !before.contains(warning)).cloned().collect();
        *before = now;
        new
    }

    /// The address of the store, for telemetry.
    pub const fn location(&self) -> &StoreLocation {
        &self.location
    }

    /// Counter of opened connections, without those of the watcher.
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

    fn partition_queries(&self) -> Partitions<'_> {
        let response_timeout = self.connection_settings.response;
        Partitions { nodes: &self.nodes, scripts: &self.scripts, response_timeout }
    }

    fn now(&self) -> String {
        match &self.clock {
            Clock::System => String::new(),
            Clock::Manual(clock) => clock.now().as_millis().to_string(),
        }
    }

    /// A call with the keys and arguments that all conversation scripts share. `used`: the key that marks the token
    /// as used (KEYS 7), only for `accept.lua`. `payload`: size of the long arguments in bytes.
    fn call<'a>(
        &self,
        script: &'a Script,
        conversation: ConversationRef,
        used: Option<String>,
        payload: usize,
    ) -> ScriptCall<'a> {
        let keys = self.keys.conversation(conversation);
        let dates = self.dates.current();
        let call = match used {
            Some(used) => {
                let [conversation, channel, timers, held, totals, waiting] = keys;
                ScriptCall::new(
                    script,
                    &[conversation, channel, timers, held, totals, waiting, used],
                    payload,
                )
            }
            None => ScriptCall::new(script, &keys, payload),
        };
        call.raw(self.now()).arg(dates.first_day).raw(&*dates.dates)
    }

    /// Runs a script. Repeats the call if the date table did not match the server's clock.
    async fn run<'a>(
        &'a self,
        role: ConnectionRole,
        call: impl Fn() -> ScriptCall<'a>,
    ) -> Result<(ScriptReply, NodeReply), StoreError> {
        self.check_verified()?;
        loop {
            let mut sent = call().send(&self.nodes, role).await?;
            let reply = ScriptReply::read(sent.take())?;
            if !self.refused_dates(&reply)? {
                return Ok((reply, sent));
            }
        }
    }

    /// Runs a script that writes, then waits until enough replicas have its writes and all earlier ones. Also waits
    /// after a refusal, because the refusal depends on earlier writes, which a failover must not undo.
    async fn step<'a>(
        &'a self,
        conversation: ConversationRef,
        call: impl Fn() -> ScriptCall<'a>,
    ) -> Result<ScriptReply, StoreError> {
        let (reply, sent) = self.run(ConnectionRole::Commands, call).await?;
        let Some(barrier) = &sent.node.barrier else { return Ok(reply) };
        let confirmed = barrier.confirm(sent.run_id.as_ref(), &self.keys.barrier(conversation)).await;
        confirmed.map_err(StoreError::OutcomeUnknown)?;
        Ok(reply)
    }

    /// Returns whether the script refused the date table because the server's clock is on another day. In that case,
    /// the script has changed nothing, and this method adopts the server's time, so that the caller can repeat the
    /// call.
    fn refused_dates(&self, reply: &ScriptReply) -> Result<bool, StoreError> {
        let refused = reply.word() == "dates";
        if refused {
            let now = reply.peek().ok_or_else(|| broken("the time is missing")).and_then(number)?;
            self.dates.synchronize(Timestamp::from_millis(now));
        }
        Ok(refused)
    }

    /// Repeats bounded steps until nothing is left to release. Returns the new gate, and whether a failure left items
    /// to release.
    async fn finish_release(
        &self,
        conversation: ConversationRef,
        traceparent: Option<&TraceParent>,
        released: &mut Vec<Released>,
    ) -> (Option<Sequence>, bool) {
        let partition = self.keys.partition(conversation);
        // If this instance fails now, another one continues a second later. If the announcement also fails, the sweeper
        // finds the conversation when it queries all partitions in turn.
        let second = self.dates.now().as_millis() / 1000 + 1;
        let _ = join(self.announce(second, partition), self.announce(second + 1, partition)).await;
        let mut gate = None;
        loop {
            // Waits for replicas, because the receipt reports these releases.
            let call = || self.expire_call(conversation, &[], false, traceparent);
            let step = match self.step(conversation, call).await.and_then(ExpireStep::read) {
                Ok(Some(step)) => step,
                Ok(None) => return (gate, false),
                Err(_) => return (gate, true),
            };
            gate.replace(step.state.gate);
            released.extend(step.expired.released);
            released.truncate(MAX_REPORTED);
            if !step.state.is_unfinished() {
                return (gate, false);
            }
        }
    }

    /// A call of `expire.lua`. `whole`: also process the conversation as a whole.
    fn expire_call(
        &self,
        conversation: ConversationRef,
        sequences: &[Sequence],
        whole: bool,
        traceparent: Option<&TraceParent>,
    ) -> ScriptCall<'_> {
        let call = self.call(&self.scripts.expire, conversation, None, 0);
        let call = call.option(traceparent.map(TraceParent::as_str)).raw(u8::from(whole));
        sequences.iter().fold(call, ScriptCall::arg)
    }

    /// Logs once when some partitions stop responding while others respond, and once when all respond again.
    fn log_partial_failure(&self, some_respond: bool, failure: Option<&StoreError>) {
        let partly = some_respond && failure.is_some();
        if self.partly_unavailable.swap(partly, Ordering::Relaxed) == partly {
            return;
        }
        if let Some(error) = failure {
            tracing::warn!(
                name: "store.partitions_lost",
                error = error.chain(),
                "some partitions of the store do not respond"
            );
        } else {
            tracing::info!(name: "store.partitions_recovered", "all partitions of the store respond again");
        }
    }
}

/// The decoded reply of `expire.lua`.
struct ExpireStep {
    expired: Expired,
    state: StoredState,
}

impl ExpireStep {
    /// `None` if the conversation no longer exists.
    fn read(mut reply: ScriptReply) -> Result<Option<Self>, StoreError> {
        match reply.word() {
            "gone" => return Ok(None),
            "expired" => {}
            _ => return Err(reply.unexpected()),
        }
        let now = Timestamp::from_millis(reply.number()?);
        let state = StoredState::decode(&reply.bytes()?)?;
        let opened = StoredConversation::decode(&reply.bytes()?)?;
        let ended = reply.number()? == 1;
        let (next_in_ms, count) = (reply.number()?, reply.number()?);
        let mut timed_out = Vec::new();
        for _ in 0..count {
            let (_sequence, item) = (reply.number()?, reply.bytes()?);
            timed_out.push(StoredItem::decode(&item)?.timed_out(now));
        }
        let expired = Expired {
            conversation_id: Some(opened.id),
            timed_out,
            ended: ended.then(|| state.ended(now)).flatten(),
            unfinished: state.is_unfinished() || state.has_uncleared_timers(),
            next_in_ms: (next_in_ms > 0).then_some(next_in_ms),
            released: released(&mut reply, opened.opened_at, now, None)?,
        };
        Ok(Some(Self { expired, state }))
    }
}

impl Store for RedisStore {
    async fn open(&self, command: Open) -> Answer<Opened, OpenRefused> {
        let conversation = command.conversation.reference();
        let call = || {
            self.call(&self.scripts.open, conversation, None, 0)
                .raw(command.conversation.as_str())
                .option(command.idle_ttl_ms)
                .option(command.traceparent.as_ref().map(TraceParent::as_str))
                .raw(&command.attempt.to_bytes()[..])
        };
        let mut reply = self.step(conversation, call).await?;
        match reply.word() {
            "opened" => Ok(Ok(Opened { created: reply.number()? == 1 })),
            "conversation_ended" => Ok(Err(OpenRefused::ConversationEnded)),
            _ => Err(reply.unexpected()),
        }
    }

    async fn issue(&self, command: Issue) -> Answer<Issued, IssueRefused> {
        let conversation = command.conversation;
        let members = members_at_issue(
            command.kind,
            command.turn_id.as_ref(),
            command.tool_call_id.as_ref(),
            command.name.as_ref(),
        );
        let attempt = command.work_item.to_string();
        let call = |is_retry: bool| {
            let call = self
                .call(&self.scripts.issue, conversation, None, 0)
                .raw(&attempt[..ATTEMPT_CHARS])
                .raw(&command.work_item.as_bytes()[..12])
                .raw(u8::from(is_retry))
                .arg(command.timeout_ms)
                .arg(command.replay_window_ms)
                .arg(command.key_id)
                .option(command.traceparent.as_ref().map(TraceParent::as_str))
                .option(command.request_traceparent.as_ref().map(TraceParent::as_str))
                .raw(&members);
            let call = match &command.idempotency {
                Some((key, fingerprint)) => {
                    call.raw(&key.as_bytes()[..16]).raw(&fingerprint.as_bytes()[..16])
                }
                None => call.raw("").raw(""),
            };
            call.option(command.heartbeat_timeout_ms)
        };
        // If the reply is lost, the retry searches for the item that the first call may have issued.
        let mut reply = self.step(conversation, || call(false).with_retry(call(true))).await?;
        Ok(Err(match reply.word() {
            "issued" => {
                let (repeated, _sequence) = (reply.number()? == 1, reply.number()?);
                return Ok(Ok(Issued { item: StoredItem::decode(&reply.bytes()?)?.item, repeated }));
            }
            "conversation_not_found" => IssueRefused::ConversationNotFound,
            "conversation_ended" => IssueRefused::ConversationEnded,
            "idempotency_conflict" => IssueRefused::IdempotencyConflict,
            "awaiting_limit" => IssueRefused::AwaitingLimit,
            "channel_limit" => IssueRefused::ChannelLimit,
            _ => return Err(reply.unexpected()),
        }))
    }

    async fn accept(&self, command: Accept) -> Answer<Receipt, RefusedCallback> {
        let conversation = command.conversation;
        let (outcome, payload) = match &command.result.payload {
            Payload::Succeeded(result) => (1, result),
            Payload::Failed(error) => (2, error),
        };
        let call = || {
            let used = self.keys.used(conversation, command.work_item);
            self.call(&self.scripts.accept, conversation, Some(used), payload.len())
                .option(command.traceparent.as_ref().map(TraceParent::as_str))
                .arg(command.sequence)
                .arg(command.sequence.next())
                .arg(command.work_item)
                .arg(command.expires_at.as_millis())
                .arg(command.result.fingerprint)
                .raw(outcome)
                .raw(&payload[..])
                .arg(command.request_id)
                .raw(&command.attempt.to_bytes()[..])
        };
        let mut reply = self.step(conversation, call).await?;
        let why = match reply.word() {
            "accepted" => return self.receipt(reply, &command).await.map(Ok),
            "token_expired" => AcceptRefused::TokenExpired,
            "conversation_ended" => AcceptRefused::ConversationEnded,
            "work_item_unknown" => AcceptRefused::WorkItemUnknown,
            "token_used" => AcceptRefused::TokenUsed,
            "work_item_timed_out" => AcceptRefused::WorkItemTimedOut,
            "work_item_cancelled" => AcceptRefused::WorkItemCancelled,
            "held_limit" => AcceptRefused::HeldLimit,
            "channel_limit" => AcceptRefused::ChannelLimit,
            _ => return Err(reply.unexpected()),
        };
        Ok(Err(RefusedCallback { why, target: target(&mut reply)? }))
    }

    async fn heartbeat(&self, command: Heartbeat) -> Answer<HeartbeatReceipt, RefusedHeartbeat> {
        let conversation = command.conversation;
        let progress = command.progress.as_ref().map(Progress::members).unwrap_or_default();
        let call = || {
            self.call(&self.scripts.heartbeat, conversation, None, progress.len())
                .arg(command.work_item.sequence())
                .arg(command.work_item)
                .arg(command.expires_at.as_millis())
                .raw(progress)
        };
        let mut reply = self.step(conversation, call).await?;
        let why = match reply.word() {
            "alive" => {
                let now = Timestamp::from_millis(reply.number()?);
                let state = StoredState::decode(&reply.bytes()?)?;
                let conversation_id = StoredConversation::decode(&reply.bytes()?)?.id;
                let item = StoredItem::decode(&reply.bytes()?)?.view(&state, now);
                return Ok(Ok(HeartbeatReceipt { conversation_id, item, published: reply.number()? == 1 }));
            }
            "token_expired" => HeartbeatRefused::TokenExpired,
            "conversation_ended" => HeartbeatRefused::ConversationEnded,
            "work_item_unknown" => HeartbeatRefused::WorkItemUnknown,
            "work_item_timed_out" => HeartbeatRefused::WorkItemTimedOut,
            "work_item_cancelled" => HeartbeatRefused::WorkItemCancelled,
            _ => return Err(reply.unexpected()),
        };
        Ok(Err(RefusedHeartbeat { why, target: target(&mut reply)? }))
    }

    async fn cancel(&self, command: Cancel) -> Answer<Cancelled, CancelRefused> {
        let conversation = command.conversation;
        let sequence = command.work_item.sequence();
        let call = || {
            self.call(&self.scripts.cancel, conversation, None, 0)
                .option(command.traceparent.as_ref().map(TraceParent::as_str))
                .arg(sequence)
                .arg(sequence.next())
                .arg(command.work_item)
                .arg(command.request_id)
                .raw(&command.attempt.to_bytes()[..])
                .option(command.reason.as_ref().map(Reason::to_json))
        };
        let mut reply = self.step(conversation, call).await?;
        Ok(Err(match reply.word() {
            "cancelled" => {
                let now = Timestamp::from_millis(reply.number()?);
                let mut state = StoredState::decode(&reply.bytes()?)?;
                let opened_at = StoredConversation::decode(&reply.bytes()?)?.opened_at;
                let item = StoredItem::decode(&reply.bytes()?)?;
                let mut released = released(&mut reply, opened_at, now, Some(&item))?;
                let mut unfinished = state.is_unfinished();
                if unfinished {
                    let trace = command.traceparent.as_ref();
                    let (gate, left) = self.finish_release(conversation, trace, &mut released).await;
                    (state.gate, unfinished) = (gate.unwrap_or(state.gate), left);
                }
                return Ok(Ok(Cancelled { item: item.view(&state, now), released, unfinished }));
            }
            "conversation_not_found" => CancelRefused::ConversationNotFound,
            "conversation_ended" => CancelRefused::ConversationEnded,
            "work_item_not_found" => CancelRefused::WorkItemNotFound,
            "work_item_settled" => {
                let outcome = stored::outcome(reply.number()?).ok_or_else(|| broken("unknown outcome"))?;
                CancelRefused::WorkItemSettled(outcome)
            }
            _ => return Err(reply.unexpected()),
        }))
    }

    async fn cancel_turn(&self, command: CancelTurn) -> Answer<CancelledTurn, CancelTurnRefused> {
        let conversation = command.conversation;
        let trace = command.traceparent.as_ref();
        let is_own = |item: &StoredItem| item.is_cancelled_by(command.attempt);
        let (mut items, mut all_released) = (Vec::new(), Vec::new());
        // The first sequence of the next step, and the sequence before which the last step stops.
        let (mut first, mut stop) = (Sequence::FIRST.get(), None);
        let mut previous = None;
        let (mut state, now) = loop {
            let call = || {
                self.call(&self.scripts.cancel_turn, conversation, None, 0)
                    .option(trace.map(TraceParent::as_str))
                    .arg(first)
                    .option(stop)
                    .raw(turn_member(&command.turn_id))
                    .arg(command.request_id)
                    .raw(&command.attempt.to_bytes()[..])
                    .option(command.reason.as_ref().map(Reason::to_json))
            };
            let mut reply = match self.step(conversation, call).await {
                // Not `Unavailable`, because the earlier steps were executed.
                Err(StoreError::Unavailable(cause)) if stop.is_some() => {
                    return Err(StoreError::OutcomeUnknown(cause));
                }
                reply => reply?,
            };
            match reply.word() {
                "cancelled" => {}
                "conversation_not_found" => return Ok(Err(CancelTurnRefused::ConversationNotFound)),
                "conversation_ended" => match previous {
                    // It has ended since an earlier step cancelled items.
                    Some(previous) if items.iter().any(is_own) => break previous,
                    _ => return Ok(Err(CancelTurnRefused::ConversationEnded)),
                },
                _ => return Err(reply.unexpected()),
            }
            let now = Timestamp::from_millis(reply.number()?);
            let state = StoredState::decode(&reply.bytes()?)?;
            previous = Some((state, now));
            let opened_at = StoredConversation::decode(&reply.bytes()?)?.opened_at;
            first = reply.number()?;
            let end = reply.number()?;
            for item in reply.list()? {
                items.push(StoredItem::decode(&bytes(item)?)?);
            }
            all_released.extend(released(&mut reply, opened_at, now, None)?);
            all_released.truncate(MAX_REPORTED);
            if first >= end {
                break (state, now);
            }
            stop = Some(end);
        };
        let mut unfinished = state.is_unfinished();
        if unfinished {
            let (gate, left) = self.finish_release(conversation, trace, &mut all_released).await;
            (state.gate, unfinished) = (gate.unwrap_or(state.gate), left);
        }
        let cancelled = items.iter().filter(|item| is_own(item)).count() as u64;
        let items = items.into_iter().map(|item| item.view(&state, now)).collect();
        Ok(Ok(CancelledTurn { items, cancelled, released: all_released, unfinished }))
    }

    async fn end(
        &self,
        conversation: ConversationRef,
        traceparent: Option<TraceParent>,
        reason: Option<Reason>,
    ) -> Answer<EndReceipt, ConversationNotFound> {
        let trace = traceparent.as_ref().map(TraceParent::as_str);
        let mut all_released = Vec::new();
        loop {
            let call = || {
                let call = self.call(&self.scripts.end, conversation, None, 0);
                call.option(trace).option(reason.as_ref().map(Reason::to_json))
            };
            let mut reply = self.step(conversation, call).await?;
            let unfinished = match reply.word() {
                "ended" => false,
                "unfinished" => true,
                "conversation_not_found" => return Ok(Err(ConversationNotFound)),
                _ => return Err(reply.unexpected()),
            };
            let (now, repeated) = (Timestamp::from_millis(reply.number()?), reply.number()? == 1);
            let state = StoredState::decode(&reply.bytes()?)?;
            let opened_at = StoredConversation::decode(&reply.bytes()?)?.opened_at;
            let reason = stored::reason(&reply.bytes()?)?;
            all_released.extend(released(&mut reply, opened_at, now, None)?);
            all_released.truncate(MAX_REPORTED);
            if unfinished {
                continue;
            }
            let ended = state.ended(now).ok_or_else(|| broken("an ended conversation has no end time"))?;
            return Ok(Ok(EndReceipt { ended, repeated, reason, released: all_released }));
        }
    }

    async fn expire(
        &self,
        due: DueConversation,
        traceparent: Option<TraceParent>,
    ) -> Result<Expired, StoreError> {
        let trace = traceparent.as_ref();
        let call = || self.expire_call(due.conversation, &due.sequences, due.whole, trace);
        // Does not wait for replicas: no caller relies on this step.
        let (reply, _) = self.run(ConnectionRole::Commands, call).await?;
        Ok(ExpireStep::read(reply)?.map(|step| step.expired).unwrap_or_default())
    }

    async fn due(&self, partitions: &[u16], limit: usize) -> Result<Due, StoreError> {
        self.check_verified()?;
        let mut all = Due { now: self.dates.now(), conversations: Vec::new(), next_in_ms: Vec::new() };
        let mut some_respond = false;
        let mut failure = None;
        for (queried, reply) in
            self.partition_queries().query(&DueQuery { limit, now: self.now() }, partitions).await
        {
            match reply {
                Ok(due) => {
                    some_respond = true;
                    self.dates.synchronize(due.now);
                    all.now = due.now;
                    all.conversations.extend(due.conversations);
                    all.next_in_ms.extend(due.next_in_ms);
                }
                Err(error) => {
                    failure = Some(error);
                    all.next_in_ms
                        .extend(queried.into_iter().map(|partition| (partition, Some(RETRY_QUERY_MS))));
                }
            }
        }
        self.log_partial_failure(some_respond, failure.as_ref());
        match failure {
            // An unreachable cluster node must not stop the timers of the other nodes.
            Some(error) if !(some_respond && self.nodes.is_cluster()) => Err(error),
            _ => Ok(all),
        }
    }

    async fn postpone(&self, due: &DueConversation, by: Duration) -> Result<(), StoreError> {
        self.check_verified()?;
        let until = self.dates.now().plus_millis(u64::try_from(by.as_millis()).unwrap_or(u64::MAX));
        let timers = Keys::timers(self.keys.partition(due.conversation));
        let mut command = cmd("ZADD");
        command.arg(&timers).arg("XX");
        let whole = due.whole.then_some(None);
        for sequence in due.sequences.iter().copied().map(Some).chain(whole) {
            command.arg(until.as_millis()).arg(timer_member(due.conversation, sequence));
        }
        self.nodes.command(&timers, &command).await.map(|_| ())
    }

    async fn announce(&self, second: u64, partition: u16) -> Result<(), StoreError> {
        self.check_verified()?;
        let key = Keys::announced(second);
        let ttl = (second * 1000).saturating_sub(self.dates.now().as_millis()) + ANNOUNCEMENT_TTL_MS;
        let add = cmd("SADD").arg(&key).arg(partition).to_owned();
        let expire = cmd("PEXPIRE").arg(&key).arg(ttl).to_owned();
        // Sent together, so that a lost connection does not leave a key without a TTL.
        let request = Request::command(&expire).preceded_by(&add);
        self.nodes.call(ConnectionRole::Commands, HashSlot::of(&key), request).await.map(|_| ())
    }

    async fn announced(&self, second: u64) -> Result<Vec<u16>, StoreError> {
        self.check_verified()?;
        let key = Keys::announced(second);
        let members = self.nodes.command(&key, cmd("SMEMBERS").arg(&key)).await?;
        Vec::<u16>::from_redis_value(members).map_err(|_| broken("a partition is not a number"))
    }

    fn partitions(&self) -> u16 {
        self.keys.partitions
    }

    async fn totals(&self, partitions: &[u16]) -> Result<Totals, StoreError> {
        self.check_verified()?;
        let mut all = Totals::default();
        for (_, totals) in self.partition_queries().query(&TotalsQuery, partitions).await {
            // A sum without some partitions would be wrong.
            let totals = totals?;
            all.awaiting += totals.awaiting;
            all.held += totals.held;
            all.held_bytes += totals.held_bytes;
        }
        Ok(all)
    }

    async fn waiting(&self, limit: usize) -> Result<Waiting, StoreError> {
        self.check_verified()?;
        let wanted = limit.saturating_add(SPARE_CANDIDATES);
        // The first query returns the oldest conversation of each partition. Only the partitions of the `wanted` oldest
        // of these can contain any of the `wanted` oldest conversations.
        let all: Vec<u16> = (0..self.keys.partitions).collect();
        let (mut heads, is_complete) = self.oldest_waiting(1, &all).await?;
        heads.truncate(wanted);
        let partitions: Vec<u16> =
            heads.iter().map(|(_, conversation)| self.keys.partition(*conversation)).collect();
        let (mut candidates, is_still_complete) = self.oldest_waiting(wanted, &partitions).await?;
        candidates.truncate(wanted);
        // If `wanted` candidates were found, there may be more that were not examined.
        let mut is_complete = is_complete && is_still_complete && candidates.len() < wanted;
        let lookups = join_all(candidates.iter().map(|(_, conversation)| self.waiting_for(*conversation)));
        let mut conversations = Vec::new();
        for waiting in lookups.await {
            match waiting {
                Ok(waiting) => conversations.extend(waiting),
                Err(_) if self.nodes.is_cluster() => is_complete = false,
                Err(error) => return Err(error),
            }
        }
        conversations.sort_by_key(|waiting| (waiting.since, waiting.conversation_id.reference()));
        let truncated = conversations.len() > limit || !is_complete;
        conversations.truncate(limit);
        Ok(Waiting { conversations, truncated })
    }

    async fn inspect(&self, conversation: ConversationRef) -> Answer<ConversationView, ConversationNotFound> {
        let mut unreleased: Vec<WorkItemView> = Vec::new();
        let mut from = Sequence::FIRST;
        loop {
            let call =
                || self.call(&self.scripts.inspect, conversation, None, 0).arg(from).arg(ITEMS_PER_INSPECT);
            let (mut reply, _) = self.run(ConnectionRole::Reads, call).await?;
            match reply.word() {
                "conversation" => {}
                "conversation_not_found" => return Ok(Err(ConversationNotFound)),
                _ => return Err(reply.unexpected()),
            }
            let now = Timestamp::from_millis(reply.number()?);
            let state = StoredState::decode(&reply.bytes()?)?;
            let opened = StoredConversation::decode(&reply.bytes()?)?;
            let end_reason = stored::reason(&reply.bytes()?)?;
            let first = reply.number()?;
            let items = reply.list()?;
            from = Sequence::new(first + items.len() as u64);
            for item in items {
                unreleased.push(StoredItem::decode(&bytes(item)?)?.view(&state, now));
            }
            if from < state.next {
                continue;
            }
            // Omit items that were released between two calls.
            unreleased.retain(|view| view.item.sequence >= state.gate);
            let first_awaiting = unreleased.iter().find(|view| view.settled.is_none());
            return Ok(Ok(ConversationView {
                conversation_id: opened.id,
                opened_at: opened.opened_at,
                idle_at: state.idle_at(),
                ended: state.ended(now),
                end_reason,
                traceparent: opened.traceparent,
                next_sequence: state.next,
                waiting_for: first_awaiting.map_or(state.next, |view| view.item.sequence),
                now,
                unreleased,
            }));
        }
    }

    async fn work_item(
        &self,
        conversation: ConversationRef,
        work_item: WorkItemId,
    ) -> Answer<WorkItemView, LookupRefused> {
        let call = || {
            self.call(&self.scripts.work_item, conversation, None, 0).arg(work_item.sequence()).arg(work_item)
        };
        let (mut reply, _) = self.run(ConnectionRole::Reads, call).await?;
        Ok(Err(match reply.word() {
            "work_item" => {
                let now = Timestamp::from_millis(reply.number()?);
                let state = StoredState::decode(&reply.bytes()?)?;
                return Ok(Ok(StoredItem::decode(&reply.bytes()?)?.view(&state, now)));
            }
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
        let call = || {
            self.call(&self.scripts.read, conversation, None, 0)
                .arg(after.map_or(0, Sequence::get))
                .arg(count)
                .arg(PAGE_BYTES)
        };
        // A reply without envelopes is short.
        let role = if count == 0 { ConnectionRole::Reads } else { ConnectionRole::Pages };
        let (mut reply, _) = self.run(role, call).await?;
        match reply.word() {
            "page" => {}
            "conversation_not_found" => return Ok(Err(ConversationNotFound)),
            _ => return Err(reply.unexpected()),
        }
        let now = Timestamp::from_millis(reply.number()?);
        let state = StoredState::decode(&reply.bytes()?)?;
        let opened = StoredConversation::decode(&reply.bytes()?)?;
        let end_reason = stored::reason(&reply.bytes()?)?;
        let json = |value| bytes(value).map(|json| EnvelopeJson::new(json.into()));
        let envelopes: Result<Vec<EnvelopeJson>, StoreError> = reply.list()?.into_iter().map(json).collect();
        Ok(Ok(Page {
            opened_at: opened.opened_at,
            envelopes: envelopes?,
            released: state.gate.get() - 1,
            ended: state.ended_at(now).is_some(),
            end_reason,
            idle_in_ms: now.millis_until(state.idle_at()),
        }))
    }

    fn watch(&self, conversation: ConversationRef) -> ChannelListener {
        self.notifier.watch(conversation)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.check_verified()?;
        self.nodes.ping(self.keys.partitions).await
    }

    fn channel(&self, conversation: ConversationRef) -> Option<String> {
        Some(self.keys.channel(conversation))
    }
}

/// The conversation and the item of a refused callback or heartbeat, if the reply contains them.
fn target(reply: &mut ScriptReply) -> Result<Option<Box<CallbackTarget>>, StoreError> {
    let Some(opened) = reply.next() else { return Ok(None) };
    let conversation_id = StoredConversation::decode(&bytes(opened)?)?.id;
    let item = reply.next().map(|item| StoredItem::decode(&bytes(item)?)).transpose()?;
    let times_out_at = item.as_ref().map(StoredItem::times_out_at);
    let item = item.map(|item| item.item);
    Ok(Some(Box::new(CallbackTarget { conversation_id, item, times_out_at })))
}

/// The released items at the end of a reply. `own`: the item that the step settled, which the reply lists as an empty
/// string.
fn released(
    reply: &mut ScriptReply,
    opened_at: Timestamp,
    now: Timestamp,
    own: Option<&StoredItem>,
) -> Result<Vec<Released>, StoreError> {
    let mut released = Vec::new();
    while let Some(item) = reply.next() {
        let (item, held) = (bytes(item)?, reply.number()? == 1);
        released.push(match own {
            Some(own) if item.is_empty() => own.released(opened_at, now, held)?,
            _ => StoredItem::decode(&item)?.released(opened_at, now, held)?,
        });
    }
    Ok(released)
}

impl RedisStore {
    /// Returns the conversations with the oldest held results in some partitions, oldest first, and whether all of
    /// these partitions responded. In a cluster, fails only if none responded.
    async fn oldest_waiting(
        &self,
        count: usize,
        partitions: &[u16],
    ) -> Result<(Vec<(u64, ConversationRef)>, bool), StoreError> {
        let mut found = Vec::new();
        let (mut some_respond, mut failure) = (false, None);
        for (_, reply) in self.partition_queries().query(&WaitingQuery { count }, partitions).await {
            match reply {
                Ok(conversations) => {
                    some_respond = true;
                    found.extend(conversations);
                }
                Err(error) => failure = Some(error),
            }
        }
        found.sort_unstable();
        match failure {
            Some(error) if !(some_respond && self.nodes.is_cluster()) => Err(error),
            failure => Ok((found, failure.is_none())),
        }
    }

    /// What a conversation waits for. `None`: it is not waiting; see `waiting_for.lua`.
    async fn waiting_for(
        &self,
        conversation: ConversationRef,
    ) -> Result<Option<WaitingConversation>, StoreError> {
        let call = || self.call(&self.scripts.waiting_for, conversation, None, 0);
        let (mut reply, _) = self.run(ConnectionRole::Reads, call).await?;
        match reply.word() {
            "waiting" => {}
            "not_waiting" => return Ok(None),
            _ => return Err(reply.unexpected()),
        }
        let state = StoredState::decode(&reply.bytes()?)?;
        let opened = StoredConversation::decode(&reply.bytes()?)?;
        let item = StoredItem::decode(&reply.bytes()?)?;
        let since = reply.next().map(text).transpose()?.and_then(|since| since.parse().ok());
        Ok(Some(WaitingConversation {
            conversation_id: opened.id,
            heartbeat_deadline: item.heartbeat_deadline(),
            waiting_for: item.item,
            held: state.held(),
            held_bytes: state.held_bytes,
            since: Timestamp::from_millis(since.ok_or_else(|| broken("the time is not a number"))?),
        }))
    }

    /// The receipt of an accepted callback. Completes the release of held items first.
    async fn receipt(&self, mut reply: ScriptReply, command: &Accept) -> Result<Receipt, StoreError> {
        let (replayed, now) = (reply.number()? == 1, Timestamp::from_millis(reply.number()?));
        let mut gate = Sequence::new(reply.number()?);
        let opened = StoredConversation::decode(&reply.bytes()?)?;
        let item = StoredItem::decode(&reply.bytes()?)?;
        let (outcome, received_at) =
            item.settled().ok_or_else(|| broken("an accepted item has no outcome"))?;
        let mut unfinished = reply.number()? == 1;
        let mut released = released(&mut reply, opened.opened_at, now, Some(&item))?;
        if unfinished {
            let trace = command.traceparent.as_ref();
            let (after, left) = self.finish_release(command.conversation, trace, &mut released).await;
            (gate, unfinished) = (after.unwrap_or(gate), left);
        }
        let sequence = item.item.sequence;
        let delivery =
            if sequence < gate { Delivery::Delivered } else { Delivery::Held { waiting_for: gate } };
        Ok(Receipt {
            delivery,
            conversation_id: opened.id,
            item: item.item,
            outcome,
            received_at,
            replayed,
            released,
            unfinished,
        })
    }
}
