//! The service's store: a backend with metrics, spans, a health check and the sweeper's schedule.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::{KeyValue, time};
use redis::RedisError;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::health::{HealthMonitor, StoreHealth};
use super::memory::MemoryStore;
use super::redis::RedisStore;
use super::{Answer, CONTINUE_MS, ChannelListener, Due, DueConversation, Page, Schedule, Store, StoreError};
use crate::domain::gate::{
    Accept, Cancel, CancelRefused, Cancelled, ConversationNotFound, ConversationView, EndReceipt, Expired,
    Issue, IssueRefused, Issued, LookupRefused, NotAccepted, Open, OpenRefused, Opened, Receipt, Totals,
    WorkItemView,
};
use crate::domain::ids::{ConversationRef, Sequence, TraceParent, WorkItemId};
use crate::telemetry::{Telemetry, names, redis_call_attributes};

/// The closed set of backends.
#[derive(Debug)]
pub enum Backend {
    /// In this process's memory; lost when it ends.
    Memory(MemoryStore),
    /// In Redis or Valkey.
    Redis(Box<RedisStore>),
}

/// Delegates to the backend.
macro_rules! backend {
    ($self:ident, $store:ident => $call:expr) => {
        match &$self.backend {
            Backend::Memory($store) => $call,
            Backend::Redis($store) => $call,
        }
    };
}

/// Like `backend!`, for async calls. Redis futures are large: boxed, so that enclosing futures stay small.
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

/// A backend with its metrics, spans, health and schedule.
#[derive(Debug)]
pub struct InstrumentedStore {
    backend: Backend,
    telemetry: Telemetry,
    schedule: Schedule,
    /// Where Redis is, as its spans and its metric tell.
    server: Vec<KeyValue>,
    health: HealthMonitor,
}

/// When a partition is looked at in which a conversation was opened.
const CHECK_AFTER_OPEN: Duration = Duration::from_secs(10);

/// What an operation is for the store.
#[derive(Clone, Copy)]
enum Operation {
    /// A script of this name.
    Script(&'static str),
    /// A command of Redis.
    Command(&'static str),
}

impl StoreError {
    /// What kind of failure it is, for `error.type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::OutcomeUnknown(_) => "outcome_unknown",
            Self::Broken(_) => "broken",
        }
    }

    /// The first word of Redis' own error.
    fn redis_code(&self) -> Option<&str> {
        self.source()?.downcast_ref::<RedisError>()?.code()
    }
}

impl InstrumentedStore {
    /// Wraps a backend.
    pub fn new(backend: Backend, telemetry: Telemetry) -> Self {
        let (server, partitions) = match &backend {
            Backend::Memory(memory) => (Vec::new(), memory.partitions()),
            Backend::Redis(redis) => {
                telemetry.metrics.set_connection_counter(redis.connections());
                let at = redis.location();
                let mut server = vec![
                    // Shared: every call has them.
                    KeyValue::new(names::SERVER_ADDRESS, Arc::<str>::from(&*at.host)),
                    KeyValue::new(names::DB_NAMESPACE, Arc::<str>::from(at.database.to_string())),
                ];
                server.extend(at.port.map(|port| KeyValue::new(names::SERVER_PORT, i64::from(port))));
                (server, redis.partitions())
            }
        };
        let schedule = Schedule::new(partitions, Instant::now());
        Self { backend, telemetry, schedule, server, health: HealthMonitor::new() }
    }

    /// When something is due, as far as this process knows.
    pub const fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The task that listens for changes of channels, where there is one, for supervision. `None` the second time.
    pub fn take_watcher(&self) -> Option<JoinHandle<()>> {
        match &self.backend {
            Backend::Memory(_) => None,
            Backend::Redis(redis) => redis.take_watcher(),
        }
    }

    /// The backend.
    pub const fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Whether callbacks can be taken, as last seen. Asks the store nothing.
    pub fn health(&self) -> StoreHealth {
        self.health.health()
    }

    /// Checks whether callbacks can be taken.
    pub async fn check_health(&self) {
        self.health.record(&self.ping().await);
    }

    /// Checks it each second, and sooner when a call fails.
    pub async fn keep_checking_health(&self) {
        loop {
            self.health.next_check().await;
            self.check_health().await;
        }
    }

    fn partition(&self, conversation: ConversationRef) -> u16 {
        conversation.partition(self.partitions())
    }

    /// Has the sweeper continue a release that is left unfinished.
    fn continue_later(&self, conversation: ConversationRef, unfinished: bool) {
        if unfinished {
            self.schedule
                .arm(self.partition(conversation), Instant::now() + Duration::from_millis(CONTINUE_MS));
        }
    }

    async fn call<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        if matches!(self.backend, Backend::Memory(_)) {
            return call.await;
        }
        let operation_names = match operation {
            Operation::Script(script) => ("EVALSHA", script),
            Operation::Command(command) => (command, ""),
        };
        let (start, began) = (time::now(), Instant::now());
        let result = call.await;
        let failure = result.as_ref().err().map(StoreError::kind);
        let mut error = Vec::new();
        if let Err(failed) = &result {
            if matches!(operation, Operation::Script(_)) && !matches!(failed, StoreError::Broken(_)) {
                self.health.report_failure();
            }
            error.push(KeyValue::new(names::ERROR_TYPE, failed.kind()));
            let code = failed.redis_code().map(ToOwned::to_owned);
            error.extend(code.map(|code| KeyValue::new(names::DB_RESPONSE_STATUS_CODE, code)));
        }
        let metrics = &self.telemetry.metrics;
        metrics.record_redis_call(began.elapsed(), operation_names, &self.server, &error);
        let (command, script) = operation_names;
        self.telemetry.export_call(
            || format!("{command} {script}").trim_end().to_owned().into(),
            start,
            || [redis_call_attributes(operation_names), self.server.clone(), error].concat(),
            failure,
        );
        result
    }
}

impl Store for InstrumentedStore {
    async fn open(&self, command: Open) -> Answer<Opened, OpenRefused> {
        // By then it is known whether something of it is due.
        let partition = self.partition(command.conversation.reference());
        self.schedule.arm(partition, Instant::now() + CHECK_AFTER_OPEN);
        self.call(Operation::Script("open"), backend_async!(self, store => store.open(command))).await
    }

    async fn issue(&self, command: Issue) -> Answer<Issued, IssueRefused> {
        let partition = self.partition(command.conversation);
        let timeout = Duration::from_millis(command.timeout_ms);
        // Before the call: if its answer is lost, or this instance fails, the item exists all the same.
        self.schedule.arm(partition, Instant::now() + timeout);
        if let Some(now) = self.schedule.store_now_ms() {
            let second = now.saturating_add(command.timeout_ms) / 1000;
            self.schedule.announce((second, partition));
            self.schedule.announce((second + 1, partition));
        }
        let issued =
            self.call(Operation::Script("issue"), backend_async!(self, store => store.issue(command))).await;
        // A look before the item existed has not found it.
        self.schedule.arm(partition, Instant::now() + timeout);
        issued
    }

    async fn accept(&self, command: Accept) -> Answer<Receipt, NotAccepted> {
        let conversation = command.conversation;
        let accepted = self
            .call(Operation::Script("accept"), backend_async!(self, store => store.accept(command)))
            .await;
        let unfinished = accepted.as_ref().is_ok_and(|done| done.as_ref().is_ok_and(|done| done.unfinished));
        self.continue_later(conversation, unfinished || accepted.is_err());
        accepted
    }

    async fn cancel(&self, command: Cancel) -> Answer<Cancelled, CancelRefused> {
        let conversation = command.conversation;
        let cancelled = self
            .call(Operation::Script("cancel"), backend_async!(self, store => store.cancel(command)))
            .await;
        let unfinished = cancelled.as_ref().is_ok_and(|done| done.as_ref().is_ok_and(|done| done.unfinished));
        self.continue_later(conversation, unfinished || cancelled.is_err());
        cancelled
    }

    async fn end(
        &self,
        conversation: ConversationRef,
        traceparent: Option<TraceParent>,
    ) -> Answer<EndReceipt, ConversationNotFound> {
        let ended = self
            .call(
                Operation::Script("end"),
                backend_async!(self, store => store.end(conversation, traceparent)),
            )
            .await;
        // The sweeper removes what the conversation leaves behind.
        self.schedule.arm(self.partition(conversation), Instant::now());
        ended
    }

    async fn expire(
        &self,
        due: DueConversation,
        traceparent: Option<TraceParent>,
    ) -> Result<Expired, StoreError> {
        self.call(Operation::Script("expire"), backend_async!(self, store => store.expire(due, traceparent)))
            .await
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
