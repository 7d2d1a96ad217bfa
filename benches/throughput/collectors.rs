//! Collectors, good and bad.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use tokio::net::TcpListener;

/// Takes all that comes over HTTP, and counts its bytes.
pub(crate) async fn taking() -> (String, Arc<AtomicU64>) {
    let taken = Arc::new(AtomicU64::new(0));
    let take = |State(taken): State<Arc<AtomicU64>>, body: Bytes| async move {
        taken.fetch_add(body.len() as u64, Ordering::Relaxed);
    };
    let routes = Router::new()
        .route("/v1/traces", post(take))
        .route("/v1/metrics", post(take))
        .route("/v1/logs", post(take))
        .with_state(Arc::clone(&taken));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, routes).await });
    (url, taken)
}

/// Nobody listens there.
pub(crate) async fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Accepts, and never answers.
pub(crate) async fn mute() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut accepted = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            accepted.push(stream);
        }
    });
    url
}
