//! Times out awaiting markers, and takes up what nobody else goes on with.
//!
//! The store is asked about a partition when something in it is due: what this instance issued is known here, and what
//! others issued they announce for the second in which it is due. Level-triggered: whatever was missed is found by a look
//! at every partition in turn. Any number of instances may sweep the same store: what one is given to expire the others
//! are not, unless it does not come to it.

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
use crate::store::{CLAIM_MS, DueConversation, Observed, Store, StoreError};
use crate::telemetry::trace::{self, Place};
use crate::telemetry::{Telemetry, names};

/// How often announcements are asked for, and some partitions looked at in turn.
const LOOK: Duration = Duration::from_secs(1);
/// Announcements of so many seconds are made up for, when the store was away.
const MISSED: u64 = 30;
/// How many partitions are looked at then, whether something is known to be due or not.
const IN_TURN: u16 = 3;
/// Shortest time between two rounds: what is due within it is swept together.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// How long after a failure of the store the next round begins.
const RETRY: Duration = Duration::from_millis(250);
/// How many timers one round takes, at most a few more: what it takes no other instance is given meanwhile.
const ROUND: usize = 256;
/// Most timers that it takes from one partition, and fewest.
const OF_A_PARTITION: (usize, usize) = (128, 4);
/// Conversations that are swept at once.
const AT_ONCE: usize = 64;
/// How long a conversation that cannot be read is put off, at first and at most.
const PUT_OFF: Duration = Duration::from_secs(1);
const PUT_OFF_AT_MOST: Duration = Duration::from_secs(300);

/// Sweeps until `stop`.
pub async fn run(store: Arc<Observed>, telemetry: Telemetry, stop: CancellationToken) {
    let mut sweeper = Sweeper::new(store, telemetry);
    let mut failing = false;
    loop {
        let swept = sweeper.round().await;
        let pause = match swept {
            Ok(()) => {
                if failing {
                    tracing::info!("the sweeper reaches the store again");
                }
                failing = false;
                SHORTEST_PAUSE
            }
            Err(error) => {
                // Once, and not with every round.
                if !failing {
                    tracing::warn!(error = error.chain(), "the sweeper waits for the store");
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
    /// The partition to be looked at in turn.
    turn: u16,
    /// The last second whose announcements were asked for.
    asked_for: Option<u64>,
    /// A time of the store, and when it was told.
    clock: Option<(Timestamp, Instant)>,
    /// Conversations that cannot be read: until when they are put off, and by how much.
    aside: HashMap<ConversationRef, (Instant, Duration)>,
}

impl Sweeper {
    fn new(store: Arc<Observed>, telemetry: Telemetry) -> Self {
        Self {
            store,
            telemetry,
            next_look: Instant::now() + LOOK,
            turn: 0,
            asked_for: None,
            clock: None,
            aside: HashMap::new(),
        }
    }

    /// The store's time, in milliseconds.
    fn now_ms(&self) -> Option<u64> {
        let (time, told) = self.clock?;
        Some(time.as_millis() + u64::try_from(told.elapsed().as_millis()).ok()?)
    }

    /// The second of the store's clock.
    fn second(&self) -> Option<u64> {
        self.now_ms().map(|now| now / 1000)
    }

    /// Times out what is due.
    async fn round(&mut self) -> Result<(), StoreError> {
        if Instant::now() >= self.next_look {
            self.look().await;
            // At the beginning of the store's next second: what is due in it was announced before.
            let into_the_second = self.now_ms().map_or(0, |now| now % 1000);
            self.next_look = Instant::now() + LOOK.saturating_sub(Duration::from_millis(into_the_second));
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

    /// Asks which partitions others have announced for this second, and has some looked at in turn.
    async fn look(&mut self) {
        let now = Instant::now();
        let partitions = self.store.partitions();
        for _ in 0..IN_TURN.min(partitions) {
            self.store.schedule().arm(self.turn, now);
            self.turn = (self.turn + 1) % partitions;
        }
        let Some(second) = self.second() else { return };
        let first = self.asked_for.map_or(second, |last| (last + 1).max(second.saturating_sub(MISSED)));
        for second in first..=second {
            // A look at every partition in turn makes up for what cannot be asked.
            let Ok(partitions) = self.store.announced(second).await else { return };
            self.asked_for = Some(second);
            for partition in partitions {
                self.store.schedule().arm(partition, now);
            }
        }
    }

    /// Tells others what this instance has issued, in case it is not there when that is due. What cannot be told they
    /// find by their looks at every partition in turn.
    async fn announce(&self) {
        let Some(second) = self.second() else { return };
        let announcements = self.store.schedule().take_announcements(second);
        let announced = announcements.into_iter().map(|(of, partition)| {
            // Others ask at the beginning of a second: what is due in this one they learn of in the next.
            self.store.announce(of.max(second + 1), partition)
        });
        let failed = join_all(announced).await.into_iter().find_map(Result::err);
        if let Some(error) = failed {
            tracing::debug!(
                error = error.chain(),
                "what is due later cannot be announced to other instances"
            );
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
                // One conversation that cannot be read must not stop the others.
                Err(error @ StoreError::Broken(_)) => unreadable.push((due, error)),
                Err(error @ (StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_))) => {
                    // Nobody is given it before the claim is over.
                    let partition = due.conversation.partition(self.store.partitions());
                    let claim = Duration::from_millis(CLAIM_MS);
                    self.store.schedule().arm(partition, Instant::now() + claim);
                    store_failed = Some(error);
                }
            }
        }
        for (due, error) in unreadable {
            self.put_off(&due, &error).await?;
        }
        store_failed.map_or(Ok(()), Err)
    }

    /// Puts a conversation that cannot be read off, each time by more, and says so once each time.
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
        self.store.schedule().arm(due.conversation.partition(self.store.partitions()), until);
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
            "a conversation was left untouched, and has ended"
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
