//! The platform's credential.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::http::code::Code;
use crate::http::refusal::Refusal;

/// Knows the service keys by their digests, so that the comparison's time tells neither a key nor its length.
#[derive(Clone)]
pub struct Gatekeeper(Arc<[[u8; 32]]>);

impl std::fmt::Debug for Gatekeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gatekeeper({})", self.0.len())
    }
}

impl Gatekeeper {
    /// Lets in whoever has one of these keys.
    pub fn new(keys: &[SecretString]) -> Self {
        Self(keys.iter().map(|key| Sha256::digest(key.expose_secret()).into()).collect())
    }

    /// These routes, and whatever else is asked for below them, for whoever has a key.
    pub(super) fn guard(self, routes: Router) -> Router {
        let not_found = || async { Refusal::new(Code::NotFound, "there is no such path") };
        routes.fallback(not_found).layer(from_fn_with_state(self, check))
    }

    fn knows(&self, key: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(key).into();
        self.0.iter().fold(Choice::from(0), |known, digest_known| known | digest.ct_eq(digest_known)).into()
    }
}

async fn check(State(gatekeeper): State<Gatekeeper>, request: Request, next: Next) -> Response {
    let (code, message) = match request.headers().get(header::AUTHORIZATION).map(bearer) {
        Some(Some(key)) if gatekeeper.knows(key) => return next.run(request).await,
        Some(_) => (Code::ServiceKeyInvalid, "the service key is not valid"),
        None => (Code::ServiceKeyMissing, "Authorization: Bearer <service key> is needed"),
    };
    Refusal::new(code, message)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
        .into_response()
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, key) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_known_and_nothing_else() {
        let gatekeeper = Gatekeeper::new(&["first-key-of-all".into(), "second-key-of-all".into()]);
        assert!(gatekeeper.knows(b"first-key-of-all") && gatekeeper.knows(b"second-key-of-all"));
        assert!(
            !gatekeeper.knows(b"first-key-of-al")
                && !gatekeeper.knows(b"")
                && !gatekeeper.knows(b"First-key-of-all")
        );
        assert!(!Gatekeeper::new(&[]).knows(b""));
    }

    #[test]
    fn the_scheme_is_read_in_any_case() {
        let of = |text: &'static str| bearer(&HeaderValue::from_static(text)).map(<[u8]>::to_vec);
        assert_eq!(of("bEARER abc "), Some(b"abc".to_vec()));
        assert_eq!(of("Basic abc"), None);
        assert_eq!(of("Bearer"), None);
    }
}
