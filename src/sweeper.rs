//! Times out awaiting markers.
//!
//! Level-triggered: each round asks the store what is due, so a missed wake-up, a crash or another instance that was
//! faster costs nothing. Any number of instances may sweep the same store.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::store::{AnyStore, DueConversation, Store, StoreError};
use crate::telemetry;

/// Longest time between two rounds: another instance may have issued an item whose deadline is near.
const LONGEST_PAUSE: Duration = Duration::from_millis(40);
/// How long after a failure of the store the next round begins.
const RETRY: Duration = Duration::from_millis(250);
/// Most items that one round takes from a partition.
const ROUND: usize = 128;
/// Conversations that are swept at once.
const AT_ONCE: usize = 64;

/// Sweeps until `stop`.
pub async fn run(store: Arc<AnyStore>, stop: CancellationToken) {
    let mut failing = false;
    loop {
        let pause = match round(&store).await {
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
                    tracing::warn!(error = %error, cause = error.cause(), "the sweeper waits for the store");
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
async fn round(store: &AnyStore) -> Result<Duration, StoreError> {
    let due = store.due(ROUND).await?;
    let sweeps =
        stream::iter(due.conversations).map(|due| async { (due.conversation, sweep(store, due).await) });
    let mut sweeps = sweeps.buffer_unordered(AT_ONCE);
    let mut store_failed = None;
    while let Some((conversation, swept)) = sweeps.next().await {
        match swept {
            Ok(()) => {}
            // One conversation that cannot be read must not stop the others.
            Err(error @ StoreError::Broken(_)) => {
                tracing::error!("conversation.reference" = %conversation, error = %error, "a conversation cannot be swept");
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

async fn sweep(store: &AnyStore, due: DueConversation) -> Result<(), StoreError> {
    let conversation = due.conversation;
    let expired = store.expire(due, None).await?;
    for timed_out in &expired.timed_out {
        tracing::info!(
            "conversation.reference" = %conversation,
            "work_item.id" = %timed_out.work_item,
            late_ms = timed_out.late_ms,
            "a work item timed out"
        );
    }
    telemetry::released(conversation, &expired.released);
    Ok(())
}
