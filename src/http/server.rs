//! Accepting connections, with limits on their number and on the time that a request's head may take.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::client_address::Peer;
use super::connection::{Connection, Phase};

/// Limits of a listener's connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest time for a request's head.
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
}

/// Largest head of a request, in bytes: what Node takes at most, and so any gateway before this that runs on it.
pub(super) const MAX_HEAD: usize = 16 * 1024;
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`, then lets the requests under way finish.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(limits.max_connections));
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
                tracing::warn!(error = %error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without it only latency suffers.
        let _ = stream.set_nodelay(true);
        let phase = Phase::default();
        let router = router.clone();
        let io =
            TokioIo::new(Connection::new(stream, phase.clone(), limits.head_timeout, limits.write_timeout));
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            phase.answering();
            request.extensions_mut().insert(Peer(peer.ip()));
            let (router, phase) = (router.clone(), phase.clone());
            async move {
                let response = router.oneshot(request.map(Body::new)).await;
                phase.answered();
                response
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.keep_alive_timeout)
            .max_buf_size(MAX_HEAD)
            .half_close(limits.half_close)
            .serve_connection(io, service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %error, "a connection ended early");
            }
            drop(permit);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}
