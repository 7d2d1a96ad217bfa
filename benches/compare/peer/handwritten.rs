//! A minimal hand-written handler: HMAC, JSON check, one script; no ordering, no timeouts.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use redis::Script;
use redis::aio::MultiplexedConnection;
use serde::Serialize;
use serde::de::IgnoredAny;
use sha2::Sha256;

use super::{SCRIPT, TOKEN_HEADER};

const REPLAY_WINDOW_MS: u64 = 600_000;

pub(crate) struct Peer {
    redis: MultiplexedConnection,
    script: Script,
    key: Hmac<Sha256>,
}

impl Peer {
    pub(crate) fn new(redis: MultiplexedConnection, secret: &str) -> Self {
        Self { redis, script: Script::new(SCRIPT), key: key(secret) }
    }

    /// The conversation and the sequence of an authentic token: `<conversation>.<sequence>.<signature>`.
    fn verify<'a>(&self, token: &'a str) -> Option<(&'a str, u64)> {
        let (signed, signature) = token.rsplit_once('.')?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        self.key.clone().chain_update(signed).verify_slice(&signature).ok()?;
        let (conversation, sequence) = signed.rsplit_once('.')?;
        Some((conversation, sequence.parse().ok()?))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Receipt<'a> {
    status: &'a str,
    conversation_id: &'a str,
    sequence: u64,
}

#[derive(Serialize)]
struct Refused {
    error: &'static str,
}

fn refuse(status: StatusCode, error: &'static str) -> Response {
    (status, Json(Refused { error })).into_response()
}

pub(crate) async fn callback(State(peer): State<Arc<Peer>>, headers: HeaderMap, body: Bytes) -> Response {
    let token = headers.get(TOKEN_HEADER).and_then(|token| token.to_str().ok());
    let Some((conversation, sequence)) = token.and_then(|token| peer.verify(token)) else {
        return refuse(StatusCode::UNAUTHORIZED, "CALLBACK_TOKEN_INVALID");
    };
    if serde_json::from_slice::<IgnoredAny>(&body).is_err() {
        return refuse(StatusCode::BAD_REQUEST, "BODY_INVALID");
    }
    let settled: Result<String, _> = peer
        .script
        .key(item_key(conversation, sequence))
        .key(format!("answered:{conversation}:{sequence}"))
        .key(format!("channel:{conversation}"))
        .arg(&body[..])
        .arg(REPLAY_WINDOW_MS)
        .invoke_async(&mut peer.redis.clone())
        .await;
    let code = match settled.as_deref() {
        Ok("delivered") => StatusCode::ACCEPTED,
        Ok("repeated") => StatusCode::OK,
        Ok(_) => return refuse(StatusCode::NOT_FOUND, "WORK_ITEM_UNKNOWN"),
        Err(_) => return refuse(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE"),
    };
    let status = settled.as_deref().unwrap_or_default();
    (code, Json(Receipt { status, conversation_id: conversation, sequence })).into_response()
}

fn key(secret: &str) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret.as_bytes()).unwrap()
}

/// The key of an issued item until its callback.
pub(crate) fn item_key(conversation: &str, sequence: u64) -> String {
    format!("item:{conversation}:{sequence}")
}

/// Signs a token in the format of the hand-written peers.
pub(crate) fn sign(secret: &str, conversation: &str, sequence: u64) -> String {
    let signed = format!("{conversation}.{sequence}");
    let signature = key(secret).chain_update(&signed).finalize().into_bytes();
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}
