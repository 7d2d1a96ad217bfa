//! One connection of HTTP/2, with limits on what its streams cost and on how long they may stand still.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::client_address::Peer;
use super::pace::Pace;
use super::server::{Limits, MAX_HEAD};

/// Most streams of a connection at once.
const MAX_STREAMS: u32 = 100;
/// Most streams that the client has reset before they were looked at (CVE-2023-44487).
const MAX_RESET_EARLY: usize = 20;
/// How many more streams a client may reset before their answer than it lets be answered.
const MAX_GIVEN_UP: u64 = 200;
/// Most streams that were reset here for what the client did wrong.
const MAX_RESET_HERE: usize = 100;
/// How long the last replies of a connection that ends may be on their way to a client that reads.
const FAREWELL: Duration = Duration::from_secs(2);
/// Most bytes of a stream, and of all streams of a connection, that are on their way here.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Most bytes of a reply that wait for their client, for each stream.
const SEND_BUFFER: usize = 64 * 1024;

/// Serves the connection until it ends, or must not go on. Its streams are refused from `stop` on.
pub(super) async fn serve<S>(
    stream: S,
    peer: IpAddr,
    router: Router,
    limits: Limits,
    stop: &CancellationToken,
) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let streams = Streams::new(Instant::now());
    let pace = Pace::of(limits.pace);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let (router, pace, mut open) = (router.clone(), pace.clone(), streams.open());
        async move {
            pace.wait(request.method()).await;
            // What a handler sees of a stream that is reset is a body that is cut off.
            let cut_off = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&cut_off);
            let request = request.map(|body| {
                Body::new(body.map_err(move |error| {
                    seen.store(true, Ordering::Relaxed);
                    error
                }))
            });
            let Ok(response) = router.oneshot(request).await;
            pace.replied(&response);
            if !cut_off.load(Ordering::Relaxed) {
                open.answered();
            }
            Ok::<_, Infallible>(response.map(|body| Watched { body, open }))
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESET_EARLY)
        .max_local_error_reset_streams(MAX_RESET_HERE)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        // A client within an unfinished frame or head cannot answer: so these are the head's time limit.
        .keep_alive_interval(limits.head_timeout)
        .keep_alive_timeout(limits.head_timeout)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut ending = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = streams.enough.notified() => return Ok(()),
            () = stop.cancelled(), if !ending => {
                ending = true;
                streams.state().idle_since = Instant::now();
                connection.as_mut().graceful_shutdown();
            }
            () = sleep_until(streams.look_at(limits, ending)) => match streams.judge(limits, ending) {
                Verdict::GoesOn => {}
                Verdict::Idle if !ending => {
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                Verdict::Idle | Verdict::Stuck => return Ok(()),
            },
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    GoesOn,
    Idle,
    Stuck,
}

/// What the streams of a connection are doing.
#[derive(Clone, Debug)]
struct Streams {
    state: Arc<Mutex<State>>,
    /// The client has given up too many of them.
    enough: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    next: u64,
    open: u64,
    /// Since when none is open.
    idle_since: Instant,
    /// Those whose reply waits for the client, and since when.
    waiting: BTreeMap<u64, Instant>,
    /// How many more may be given up.
    patience: u64,
}

impl Streams {
    fn new(now: Instant) -> Self {
        let waiting = BTreeMap::new();
        let state = State { next: 0, open: 0, idle_since: now, waiting, patience: MAX_GIVEN_UP };
        Self { state: Arc::new(Mutex::new(state)), enough: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Open {
        let mut state = self.state();
        state.open += 1;
        state.next += 1;
        Open { streams: self.clone(), number: state.next, answered: false }
    }

    /// When one of the limits may be reached first.
    fn look_at(&self, limits: Limits, ending: bool) -> Instant {
        let state = self.state();
        let stuck = state.waiting.values().min().map(|since| *since + limits.write_timeout);
        let allowed = if ending { FAREWELL } else { limits.keep_alive_timeout };
        let idle = (state.open == 0).then(|| state.idle_since + allowed);
        let later = Instant::now() + limits.write_timeout.min(limits.keep_alive_timeout);
        stuck.into_iter().chain(idle).fold(later, Instant::min)
    }

    fn judge(&self, limits: Limits, ending: bool) -> Verdict {
        let (now, mut state) = (Instant::now(), self.state());
        if state.waiting.values().any(|since| now - *since >= limits.write_timeout) {
            return Verdict::Stuck;
        }
        let allowed = if ending { FAREWELL } else { limits.keep_alive_timeout };
        if state.open > 0 || now - state.idle_since < allowed {
            return Verdict::GoesOn;
        }
        // What its last replies may still take.
        state.idle_since = now;
        Verdict::Idle
    }
}

/// A stream that is open.
#[derive(Debug)]
struct Open {
    streams: Streams,
    number: u64,
    answered: bool,
}

impl Open {
    fn answered(&mut self) {
        self.answered = true;
        let mut state = self.streams.state();
        state.patience = MAX_GIVEN_UP.min(state.patience + 1);
    }

    fn waits(&self, waits: bool) {
        let mut state = self.streams.state();
        if waits {
            state.waiting.insert(self.number, Instant::now());
        } else {
            state.waiting.remove(&self.number);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.streams.state();
        state.waiting.remove(&self.number);
        state.open -= 1;
        state.idle_since = Instant::now();
        if !self.answered {
            state.patience = state.patience.saturating_sub(1);
            if state.patience == 0 {
                self.streams.enough.notify_one();
            }
        }
    }
}

/// A reply's body that knows whether it waits for its client: it does while what it gave was not taken.
struct Watched {
    body: Body,
    open: Open,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.open.waits(false);
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_some() {
            self.open.waits(true);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
