//! Explains to the operator why Redis does not respond.

use std::io;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::store::StoreError;

/// The cause of a failure and, for known causes, a hint about what to check.
pub fn diagnosis(error: &StoreError) -> String {
    let cause = match error {
        StoreError::Unavailable(cause) | StoreError::OutcomeUnknown(cause) => cause,
        StoreError::Broken(_) => return error.to_string(),
    };
    match cause.downcast_ref::<RedisError>().and_then(hint) {
        Some(hint) => format!("{cause}: {hint}"),
        None => cause.to_string(),
    }
}

fn hint(error: &RedisError) -> Option<&'static str> {
    let denied = [ErrorKind::AuthenticationFailed, ErrorKind::Server(ServerErrorKind::NoPerm)];
    let text = error.to_string();
    if denied.contains(&error.kind()) || ["NOAUTH", "WRONGPASS"].iter().any(|code| text.contains(code)) {
        return Some("check the user and the password in store.url or store.password_file");
    }
    if error.is_timeout() {
        return Some(
            "check the host and the port in store.url, firewalls, and whether the server expects rediss://",
        );
    }
    if text.contains("lookup address") {
        return Some("check the host in store.url");
    }
    if error.is_connection_refusal() {
        return Some("nothing listens there: check that Redis is running, and check the port in store.url");
    }
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    let tls = text.contains("certificate") || io.is_some_and(|io| io.kind() == io::ErrorKind::InvalidData);
    tls.then_some("check the certificate, store.tls_ca, and whether the server expects redis:// without TLS")
}

/// The hosts of a URL as text.
pub fn hosts(url: &str) -> String {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    // An @ after the authority may belong to a password with an unescaped slash.
    if path.contains('@') {
        return "store.url".into();
    }
    authority.rsplit('@').next().unwrap_or_default().replace(',', ", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_what_to_check() {
        let unavailable = |error: RedisError| diagnosis(&StoreError::Unavailable(error.into()));
        let refused = unavailable(io::Error::from(io::ErrorKind::ConnectionRefused).into());
        assert_eq!(
            refused,
            "connection refused: nothing listens there: check that Redis is running, and check the port in store.url"
        );
        let late = unavailable(io::Error::from(io::ErrorKind::TimedOut).into());
        assert!(late.contains("check the host and the port"), "{late}");
        let lookup = io::Error::other("failed to lookup address information: Name or service not known");
        let lookup = unavailable(lookup.into());
        assert!(lookup.ends_with("not known: check the host in store.url"), "{lookup}");
        let reply = redis::parse_redis_value(b"-WRONGPASS invalid username-password pair\r\n").unwrap();
        let denied = unavailable(reply.extract_error().unwrap_err());
        assert!(denied.contains("check the user and the password"), "{denied}");
    }

    #[test]
    fn hosts_are_shown_without_credentials() {
        for (url, shown) in [
            ("redis://a:1/2", "a:1"),
            ("redis+sentinel://user:hunter2@a:1,b/calls", "a:1, b"),
            ("redis+sentinel://user:7/hunter2@a/calls", "store.url"),
        ] {
            assert_eq!(hosts(url), shown);
        }
    }
}
