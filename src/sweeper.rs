//! Times out work items, ends idle conversations, and continues releases that an operation left unfinished.
//!
//! The sweeper queries a partition when one of its timers is due. It knows the timers that its own instance has set.
//! The other instances announce the seconds in which their timers are due. As a fallback, the sweeper queries all
//! partitions in turn (the rotation), which finds timers that were not announced. Any number of instances can sweep the
//! same store: an instance claims a due timer, and another one can claim it only after the claim has expired.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use opentelemetry::Context;
use opentelemetry::context::FutureExt;
use opentelemetry::trace::SpanKind;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::domain::gate::Expired;
use crate::domain::ids::{ConversationId, ConversationRef};
use crate::store::{CLAIM_MS, DueConversation, InstrumentedStore, Store, StoreError};
use crate::telemetry::trace::SpanRef;
use crate::telemetry::{Telemetry, names};

/// Number of partitions that are queried in rotation each second.
const ROTATED_PER_SECOND: u16 = 3;
/// Maximum number of past seconds whose announcements are read after an outage of the store.
const MISSED_SECONDS: u64 = 30;
/// Time limit for reading the announcements of one second, and for sending a batch of announcements.
const EXCHANGE_TIMEOUT: Duration = Duration::from_millis(500);
/// Minimum delay between two rounds. Timers that become due in the meantime are swept together.
const MIN_PAUSE: Duration = Duration::from_millis(5);
/// Delay before the next round after a failure of the store.
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// Maximum number of timers that a round claims. Bounded, because other instances cannot sweep claimed timers.
const MAX_TIMERS_PER_ROUND: usize = 256;
/// Maximum number of partitions per round.
const MAX_PARTITIONS_PER_ROUND: usize = 64;
/// Maximum number of timers that a round claims from one partition.
const MAX_TIMERS_PER_PARTITION: usize = 128;
/// Number of conversations that are swept concurrently.
const CONCURRENCY: usize = 64;
/// Initial backoff for a conversation that cannot be read. It doubles with each failure.
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
/// Maximum backoff for a conversation that cannot be read.
const MAX_BACKOFF: Duration = Duration::from_secs(300);

/// Sweeps until `stop` is cancelled.
pub async fn run(store: Arc<InstrumentedStore>, telemetry: Telemetry, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = sweep_due_timers(&store, telemetry) => {}
        // Separate futures, so that sweeping continues if the cluster node with the announcements does not respond.
        () = read_announcements(&store) => {}
        () = send_announcements(&store) => {}
    }
}

/// At the beginning of each second of the store's clock, schedules the partitions whose turn it is and those that other
/// instances have announced. A timer is announced for the second in which it is due and for the next one; a second that
/// has already begun is replaced by the one after it.
async fn read_announcements(store: &InstrumentedStore) {
    let schedule = store.schedule();
    let partitions = store.partitions();
    let mut rotation = 0;
    let mut last: Option<u64> = None;
    loop {
        schedule.next_second().await;
        for _ in 0..ROTATED_PER_SECOND.min(partitions) {
            schedule.arm(rotation, Instant::now());
            rotation = (rotation + 1) % partitions;
        }
        let Some(second) = schedule.store_now_ms().map(|now| now / 1000) else { continue };
        // Reads the last second again, because announcements may be late. If the clock went back, reads only the
        // current second.
        let first = last.filter(|last| *last <= second).unwrap_or(second);
        for second in first.max(second.saturating_sub(MISSED_SECONDS))..=second {
            // Ignores an error, because the rotation finds the timers later.
            let Ok(Ok(announced)) = timeout(EXCHANGE_TIMEOUT, store.announced(second)).await else { break };
            last = Some(second);
            for partition in announced {
                schedule.arm(partition, Instant::now());
            }
        }
    }
}

/// Announces the timers of this instance to the other instances, which sweep them if this instance fails.
async fn send_announcements(store: &InstrumentedStore) {
    loop {
        let announcements = store.schedule().take_announcements().await;
        let next_second = store.schedule().store_now_ms().map_or(0, |now| now / 1000 + 1);
        let announced = announcements.into_iter().map(|(second, partition)| {
            // The other instances have already read the current second.
            store.announce(second.max(next_second), partition)
        });
        if timeout(EXCHANGE_TIMEOUT, join_all(announced)).await.is_err() {
            tracing::debug!(name: "sweeper.announce_failed", "cannot announce timers to the other instances in time");
        }
    }
}

async fn sweep_due_timers(store: &Arc<InstrumentedStore>, telemetry: Telemetry) {
    let mut sweeper =
        Sweeper { store: Arc::clone(store), telemetry, unfinished: Vec::new(), backoffs: HashMap::new() };
    let mut failing = false;
    loop {
        match sweeper.round().await {
            Ok(()) => {
                if failing {
                    tracing::info!(name: "sweeper.recovered", "the sweeper can reach the store again");
                }
                failing = false;
                sleep(MIN_PAUSE).await;
            }
            Err(error) => {
                // Logged once per outage, not in every round.
                if !failing {
                    tracing::warn!(
                        name: "sweeper.unavailable",
                        error = error.chain(),
                        "the sweeper cannot reach the store; retrying"
                    );
                }
                failing = true;
                sleep(RETRY_DELAY).await;
            }
        }
        if sweeper.unfinished.is_empty() {
            store.schedule().due().await;
        }
    }
}

struct Sweeper {
    store: Arc<InstrumentedStore>,
    telemetry: Telemetry,
    /// Conversations that need a further step.
    unfinished: Vec<DueConversation>,
    /// For each conversation that cannot be read, the end and the length of its backoff.
    backoffs: HashMap<ConversationRef, (Instant, Duration)>,
}

impl Sweeper {
    /// Sweeps the due timers, and performs one step for each unfinished conversation.
    async fn round(&mut self) -> Result<(), StoreError> {
        let claimed = self.claim_due().await?;
        let mut due = std::mem::take(&mut self.unfinished);
        due.extend(claimed);
        self.sweep_all(due).await
    }

    async fn claim_due(&self) -> Result<Vec<DueConversation>, StoreError> {
        let schedule = self.store.schedule();
        let partitions = schedule.take_due(Instant::now(), MAX_PARTITIONS_PER_ROUND);
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let queried = Instant::now();
        let limit = (MAX_TIMERS_PER_ROUND / partitions.len()).min(MAX_TIMERS_PER_PARTITION);
        let due = self.store.due(&partitions, limit).await.inspect_err(|_| {
            for &partition in &partitions {
                schedule.arm(partition, queried + RETRY_DELAY);
            }
        })?;
        for (partition, next_in_ms) in due.next_in_ms {
            if let Some(next) = next_in_ms {
                schedule.arm(partition, queried + Duration::from_millis(next));
            }
        }
        schedule.set_store_time(due.now);
        Ok(due.conversations)
    }

    async fn sweep_all(&mut self, due: Vec<DueConversation>) -> Result<(), StoreError> {
        let (store, telemetry) = (&Arc::clone(&self.store), &self.telemetry.clone());
        let sweeps = stream::iter(due).map(async |due| {
            let swept = sweep(store, telemetry, due.clone()).await;
            (due, swept)
        });
        let mut sweeps = std::pin::pin!(sweeps.buffer_unordered(CONCURRENCY));
        let mut store_failed = None;
        let mut unreadable = Vec::new();
        while let Some((due, swept)) = sweeps.next().await {
            match swept {
                Ok(unfinished) => {
                    self.backoffs.remove(&due.conversation);
                    if unfinished {
                        self.unfinished.push(DueConversation { sequences: Vec::new(), whole: true, ..due });
                    }
                }
                // A conversation that cannot be read must not delay the others.
                Err(error @ StoreError::Broken(_)) => unreadable.push((due, error)),
                Err(error @ (StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_))) => {
                    // The timers become due again when the claim expires.
                    self.arm(due.conversation, Instant::now() + Duration::from_millis(CLAIM_MS));
                    store_failed = Some(error);
                }
            }
        }
        for (due, error) in unreadable {
            self.postpone(&due, &error).await;
        }
        store_failed.map_or(Ok(()), Err)
    }

    fn arm(&self, conversation: ConversationRef, time: Instant) {
        self.store.schedule().arm(conversation.partition(self.store.partitions()), time);
    }

    /// Postpones a conversation that cannot be read. If its backoff has elapsed, logs the error and doubles the
    /// backoff.
    async fn postpone(&mut self, due: &DueConversation, error: &StoreError) {
        let now = Instant::now();
        let (until, by) = match self.backoffs.get(&due.conversation) {
            Some(&(until, by)) if until > now => (until, by),
            previous => {
                let by = previous.map_or(INITIAL_BACKOFF, |(_, by)| (2 * *by).min(MAX_BACKOFF));
                tracing::error!(
                    name: "conversation.unreadable",
                    {
                        { names::CONVERSATION_REFERENCE } = %due.conversation,
                        error = %error,
                        again_in_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX),
                    },
                    "a conversation cannot be read; its timers are postponed"
                );
                (now + by, by)
            }
        };
        self.backoffs.insert(due.conversation, (until, by));
        // If this fails, the timers become due again when the claim expires.
        let postponed = self.store.postpone(due, until - now).await.is_ok();
        self.arm(due.conversation, if postponed { until } else { now + Duration::from_millis(CLAIM_MS) });
    }
}

/// Processes the due timers of a conversation. Returns whether it needs a further step.
async fn sweep(
    store: &InstrumentedStore,
    telemetry: &Telemetry,
    due: DueConversation,
) -> Result<bool, StoreError> {
    let conversation = due.conversation;
    let span = telemetry.start_span(|| "sweep".into(), SpanKind::Internal, &Context::new());
    let expired = store.expire(due, span.traceparent()).with_context(span.context().clone()).await;
    let expired = expired.inspect_err(|error| span.end(Vec::new(), Some(error.kind())))?;
    let ids = (conversation, expired.conversation_id.as_ref());
    log_end(&span, ids, &expired);
    store.record_timed_out(&span, ids, &expired.timed_out);
    store.record_released(&span, ids, &expired.released, &expired.timed_out);
    span.end(Vec::new(), None);
    Ok(expired.unfinished)
}

/// Logs that the idle timeout ended the conversation.
fn log_end(sweep: &SpanRef, (reference, id): (ConversationRef, Option<&ConversationId>), expired: &Expired) {
    let Some(ended) = expired.ended else { return };
    let _in_span = sweep.enter();
    tracing::info!(
        name: "conversation.idle",
        {
            { names::CONVERSATION_ID } = id.map(tracing::field::display),
            { names::CONVERSATION_REFERENCE } = %reference,
            { names::DROPPED_HELD } = ended.dropped_held,
            { names::DROPPED_AWAITING } = ended.dropped_awaiting,
        },
        "a conversation reached its idle timeout and was ended"
    );
}
