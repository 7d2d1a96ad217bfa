//! Times out awaiting markers.
//!
//! Level-triggered: each round asks the store what is due, so a missed wake-up, a crash or another instance that was
//! faster costs nothing. Any number of instances may sweep the same store.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::domain::gate::Expired;
use crate::domain::ids::ConversationRef;
use crate::domain::work_item::Outcome;
use crate::store::{DueConversation, Observed, Store, StoreError};
use crate::telemetry::trace::{self, Place};
use crate::telemetry::{Telemetry, names};

/// Longest time between two rounds: another instance may have issued an item whose deadline is near.
const LONGEST_PAUSE: Duration = Duration::from_millis(40);
/// How long after a failure of the store the next round begins.
const RETRY: Duration = Duration::from_millis(250);
/// Most items that one round takes from a partition.
const ROUND: usize = 128;
/// Conversations that are swept at once.
const AT_ONCE: usize = 64;

/// Sweeps until `stop`.
pub async fn run(store: Arc<Observed>, telemetry: Telemetry, stop: CancellationToken) {
    let mut failing = false;
    loop {
        let pause = match round(&store, &telemetry).await {
            Ok(pause) => {
                if failing {
                    tracing::info!("the sweeper reaches the store again");
                }
                failing = false;
                pause
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
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

/// Times out what is due, and tells how long nothing more is expected to be.
async fn round(store: &Observed, telemetry: &Telemetry) -> Result<Duration, StoreError> {
    let due = store.due(ROUND).await?;
    let sweeps = stream::iter(due.conversations)
        .map(|due| async { (due.conversation, sweep(store, telemetry, due).await) });
    let mut sweeps = sweeps.buffer_unordered(AT_ONCE);
    let mut store_failed = None;
    while let Some((conversation, swept)) = sweeps.next().await {
        match swept {
            Ok(()) => {}
            // One conversation that cannot be read must not stop the others.
            Err(error @ StoreError::Broken(_)) => {
                tracing::error!({ names::CONVERSATION_REFERENCE } = %conversation, error = %error, "a conversation cannot be swept");
            }
            Err(error @ (StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_))) => {
                store_failed = Some(error);
            }
        }
    }
    if let Some(error) = store_failed {
        return Err(error);
    }
    let next = due.next_in_ms.map_or(LONGEST_PAUSE, Duration::from_millis);
    Ok(if due.more { Duration::ZERO } else { next.min(LONGEST_PAUSE) })
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
    if expired.dropped_held > 0 {
        telemetry.metrics.dropped(expired.dropped_held, 0);
        tracing::info!(
            trace_id = place.trace_id,
            span_id = place.span_id,
            { names::CONVERSATION_ID } = id.map(tracing::field::display),
            { names::CONVERSATION_REFERENCE } = %conversation,
            { names::DROPPED_HELD } = expired.dropped_held,
            "a conversation was left untouched, and its held results are dropped"
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
