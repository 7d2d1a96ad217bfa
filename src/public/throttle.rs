//! Who asks too often: a client address with more requests in a window than it may have, and, harder, one with more
//! requests in it that no good token comes with.
//!
//! Behind one address there may be many, a provider's egress for one. So the second limit is never a reason to refuse
//! what has a good token.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tokio::time::Instant;

use crate::config::{Config, RateLimit};
use crate::http::body::discard;
use crate::http::client_address::{Peer, Proxies};
use crate::http::code::Code;
use crate::http::context::RequestContext;
use crate::http::rate::{Counted, Rate, Windows};
use crate::http::refusal::Refusal;

/// The limits by client address.
#[derive(Debug)]
pub struct Throttle {
    proxies: Proxies,
    ipv6_prefix: u32,
    all: Option<Windows>,
    failed: Option<Windows>,
}

/// Who sent a request; an extension of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client(IpAddr);

impl Throttle {
    /// The limits as configured; no maximum is no limit.
    pub fn new(config: &Config) -> Self {
        let RateLimit { max, window_ms, failed_max, failed_window_ms, ipv6_prefix } = config.rate_limit;
        let windows = |max, window| (max > 0).then(|| Windows::new(Rate { max, window }));
        Self {
            proxies: config.proxies(),
            ipv6_prefix: u32::try_from(ipv6_prefix.get()).unwrap_or(u32::MAX),
            all: windows(max.get(), window_ms.duration()),
            failed: windows(failed_max.get(), failed_window_ms.duration()),
        }
    }

    fn counted(&self, Client(address): Client) -> Counted {
        Counted::of(address, self.ipv6_prefix)
    }

    /// Refuses at once whoever has failed too often and cannot succeed with this request.
    pub(super) fn refuse_failing(&self, client: Client, context: &RequestContext) -> Result<(), Refusal> {
        let wait = self.failed.as_ref().and_then(|failed| failed.wait(self.counted(client), Instant::now()));
        wait.map_or(Ok(()), |wait| Err(refused(client, wait, context)))
    }

    /// Counts a refusal that is a failed authentication, and says no more than that there were too many.
    pub(super) fn count_failure(
        &self,
        client: Client,
        refusal: Refusal,
        context: &RequestContext,
    ) -> Refusal {
        let failed = self.failed.as_ref().filter(|_| refusal.code.is_failed_authentication());
        let counted = failed.map_or(Ok(()), |failed| failed.count(self.counted(client), Instant::now()));
        counted.map_or_else(|wait| refused(client, wait, context), |()| refusal)
    }
}

fn refused(Client(address): Client, wait: Duration, context: &RequestContext) -> Refusal {
    context.note(|facts| facts.client = Some(address));
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    Refusal::new(Code::RateLimited, "too many requests from this address; nothing was changed")
        .with_header(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
}

/// These routes, for whoever does not ask too often.
pub(super) fn throttled(routes: Router, throttle: Arc<Throttle>) -> Router {
    routes.layer(from_fn_with_state(throttle, count))
}

async fn count(
    State(throttle): State<Arc<Throttle>>,
    Extension(context): Extension<RequestContext>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let peer = request.extensions().get().copied().unwrap_or(Peer(Ipv4Addr::UNSPECIFIED.into()));
    let client = Client(throttle.proxies.client(peer, request.headers()));
    if let Some(all) = &throttle.all
        && let Err(wait) = all.count(throttle.counted(client), Instant::now())
    {
        let (head, body) = request.into_parts();
        discard(&head.headers, body);
        return Err(refused(client, wait, &context));
    }
    request.extensions_mut().insert(client);
    Ok(next.run(request).await)
}
