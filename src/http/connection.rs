//! Limits of a connection, and its read timeouts: for the head of a request, and for idle time between requests.
//!
//! hyper has one timer for both (hyper #3828). Here, the time limit for a head starts with its first byte, and further
//! bytes do not extend it. Over TLS, it starts with the first byte of a TLS record. If a pipelined head arrives before
//! the previous response, its time limit starts with the first byte received after that response.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Limits of a listener's connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Time limit for the head of a request. A TLS handshake has the same limit, but at most 5 s.
    pub head_timeout: Duration,
    /// Maximum time without progress while a response is written.
    pub write_timeout: Duration,
    /// Maximum time that a connection is idle before a request.
    pub keep_alive_timeout: Duration,
    /// Maximum number of connections. At the limit, a new connection waits, and idle connections are closed for it.
    pub max_connections: usize,
    /// Whether a client that has shut down its write side still gets responses. The server cannot tell such a client
    /// from one that has disconnected, so an event stream would notice a disconnect only when it next sends something.
    pub half_close: bool,
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No byte of the next request has arrived.
    Idle,
    /// The first part of the next request's head has arrived.
    ReadingHead,
    /// A request is being handled. Its body has its own time limit.
    Handling,
}

/// The current phase of a connection, and when it began. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Mutex<(Phase, Instant)>>);

impl Activity {
    /// An idle connection.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new((Phase::Idle, Instant::now()))))
    }

    fn current(&self) -> MutexGuard<'_, (Phase, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the phase, which begins now.
    pub(super) fn begin(&self, phase: Phase) {
        *self.current() = (phase, Instant::now());
    }

    /// Records that bytes have arrived: an idle connection now reads a head.
    fn received(&self) {
        let mut current = self.current();
        if current.0 == Phase::Idle {
            *current = (Phase::ReadingHead, Instant::now());
        }
    }

    /// Whether the connection has been idle for this long.
    pub(super) fn is_idle_for(&self, time: Duration) -> bool {
        let (phase, since) = *self.current();
        phase == Phase::Idle && since.elapsed() >= time
    }

    /// Marks the connection as idle: now if the size of the response body is known, otherwise when the body is dropped.
    pub(super) fn idle_after(&self, response: Response) -> Response {
        if response.body().size_hint().exact().is_some() {
            self.begin(Phase::Idle);
            return response;
        }
        let end = IdleOnDrop(self.clone());
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                // Moved into the closure, so that it is dropped with the body.
                let _ = &end;
                frame
            }))
        })
    }
}

struct IdleOnDrop(Activity);

impl Drop for IdleOnDrop {
    fn drop(&mut self) {
        self.0.begin(Phase::Idle);
    }
}

/// A reader that fails with [`io::ErrorKind::TimedOut`] when a limit is exceeded.
pub(super) struct TimedRead<R> {
    reader: R,
    activity: Activity,
    limits: ConnectionLimits,
    /// Created when a read first waits in a phase with a deadline, and then reused.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<R> TimedRead<R> {
    pub(super) fn new(reader: R, activity: Activity, limits: ConnectionLimits) -> Self {
        Self { reader, activity, limits, timer: None }
    }

    /// The deadline of the current phase. `None` while a request is handled.
    fn deadline(&self) -> Option<Instant> {
        match *self.activity.current() {
            (Phase::Idle, since) => Some(since + self.limits.keep_alive_timeout),
            (Phase::ReadingHead, since) => Some(since + self.limits.head_timeout),
            (Phase::Handling, _) => None,
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for TimedRead<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.reader).poll_read(cx, buf);
        if polled.is_ready() {
            self.activity.received();
        }
        let Some(deadline) = self.deadline() else { return polled };
        if polled.is_ready() {
            // A client that sends without a pause never reaches the timer.
            let in_time = Instant::now() < deadline;
            return if in_time { polled } else { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) };
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}
