//! A gateway that fails: it refuses requests, or closes the connection before or after they reach the service.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::service::{Call, Client};

/// How a request is handled.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// 503 with `Retry-After: 1`, on a connection that stays open.
    Refused,
    /// The connection is closed.
    Dropped,
    /// The service responds, and the connection is closed without the response.
    ReplyLost,
    Forwarded,
}

/// A received request.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) at: Instant,
    pub(super) body: Bytes,
}

/// A running gateway.
#[derive(Debug)]
pub(super) struct Faulty {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    client: Client,
    fates: Vec<Fate>,
    received: Mutex<Vec<Received>>,
}

/// Makes hyper close the connection.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed on purpose")]
struct Closed;

impl Faulty {
    /// Starts in front of this address. Handles the requests in these ways, in order; the last one repeats.
    pub(super) async fn start(upstream: SocketAddr, fates: &[Fate]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared =
            Shared { upstream, client: Client::default(), fates: fates.to_vec(), received: Mutex::default() };
        let shared = Arc::new(shared);
        let faulty = Self { address, shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let answer = service_fn(|request| shared.answer(request));
                    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                    // An error if the connection is closed deliberately.
                    drop(connection.await);
                });
            }
        });
        faulty
    }

    /// The requests so far.
    pub(super) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Closed> {
        let at = Instant::now();
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
        let fate = {
            let mut received = self.received.lock().unwrap();
            received.push(Received { at, body: body.clone() });
            *self.fates.get(received.len() - 1).or(self.fates.last()).unwrap()
        };
        match fate {
            Fate::Refused => {
                let refused = Response::builder().status(503).header("retry-after", "1");
                return Ok(refused.body(Full::from("unavailable")).unwrap());
            }
            Fate::Dropped => return Err(Closed),
            Fate::ReplyLost | Fate::Forwarded => {}
        }
        let mut call =
            Call::new(&self.client, "POST", format!("http://{}{}", self.upstream, head.uri)).body(body);
        for name in ["content-type", "x-callback-token"] {
            call = call.header(name, &head.headers[name]);
        }
        let reply = call.send().await;
        if matches!(fate, Fate::ReplyLost) {
            return Err(Closed);
        }
        let mut response = Response::new(Full::new(reply.body));
        *response.status_mut() = reply.status;
        *response.headers_mut() = reply.headers;
        Ok(response)
    }
}
