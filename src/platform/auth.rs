//! Access to the platform API: the service key, draining, and the limit on requests in flight.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use opentelemetry::context::FutureExt;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use tokio::time::sleep;

use super::Platform;
use crate::config::RateLimitConfig;
use crate::http::body;
use crate::http::client_address::Peer;
use crate::http::code::Code;
use crate::http::rate_limit::{AddressLimit, rate_limited};
use crate::http::refusal::Refusal;

/// Digests of the service keys. The time that it takes to compare digests reveals neither a key nor its length. Clones
/// share the keys, which can be replaced at any time.
#[derive(Clone)]
pub struct ServiceKeyDigests(Arc<RwLock<Vec<[u8; 32]>>>);

impl std::fmt::Debug for ServiceKeyDigests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServiceKeyDigests({})", self.digests().len())
    }
}

fn digests(keys: &[SecretString]) -> Vec<[u8; 32]> {
    keys.iter().map(|key| Sha256::digest(key.expose_secret()).into()).collect()
}

impl ServiceKeyDigests {
    /// Hashes the keys.
    pub fn new(keys: &[SecretString]) -> Self {
        Self(Arc::new(RwLock::new(digests(keys))))
    }

    /// Replaces all keys.
    pub fn replace(&self, keys: &[SecretString]) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = digests(keys);
    }

    fn digests(&self) -> RwLockReadGuard<'_, Vec<[u8; 32]>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn contains(&self, key: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(key).into();
        let known = self.digests();
        known.iter().fold(Choice::from(0), |found, known| found | digest.ct_eq(known)).into()
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let (code, message) = match headers.get(header::AUTHORIZATION).map(bearer) {
            Some(Some(key)) if self.contains(key) => return Ok(()),
            Some(Some(_)) => (Code::ServiceKeyInvalid, "the service key is not valid"),
            Some(None) => (Code::ServiceKeyInvalid, "Authorization must be: Bearer <service key>"),
            None => (Code::ServiceKeyMissing, "Authorization: Bearer <service key> is required"),
        };
        Err(Refusal::new(code, message))
    }
}

/// Requires a service key for the routes and for unknown paths below the prefix, so that a caller without a key cannot
/// enumerate paths.
pub(super) fn require_service_key(platform: Arc<Platform>, routes: Router) -> Router {
    let not_found = |uri: Uri| async move { Refusal::not_found(uri.path()) };
    routes.fallback(not_found).layer(from_fn_with_state(platform, authenticate_and_admit))
}

/// Checks the service key, and limits the requests in flight.
async fn authenticate_and_admit(
    State(platform): State<Arc<Platform>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let admitted = match platform.service_keys.check(request.headers()) {
        Err(refusal) => Err(platform.failed_auth_limit.refuse(peer, refusal).await),
        Ok(()) => platform.admission.refuse_while_draining().and_then(|()| platform.admission.permit()),
    };
    let permit = match admitted {
        Ok(permit) => permit,
        Err(refusal) => {
            let (parts, body) = request.into_parts();
            body::discard(&parts.headers, body);
            return Err(refusal);
        }
    };
    // Shielded: the request is completed and counted even if the client disconnects.
    let call = async move {
        let response = next.run(request).await;
        drop(permit);
        response
    };
    Ok(platform.admission.lifecycle.calls.shield(call.with_current_context()).await)
}

/// Rate limit for requests without a valid service key, per address. A valid key is always accepted, because another
/// process at the same address may use a wrong one.
#[derive(Debug)]
pub struct FailedAuthLimit(AddressLimit);

/// Delay of each refusal over the limit. It allows at most four guesses per second on one connection.
const GUESS_DELAY: Duration = Duration::from_millis(250);

impl FailedAuthLimit {
    /// The limit of `rate_limit.failed_max`.
    pub fn new(rate_limit: &RateLimitConfig) -> Self {
        let RateLimitConfig { failed_max, failed_window_ms, ipv6_prefix, .. } = rate_limit;
        Self(AddressLimit::new(failed_max.get(), failed_window_ms.duration(), ipv6_prefix.get()))
    }

    async fn refuse(&self, Peer(peer): Peer, refusal: Refusal) -> Refusal {
        match self.0.count(peer) {
            Ok(()) => refusal,
            Err(wait) => {
                sleep(GUESS_DELAY).await;
                rate_limited("too many requests without a valid service key from this address", wait)
            }
        }
    }
}

/// The credentials of a `Bearer` authorization.
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, key) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_service_keys_are_accepted() {
        let keys = ServiceKeyDigests::new(&["first-key-of-all".into(), "second-key-of-all".into()]);
        assert!(keys.contains(b"first-key-of-all") && keys.contains(b"second-key-of-all"));
        assert!(
            !keys.contains(b"first-key-of-al") && !keys.contains(b"") && !keys.contains(b"First-key-of-all")
        );
        assert!(!ServiceKeyDigests::new(&[]).contains(b""));
    }

    #[test]
    fn replaced_service_keys_take_effect_on_every_clone() {
        let keys = ServiceKeyDigests::new(&["first-key-of-all".into()]);
        let shared = keys.clone();
        keys.replace(&["second-key-of-all".into()]);
        assert!(shared.contains(b"second-key-of-all") && !shared.contains(b"first-key-of-all"));
    }

    #[test]
    fn scheme_is_case_insensitive() {
        let of = |text: &'static str| bearer(&HeaderValue::from_static(text)).map(<[u8]>::to_vec);
        assert_eq!(of("bEARER abc "), Some(b"abc".to_vec()));
        assert_eq!(of("Basic abc"), None);
        assert_eq!(of("Bearer"), None);
    }
}
