//! One callback, from the request to the receipt.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::request::Parts;
use axum::response::Response;
use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};
use tracing::Instrument;

use super::throttle::Client;
use super::{Public, reply};
use crate::clock::Entropy;
use crate::domain::gate::{Accept, NotAccepted, Receipt};
use crate::domain::json::{Malformed, Scan};
use crate::domain::result::{CallbackResult, ResultRefused};
use crate::domain::token::{Claims, TokenFingerprint, TokenRefused};
use crate::domain::work_item::Kind;
use crate::http::body;
use crate::http::code::Code;
use crate::http::context::RequestContext;
use crate::http::refusal::Refusal;
use crate::store::{Answer, Store, StoreError, detached};

/// By how much this machine's clock may be ahead of the store's, in milliseconds. The store's clock decides whether a
/// token has expired; only one that must have, whatever the store's clock says, is refused without asking.
const CLOCK_LEEWAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Takes a callback. The order of checks is the contract's: size, content type, token, JSON, shape, then the store
/// in one step. Only that last step spends the token.
pub(super) async fn take(
    State(public): State<Arc<Public>>,
    Extension(context): Extension<RequestContext>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, Refusal> {
    let taken = settle(&public, &context, client, request).await;
    taken.map_err(|refusal| public.throttle.count_failure(client, refusal, &context))
}

async fn settle(
    public: &Public,
    context: &RequestContext,
    client: Client,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let room = match known(public, &parts) {
        Known::Good => &public.known,
        Known::NotYet => &public.strangers,
        Known::Bad => {
            if let Err(refusal) = public.throttle.refuse_failing(client, context) {
                body::discard(&parts.headers, body);
                return Err(refusal);
            }
            &public.strangers
        }
    };
    let (body, counted) = body::read(&parts.headers, body, public.body, room).await?.into_parts();
    context.note(|facts| facts.body = Some((body.len(), Instant::now())));
    let under_way = public.admission.slot()?;
    body::check_json(&parts.headers)?;
    let scan = Scan::new(&body);
    let token = public.carriers.token(&parts, scan.as_ref().ok())?;
    let claims = verify(public, context, &token)?;
    let result = judge(claims.kind, &body, scan, public.carriers.body_field())?;
    // Without the field that carried the token the result is another copy.
    drop(body);
    let command = Accept {
        conversation: claims.conversation,
        work_item: claims.work_item,
        sequence: claims.sequence,
        expires_at: claims.expires_at,
        result,
        request_id: context.request_id,
        traceparent: context.place.traceparent(),
        attempt: Entropy.attempt_id(),
    };
    let accepted = accept(public, command, counted, under_way).await?;
    let receipt = accepted.inspect_err(|refused| {
        if let Some(known) = &refused.known {
            context.note(|facts| facts.known(known));
        }
    })?;
    context.note(|facts| facts.receipt(&receipt));
    if !receipt.replayed {
        let turnaround_ms = receipt.item.issued_at.millis_until(receipt.received_at);
        context.telemetry.metrics.taken(receipt.item.kind, receipt.outcome, turnaround_ms);
    }
    context.telemetry.released(
        &context.place,
        (claims.conversation, Some(&receipt.conversation_id)),
        || public.store.channel(claims.conversation),
        &receipt.released,
        &[],
    );
    Ok(reply::receipt(&receipt))
}

/// How often a callback's body is in memory while the store is asked: as it came, as a command, and as the bytes of it
/// that Redis' client has queued.
pub const COPIES: usize = 3;

/// Asks the store in a task of its own: when the caller hangs up meanwhile, the payload stays in memory, and counts.
async fn accept(
    public: &Public,
    command: Accept,
    counted: impl Send + 'static,
    under_way: OwnedSemaphorePermit,
) -> Answer<Receipt, NotAccepted> {
    let (store, copies_gone) = (Arc::clone(&public.store), public.store_timeout);
    let asked = async move {
        let accepted = store.accept(command).await;
        drop(under_way);
        if matches!(accepted, Err(StoreError::OutcomeUnknown(_))) {
            // What got no answer is queued until its connection is given up.
            tokio::spawn(async move {
                sleep(copies_gone).await;
                drop(counted);
            });
        }
        accepted
    };
    detached(asked.in_current_span(), StoreError::OutcomeUnknown).await
}

/// What a request's head tells of its token.
enum Known {
    /// It is good.
    Good,
    /// It may be in the body.
    NotYet,
    /// It is bad, or there can be none: whatever the body is, the request is refused.
    Bad,
}

/// Looks at the head before the body is read: for what reading it may cost, and for nothing that the caller is told.
fn known(public: &Public, parts: &Parts) -> Known {
    match public.carriers.token(parts, None) {
        Ok(token) if check(public, &token).is_ok() => Known::Good,
        Err(refusal)
            if refusal.code == Code::CallbackTokenMissing && public.carriers.body_field().is_some() =>
        {
            Known::NotYet
        }
        Ok(_) | Err(_) => Known::Bad,
    }
}

/// Checks a token without asking the store. One that has only just expired by this machine's clock is left to the
/// store.
fn check(public: &Public, token: &str) -> Result<Claims, TokenRefused> {
    let now = public.clock.now();
    match public.keyring.verify(token, now) {
        Err(TokenRefused::Expired(claims)) if now < claims.expires_at.plus_millis(CLOCK_LEEWAY_MS) => {
            Ok(claims)
        }
        verified => verified,
    }
}

/// Checks the token, and notes all of it that may be noted.
fn verify(public: &Public, context: &RequestContext, token: &str) -> Result<Claims, TokenRefused> {
    let verified = check(public, token);
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
