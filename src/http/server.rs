//! Accepts connections and serves HTTP/1.1 on them, with limits on their number and their times.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_io_timeout::TimeoutWriter;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::client_address::Peer;
use super::connection::{Phase, ReadTimeouts, TimedRead};
use super::tls;

/// Limits of a listener's connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Time limit for a request's head, and for the TLS handshake.
    pub head_timeout: Duration,
    /// Maximum time without progress while a response is written.
    pub write_timeout: Duration,
    /// Maximum idle time before each request.
    pub keep_alive_timeout: Duration,
    /// Maximum number of connections. At the limit, idle connections are closed and new ones wait.
    pub max_connections: usize,
    /// Whether a client that has shut down its own side still gets its responses. Such a client cannot be
    /// distinguished from one that is gone, which an event stream would notice only when it sends something.
    pub half_close: bool,
}

/// Maximum size of a request's head, in bytes: Node's limit, and so that of gateways that run on it.
const MAX_HEAD: usize = 16 * 1024;
/// Pause after a failed accept, for example without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Minimum time between log lines about failed accepts.
const WARN_INTERVAL: Duration = Duration::from_secs(1);
/// How long a connection must be idle before it is closed for a new one.
const MIN_IDLE: Duration = Duration::from_millis(500);

/// Serves until `stop`, then completes the requests in flight.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    tls: Option<TlsAcceptor>,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let shared = Arc::new(Shared { router, limits, tls, stop: stop.clone(), shortage: Notify::new() });
    let connections = TaskTracker::new();
    let mut warned: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if warned.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
                    tracing::warn!(error = %error, "cannot accept connections");
                    warned = Some(Instant::now());
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            permit = acquire(&permits, &shared.shortage) => permit,
        };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            if let Err(error) = serve_connection(stream, peer.ip(), &shared).await {
                tracing::debug!(error = %error, "connection error");
            }
            drop(permit);
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// What the connections of a listener share.
struct Shared {
    router: Router,
    limits: ConnectionLimits,
    tls: Option<TlsAcceptor>,
    stop: CancellationToken,
    /// Notifies the connections that idle ones must close.
    shortage: Notify,
}

/// A permit for a connection. When there is none, has idle connections closed until there is one.
async fn acquire(permits: &Arc<Semaphore>, shortage: &Notify) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
        return Some(permit);
    }
    loop {
        shortage.notify_waiters();
        if let Ok(permit) = timeout(MIN_IDLE, Arc::clone(permits).acquire_owned()).await {
            // The semaphore is never closed.
            return permit.ok();
        }
    }
}

/// Waits until a new connection needs this one's place and this one has been idle.
async fn superseded(phase: &Phase, shortage: &Notify) {
    loop {
        shortage.notified().await;
        let requests = phase.requests();
        sleep(MIN_IDLE).await;
        if phase.is_idle() && phase.requests() == requests {
            return;
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    peer: IpAddr,
    shared: &Shared,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Shared { limits, tls, stop, shortage, .. } = shared;
    // An error affects latency only.
    let _ = stream.set_nodelay(true);
    let phase = Phase::default();
    // Before any buffer is allocated: thousands of silent connections cost little.
    let first_byte = if tls.is_some() { limits.head_timeout } else { limits.keep_alive_timeout };
    let mut first = [0];
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = superseded(&phase, shortage) => return Ok(()),
        // Not `readable`, which may wake without a byte.
        peeked = timeout(first_byte, stream.peek(&mut first)) => { peeked??; }
    }
    let mut stream = Box::pin(TimeoutWriter::new(stream));
    stream.as_mut().set_timeout_pinned(Some(limits.write_timeout));
    let Some(tls) = tls else {
        return Ok(Box::pin(http1(stream, peer, phase, shared)).await?);
    };
    let stream = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        accepted = Box::pin(tls::accept(tls, stream, limits.head_timeout)) => accepted?,
    };
    Ok(Box::pin(http1(stream, peer, phase, shared)).await?)
}

async fn http1<S>(stream: S, peer: IpAddr, phase: Phase, shared: &Shared) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let Shared { router, limits, stop, shortage, .. } = shared;
    let timeouts = ReadTimeouts { head: limits.head_timeout, idle: limits.keep_alive_timeout };
    let io = TokioIo::new(TimedRead::new(stream, phase.clone(), timeouts));
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        phase.request_began();
        request.extensions_mut().insert(Peer(peer));
        let response = router.clone().oneshot(request.map(Body::new));
        let phase = &phase;
        async move {
            let Ok(response) = response.await;
            Ok::<_, Infallible>(phase.request_ends_with(response))
        }
    });
    let connection = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .half_close(limits.half_close)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => {}
        () = superseded(&phase, shortage) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}
