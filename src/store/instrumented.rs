//! Wraps a backend with metrics, spans, health checks and the sweeper's schedule.

mod events;
mod metrics;
mod tool_labels;

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use opentelemetry::trace::{SpanBuilder, SpanKind};
use opentelemetry::{Context, KeyValue, time};
use redis::RedisError;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::metrics::StoreMetrics;
use super::health::{HealthMonitor, StoreHealth};
use super::memory::MemoryStore;
use super::redis::RedisStore;
use super::{
    Answer, CONTINUE_MS, ChannelListener, Due, DueConversation, Page, Schedule, Store, StoreError, Waiting,
};
use crate::domain::gate::{
    Accept, Cancel, CancelRefused, CancelTurn, CancelTurnRefused, Cancelled, CancelledTurn,
    ConversationNotFound, ConversationView, EndReceipt, Expired, Heartbeat, HeartbeatReceipt, Issue,
    IssueRefused, Issued, LookupRefused, Open, OpenRefused, Opened, Receipt, RefusedCallback,
    RefusedHeartbeat, Totals, WorkItemView,
};
use crate::domain::ids::{ConversationRef, Sequence, TraceParent, WorkItemId};
use crate::domain::reason::Reason;
use crate::telemetry::{Telemetry, names};

/// Minimum duration of a successful call to Redis for which a span is exported. Faster calls explain no delay, and
/// their spans would double the number of exported spans.
const SLOW_CALL: Duration = Duration::from_millis(10);

/// The supported backends.
#[derive(Debug)]
pub enum Backend {
    /// Keeps the data in the memory of this process. It is lost when the process ends.
    Memory(MemoryStore),
    /// Keeps the data in Redis or Valkey.
    Redis(Box<RedisStore>),
}

/// Calls a method of the backend.
macro_rules! backend {
    ($self:ident, $store:ident => $call:expr) => {
        match &$self.backend {
            Backend::Memory($store) => $call,
            Backend::Redis($store) => $call,
        }
    };
}

/// Like `backend!`, for async methods. Boxes the futures of Redis, which are large, to keep the enclosing futures
/// small.
macro_rules! backend_async {
    ($self:ident, $store:ident => $call:expr) => {
        async {
            match &$self.backend {
                Backend::Memory($store) => $call.await,
                Backend::Redis($store) => Box::pin($call).await,
            }
        }
    };
}

/// A backend that measures calls to Redis, and records a span for each that failed or was slow. Calls to the memory
/// store are not recorded.
#[derive(Debug)]
pub struct InstrumentedStore {
    backend: Backend,
    telemetry: Telemetry,
    metrics: StoreMetrics,
    schedule: Schedule,
    /// `server.address`, `server.port` and `db.namespace` of Redis. Empty for the memory store.
    server: Vec<KeyValue>,
    health: HealthMonitor,
}

/// Delay from the opening of a conversation until the sweeper queries its partition, from which it learns the
/// conversation's idle timer.
const CHECK_AFTER_OPEN: Duration = Duration::from_secs(10);

/// The Redis operation of a call, for its span and its metric.
#[derive(Clone, Copy)]
enum Operation {
    /// A script, by its name.
    Script(&'static str),
    /// A command, by its name.
    Command(&'static str),
}

impl StoreError {
    /// The value of `error.type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::OutcomeUnknown(_) => "outcome_unknown",
            Self::Broken(_) => "broken",
        }
    }

    /// The first word of the error reply from Redis. `None` if there is no such reply.
    fn redis_code(&self) -> Option<&str> {
        self.source()?.downcast_ref::<RedisError>()?.code()
    }
}

impl InstrumentedStore {
    /// Wraps a backend. For Redis, also registers the metric of its connections.
    pub fn new(backend: Backend, telemetry: Telemetry) -> Self {
        let (server, partitions) = match &backend {
            Backend::Memory(memory) => (Vec::new(), memory.partitions()),
            Backend::Redis(redis) => {
                let connections = redis.connections();
                telemetry
                    .metrics
                    .observe(names::CONNECTIONS, move || [(connections.load(Ordering::Relaxed), None)]);
                let at = redis.location();
                let mut server = vec![
                    // `Arc`, because every call clones these attributes.
                    KeyValue::new(names::SERVER_ADDRESS, Arc::<str>::from(&*at.host)),
                    KeyValue::new(names::DB_NAMESPACE, Arc::<str>::from(at.database.to_string())),
                ];
                server.extend(at.port.map(|port| KeyValue::new(names::SERVER_PORT, i64::from(port))));
                (server, redis.partitions())
            }
        };
        let schedule = Schedule::new(partitions, Instant::now());
        let metrics = StoreMetrics::new(&telemetry.metrics);
        Self { backend, telemetry, metrics, schedule, server, health: HealthMonitor::new() }
    }

    /// The sweeper's schedule: the earliest known timer of each partition.
    pub const fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Takes the task that receives notifications from Redis, so that the caller can supervise it. `None` for the
    /// memory store, and after the first call.
    pub fn take_watcher(&self) -> Option<JoinHandle<()>> {
        match &self.backend {
            Backend::Memory(_) => None,
            Backend::Redis(redis) => redis.take_watcher(),
        }
    }

    /// The wrapped backend.
    pub const fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The result of the last health check. Sends nothing to the store.
    pub fn health(&self) -> StoreHealth {
        self.health.health()
    }

    /// Checks whether the store accepts callbacks, and records the result.
    pub async fn check_health(&self) {
        self.health.record(&self.ping().await);
    }

    /// Checks the health every second, and earlier after a failed call. Never returns.
    pub async fn run_health_checks(&self) {
        loop {
            self.health.next_check().await;
            self.check_health().await;
        }
    }

    fn partition(&self, conversation: ConversationRef) -> u16 {
        conversation.partition(self.partitions())
    }

    /// Schedules a timer of the partition `in_ms` milliseconds from now on this instance, and announces it to the
    /// others.
    fn schedule_timer(&self, partition: u16, in_ms: u64) {
        self.schedule.arm(partition, Instant::now() + Duration::from_millis(in_ms));
        if let Some(now) = self.schedule.store_now_ms() {
            let second = now.saturating_add(in_ms) / 1000;
            self.schedule.announce((second, partition));
            self.schedule.announce((second + 1, partition));
        }
    }

    /// If the call failed or released only a part of the envelopes, schedules the sweeper to continue after
    /// [`CONTINUE_MS`].
    fn schedule_continuation<T, R>(
        &self,
        conversation: ConversationRef,
        answer: &Result<Result<T, R>, StoreError>,
        is_unfinished: impl FnOnce(&T) -> bool,
    ) {
        if answer.as_ref().map_or(true, |done| done.as_ref().is_ok_and(is_unfinished)) {
            self.schedule
                .arm(self.partition(conversation), Instant::now() + Duration::from_millis(CONTINUE_MS));
        }
    }

    /// Runs a call. For Redis, records a metric and, if the call failed or was slow, a span; a failed script call
    /// triggers a health check, unless the error is `Broken`.
    async fn call<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        if matches!(self.backend, Backend::Memory(_)) {
            return call.await;
        }
        let (command, script) = match operation {
            Operation::Script(script) => ("EVALSHA", script),
            Operation::Command(command) => (command, ""),
        };
        let (start, began) = (time::now(), Instant::now());
        let result = call.await;
        let mut error = Vec::new();
        if let Err(failed) = &result {
            if matches!(operation, Operation::Script(_)) && !matches!(failed, StoreError::Broken(_)) {
                self.health.report_failure();
            }
            error.push(KeyValue::new(names::ERROR_TYPE, failed.kind()));
            let code = failed.redis_code().map(ToOwned::to_owned);
            error.extend(code.map(|code| KeyValue::new(names::DB_RESPONSE_STATUS_CODE, code)));
        }
        let attributes = || {
            let mut all = vec![
                KeyValue::new(names::DB_SYSTEM_NAME, "redis"),
                KeyValue::new(names::DB_OPERATION_NAME, command),
            ];
            all.extend((!script.is_empty()).then(|| KeyValue::new(names::DB_STORED_PROCEDURE_NAME, script)));
            [&all, &self.server, &error].map(Vec::as_slice).concat()
        };
        let took = began.elapsed();
        self.metrics.call(took, (command, script), result.is_err(), attributes);
        let failure = result.as_ref().err().map(StoreError::kind);
        if failure.is_some() || took >= SLOW_CALL {
            self.telemetry.export_span(&Context::current(), failure, || {
                SpanBuilder::from_name(format!("{command} {script}").trim_end().to_owned())
                    .with_kind(SpanKind::Client)
                    .with_start_time(start)
                    .with_attributes(attributes())
            });
        }
        result
    }
}

impl Store for InstrumentedStore {
    async fn open(&self, command: Open) -> Answer<Opened, OpenRefused> {
        // Lets the sweeper learn the time of the conversation's idle timer.
        let partition = self.partition(command.conversation.reference());
        self.schedule.arm(partition, Instant::now() + CHECK_AFTER_OPEN);
        self.call(Operation::Script("open"), backend_async!(self, store => store.open(command))).await
    }

    async fn issue(&self, command: Issue) -> Answer<Issued, IssueRefused> {
        let partition = self.partition(command.conversation);
        let timeout_ms = command.heartbeat_timeout_ms.unwrap_or(u64::MAX).min(command.timeout_ms);
        // Scheduled before the call, because the item may exist even if the reply is lost or this instance fails.
        self.schedule_timer(partition, timeout_ms);
        let issued =
            self.call(Operation::Script("issue"), backend_async!(self, store => store.issue(command))).await;
        // Scheduled again, because the sweeper may have queried the partition before the item existed.
        self.schedule.arm(partition, Instant::now() + Duration::from_millis(timeout_ms));
        if let Ok(Ok(issued)) = &issued
            && !issued.repeated
        {
            self.metrics.issued(issued.item.kind);
        }
        issued
    }

    async fn accept(&self, command: Accept) -> Answer<Receipt, RefusedCallback> {
        let conversation = command.conversation;
        let accepted = self
            .call(Operation::Script("accept"), backend_async!(self, store => store.accept(command)))
            .await;
        self.schedule_continuation(conversation, &accepted, |done| done.unfinished);
        if let Ok(Ok(receipt)) = &accepted
            && !receipt.replayed
        {
            self.metrics.accepted(receipt);
        }
        accepted
    }

    async fn heartbeat(&self, command: Heartbeat) -> Answer<HeartbeatReceipt, RefusedHeartbeat> {
        self.call(Operation::Script("heartbeat"), backend_async!(self, store => store.heartbeat(command)))
            .await
    }

    async fn cancel(&self, command: Cancel) -> Answer<Cancelled, CancelRefused> {
        let conversation = command.conversation;
        let cancelled = self
            .call(Operation::Script("cancel"), backend_async!(self, store => store.cancel(command)))
            .await;
        self.schedule_continuation(conversation, &cancelled, |done| done.unfinished);
        cancelled
    }

    async fn cancel_turn(&self, command: CancelTurn) -> Answer<CancelledTurn, CancelTurnRefused> {
        let conversation = command.conversation;
        let cancelled = self
            .call(Operation::Script("cancel_turn"), backend_async!(self, store => store.cancel_turn(command)))
            .await;
        self.schedule_continuation(conversation, &cancelled, |done| done.unfinished);
        cancelled
    }

    async fn end(
        &self,
        conversation: ConversationRef,
        traceparent: Option<TraceParent>,
        reason: Option<Reason>,
    ) -> Answer<EndReceipt, ConversationNotFound> {
        let ended = self
            .call(
                Operation::Script("end"),
                backend_async!(self, store => store.end(conversation, traceparent, reason)),
            )
            .await;
        // The sweeper removes the timers of the ended conversation.
        self.schedule.arm(self.partition(conversation), Instant::now());
        if let Ok(Ok(receipt)) = &ended
            && !receipt.repeated
        {
            self.metrics.ended(&receipt.ended);
        }
        ended
    }

    async fn expire(
        &self,
        due: DueConversation,
        traceparent: Option<TraceParent>,
    ) -> Result<Expired, StoreError> {
        let partition = self.partition(due.conversation);
        let expired = self
            .call(Operation::Script("expire"), backend_async!(self, store => store.expire(due, traceparent)))
            .await?;
        if let Some(next_in_ms) = expired.next_in_ms {
            self.schedule_timer(partition, next_in_ms);
        }
        if let Some(ended) = &expired.ended {
            self.metrics.ended(ended);
        }
        Ok(expired)
    }

    async fn due(&self, partitions: &[u16], limit: usize) -> Result<Due, StoreError> {
        self.call(Operation::Script("due"), backend_async!(self, store => store.due(partitions, limit))).await
    }

    async fn postpone(&self, due: &DueConversation, by: Duration) -> Result<(), StoreError> {
        self.call(Operation::Command("ZADD"), backend_async!(self, store => store.postpone(due, by))).await
    }

    async fn announce(&self, second: u64, partition: u16) -> Result<(), StoreError> {
        self.call(
            Operation::Command("SADD"),
            backend_async!(self, store => store.announce(second, partition)),
        )
        .await
    }

    async fn announced(&self, second: u64) -> Result<Vec<u16>, StoreError> {
        self.call(Operation::Command("SMEMBERS"), backend_async!(self, store => store.announced(second)))
            .await
    }

    fn partitions(&self) -> u16 {
        backend!(self, store => store.partitions())
    }

    async fn totals(&self, partitions: &[u16]) -> Result<Totals, StoreError> {
        self.call(Operation::Script("totals"), backend_async!(self, store => store.totals(partitions))).await
    }

    async fn waiting(&self, limit: usize) -> Result<Waiting, StoreError> {
        self.call(Operation::Script("waiting"), backend_async!(self, store => store.waiting(limit))).await
    }

    async fn inspect(&self, conversation: ConversationRef) -> Answer<ConversationView, ConversationNotFound> {
        self.call(Operation::Script("inspect"), backend_async!(self, store => store.inspect(conversation)))
            .await
    }

    async fn work_item(
        &self,
        conversation: ConversationRef,
        work_item: WorkItemId,
    ) -> Answer<WorkItemView, LookupRefused> {
        self.call(
            Operation::Script("work_item"),
            backend_async!(self, store => store.work_item(conversation, work_item)),
        )
        .await
    }

    async fn read(
        &self,
        conversation: ConversationRef,
        after: Option<Sequence>,
        count: usize,
    ) -> Answer<Page, ConversationNotFound> {
        self.call(
            Operation::Script("read"),
            backend_async!(self, store => store.read(conversation, after, count)),
        )
        .await
    }

    fn watch(&self, conversation: ConversationRef) -> ChannelListener {
        backend!(self, store => store.watch(conversation))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.call(Operation::Command("SET"), backend_async!(self, store => store.ping())).await
    }

    fn channel(&self, conversation: ConversationRef) -> Option<String> {
        backend!(self, store => store.channel(conversation))
    }
}
