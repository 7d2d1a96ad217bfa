//! Times out work items, ends idle conversations, and continues what an interrupted operation left unfinished.
//!
//! The sweeper queries a partition when one of its timers is due. It knows the timers of this instance; other
//! instances announce theirs for the second in which they are due. As a fallback it queries all partitions in
//! rotation, which finds timers that were not announced. Any number of instances can sweep the same store: a due
//! timer is claimed by one instance, and is given to another only after the claim has expired.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::domain::gate::Expired;
use crate::domain::ids::ConversationRef;
use crate::domain::time::Timestamp;
use crate::domain::work_item::Outcome;
use crate::store::{DueConversation, Observed, Store, StoreError};
use crate::telemetry::trace::{self, Place};
use crate::telemetry::{Telemetry, names};

/// Interval at which announcements are read and the next partitions in rotation are queried.
const LOOK: Duration = Duration::from_secs(1);
/// Number of partitions that are queried in rotation at each interval.
const IN_TURN: u16 = 3;
/// Minimum delay between two rounds. Timers that become due within it are swept together.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// Delay before the next round after a failure of the store.
const RETRY: Duration = Duration::from_millis(250);
/// Approximate maximum number of timers per round. Bounded because other instances cannot sweep claimed timers.
const ROUND: usize = 256;
/// Upper and lower limit for the number of timers that a round claims from one partition.
const OF_A_PARTITION: (usize, usize) = (128, 4);
/// Number of conversations that are swept concurrently.
const AT_ONCE: usize = 64;
/// Initial backoff for a conversation that cannot be read. It doubles with each failure.
const PUT_OFF: Duration = Duration::from_secs(1);
/// Maximum backoff for a conversation that cannot be read.
const PUT_OFF_AT_MOST: Duration = Duration::from_secs(300);

/// Sweeps until `stop` is cancelled.
pub async fn run(store: Arc<Observed>, telemetry: Telemetry, stop: CancellationToken) {
    let mut sweeper = Sweeper::new(store, telemetry);
    let mut failing = false;
    loop {
        let swept = sweeper.round().await;
        let pause = match swept {
            Ok(()) => {
                if failing {
                    tracing::info!("the sweeper can reach the store again");
                }
                failing = false;
                SHORTEST_PAUSE
            }
            Err(error) => {
                // Logged once per outage, not in every round.
                if !failing {
                    tracing::warn!(error = error.chain(), "the sweeper cannot reach the store; retrying");
                }
                failing = true;
                RETRY
            }
        };
        let pause = async {
            sleep(pause).await;
            sweeper.store.schedule().wait(sweeper.next_look.saturating_duration_since(Instant::now())).await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = pause => {}
        }
    }
}

struct Sweeper {
    store: Arc<Observed>,
    telemetry: Telemetry,
    next_look: Instant,
    /// The next partition in rotation.
    turn: u16,
    /// A time of the store's clock, and when it was received.
    clock: Option<(Timestamp, Instant)>,
    /// Conversations that cannot be read, with the end and the length of their backoff.
    aside: HashMap<ConversationRef, (Instant, Duration)>,
}

impl Sweeper {
    fn new(store: Arc<Observed>, telemetry: Telemetry) -> Self {
        Self {
            store,
            telemetry,
            next_look: Instant::now() + LOOK,
            turn: 0,
            clock: None,
            aside: HashMap::new(),
        }
    }

    /// The current second of the store's clock (Unix time). `None` before the first query.
    fn second(&self) -> Option<u64> {
        let (time, told) = self.clock?;
        Some((time.as_millis() + u64::try_from(told.elapsed().as_millis()).ok()?) / 1000)
    }

    /// Sweeps the timers that are due now.
    async fn round(&mut self) -> Result<(), StoreError> {
        if Instant::now() >= self.next_look {
            self.next_look = Instant::now() + LOOK;
            self.look().await;
        }
        self.announce().await;
        let partitions = self.store.schedule().take_due(Instant::now());
        if partitions.is_empty() {
            return Ok(());
        }
        let asked = Instant::now();
        let (most, fewest) = OF_A_PARTITION;
        let limit = (ROUND / partitions.len()).clamp(fewest, most);
        let due = self.store.due(&partitions, limit).await.inspect_err(|_| {
            for &partition in &partitions {
                self.store.schedule().arm(partition, asked + RETRY);
            }
        })?;
        self.clock = Some((due.now, Instant::now()));
        for (partition, next_in_ms) in due.next_in_ms {
            if let Some(next) = next_in_ms {
                self.store.schedule().arm(partition, asked + Duration::from_millis(next));
            }
        }
        self.sweep_all(due.conversations).await
    }

    /// Marks as due: the partitions that are announced for this second, and the next ones in rotation.
    async fn look(&mut self) {
        let now = Instant::now();
        let partitions = self.store.partitions();
        for _ in 0..IN_TURN.min(partitions) {
            self.store.schedule().arm(self.turn, now);
            self.turn = (self.turn + 1) % partitions;
        }
        if let Some(second) = self.second() {
            // An error is ignored: the rotation finds the timers later.
            for partition in self.store.announced(second).await.unwrap_or_default() {
                self.store.schedule().arm(partition, now);
            }
        }
    }

    /// Announces the timers of this instance to the others, which sweep them if this instance has stopped by then.
    /// The rotation finds timers that cannot be announced.
    async fn announce(&self) {
        let Some(second) = self.second() else { return };
        let announcements = self.store.schedule().take_announcements(second);
        let announced = announcements.into_iter().map(|(of, partition)| {
            // Others have already read the announcements of the current second.
            self.store.announce(of.max(second + 1), partition)
        });
        let failed = join_all(announced).await.into_iter().find_map(Result::err);
        if let Some(error) = failed {
            tracing::debug!(error = error.chain(), "cannot announce timers to the other instances");
        }
    }

    async fn sweep_all(&mut self, due: Vec<DueConversation>) -> Result<(), StoreError> {
        let (store, telemetry) = (&Arc::clone(&self.store), &self.telemetry.clone());
        let sweeps = stream::iter(due).map(async |due| {
            let swept = sweep(store, telemetry, due.clone()).await;
            (due, swept)
        });
        let mut sweeps = std::pin::pin!(sweeps.buffer_unordered(AT_ONCE));
        let mut store_failed = None;
        let mut unreadable = Vec::new();
        while let Some((due, swept)) = sweeps.next().await {
            match swept {
                Ok(()) => {
                    self.aside.remove(&due.conversation);
                }
                // One unreadable conversation must not stop the others.
                Err(error @ StoreError::Broken(_)) => unreadable.push((due, error)),
                // The timers become due again when the claim expires.
                Err(error @ (StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_))) => {
                    store_failed = Some(error);
                }
            }
        }
        for (due, error) in unreadable {
            self.put_off(&due, &error).await?;
        }
        store_failed.map_or(Ok(()), Err)
    }

    /// Postpones an unreadable conversation with exponential backoff. Logs once per postponement.
    async fn put_off(&mut self, due: &DueConversation, error: &StoreError) -> Result<(), StoreError> {
        let now = Instant::now();
        let (until, by) = match self.aside.get(&due.conversation) {
            Some(&(until, by)) if until > now => (until, by),
            known => {
                let by = known.map_or(PUT_OFF, |(_, by)| (2 * *by).min(PUT_OFF_AT_MOST));
                tracing::error!(
                    { names::CONVERSATION_REFERENCE } = %due.conversation,
                    error = %error,
                    again_in_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX),
                    "a conversation cannot be swept"
                );
                (now + by, by)
            }
        };
        self.aside.insert(due.conversation, (until, by));
        self.store.put_off(due, until - now).await
    }
}

async fn sweep(store: &Observed, telemetry: &Telemetry, due: DueConversation) -> Result<(), StoreError> {
    let conversation = due.conversation;
    let span = trace::sweep_span();
    let place = trace::begin(&span, &opentelemetry::Context::new());
    let swept = async {
        let expired = store.expire(due, place.traceparent()).await?;
        tell(telemetry, &place, conversation, &expired);
        let channel = || store.channel(conversation);
        let whose = (conversation, expired.conversation_id.as_ref());
        telemetry.released(&place, whose, channel, &expired.released, &expired.timed_out);
        Ok(())
    };
    swept.instrument(span).await
}

fn tell(telemetry: &Telemetry, place: &Place, conversation: ConversationRef, expired: &Expired) {
    let id = expired.conversation_id.as_ref();
    if let Some(ended) = expired.ended {
        telemetry.metrics.dropped(ended.dropped_held, ended.dropped_awaiting);
        tracing::info!(
            trace_id = place.trace_id,
            span_id = place.span_id,
            { names::CONVERSATION_ID } = id.map(tracing::field::display),
            { names::CONVERSATION_REFERENCE } = %conversation,
            { names::DROPPED_HELD } = ended.dropped_held,
            { names::DROPPED_AWAITING } = ended.dropped_awaiting,
            "a conversation ended by its idle timeout"
        );
    }
    for timed_out in &expired.timed_out {
        tracing::info!(
            trace_id = place.trace_id,
            span_id = place.span_id,
            { names::CONVERSATION_ID } = id.map(tracing::field::display),
            { names::CONVERSATION_REFERENCE } = %conversation,
            { names::WORK_ITEM_ID } = %timed_out.work_item,
            { names::WORK_ITEM_SEQUENCE } = timed_out.sequence.get(),
            { names::WORK_ITEM_KIND } = timed_out.kind.as_str(),
            { names::OUTCOME } = Outcome::TimedOut.as_str(),
            { names::LATE_MS } = timed_out.late_ms,
            "a work item timed out"
        );
        telemetry.timed_out(place, (conversation, id), timed_out);
    }
}
