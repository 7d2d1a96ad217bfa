//! One callback, from the request to the receipt.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::response::Response;
use bytes::Bytes;
use opentelemetry::context::FutureExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use super::carrier::{Carriers, SentToken};
use super::{Public, reply};
use crate::clock::Entropy;
use crate::domain::gate::{Accept, AcceptRefused, Receipt, RefusedCallback};
use crate::domain::json::Scan;
use crate::domain::result::{CallbackResult, ResultRefused};
use crate::domain::token::{Claims, TokenDefect, TokenFingerprint, TokenRefused};
use crate::http::admission::OVERLOAD_DELAY;
use crate::http::body::{self, BodyLimits, Reservation};
use crate::http::code::Code;
use crate::http::context::RequestContext;
use crate::http::media_type;
use crate::http::refusal::Refusal;
use crate::store::{InstrumentedStore, Store, StoreError};

/// Maximum lead of this machine's clock over the store's, in milliseconds. The store decides whether a token has
/// expired. A token is refused without the store only if it expired longer ago than this.
const CLOCK_LEEWAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Number of copies of a body during a store call: as received, in the command, and queued in the Redis client.
pub const CALLBACK_COPIES: usize = 3;

/// Handles a callback.
pub(super) async fn handle(
    State(public): State<Arc<Public>>,
    Extension(context): Extension<RequestContext>,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let processed = ProviderRequest { public: &public, context: &context, parts: &parts }.process(body).await;
    // Recorded before the delay of a refusal.
    context.record(|log| log.decided_at = Some(Instant::now()));
    finish(&public, &context, processed).await
}

/// Delays an `OVERLOADED` refusal. Counts a refusal for a missing or invalid token toward its client's rate limit.
pub(super) async fn finish(
    public: &Public,
    context: &RequestContext,
    processed: Result<Response, Refusal>,
) -> Result<Response, Refusal> {
    match processed {
        Err(refusal) if refusal.code == Code::Overloaded => {
            sleep(OVERLOAD_DELAY).await;
            Err(refusal)
        }
        processed => processed.map_err(|refusal| public.clients.count_refusal(context.client, refusal)),
    }
}

/// Refuses an unknown path or method. Counts toward the client's rate limit.
pub(super) async fn refuse(
    State(public): State<Arc<Public>>,
    Extension(context): Extension<RequestContext>,
    request: Request,
) -> Refusal {
    let (parts, body) = request.into_parts();
    body::discard(&parts.headers, body);
    // Records the token's ids, so that the log line names the work item.
    let _: HeadToken<'_> = ProviderRequest { public: &public, context: &context, parts: &parts }.head_token();
    admit(&public, &context).err().unwrap_or_else(|| match parts.extensions.get::<MatchedPath>() {
        Some(_) => Refusal::new(Code::MethodNotAllowed, "use POST; other methods do not use up a token"),
        None => Refusal::not_found(parts.uri.path()),
    })
}

fn admit(public: &Public, context: &RequestContext) -> Result<(), Refusal> {
    public.admission.refuse_while_draining()?;
    public.clients.count_request(context.client)
}

/// A callback or a heartbeat.
#[derive(Clone, Copy)]
pub(super) struct ProviderRequest<'a> {
    pub(super) public: &'a Public,
    pub(super) context: &'a RequestContext,
    pub(super) parts: &'a Parts,
}

/// The bodies that a request may have.
#[derive(Clone, Copy)]
pub(super) struct AllowedBody {
    /// Maximum size in bytes, if it is below the configured one (`http.max_body_bytes`).
    pub(super) max_bytes: Option<usize>,
    /// Whether it may be empty. An empty body needs no content type.
    pub(super) may_be_empty: bool,
}

/// A request whose body was read.
pub(super) struct Received<'a> {
    pub(super) head_token: HeadToken<'a>,
    pub(super) body: Bytes,
    pub(super) reservation: Reservation,
    pub(super) permit: OwnedSemaphorePermit,
}

/// The token in the request's head.
pub(super) enum HeadToken<'a> {
    /// A token, and the result of its verification.
    Present(SentToken<'a>, Result<Claims, TokenRefused>),
    Absent,
    /// Two different tokens.
    Ambiguous(Refusal),
}

impl<'a> ProviderRequest<'a> {
    /// The first checks: admission, size and content type.
    pub(super) async fn receive(
        &self,
        body: axum::body::Body,
        allowed: AllowedBody,
    ) -> Result<Received<'a>, Refusal> {
        let Self { public, context, parts } = *self;
        // Verified first, so that refusals are logged with the token's ids.
        let head_token = self.head_token();
        if let Err(refusal) = self.admit(&head_token) {
            body::discard(&parts.headers, body);
            return Err(refusal);
        }
        let is_authentic = matches!(head_token, HeadToken::Present(_, Ok(_)));
        let budget = if is_authentic { &public.authenticated } else { &public.anonymous };
        let configured = public.body.max_bytes;
        let max_bytes = allowed.max_bytes.map_or(configured, |allowed| allowed.min(configured));
        let limits = BodyLimits { max_bytes, ..public.body };
        let (body, reservation) = body::read(&parts.headers, body, limits, budget).await?;
        context.record(|log| log.body = Some((body.len(), Instant::now())));
        let permit = public.admission.permit()?;
        if !(allowed.may_be_empty && body.is_empty()) {
            media_type::check_json(&parts.headers)?;
        }
        if matches!(head_token, HeadToken::Absent)
            && !Carriers::contains_token(&body, |token| self.is_authentic(token))
        {
            public.clients.check_bad_tokens(context.client)?;
        }
        Ok(Received { head_token, body, reservation, permit })
    }

    /// Order of checks (part of the API): size, content type, token, JSON, shape, then the store in one step. Only the
    /// last step uses up the token.
    async fn process(&self, body: axum::body::Body) -> Result<Response, Refusal> {
        let Self { public, context, .. } = *self;
        let allowed = AllowedBody { max_bytes: None, may_be_empty: false };
        let Received { head_token, body, reservation, permit } = self.receive(body, allowed).await?;
        let (result, claims) = self.read_result(head_token, &body)?;
        context.record(|log| log.digest = Some(result.fingerprint));
        // If the token's field was removed, the result is a copy, and this frees the received body.
        drop(body);
        let command = Accept {
            conversation: claims.conversation,
            work_item: claims.work_item,
            sequence: claims.sequence,
            expires_at: claims.expires_at,
            result,
            request_id: context.request_id,
            traceparent: context.span.traceparent(),
            attempt: Entropy.attempt_id(),
        };
        let (store, context) = (Arc::clone(&public.store), RequestContext::clone(context));
        let (release_after, clock) = (public.store_timeout, public.clock.clone());
        // Shielded: if the client disconnects, the step is still completed and logged, and its memory stays counted.
        let step = async move {
            let accepted = store.accept(command).await;
            drop(permit);
            free(reservation, &accepted, release_after);
            let accepted = accepted?;
            if let Err(RefusedCallback { why, target: Some(target) }) = &accepted {
                let late_at = (*why == AcceptRefused::WorkItemTimedOut).then(|| clock.now());
                context.record(|log| log.refused(target, late_at));
            }
            let receipt = accepted?;
            let response = reply::receipt(&receipt);
            record_accepted(&store, &context, &claims, receipt);
            Ok(response)
        };
        public.admission.lifecycle.calls.shield(step.with_current_context()).await
    }

    /// Finds and verifies the token in the request's head, and records its ids.
    fn head_token(&self) -> HeadToken<'a> {
        match self.public.carriers.in_head(self.parts) {
            Ok(Some(token)) => {
                let claims = self.verify(&token);
                HeadToken::Present(token, claims)
            }
            Ok(None) => HeadToken::Absent,
            Err(refusal) => {
                for token in self.public.carriers.all_in_head(self.parts) {
                    // Records the ids of an authentic token.
                    let _: Result<Claims, _> = self.verify(&token);
                }
                HeadToken::Ambiguous(refusal)
            }
        }
    }

    /// Refuses before the body is read: draining and rate limits.
    fn admit(&self, head_token: &HeadToken<'_>) -> Result<(), Refusal> {
        admit(self.public, self.context)?;
        let may_be_in_body = self.public.carriers.body_field().is_some();
        match head_token {
            HeadToken::Present(_, Ok(_)) => Ok(()),
            HeadToken::Absent if may_be_in_body => Ok(()),
            HeadToken::Present(_, Err(_)) | HeadToken::Absent | HeadToken::Ambiguous(_) => {
                self.public.clients.check_bad_tokens(self.context.client)
            }
        }
    }

    /// Reads the token and the result from the body.
    fn read_result(
        &self,
        head_token: HeadToken<'_>,
        body: &Bytes,
    ) -> Result<(CallbackResult, Claims), Refusal> {
        let field = self.public.carriers.body_field();
        let scan = Scan::new(body, CallbackResult::NAMES.into_iter().chain(field));
        let claims = self.claims(head_token, scan.as_ref().ok())?;
        let scan = scan.map_err(ResultRefused::from)?;
        Ok((CallbackResult::classify(claims.kind, body, &scan, field)?, claims))
    }

    /// The claims of the token in the head or the body. `body`: `None` if it is not JSON.
    pub(super) fn claims(
        &self,
        head_token: HeadToken<'_>,
        body: Option<&Scan<'_>>,
    ) -> Result<Claims, Refusal> {
        let (head_token, verified) = match head_token {
            HeadToken::Present(token, verified) => (Some(token), Some(verified)),
            HeadToken::Absent => (None, None),
            HeadToken::Ambiguous(refusal) => return Err(refusal),
        };
        let token = self.public.carriers.in_request(head_token, body)?;
        let claims = verified.unwrap_or_else(|| self.verify(&token));
        claims.map_err(|refused| reply::token_refused(refused, token.as_deref()))
    }

    /// Whether a text is an authentic token, expired or not.
    fn is_authentic(&self, token: &str) -> bool {
        let verified = self.public.keyring.verify(token, self.public.clock.now());
        matches!(verified, Ok(_) | Err(TokenRefused::Expired(_)))
    }

    /// Verifies a token without the store and records its ids. A token that expired less than [`CLOCK_LEEWAY_MS`] ago
    /// is accepted here; the store decides by its own clock.
    fn verify(&self, token: &SentToken<'_>) -> Result<Claims, TokenRefused> {
        let token = token.as_deref().ok_or(TokenRefused::Invalid(TokenDefect::Malformed))?;
        let now = self.public.clock.now();
        let verified = match self.public.keyring.verify(token, now) {
            Err(TokenRefused::Expired(claims)) if now < claims.expires_at.plus_millis(CLOCK_LEEWAY_MS) => {
                Ok(claims)
            }
            verified => verified,
        };
        self.context.record(|log| {
            if let Ok(claims) | Err(TokenRefused::Expired(claims)) = &verified {
                log.claims = Some(*claims);
            } else if log.claims.is_some() {
                return;
            }
            log.token = Some(TokenFingerprint::of(token));
        });
        verified
    }
}

/// Releases the reservation of a body: at once if the outcome is known, otherwise after `release_after`, because the
/// Redis client keeps a command without a response until it closes the connection.
pub(super) fn free<T>(reservation: Reservation, answer: &Result<T, StoreError>, release_after: Duration) {
    if matches!(answer, Err(StoreError::OutcomeUnknown(_))) {
        tokio::spawn(async move {
            sleep(release_after).await;
            drop(reservation);
        });
    }
}

/// Records an accepted callback in the log, metrics and trace.
fn record_accepted(store: &InstrumentedStore, context: &RequestContext, claims: &Claims, receipt: Receipt) {
    let ids = (claims.conversation, Some(&receipt.conversation_id));
    store.record_released(&context.span, ids, &receipt.released, &[]);
    context.record(|log| log.receipt(receipt));
}
