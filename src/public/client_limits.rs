//! Rate limits by client address: for all requests, and for requests without a valid token.
//!
//! Clients can share an address, such as a provider's egress. So the second limit does not refuse a valid token, in a
//! body as long as it is written there as it was issued.

use std::net::IpAddr;
use std::time::Duration;

use axum::http::HeaderMap;
use tokio::time::Instant;

use crate::config::{Config, RateLimitConfig};
use crate::http::client_address::{Peer, Proxies};
use crate::http::context::RequestContext;
use crate::http::rate_limit::{ClientKey, Rate, Windows, rate_limited};
use crate::http::refusal::Refusal;

/// The limits as configured.
#[derive(Debug)]
pub struct ClientLimits {
    proxies: Proxies,
    ipv6_prefix: u32,
    requests: Option<Windows>,
    bad_tokens: Option<Windows>,
}

impl ClientLimits {
    /// The configured limits; 0 disables one.
    pub fn new(config: &Config) -> Self {
        let RateLimitConfig { max, window_ms, failed_max, failed_window_ms, ipv6_prefix } = config.rate_limit;
        let windows = |max, window| (max > 0).then(|| Windows::new(Rate { max, window }));
        Self {
            proxies: config.proxies(),
            ipv6_prefix: u32::try_from(ipv6_prefix.get()).unwrap_or(u32::MAX),
            requests: windows(max.get(), window_ms.duration()),
            bad_tokens: windows(failed_max.get(), failed_window_ms.duration()),
        }
    }

    /// The client of a request.
    pub(super) fn client(&self, peer: Peer, headers: &HeaderMap) -> IpAddr {
        self.proxies.client(peer, headers)
    }

    fn key(&self, client: IpAddr) -> ClientKey {
        ClientKey::new(client, self.ipv6_prefix)
    }

    /// Counts a request, and refuses it when there were too many.
    pub(super) fn count_request(&self, client: IpAddr, context: &RequestContext) -> Result<(), Refusal> {
        let Some(requests) = &self.requests else { return Ok(()) };
        let counted = requests.count(self.key(client), Instant::now());
        counted.map_err(|wait| refused("too many requests from this address", client, wait, context))
    }

    /// Refuses a request without a valid token if its address has exceeded the limit.
    pub(super) fn refuse_without_token(
        &self,
        client: IpAddr,
        context: &RequestContext,
    ) -> Result<(), Refusal> {
        let Some(bad_tokens) = &self.bad_tokens else { return Ok(()) };
        let wait = bad_tokens.exceeded(self.key(client), Instant::now());
        wait.map_or(Ok(()), |wait| Err(refused(BAD_TOKENS, client, wait, context)))
    }

    /// Counts a refusal for a missing or invalid token. Beyond the limit, replaces it with `RATE_LIMITED`.
    pub(super) fn count_refusal(
        &self,
        client: IpAddr,
        refusal: Refusal,
        context: &RequestContext,
    ) -> Refusal {
        let Some(bad_tokens) = self.bad_tokens.as_ref().filter(|_| refusal.code.is_failed_authentication())
        else {
            return refusal;
        };
        match bad_tokens.count(self.key(client), Instant::now()) {
            Ok(()) => refusal,
            Err(wait) => refused(BAD_TOKENS, client, wait, context),
        }
    }
}

const BAD_TOKENS: &str = "too many requests without a valid token from this address";

fn refused(message: &'static str, client: IpAddr, wait: Duration, context: &RequestContext) -> Refusal {
    context.record(|log| log.client = Some(client));
    rate_limited(message, wait)
}
