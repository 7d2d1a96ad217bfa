//! One callback, from the request to the receipt.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use bytes::Bytes;

use super::{Public, reply};
use crate::clock::Entropy;
use crate::domain::gate::Accept;
use crate::domain::json::{Malformed, Scan};
use crate::domain::result::{CallbackResult, ResultRefused};
use crate::domain::token::{Claims, TokenFingerprint, TokenRefused};
use crate::domain::work_item::Kind;
use crate::http::body;
use crate::http::observe::RequestContext;
use crate::http::refusal::Refusal;
use crate::store::Store;
use crate::telemetry;

/// By how much this machine's clock may be ahead of the store's, in milliseconds. The store's clock decides whether a
/// token has expired; only one that must have, whatever the store's clock says, is refused without asking.
const CLOCK_LEEWAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Takes a callback. The order of checks is the contract's: size, content type, token, JSON, shape, then the store
/// in one step. Only that last step spends the token.
pub(super) async fn take(
    State(public): State<Arc<Public>>,
    Extension(context): Extension<RequestContext>,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let body = body::read(&parts.headers, body, public.body).await?;
    body::check_json(&parts.headers)?;
    let scan = Scan::new(&body);
    let token = public.carriers.token(&parts, scan.as_ref().ok())?;
    let claims = verify(&public, &context, &token)?;
    let result = judge(claims.kind, &body, scan, public.carriers.body_field())?;
    let command = Accept {
        conversation: claims.conversation,
        work_item: claims.work_item,
        expires_at: claims.expires_at,
        result,
        request_id: context.request_id,
        traceparent: None,
        attempt: Entropy.attempt_id(),
    };
    let receipt = public.store.accept(command).await.map_err(|error| Refusal::from_store(&error))??;
    telemetry::released(claims.conversation, &receipt.released);
    context.note(|facts| {
        facts.conversation = Some(receipt.conversation_id.clone());
        facts.sequence = Some(receipt.item.sequence);
        facts.outcome = Some(receipt.outcome);
    });
    Ok(reply::receipt(&receipt))
}

/// Checks the token without asking the store, and notes all of it that may be noted. A token that has only just expired
/// by this machine's clock is left to the store.
fn verify(public: &Public, context: &RequestContext, token: &str) -> Result<Claims, TokenRefused> {
    let now = public.clock.now();
    let verified = match public.keyring.verify(token, now) {
        Err(TokenRefused::Expired(claims)) if now < claims.expires_at.plus_millis(CLOCK_LEEWAY_MS) => {
            Ok(claims)
        }
        verified => verified,
    };
    context.note(|facts| {
        facts.token = Some(TokenFingerprint::of(token));
        if let Ok(claims) | Err(TokenRefused::Expired(claims)) = &verified {
            facts.reference = Some(claims.conversation);
            facts.work_item = Some(claims.work_item);
        }
    });
    verified
}

/// Judges the body without the field that carried the token.
fn judge(
    kind: Kind,
    body: &Bytes,
    scan: Result<Scan<'_>, Malformed>,
    token_field: Option<&str>,
) -> Result<CallbackResult, ResultRefused> {
    let scan = scan?;
    match token_field.filter(|field| scan.values(field).next().is_some()) {
        Some(field) => CallbackResult::judge(kind, &Bytes::from(scan.without(field).into_owned())),
        None => CallbackResult::judge_scanned(kind, body, &scan),
    }
}
