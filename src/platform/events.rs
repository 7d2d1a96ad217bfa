//! A conversation's channel as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, Stream, TryStreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::Platform;
use super::conversations::named;
use super::pages::FetchedPage;
use super::request::{PathIds, invalid};
use crate::domain::envelope::event_id;
use crate::domain::gate::ConversationNotFound;
use crate::domain::ids::{ConversationId, Sequence};
use crate::domain::time::Timestamp;
use crate::http::code::Code;
use crate::http::context::RequestContext;
use crate::http::refusal::Refusal;
use crate::store::{Page, Store, Wake};
use crate::telemetry::names;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// How often a silent stream says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often a channel is looked at without having been woken: a wake-up can be lost.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long after a failure of the store it is asked again; after each further one, twice as long.
const RETRY: Duration = Duration::from_millis(250);
/// But no longer than this.
const LONGEST_RETRY: Duration = Duration::from_secs(4);
/// Largest frame of a stream, in bytes. hyper copies each frame into a buffer that it keeps as long as the connection.
const FRAME: usize = 16 * 1024;

/// `GET`: what comes from now on; after `Last-Event-ID`, or after `?from=`, where one is given.
pub(super) async fn follow(
    State(platform): State<Arc<Platform>>,
    Extension(context): Extension<RequestContext>,
    Path(ids): Path<PathIds>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let conversation = named(&ids, &context)?;
    let asked = start(&headers, query.as_deref().unwrap_or_default())?;
    let permit = Arc::clone(&platform.event_streams)
        .try_acquire_owned()
        .map_err(|_| Refusal::new(Code::Overloaded, "too many event streams are open"))?;
    // Watching begins before the first look, so that nothing falls between them.
    let wake = platform.store.watch(conversation.reference());
    let looked = platform.store.read(conversation.reference(), None, 0).await;
    let page = looked??;
    let Page { opened_at, released, .. } = page;
    let after = match asked {
        None => released,
        // One that was opened before under the same id is over: nothing of this one has been read.
        Some(Cursor { opened_at: Some(of), .. }) if of < opened_at => 0,
        Some(Cursor { opened_at: Some(of), .. }) if of > opened_at => {
            return Err(invalid("Last-Event-ID or from", "the conversation has no such event"));
        }
        Some(Cursor { sequence, .. }) if sequence <= released => sequence,
        Some(_) => {
            let end = event_id(opened_at, Sequence::new(released));
            return Err(invalid("Last-Event-ID or from", format_args!("the channel ends at {end}")));
        }
    };
    let reader = Reader {
        platform,
        conversation,
        opened_at,
        after,
        end: End::of(&page),
        wake,
        fetched: VecDeque::new(),
        in_memory: None,
        finished: false,
        failing: None,
        _permit: permit,
    };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(reader.events()).keep_alive(keep_alive).into_response().map(in_small_frames))
}

fn in_small_frames(body: Body) -> Body {
    let frames = |mut data: Bytes| {
        let next =
            move || (!data.is_empty()).then(|| Ok::<_, axum::Error>(data.split_to(data.len().min(FRAME))));
        stream::iter(std::iter::from_fn(next))
    };
    // Others get their turn after each: between large results, callbacks are taken.
    let yielding = async |frame| {
        yield_now().await;
        Ok(frame)
    };
    Body::from_stream(body.into_data_stream().map_ok(frames).try_flatten().and_then(yielding))
}

/// After which event a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    /// When the conversation was opened; without it, the one that there is.
    opened_at: Option<Timestamp>,
    sequence: u64,
}

/// After which event the stream begins; `None` stands for the channel's end.
fn start(headers: &HeaderMap, query: &str) -> Result<Option<Cursor>, Refusal> {
    let from = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "from");
    if let Some(id) = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()) {
        let id = id.to_str().ok().and_then(cursor);
        return id.map(Some).ok_or_else(|| invalid("Last-Event-ID", "must be the id of an event"));
    }
    match from {
        Some((_, id)) => {
            cursor(&id).map(Some).ok_or_else(|| invalid("from", "must be 0 or the id of an event"))
        }
        None => Ok(None),
    }
}

/// An event's id, or only its sequence.
fn cursor(text: &str) -> Option<Cursor> {
    let number =
        |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    match text.split_once('-') {
        Some((opened_at, sequence)) => Some(Cursor {
            opened_at: Some(Timestamp::from_millis(number(opened_at)?)),
            sequence: number(sequence)?,
        }),
        None => Some(Cursor { opened_at: None, sequence: number(text)? }),
    }
}

/// A channel's end, as it was last seen.
#[derive(Clone, Copy, Debug)]
struct End {
    /// The last sequence on the channel.
    released: u64,
    /// Whether nothing follows it.
    is_final: bool,
    /// When to look again without having been woken.
    look_in: Duration,
}

impl End {
    fn of(page: &Page) -> Self {
        let look_in = LOOK_AGAIN.min(Duration::from_millis(page.idle_in_ms + 1));
        Self { released: page.released, is_final: page.ended, look_in }
    }
}

struct Reader {
    platform: Arc<Platform>,
    conversation: ConversationId,
    opened_at: Timestamp,
    after: u64,
    end: End,
    wake: Wake,
    fetched: VecDeque<Bytes>,
    /// What the page that is being sent takes up.
    in_memory: Option<OwnedSemaphorePermit>,
    finished: bool,
    /// How long the store is left alone after it failed, if it failed when it was last asked.
    failing: Option<Duration>,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut reader| async {
            let event = reader.next().await?;
            Some((Ok(event), reader))
        })
    }

    /// The next event. Waits for it; the store's failures only take time.
    async fn next(&mut self) -> Option<Event> {
        loop {
            // Another instance goes on from the last event's id.
            if self.platform.lifecycle.is_draining() {
                return None;
            }
            if let Some(envelope) = self.fetched.pop_front() {
                self.after += 1;
                let Ok(json) = std::str::from_utf8(&envelope) else {
                    tracing::error!(
                        { names::CONVERSATION_ID } = %self.conversation,
                        { names::WORK_ITEM_SEQUENCE } = self.after,
                        "an event stream ends: an envelope is not UTF-8"
                    );
                    return None;
                };
                return Some(event_of(&event_id(self.opened_at, Sequence::new(self.after)), json));
            }
            if self.finished {
                return None;
            }
            self.in_memory = None;
            if self.after == self.end.released && self.failing.is_none() {
                if self.end.is_final {
                    return Some(self.last_event());
                }
                self.wait(self.end.look_in).await;
            }
            // Changes from now on may not be on the page.
            self.wake.mark_seen();
            let after = Sequence::new(self.after);
            let fetched = tokio::select! {
                fetched = self.platform.pages.fetch(&self.platform.store, self.conversation.reference(), after) => fetched,
                () = self.platform.lifecycle.drained() => return None,
            };
            let failed_before = self.failing.take();
            match fetched {
                Ok(Ok(FetchedPage { page, .. }))
                    if page.opened_at != self.opened_at || page.released < self.after =>
                {
                    // To go on would pass over what takes the place of what was lost. Whoever comes back is told.
                    tracing::warn!(
                        { names::CONVERSATION_ID } = %self.conversation,
                        { names::WORK_ITEM_SEQUENCE } = self.after,
                        "an event stream ends: the store has lost what it had told"
                    );
                    return None;
                }
                Ok(Ok(FetchedPage { page, permit })) => {
                    self.end = End::of(&page);
                    if page.envelopes.is_empty() && self.after < page.released {
                        self.wait(LOOK_AGAIN).await;
                    }
                    self.fetched = page.envelopes.into();
                    self.in_memory = Some(permit);
                }
                Ok(Err(ConversationNotFound)) => return Some(self.last_event()),
                Err(error) => {
                    // Once, and not with every try.
                    if failed_before.is_none() {
                        tracing::warn!(
                            { names::CONVERSATION_ID } = %self.conversation,
                            error = error.chain(),
                            "an event stream waits for the store"
                        );
                    }
                    let pause = *self.failing.insert(retry_after(failed_before));
                    self.wait(pause).await;
                }
            }
        }
    }

    /// Waits until the channel may have changed, or for this long.
    async fn wait(&mut self, longest: Duration) {
        tokio::select! {
            () = self.wake.changed() => {}
            () = sleep(longest) => {}
            () = self.platform.lifecycle.drained() => {}
        }
    }

    fn last_event(&mut self) -> Event {
        self.finished = true;
        let data = format!(r#"{{"conversationId":"{}","state":"ended"}}"#, self.conversation);
        Event::default().event("end").data(data)
    }
}

/// How long the store is left alone after a failure, when it was left alone for so long before.
fn retry_after(before: Option<Duration>) -> Duration {
    before.map_or(RETRY, |before| (2 * before).min(LONGEST_RETRY))
}

/// White space that breaks a line in the result breaks the event's data, too: the reader joins it with line feeds.
/// A carriage return would end a line for those readers only that know the standard well, so none is sent.
fn event_of(id: &str, json: &str) -> Event {
    let event = Event::default().id(id);
    if json.contains('\r') {
        event.data(json.replace("\r\n", "\n").replace('\r', "\n"))
    } else {
        event.data(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_events_id_is_read_back_and_a_sequence_will_do() {
        let opened_at = Timestamp::from_millis(1_795_000_000_000);
        let id = event_id(opened_at, Sequence::new(7));
        assert_eq!(id, "1795000000000-7");
        assert_eq!(cursor(&id), Some(Cursor { opened_at: Some(opened_at), sequence: 7 }));
        assert_eq!(cursor("0"), Some(Cursor { opened_at: None, sequence: 0 }));
        for bad in ["", "-", "1-", "-1", "+1", "1-2-3", "x", "1-x"] {
            assert_eq!(cursor(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_failing_store_is_asked_less_and_less_often() {
        let pauses =
            std::iter::successors(Some(retry_after(None)), |before| Some(retry_after(Some(*before))));
        let millis: Vec<u128> = pauses.take(7).map(|pause| pause.as_millis()).collect();
        assert_eq!(millis, [250, 500, 1_000, 2_000, 4_000, 4_000, 4_000]);
    }
}
