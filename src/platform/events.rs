//! Serves a conversation's channel as server-sent events.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use memchr::memchr3;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};

use super::Platform;
use super::pages::FetchedPage;
use super::request::{self, PathIds, invalid};
use crate::domain::envelope::{EnvelopeJson, event_id};
use crate::domain::gate::ConversationNotFound;
use crate::domain::ids::{ConversationId, RequestId, Sequence};
use crate::domain::progress::ProgressJson;
use crate::domain::reason::Reason;
use crate::domain::time::Timestamp;
use crate::http::code::Code;
use crate::http::context::RequestContext;
use crate::http::refusal::Refusal;
use crate::store::{ChannelListener, Notice, Page, Store};
use crate::telemetry::names;
use crate::telemetry::trace::SpanRef;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Interval of comments on a stream without events, so that proxies do not close it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Maximum time without a read of the channel, because notifications can be lost.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Delay after a failure of the store. It doubles with each further failure.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(250);
/// Maximum delay after a failure of the store.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(4);
/// Without a charset, some clients read `text/*` as ISO-8859-1. Proxies must neither buffer nor compress the stream:
/// nginx obeys `X-Accel-Buffering`, others obey `no-transform`.
const HEADERS: [(HeaderName, &str); 3] = [
    (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
    (header::CACHE_CONTROL, "no-cache, no-transform"),
    (HeaderName::from_static("x-accel-buffering"), "no"),
];
/// Maximum size of a frame in bytes. hyper copies each frame into a buffer that it keeps as long as the connection.
const MAX_FRAME_BYTES: usize = 16 * 1024;

/// `GET`: streams the events after `Last-Event-ID` or, without it, after `?from=`. Without both, only new events.
pub(super) async fn follow(
    State(platform): State<Arc<Platform>>,
    Extension(context): Extension<RequestContext>,
    Path(ids): Path<PathIds>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let conversation = ids.recorded_conversation(&context)?;
    let requested = requested_cursor(&headers, query.as_deref())?;
    let permit = Arc::clone(&platform.event_streams)
        .try_acquire_owned()
        .map_err(|_| Refusal::new(Code::Overloaded, "too many event streams are open"))?;
    // Subscribes before the first read, so that no change in between is missed.
    let listener = platform.store.watch(conversation.reference());
    let page = platform.store.read(conversation.reference(), None, 0).await??;
    let Page { opened_at, released, .. } = page;
    let after = match requested {
        None => released,
        // The cursor is from an earlier conversation with the same id: start at the beginning of this one.
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
    let reader = ChannelReader {
        platform,
        stream: OpenStream {
            conversation: conversation.clone(),
            request_id: context.request_id,
            span: context.span.clone(),
            client: context.client,
            user_agent: context.user_agent().map(ToOwned::to_owned),
            began: Instant::now(),
            sent: 0,
            last: after,
            closed: CloseReason::ByClient,
        },
        conversation,
        opened_at,
        after,
        end: ChannelEnd::of(&page),
        listener,
        fetched: VecDeque::new(),
        page_permit: None,
        finished: false,
        retry_delay: None,
        _permit: permit,
    };
    // Sends a comment immediately, so that proxies and clients see an open stream before the first event.
    let opened = stream::once(async { Ok(Event::default().comment("")) });
    let events = Sse::new(opened.chain(reader.events())).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    let mut response = events.into_response().map(in_small_frames);
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

fn in_small_frames(body: Body) -> Body {
    let frames = |mut data: Bytes| {
        let next = move || {
            (!data.is_empty()).then(|| Ok::<_, axum::Error>(data.split_to(data.len().min(MAX_FRAME_BYTES))))
        };
        stream::iter(std::iter::from_fn(next))
    };
    // Yields after each frame, so that callbacks are handled between large results.
    let yielding = async |frame| {
        yield_now().await;
        Ok(frame)
    };
    Body::from_stream(body.into_data_stream().map_ok(frames).try_flatten().and_then(yielding))
}

/// The last event that the client has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    /// When the conversation was opened. `None`: the cursor is only a sequence and fits every conversation.
    opened_at: Option<Timestamp>,
    sequence: u64,
}

/// The cursor of a request. `None`: start at the end of the channel.
fn requested_cursor(headers: &HeaderMap, query: Option<&str>) -> Result<Option<Cursor>, Refusal> {
    let [from] = request::query(query, ["from"])?;
    let from = from
        .map(|id| parse_cursor(&id).ok_or_else(|| invalid("from", "must be 0 or an event id")))
        .transpose()?;
    // A client that reconnects sends both.
    if let Some(id) = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()) {
        let id = id.to_str().ok().and_then(parse_cursor);
        return id.map(Some).ok_or_else(|| invalid("Last-Event-ID", "must be an event id"));
    }
    Ok(from)
}

/// Parses an event id or a sequence.
fn parse_cursor(text: &str) -> Option<Cursor> {
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

/// The end of the channel at the last read.
#[derive(Clone, Debug)]
struct ChannelEnd {
    /// The last sequence on the channel.
    released: u64,
    /// Whether the conversation has ended, so that nothing follows.
    is_final: bool,
    /// Why the conversation was ended.
    reason: Option<Reason>,
    /// When to read the channel again if no notification arrives. A point in time, so that progress events do not
    /// postpone it.
    poll_at: Instant,
}

impl ChannelEnd {
    fn of(page: &Page) -> Self {
        let poll_at = Instant::now() + POLL_INTERVAL.min(Duration::from_millis(page.idle_in_ms + 1));
        let reason = page.end_reason.clone();
        Self { released: page.released, is_final: page.ended, reason, poll_at }
    }
}

/// Why a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CloseReason {
    ByClient,
    Ended,
    Draining,
    /// The store has lost data. Continuing would skip the events that replace the lost ones. A client that reconnects
    /// gets an error, or the events of the conversation that was opened again.
    DataLost(&'static str),
}

impl CloseReason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::ByClient => "the client disconnected",
            Self::Ended => "the conversation has ended",
            Self::Draining => "the service is draining",
            Self::DataLost(what) => what,
        }
    }
}

/// An open stream. Logs its end when it is dropped.
struct OpenStream {
    conversation: ConversationId,
    request_id: RequestId,
    span: SpanRef,
    client: IpAddr,
    user_agent: Option<String>,
    began: Instant,
    /// Number of envelopes sent.
    sent: u64,
    /// Sequence of the last envelope sent, or the one after which the stream began.
    last: u64,
    closed: CloseReason,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let _in_span = self.span.enter();
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    name: "event_stream.closed",
                    {
                        { names::REQUEST_ID } = %self.request_id,
                        { names::CONVERSATION_ID } = %self.conversation,
                        { names::EVENTS_SENT } = self.sent,
                        { names::LAST_SEQUENCE } = self.last,
                        { names::CLOSED_BECAUSE } = self.closed.as_str(),
                        { names::DURATION_US } = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX),
                        { names::CLIENT_ADDRESS } = %self.client,
                        { names::USER_AGENT } = self.user_agent,
                    },
                    "event stream closed after sequence {}: {}",
                    self.last,
                    self.closed.as_str()
                )
            };
        }
        if matches!(self.closed, CloseReason::DataLost(_)) { line!(warn) } else { line!(info) }
    }
}

struct ChannelReader {
    platform: Arc<Platform>,
    stream: OpenStream,
    conversation: ConversationId,
    opened_at: Timestamp,
    after: u64,
    end: ChannelEnd,
    listener: ChannelListener,
    fetched: VecDeque<EnvelopeJson>,
    /// Memory reservation of the current page.
    page_permit: Option<OwnedSemaphorePermit>,
    finished: bool,
    /// The current retry delay, if the last read failed.
    retry_delay: Option<Duration>,
    _permit: OwnedSemaphorePermit,
}

impl ChannelReader {
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut reader| async {
            let event = reader.next().await?;
            Some((Ok(event), reader))
        })
    }

    /// Waits for the next event. Retries after failures of the store. `None` closes the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            // The client reconnects to another instance with the last event id.
            if self.platform.admission.lifecycle.is_draining() {
                return self.close(CloseReason::Draining);
            }
            if let Some(envelope) = self.fetched.pop_front() {
                let Ok(json) = std::str::from_utf8(envelope.bytes()) else {
                    return self.close(CloseReason::DataLost("an envelope is not UTF-8"));
                };
                self.after += 1;
                self.stream.sent += 1;
                self.stream.last = self.after;
                return Some(envelope_event(&event_id(self.opened_at, Sequence::new(self.after)), json));
            }
            if self.finished {
                return self.close(CloseReason::Ended);
            }
            self.page_permit = None;
            if self.after == self.end.released && self.retry_delay.is_none() {
                if self.end.is_final {
                    return Some(self.end_event());
                }
                if let Some(progress) = self.wait().await {
                    return Some(progress);
                }
            }
            // Changes after this point may be missing from the page.
            self.listener.mark_seen();
            let after = Sequence::new(self.after);
            let conversation = self.conversation.reference();
            let Platform { pages, store, admission, .. } = &*self.platform;
            let fetched = tokio::select! {
                fetched = pages.fetch(store, &admission.lifecycle.calls, conversation, after) => fetched,
                () = self.platform.admission.lifecycle.draining_started() => return self.close(CloseReason::Draining),
            };
            let failed_before = self.retry_delay.take();
            match fetched {
                Ok(Ok(FetchedPage { page, .. }))
                    if page.opened_at != self.opened_at || page.released < self.after =>
                {
                    return self
                        .close(CloseReason::DataLost("the store lost envelopes that were already sent"));
                }
                Ok(Ok(FetchedPage { page, permit })) => {
                    self.end = ChannelEnd::of(&page);
                    if page.envelopes.is_empty() && self.after < page.released {
                        return self.close(CloseReason::DataLost("an envelope is missing on the channel"));
                    }
                    self.fetched = page.envelopes.into();
                    self.page_permit = Some(permit);
                }
                Ok(Err(ConversationNotFound)) => {
                    // The conversation existed at the previous read.
                    return self.close(CloseReason::DataLost("the store has lost the conversation"));
                }
                Err(error) => {
                    // Logged once per outage, not for every retry.
                    if failed_before.is_none() {
                        tracing::warn!(
                            name: "event_stream.retrying",
                            { { names::CONVERSATION_ID } = %self.conversation, error = error.chain() },
                            "an event stream cannot read from the store; retrying"
                        );
                    }
                    let pause = *self.retry_delay.insert(retry_after(failed_before));
                    self.pause(pause).await;
                }
            }
        }
    }

    fn close(&mut self, why: CloseReason) -> Option<Event> {
        self.stream.closed = why;
        None
    }

    /// Waits until the channel changes, the next poll is due or draining begins. Returns earlier if a work item reports
    /// progress.
    async fn wait(&mut self) -> Option<Event> {
        tokio::select! {
            notice = self.listener.next() => match notice {
                Notice::Progress(progress) => progress_event(&progress),
                Notice::Changed => None,
            },
            () = sleep_until(self.end.poll_at) => None,
            () = self.platform.admission.lifecycle.draining_started() => None,
        }
    }

    /// Waits until the channel changes, `limit` has passed or draining begins.
    async fn pause(&mut self, limit: Duration) {
        tokio::select! {
            () = self.listener.changed() => {}
            () = sleep(limit) => {}
            () = self.platform.admission.lifecycle.draining_started() => {}
        }
    }

    fn end_event(&mut self) -> Event {
        self.finished = true;
        self.stream.closed = CloseReason::Ended;
        let reason = self.end.reason.as_ref();
        let reason = reason.map_or_else(String::new, |reason| format!(r#","reason":{}"#, reason.to_json()));
        let data = format!(r#"{{"conversationId":"{}","state":"ended"{reason}}}"#, self.conversation);
        Event::default().event("end").data(data)
    }
}

/// The delay after a failure; `before` is the delay after the previous one.
fn retry_after(before: Option<Duration>) -> Duration {
    before.map_or(MIN_RETRY_DELAY, |before| (2 * before).min(MAX_RETRY_DELAY))
}

/// An envelope as an event. A line break in a result splits the data into two lines, which clients join again with a
/// line feed.
fn envelope_event(id: &str, json: &str) -> Event {
    Event::default().id(id).data(normalize_line_breaks(json))
}

/// Progress as an event, without an id: a client that reconnects does not get it again. `None` if it is not UTF-8.
fn progress_event(progress: &ProgressJson) -> Option<Event> {
    let json = std::str::from_utf8(progress.bytes()).ok()?;
    Some(Event::default().event("progress").data(normalize_line_breaks(json)))
}

/// Normalizes the line breaks of a JSON text, so that all clients see the same lines. Carriage returns become line
/// feeds: some clients do not treat them as line breaks, although the SSE standard requires it. U+0085, U+2028 and
/// U+2029 are escaped: some clients treat them as line breaks, although the standard does not. JSON has them only
/// inside strings, where the escape is equivalent.
fn normalize_line_breaks(json: &str) -> Cow<'_, str> {
    // The first bytes of the replaced characters. Most texts contain none of them.
    if memchr3(b'\r', 0xc2, 0xe2, json.as_bytes()).is_none() {
        return json.into();
    }
    let replaced = [
        ("\r\n", "\n"),
        ("\r", "\n"),
        ("\u{85}", "\\u0085"),
        ("\u{2028}", "\\u2028"),
        ("\u{2029}", "\\u2029"),
    ];
    replaced.into_iter().fold(Cow::Borrowed(json), |text, (from, to)| {
        if text.contains(from) { text.replace(from, to).into() } else { text }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_ids_and_bare_sequences_are_parsed() {
        let opened_at = Timestamp::from_millis(1_795_000_000_000);
        let id = event_id(opened_at, Sequence::new(7));
        assert_eq!(id, "1795000000000-7");
        assert_eq!(parse_cursor(&id), Some(Cursor { opened_at: Some(opened_at), sequence: 7 }));
        assert_eq!(parse_cursor("0"), Some(Cursor { opened_at: None, sequence: 0 }));
        for bad in ["", "-", "1-", "-1", "+1", "1-2-3", "x", "1-x"] {
            assert_eq!(parse_cursor(bad), None, "{bad}");
        }
    }

    #[test]
    fn line_breaks_are_normalized() {
        for (json, sent) in [
            ("\"72 °F ✅ \u{2027}\u{84}\"", "\"72 °F ✅ \u{2027}\u{84}\""),
            ("[1,\r\n2,\r3,\n4]", "[1,\n2,\n3,\n4]"),
            ("\"a\u{2028}b\u{2029}c\u{85}d\"", r#""a\u2028b\u2029c\u0085d""#),
        ] {
            assert_eq!(normalize_line_breaks(json), sent);
            let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(value(json), value(sent));
        }
        assert!(matches!(normalize_line_breaks("{\"a\":1}"), Cow::Borrowed(_)));
    }

    #[test]
    fn retry_delay_doubles_up_to_its_maximum() {
        let pauses =
            std::iter::successors(Some(retry_after(None)), |before| Some(retry_after(Some(*before))));
        let millis: Vec<u128> = pauses.take(7).map(|pause| pause.as_millis()).collect();
        assert_eq!(millis, [250, 500, 1_000, 2_000, 4_000, 4_000, 4_000]);
    }
}
