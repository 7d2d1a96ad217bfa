//! Rate limits by client address: for all requests, and for requests without a valid token.
//!
//! Several clients can share an address, such as that of a provider's egress proxy. Therefore the second limit does not
//! apply to requests with a valid token. A token in a body counts as valid for this purpose only if it
//! appears without JSON escapes.

use std::net::IpAddr;

use crate::config::{Config, RateLimitConfig};
use crate::http::rate_limit::{AddressLimit, rate_limited};
use crate::http::refusal::Refusal;

/// The configured limits.
#[derive(Debug)]
pub struct ClientLimits {
    requests: AddressLimit,
    bad_tokens: AddressLimit,
}

impl ClientLimits {
    /// The configured limits. A limit of 0 is disabled.
    pub fn new(config: &Config) -> Self {
        let RateLimitConfig { max, window_ms, failed_max, failed_window_ms, ipv6_prefix } = config.rate_limit;
        let ipv6_prefix = ipv6_prefix.get();
        Self {
            requests: AddressLimit::new(max.get(), window_ms.duration(), ipv6_prefix),
            bad_tokens: AddressLimit::new(failed_max.get(), failed_window_ms.duration(), ipv6_prefix),
        }
    }

    /// Counts a request. Refuses it if the limit is exceeded.
    pub(super) fn count_request(&self, client: IpAddr) -> Result<(), Refusal> {
        let counted = self.requests.count(client);
        counted.map_err(|wait| rate_limited("too many requests from this address", wait))
    }

    /// Refuses a request without a valid token if its address has sent too many of them.
    pub(super) fn check_bad_tokens(&self, client: IpAddr) -> Result<(), Refusal> {
        let wait = self.bad_tokens.exceeded(client);
        wait.map_or(Ok(()), |wait| Err(rate_limited(BAD_TOKENS, wait)))
    }

    /// Counts a refusal for a missing or invalid token. Beyond the limit, replaces it with `RATE_LIMITED`.
    pub(super) fn count_refusal(&self, client: IpAddr, refusal: Refusal) -> Refusal {
        if !refusal.code.is_token_failure() {
            return refusal;
        }
        match self.bad_tokens.count(client) {
            Ok(()) => refusal,
            // The log still says what was wrong with the token.
            Err(wait) => {
                let limited = rate_limited(BAD_TOKENS, wait);
                match refusal.cause {
                    Some(cause) => limited.with_cause(cause),
                    None => limited,
                }
            }
        }
    }
}

const BAD_TOKENS: &str = "too many requests without a valid token from this address";
