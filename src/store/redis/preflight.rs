//! Checks the Redis servers at startup and at intervals: deployment mode, version, permissions of the user, data layout
//! and number of partitions.

use redis::{ErrorKind, FromRedisValue, RedisError, ServerErrorKind, Value, cmd};
use thiserror::Error;

use super::acl::{self, MissingPermissions};
use super::keys::LAYOUT;
use super::nodes::Nodes;
use super::sentinel::hello_field;
use crate::store::StoreError;

/// The oldest Redis version that has all commands that the scripts use.
const MIN_VERSION: (u32, u32) = (6, 2);

/// The version of the data layout.
const LAYOUT_VERSION: u8 = 5;

/// TTL of the layout key in milliseconds. Longer than a conversation can exist without a step; each check renews it.
const LAYOUT_TTL_MS: u64 = 90 * 24 * 60 * 60 * 1000;

/// Why the configured Redis cannot be used.
#[derive(Debug, Error)]
pub enum PreflightError {
    /// The store did not respond, or returned an error that may be temporary. A later check may succeed.
    #[error(transparent)]
    Unavailable(StoreError),
    /// The store must not be used with this configuration. The message says what to change.
    #[error("{0}")]
    Refused(String),
}

impl From<StoreError> for PreflightError {
    fn from(error: StoreError) -> Self {
        let cause = match &error {
            StoreError::Unavailable(cause) => cause.downcast_ref::<RedisError>(),
            StoreError::OutcomeUnknown(_) | StoreError::Broken(_) => None,
        };
        match cause.and_then(permanent_error) {
            Some(why) => Self::Refused(why),
            None => Self::Unavailable(error),
        }
    }
}

/// The message for an error that persists until the operator intervenes. `None` for other errors.
fn permanent_error(error: &RedisError) -> Option<String> {
    let detail = error.detail().unwrap_or_default();
    if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) {
        return Some(format!("the Redis user in store.url lacks a permission: {detail}"));
    }
    if detail.contains("cluster support disabled") {
        return Some("the server in store.url is not a cluster node: use redis:// instead".into());
    }
    // The client begins each connection with `HELLO`, which Redis before 6 does not support.
    let hello_unsupported =
        error.kind() == ErrorKind::RESP3NotSupported || detail.starts_with("unknown command");
    hello_unsupported.then(|| too_old("older than 6"))
}

fn too_old(found: &str) -> String {
    let (major, minor) = MIN_VERSION;
    format!(
        "the server in store.url is Redis {found}; Redis {major}.{minor} or newer, or Valkey, is required"
    )
}

fn version(info: &str) -> Option<(u32, u32)> {
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"))?;
    let mut parts = version.trim().split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// The error message if the mode of the server does not match the scheme of the URL.
fn mode_mismatch(hello: &Value, nodes: &Nodes) -> Option<&'static str> {
    match (hello_field(hello, "mode"), nodes.is_cluster()) {
        (Some("cluster"), false) => {
            Some("the server in store.url is a cluster node: use redis+cluster:// instead")
        }
        (Some("sentinel"), _) => Some("the server in store.url is a sentinel: use redis+sentinel:// instead"),
        _ => None,
    }
}

/// Checks the servers. Renews the layout key, or creates it in an empty store. Returns the optional permissions that
/// the user lacks.
pub(super) async fn check(nodes: &Nodes, partitions: u16) -> Result<MissingPermissions, PreflightError> {
    let hello = nodes.command(LAYOUT, &cmd("HELLO")).await?;
    if let Some(why) = mode_mismatch(&hello, nodes) {
        return Err(PreflightError::Refused(why.into()));
    }
    let info = nodes.command(LAYOUT, cmd("INFO").arg("server")).await?;
    let info = String::from_redis_value(info)
        .map_err(|_| StoreError::Broken("the reply to INFO is not text".into()))?;
    let Some(found) = version(&info) else {
        return Err(PreflightError::Refused(
            "the server in store.url does not report its redis_version".into(),
        ));
    };
    if found < MIN_VERSION {
        return Err(PreflightError::Refused(too_old(&format!("{}.{}", found.0, found.1))));
    }
    let missing = acl::check(nodes, partitions).await?;
    if let Some(message) = missing.message() {
        return Err(PreflightError::Refused(message));
    }
    let expected = format!("version={LAYOUT_VERSION} partitions={partitions}");
    let set = cmd("SET").arg(LAYOUT).arg(&expected).arg("NX").arg("PX").arg(LAYOUT_TTL_MS).to_owned();
    nodes.command(LAYOUT, &set).await?;
    nodes.command(LAYOUT, cmd("PEXPIRE").arg(LAYOUT).arg(LAYOUT_TTL_MS)).await?;
    let stored = nodes.command(LAYOUT, cmd("GET").arg(LAYOUT)).await?;
    let Some(stored) = Option::<String>::from_redis_value(stored).ok().flatten() else {
        return Err(PreflightError::Unavailable(StoreError::Unavailable(
            "the layout key disappeared during the check".into(),
        )));
    };
    if stored == expected {
        return Ok(missing);
    }
    let version = format!("version={LAYOUT_VERSION} ");
    Err(PreflightError::Refused(match stored.strip_prefix(&version) {
        Some(stored) => format!(
            "the store is in use with {stored}, but store.partitions is {partitions}: work items would not be found. \
             Restore the setting, or use an empty database"
        ),
        None => format!(
            "the store contains data of another version of callback-ingress (its layout is {stored}, this version \
             needs version={LAYOUT_VERSION}): use an empty database, or the version that wrote the data"
        ),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_parsed_from_info() {
        assert_eq!(version("# Server\r\nredis_version:7.0.15\r\nx:y\r\n"), Some((7, 0)));
        assert_eq!(version("redis_version:255.255.255\r\n"), Some((255, 255)));
        assert_eq!(version("redis_version:x\r\n"), None);
        assert_eq!(
            [(5, 9), (6, 0), (6, 2), (7, 0)].map(|found| found < MIN_VERSION),
            [true, true, false, false]
        );
    }
}
