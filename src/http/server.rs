//! Accepting connections, with limits on their number and on the time that a request's head may take.

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
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::client_address::Peer;
use super::connection::{Connection, Phase};
use super::http2;
use super::pace::Pace;
use super::stall::Unstalled;
use super::tls::{self, Tls};
use crate::telemetry::Metrics;

/// Limits of a listener's connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest time for a request's head, and for TLS' handshake.
    pub head_timeout: Duration,
    /// Longest time in which a client takes nothing of its reply.
    pub write_timeout: Duration,
    /// Longest time between two requests.
    pub keep_alive_timeout: Duration,
    /// Most connections; further ones wait to be accepted.
    pub max_connections: usize,
    /// Whether a client that has ended its own side still gets its replies. Such a one cannot be told from one that
    /// is gone: an event stream to nobody would be noticed only when it has something to send.
    pub half_close: bool,
    /// Whether a client that was told that there is too much is slowed down.
    pub pace: bool,
}

/// What tells of a listener's requests that no route is asked for.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Where they are counted.
    pub metrics: Metrics,
    /// `http` or `https`.
    pub scheme: &'static str,
}

/// Largest head of a request, in bytes: what Node takes at most, and so any gateway before this that runs on it.
pub(super) const MAX_HEAD: usize = 16 * 1024;
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often that is logged at most.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(1);

/// Serves until `stop`, then lets the requests under way finish.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    tls: Option<Tls>,
    watched: Watched,
    stop: CancellationToken,
) {
    let acceptor = tls.as_ref().map(Tls::acceptor);
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let connections = TaskTracker::new();
    let mut complained: Option<Instant> = None;
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let permit = Arc::clone(&permits).acquire_owned().await.ok();
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if complained.is_none_or(|at| at.elapsed() >= COMPLAIN_AGAIN) {
                    tracing::warn!(error = %error, "connections cannot be accepted");
                    complained = Some(Instant::now());
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (router, acceptor) = (router.clone(), acceptor.clone());
        let (watched, stop) = (watched.clone(), stop.clone());
        connections.spawn(async move {
            let served = connection(stream, peer.ip(), router, limits, acceptor, watched, &stop).await;
            if let Err(error) = served {
                tracing::debug!(error = %error, "a connection ended early");
            }
            drop(permit);
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(
    stream: TcpStream,
    peer: IpAddr,
    router: Router,
    limits: Limits,
    acceptor: Option<TlsAcceptor>,
    watched: Watched,
    stop: &CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // Without it only latency suffers.
    let _ = stream.set_nodelay(true);
    // Nothing is set aside for a connection that says nothing: thousands of them are cheap.
    let first_byte = if acceptor.is_some() { limits.head_timeout } else { limits.keep_alive_timeout };
    let mut first = [0];
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        // Not `readable`, which is a guess.
        peeked = timeout(first_byte, stream.peek(&mut first)) => { peeked??; }
    }
    let stream = Unstalled::new(stream, limits.write_timeout);
    let Some(acceptor) = acceptor else {
        return Ok(Box::pin(http1(stream, peer, router, limits, watched, stop)).await?);
    };
    let shaking = Box::pin(tls::shake_hands(&acceptor, stream, limits.head_timeout));
    let stream = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        shaken = shaking => shaken?,
    };
    // HTTP/2 is for whom the handshake has agreed on it: in clear text, gateways speak HTTP/1.1.
    if stream.get_ref().1.alpn_protocol() == Some(tls::H2) {
        Ok(Box::pin(http2::serve(stream, peer, router, limits, stop)).await?)
    } else {
        Ok(Box::pin(http1(stream, peer, router, limits, watched, stop)).await?)
    }
}

async fn http1<S>(
    stream: S,
    peer: IpAddr,
    router: Router,
    limits: Limits,
    watched: Watched,
    stop: &CancellationToken,
) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let phase = Phase::default();
    let io = TokioIo::new(Connection::new(stream, phase.clone(), limits.head_timeout, watched));
    let pace = Pace::of(limits.pace);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        phase.answering();
        request.extensions_mut().insert(Peer(peer));
        let (router, phase, pace) = (router.clone(), phase.clone(), pace.clone());
        async move {
            pace.wait(request.method()).await;
            let Ok(response) = router.oneshot(request.map(Body::new)).await;
            pace.replied(&response);
            phase.answered();
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.keep_alive_timeout)
        .max_buf_size(MAX_HEAD)
        .half_close(limits.half_close)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
