//! The servers that the service is compared with, each in its own process: `peer <name> [port of Redis] [secret]`.
//! A peer prints its address, and exits at the end of its standard input.

mod handwritten;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

pub(crate) use self::handwritten::{item_key, sign};

/// The path of callbacks.
pub(crate) const CALLBACKS_PATH: &str = "/api/v1/webhooks/callbacks";
/// The header that carries a token.
pub(crate) const TOKEN_HEADER: &str = "x-callback-token";
/// The Redis script of the hand-written peers.
pub(crate) const SCRIPT: &str = include_str!("peer/callback.lua");

pub(crate) fn run(arguments: &[String]) {
    Runtime::new().unwrap().block_on(serve(arguments));
}

async fn serve(arguments: &[String]) {
    let argument = |at: usize| arguments.get(at).map(String::as_str).unwrap_or_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let routes = match argument(0) {
        "bare" => Router::new().route(CALLBACKS_PATH, post(async |_: Bytes| StatusCode::ACCEPTED)),
        "ping" => Router::new().route(CALLBACKS_PATH, post(ping)).with_state(connect(argument(1)).await),
        "set-xadd" => {
            Router::new().route(CALLBACKS_PATH, post(set_xadd)).with_state(connect(argument(1)).await)
        }
        "script" => {
            let peer = handwritten::Peer::new(connect(argument(1)).await, argument(2));
            Router::new().route(CALLBACKS_PATH, post(handwritten::callback)).with_state(Arc::new(peer))
        }
        "collector" => Router::new().fallback(async |_: Bytes| StatusCode::OK),
        // The kernel accepts connections, but the program does not.
        "mute" => return parent_ended().await,
        other => panic!("no peer is named {other:?}"),
    };
    tokio::select! {
        ended = axum::serve(listener, routes) => ended.unwrap(),
        () = parent_ended() => {}
    }
}

/// Waits for the end of standard input, which occurs when the parent exits for any reason.
async fn parent_ended() {
    let _ = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await;
}

async fn connect(port: &str) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn ping(State(mut redis): State<MultiplexedConnection>, _: Bytes) -> Result<StatusCode, StatusCode> {
    let _: String = redis.ping().await.map_err(unavailable)?;
    Ok(StatusCode::ACCEPTED)
}

/// Two round trips without checks: the minimum to store a result once.
async fn set_xadd(
    State(mut redis): State<MultiplexedConnection>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, StatusCode> {
    let token = headers.get(TOKEN_HEADER).and_then(|token| token.to_str().ok());
    let token = token.ok_or(StatusCode::UNAUTHORIZED)?;
    let conversation = token.split('.').next().unwrap_or_default();
    let first: bool = redis.set_nx(format!("answered:{token}"), 1).await.map_err(unavailable)?;
    if !first {
        return Ok(StatusCode::OK);
    }
    let channel = format!("channel:{conversation}");
    let _: String = redis.xadd(channel, "*", &[("result", &body[..])]).await.map_err(unavailable)?;
    Ok(StatusCode::ACCEPTED)
}

fn unavailable(_: redis::RedisError) -> StatusCode {
    StatusCode::SERVICE_UNAVAILABLE
}
