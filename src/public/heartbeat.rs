//! Heartbeats: a provider reports that it is working, and its progress. A heartbeat does not use up the token.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::Response;
use opentelemetry::context::FutureExt;

use super::callback::{AllowedBody, ProviderRequest, Received, finish, free};
use super::{Public, reply};
use crate::domain::gate::{Heartbeat, HeartbeatRefused, RefusedHeartbeat};
use crate::domain::json::{Malformed, Scan, Shape, decode_string};
use crate::domain::progress::Progress;
use crate::domain::result::ResultRefused;
use crate::http::code::Code;
use crate::http::context::RequestContext;
use crate::http::refusal::Refusal;
use crate::store::Store;

/// Maximum size of a body: an escaped message, data and a token.
const MAX_HEARTBEAT_BYTES: usize = 32 * 1024;

/// The members of a body.
const NAMES: [&str; 2] = ["message", "data"];

/// Handles a heartbeat.
pub(super) async fn handle(
    State(public): State<Arc<Public>>,
    Extension(context): Extension<RequestContext>,
    request: Request,
) -> Result<Response, Refusal> {
    context.record(|log| log.is_heartbeat = true);
    let (parts, body) = request.into_parts();
    let request = ProviderRequest { public: &public, context: &context, parts: &parts };
    let processed = process(&request, body).await;
    finish(&public, &context, processed).await
}

/// The checks run in the same order as for a callback. The last step, in the store, records the heartbeat, which can
/// postpone the timeout of the item, and publishes the progress.
async fn process(request: &ProviderRequest<'_>, body: Body) -> Result<Response, Refusal> {
    let ProviderRequest { public, context, .. } = *request;
    let allowed = AllowedBody { max_bytes: Some(MAX_HEARTBEAT_BYTES), may_be_empty: true };
    let Received { head_token, body, reservation, permit } = request.receive(body, allowed).await?;
    let field = public.carriers.body_field();
    let scan = Scan::new(&body, NAMES.into_iter().chain(field));
    let claims = request.claims(head_token, scan.as_ref().ok())?;
    let progress = match scan {
        Err(Malformed::Empty) => None,
        scan => progress(&scan.map_err(ResultRefused::from)?, field)?,
    };
    let command = Heartbeat {
        conversation: claims.conversation,
        work_item: claims.work_item,
        expires_at: claims.expires_at,
        progress,
    };
    let (store, context) = (Arc::clone(&public.store), RequestContext::clone(context));
    let (release_after, clock) = (public.store_timeout, public.clock.clone());
    let step = async move {
        let taken = store.heartbeat(command).await;
        drop(permit);
        free(reservation, &taken, release_after);
        let taken = taken?;
        if let Err(RefusedHeartbeat { why, target: Some(target) }) = &taken {
            let late_at = (*why == HeartbeatRefused::WorkItemTimedOut).then(|| clock.now());
            context.record(|log| log.refused(target, late_at));
        }
        let receipt = taken?;
        let response = reply::heartbeat(&receipt.item);
        context.record(|log| log.heartbeat(receipt));
        Ok(response)
    };
    public.admission.lifecycle.calls.shield(step.with_current_context()).await
}

/// The progress in a body.
fn progress(scan: &Scan<'_>, token_field: Option<&str>) -> Result<Option<Progress>, Refusal> {
    let invalid = |message: &str| Refusal::new(Code::RequestInvalid, message.to_owned());
    if let Some(problem) = scan.problem() {
        return Err(ResultRefused::from(problem.clone()).into());
    }
    if scan.shape() != Shape::Object {
        return Err(invalid(
            "the body of a heartbeat must be empty, or a JSON object with `message`, `data` or both",
        ));
    }
    let known = [NAMES[0], NAMES[1], token_field.unwrap_or(NAMES[0])];
    if scan.count_others(&known) > 0 {
        return Err(invalid(
            "a heartbeat has only the members `message` and `data`; post a result to callback.url",
        ));
    }
    let [message, data] = NAMES.map(|name| {
        // A field that carries the token is not published.
        let mut values = scan.values(name).filter(|_| token_field != Some(name));
        let value = values.next().filter(|value| *value != "null");
        if values.next().is_some() {
            Err(invalid(&format!("{name}: must not be repeated")))
        } else {
            Ok(value)
        }
    });
    let message = message?
        .map(|value| decode_string(value).ok_or_else(|| invalid("message: must be a string")))
        .transpose()?;
    Progress::new(message.as_deref(), data?).map_err(|error| invalid(&error.to_string()))
}
