//! Time limits of a connection's read side: for a request's head, and for idleness between requests.
//!
//! hyper has one timer for both (hyper #3828). Here the limit for a head begins with its first byte and ends with its
//! last, so a client cannot prolong it by sending slowly. Bytes that arrive before the previous response count from the
//! next byte after it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// No byte of the next request has arrived.
const IDLE: u8 = 0;
/// A part of the next request's head has arrived.
const READING_HEAD: u8 = 1;
/// A request is being handled. Its body has a limit of its own.
const HANDLING: u8 = 2;

/// What a connection is doing.
#[derive(Clone, Debug, Default)]
pub(super) struct Phase(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    phase: AtomicU8,
    requests: AtomicU32,
}

impl Phase {
    pub(super) fn request_began(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.set(HANDLING);
    }

    fn request_ended(&self) {
        self.set(IDLE);
    }

    /// Ends the request at the end of its response: at once, unless the response is a stream.
    pub(super) fn request_ends_with(&self, response: Response) -> Response {
        if response.body().size_hint().exact().is_some() {
            self.request_ended();
            return response;
        }
        let end = EndOfRequest(self.clone());
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                // Owned by the body, and dropped with it.
                let _ = &end;
                frame
            }))
        })
    }

    pub(super) fn is_idle(&self) -> bool {
        self.get() == IDLE
    }

    /// Number of requests so far.
    pub(super) fn requests(&self) -> u32 {
        self.0.requests.load(Ordering::Relaxed)
    }

    fn get(&self) -> u8 {
        self.0.phase.load(Ordering::Relaxed)
    }

    fn set(&self, phase: u8) {
        self.0.phase.store(phase, Ordering::Relaxed);
    }
}

/// Ends a request on drop.
struct EndOfRequest(Phase);

impl Drop for EndOfRequest {
    fn drop(&mut self) {
        self.0.request_ended();
    }
}

/// The time limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadTimeouts {
    /// From the first byte of a head to its last.
    pub(super) head: Duration,
    /// From a response to the first byte of the next request.
    pub(super) idle: Duration,
}

/// A stream that fails with [`io::ErrorKind::TimedOut`] when a limit is exceeded.
pub(super) struct TimedRead<S> {
    stream: S,
    phase: Phase,
    timeouts: ReadTimeouts,
    seen: u8,
    /// When the phase began that was last seen.
    since: Instant,
    /// Set late, and to the earliest time that may be needed: a request in one segment costs no timer.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> TimedRead<S> {
    pub(super) fn new(stream: S, phase: Phase, timeouts: ReadTimeouts) -> Self {
        Self { stream, phase, timeouts, seen: IDLE, since: Instant::now(), timer: None }
    }

    /// When the current phase must have ended. `None` while a request is handled.
    fn deadline(&mut self, now: Instant, received: bool) -> Option<Instant> {
        // Explicit: the phase may have gone through a whole request since it was last seen.
        let head_began = received && self.phase.is_idle();
        if head_began {
            self.phase.set(READING_HEAD);
        }
        let phase = self.phase.get();
        if head_began || phase != self.seen {
            (self.seen, self.since) = (phase, now);
        }
        match phase {
            HANDLING => None,
            READING_HEAD => Some(self.since + self.timeouts.head),
            _ => Some(self.since + self.timeouts.idle),
        }
    }

    /// Waits until `deadline`.
    fn poll_timer(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedRead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        let now = Instant::now();
        let Some(deadline) = this.deadline(now, buf.filled().len() > before) else { return polled };
        if now >= deadline || polled.is_pending() && this.poll_timer(cx, deadline).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedRead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
