//! A connection that does not wait for ever for a request's head, and that gives the HTTP library's own refusals the
//! envelope of all others.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::response::Response;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::code::Code;
use super::context::REQUEST_ID;
use super::framing::Framing;
use super::observe::{TRACE_ID, TRACE_RESPONSE};
use super::refusal::Refusal;
use super::server::Watched;
use crate::clock::Entropy;
use crate::domain::ids::RequestId;
use crate::telemetry::trace::Place;
use crate::telemetry::{Answered, names};

/// Nothing of the next request has come.
const IDLE: u8 = 0;
/// Some of the next request's head has come.
const HEAD: u8 = 1;
/// A request is being answered.
const ANSWERING: u8 = 2;

/// What a connection is doing.
#[derive(Clone, Debug, Default)]
pub(super) struct Phase(Arc<AtomicU8>);

impl Phase {
    pub(super) fn answering(&self) {
        self.0.store(ANSWERING, Ordering::Relaxed);
    }

    pub(super) fn answered(&self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// See the module.
pub(super) struct Connection<S> {
    stream: S,
    phase: Phase,
    head_timeout: Duration,
    head_deadline: Option<Pin<Box<Sleep>>>,
    framing: Framing,
    /// What is passed on in the place of all that follows what cannot be.
    instead: Option<&'static [u8]>,
    /// A refusal of the HTTP library, rewritten, and how much of it is sent.
    rewritten: Option<(Vec<u8>, usize)>,
    watched: Watched,
}

impl<S> Connection<S> {
    pub(super) fn new(stream: S, phase: Phase, head_timeout: Duration, watched: Watched) -> Self {
        Self {
            stream,
            phase,
            head_timeout,
            head_deadline: None,
            framing: Framing::default(),
            instead: None,
            rewritten: None,
            watched,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(rest) = &mut self.instead {
            let (now, later) = rest.split_at(rest.len().min(buf.remaining()));
            buf.put_slice(now);
            *rest = later;
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf)?;
        if let Err(at) = self.framing.check(&buf.filled()[before..]) {
            // Nothing of HTTP has this byte: the library refuses it in its turn, after the requests before it. It
            // looks at a head whose end it has seen; a body that ends early is refused as it is.
            buf.filled_mut()[before + at] = 0;
            buf.set_filled(before + at + 1);
            self.instead = Some(if self.framing.is_in_a_head() { b"\r\n\r\n" } else { b"" });
        }
        if buf.filled().len() > before && self.phase.get() == IDLE {
            self.phase.0.store(HEAD, Ordering::Relaxed);
            self.head_deadline = Some(Box::pin(sleep(self.head_timeout)));
        }
        if self.phase.get() == HEAD
            && let Some(deadline) = &mut self.head_deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read.map(Ok)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let rewritten = this.rewritten.take();
        let Some((bytes, mut sent)) =
            rewritten.or_else(|| rewrite(buf, &this.watched).map(|bytes| (bytes, 0)))
        else {
            return Pin::new(&mut this.stream).poll_write(cx, buf);
        };
        while sent < bytes.len() {
            match Pin::new(&mut this.stream).poll_write(cx, &bytes[sent..]) {
                Poll::Ready(written) => sent += written?,
                Poll::Pending => {
                    this.rewritten = Some((bytes, sent));
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The refusal that stands for one which the HTTP library wrote by itself: a 4xx without a body and without an id,
/// such as no handler of this service writes.
fn rewrite(written: &[u8], watched: &Watched) -> Option<Vec<u8>> {
    let head = written.strip_prefix(b"HTTP/1.1 4")?;
    let head = std::str::from_utf8(head).ok()?;
    if !head.contains("content-length: 0\r\n") || head.contains(REQUEST_ID.as_str()) {
        return None;
    }
    let refusal = if head.starts_with("31") || head.starts_with("14") {
        Refusal::new(Code::HeadTooLarge, "the request's head is too large")
    } else {
        Refusal::new(Code::RequestMalformed, "the request is not well-formed HTTP/1.1")
    };
    let (request_id, place) = (Entropy.request_id(), Place::nowhere());
    let (status, code) = (refusal.code.status(), refusal.code.as_str());
    tracing::info!(
        { names::REQUEST_ID } = %request_id,
        trace_id = place.trace_id,
        span_id = place.span_id,
        { names::HTTP_RESPONSE_STATUS_CODE } = status.as_u16(),
        { names::CODE } = code,
        "answered a request that could not be read"
    );
    let (scheme, status) = (watched.scheme, status.as_u16());
    let answered = Answered { method: "_OTHER", scheme, status, code, outcome: "", failure: None };
    watched.metrics.answered("", answered, Duration::ZERO, None, None);
    Some(write(refusal.render(request_id, &place.trace_id), request_id, &place))
}

fn write(response: Response, request_id: RequestId, place: &Place) -> Vec<u8> {
    use std::io::Write as _;
    let (head, body) = response.into_parts();
    // A rendered refusal is whole in memory: there is nothing to wait for.
    let body = futures_util::FutureExt::now_or_never(body.collect());
    let body = body.and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut out = Vec::with_capacity(512);
    let reason = head.status.canonical_reason().unwrap_or_default();
    // Writing into memory does not fail.
    let _ = write!(out, "HTTP/1.1 {} {reason}\r\n", head.status.as_str());
    for (name, value) in &head.headers {
        let _ = write!(out, "{name}: ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    let _ = write!(out, "{REQUEST_ID}: {request_id}\r\n{TRACE_ID}: {}\r\n", place.trace_id);
    let _ = write!(out, "{TRACE_RESPONSE}: {}\r\n", place.header());
    let _ = write!(out, "connection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    out.extend_from_slice(&body);
    out
}
