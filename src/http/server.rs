//! Accepts connections and serves HTTP/1.1 on them, with connection limits and timeouts.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::serve::Listener;
use axum::{BoxError, Router};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, join};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutWriter;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::client_address::Peer;
use super::connection::{Activity, ConnectionLimits, Phase, TimedRead};

/// Maximum size of a request's head in bytes. The default limit of Node.js, on which some gateways run.
const MAX_HEAD: usize = 16 * 1024;
/// Maximum time limit for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Minimum idle time of a connection before it may be closed to make room for a new one.
const MIN_IDLE: Duration = Duration::from_millis(500);

/// Serves until `stop` is cancelled, then completes the requests in flight.
pub async fn serve(
    mut listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let server = Arc::new(Server { router, limits, tls, stop: stop.clone(), shortage: Notify::new() });
    let connections = TaskTracker::new();
    let accept_all = async {
        loop {
            // On an error such as a lack of file descriptors, `accept` logs it and retries after a second.
            let (stream, peer) = Listener::accept(&mut listener).await;
            let Some(permit) = acquire(&permits, &server.shortage).await else { return };
            let server = Arc::clone(&server);
            connections.spawn(async move {
                if let Err(error) = server.serve_connection(stream, peer.ip()).await {
                    tracing::debug!(name: "connection.failed", error = %error, "connection error");
                }
                drop(permit);
            });
        }
    };
    stop.run_until_cancelled(accept_all).await;
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Acquires a permit for a connection. While none is free, asks idle connections to close.
async fn acquire(permits: &Arc<Semaphore>, shortage: &Notify) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
        return Some(permit);
    }
    loop {
        shortage.notify_waiters();
        if let Ok(permit) = timeout(MIN_IDLE, Arc::clone(permits).acquire_owned()).await {
            // Never an error, because the semaphore is never closed.
            return permit.ok();
        }
    }
}

/// The state that the connections of a listener share.
struct Server {
    router: Router,
    limits: ConnectionLimits,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    stop: CancellationToken,
    /// Notified while a new connection waits for a permit. Idle connections then close.
    shortage: Notify,
}

impl Server {
    /// Waits until the listener stops, or until this connection is idle while a new one waits for a permit.
    async fn must_close(&self, activity: &Activity) {
        let superseded = async {
            loop {
                self.shortage.notified().await;
                if activity.is_idle_for(MIN_IDLE) {
                    return;
                }
            }
        };
        self.stop.run_until_cancelled(superseded).await;
    }

    async fn serve_connection(&self, stream: TcpStream, peer: IpAddr) -> Result<(), BoxError> {
        let Self { limits, tls, .. } = self;
        // A failure affects only the latency.
        let _ = stream.set_nodelay(true);
        let activity = Activity::new();
        // Waits for the first byte before allocating buffers, so that silent connections use little memory.
        let first_byte = if tls.is_some() { limits.head_timeout } else { limits.keep_alive_timeout };
        let mut first = [0];
        tokio::select! {
            () = self.must_close(&activity) => return Ok(()),
            // Does not use `readable`, which can return before a byte has arrived.
            peeked = timeout(first_byte, stream.peek(&mut first)) => { peeked??; }
        }
        let (reader, writer) = stream.into_split();
        let reader = TimedRead::new(reader, activity.clone(), *limits);
        let mut writer = TimeoutWriter::new(writer);
        writer.set_timeout(Some(limits.write_timeout));
        let stream = Box::pin(join(reader, writer));
        let Some(tls) = tls else { return Ok(Box::pin(self.http1(stream, peer, activity)).await?) };
        let handshake = TlsAcceptor::from(Arc::clone(&tls.borrow())).accept(stream);
        let limit = limits.head_timeout.min(HANDSHAKE_TIMEOUT);
        let accepted = self.stop.run_until_cancelled(Box::pin(timeout(limit, handshake))).await;
        let Some(accepted) = accepted else { return Ok(()) };
        let stream = accepted??;
        // The last read of the handshake may include a part of the first head.
        activity.begin(if stream.get_ref().1.wants_read() { Phase::Idle } else { Phase::ReadingHead });
        Ok(Box::pin(self.http1(stream, peer, activity)).await?)
    }

    async fn http1<S>(&self, stream: S, peer: IpAddr, activity: Activity) -> Result<(), hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let service = service_fn(|mut request: hyper::Request<Incoming>| {
            activity.begin(Phase::Handling);
            request.extensions_mut().insert(Peer(peer));
            let response = self.router.clone().oneshot(request.map(Body::new));
            let activity = &activity;
            async move {
                let Ok(response) = response.await;
                Ok::<_, Infallible>(activity.idle_after(response))
            }
        });
        let connection = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .half_close(self.limits.half_close)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = self.must_close(&activity) => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    }
}
