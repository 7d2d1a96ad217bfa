//! Fetches pages of channels for event streams, with limits on concurrent fetches and on memory.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::gate::ConversationNotFound;
use crate::domain::ids::{ConversationRef, Sequence};
use crate::store::{Answer, InstrumentedStore, PAGE_BYTES, Page, ShieldedCalls, Store, StoreError};

/// Maximum number of concurrent fetches of an instance. Small, so that Redis handles callbacks in between.
const FETCHES_AT_ONCE: usize = 4;
/// Maximum number of envelopes per page. The store returns fewer when they are large.
const MAX_ENVELOPES: usize = 128;
/// Maximum size of an envelope without its result, in bytes.
const ENVELOPE_BYTES: usize = 2 * 1024;
/// Number of copies of a page in memory: each envelope, and the event that is built from it.
const PAGE_COPIES: usize = 2;

/// The limits that event streams share. Waiting streams are served in the order of arrival.
#[derive(Debug)]
pub struct Pages {
    memory: Arc<Semaphore>,
    fetches: Arc<Semaphore>,
    /// Memory that is reserved for a page before its size is known, in bytes.
    initial_reservation: u32,
}

/// A page with its memory reservation.
pub(super) struct FetchedPage {
    pub(super) page: Page,
    pub(super) permit: OwnedSemaphorePermit,
}

impl Pages {
    /// Limits all pages together to `bytes`, for results of at most `max_result` bytes. If the largest possible
    /// page exceeds `bytes`, a page is fetched only when no other page is in memory.
    pub fn new(bytes: usize, max_result: usize) -> Self {
        let bytes = bytes.clamp(1, Semaphore::MAX_PERMITS);
        let largest = PAGE_COPIES * PAGE_BYTES.max(max_result.saturating_add(ENVELOPE_BYTES));
        Self {
            memory: Arc::new(Semaphore::new(bytes)),
            fetches: Arc::new(Semaphore::new(FETCHES_AT_ONCE)),
            initial_reservation: u32::try_from(largest.min(bytes)).unwrap_or(u32::MAX),
        }
    }

    /// Waits until memory is available, then fetches the page after a sequence.
    pub(super) async fn fetch(
        &self,
        store: &Arc<InstrumentedStore>,
        calls: &ShieldedCalls,
        conversation: ConversationRef,
        after: Sequence,
    ) -> Answer<FetchedPage, ConversationNotFound> {
        let closed = |error| StoreError::Unavailable(Box::new(error));
        let permit =
            Arc::clone(&self.memory).acquire_many_owned(self.initial_reservation).await.map_err(closed)?;
        let fetching = Arc::clone(&self.fetches).acquire_owned().await.map_err(closed)?;
        let store = Arc::clone(store);
        // Shielded: if the event stream ends, the fetch is completed and its memory stays counted.
        let fetched = async move {
            let page = store.read(conversation, Some(after), MAX_ENVELOPES).await;
            drop(fetching);
            page.map(|page| page.map(|page| FetchedPage::new(page, permit)))
        };
        calls.shield(fetched).await
    }
}

impl FetchedPage {
    /// Releases the part of the reservation that the page does not need.
    fn new(page: Page, mut permit: OwnedSemaphorePermit) -> Self {
        let size = PAGE_COPIES * page.envelopes.iter().map(|json| json.bytes().len()).sum::<usize>();
        drop(permit.split(permit.num_permits().saturating_sub(size)));
        Self { page, permit }
    }
}
