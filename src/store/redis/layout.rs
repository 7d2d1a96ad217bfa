//! What is checked before a Redis is used: that it is new enough, and partitioned as configured.

use redis::{ErrorKind, FromRedisValue, RedisError, cmd};
use thiserror::Error;

use super::keys::LAYOUT;
use super::link::{Link, Request};
use crate::store::StoreError;

/// The oldest server whose commands the scripts can use.
const MIN_VERSION: (u32, u32) = (6, 2);

/// How long the mark of the layout outlives its last renewal, in milliseconds: longer than any conversation can.
const LAYOUT_TTL_MS: u64 = 90 * 24 * 60 * 60 * 1000;

/// Why a store is not used.
#[derive(Debug, Error)]
pub enum NotUsable {
    /// It does not answer; it may later.
    #[error(transparent)]
    NotThere(StoreError),
    /// It answers, and must not be used with this configuration.
    #[error("{0}")]
    Refused(String),
}

impl From<StoreError> for NotUsable {
    fn from(error: StoreError) -> Self {
        if is_too_old_to_connect(&error) {
            return Self::Refused(too_old("older than 6"));
        }
        Self::NotThere(error)
    }
}

/// Redis before 6 does not know `HELLO`, with which a connection begins.
fn is_too_old_to_connect(error: &StoreError) -> bool {
    let StoreError::Unavailable(cause) = error else { return false };
    cause.downcast_ref::<RedisError>().is_some_and(|error| {
        error.kind() == ErrorKind::RESP3NotSupported
            || error.detail().is_some_and(|detail| detail.starts_with("unknown command"))
    })
}

fn too_old(found: &str) -> String {
    let (major, minor) = MIN_VERSION;
    format!("the server under store.url is Redis {found}; {major}.{minor} or newer (or Valkey) is needed")
}

fn version(info: &str) -> Option<(u32, u32)> {
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"))?;
    let mut parts = version.trim().split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// Checks the server's version and the deployment's layout, and renews the mark of it.
pub(super) async fn check(link: &Link, partitions: u16) -> Result<(), NotUsable> {
    let info = link.call(Request::Command(cmd("INFO").arg("server"))).await?;
    let info = String::from_redis_value(info).map_err(|_| StoreError::Broken("INFO is not a text".into()))?;
    let Some(found) = version(&info) else {
        return Err(NotUsable::Refused("the server under store.url does not tell its redis_version".into()));
    };
    if found < MIN_VERSION {
        return Err(NotUsable::Refused(too_old(&format!("{}.{}", found.0, found.1))));
    }
    let ours = format!("partitions={partitions}");
    let set = cmd("SET").arg(LAYOUT).arg(&ours).arg("NX").arg("PX").arg(LAYOUT_TTL_MS).to_owned();
    link.call(Request::Command(&set)).await?;
    link.call(Request::Command(cmd("PEXPIRE").arg(LAYOUT).arg(LAYOUT_TTL_MS))).await?;
    let known = link.call(Request::Command(cmd("GET").arg(LAYOUT))).await?;
    let known = Option::<String>::from_redis_value(known).ok().flatten().unwrap_or_default();
    if known == ours {
        return Ok(());
    }
    Err(NotUsable::Refused(format!(
        "the store is in use with {known}, this configuration says store.partitions = {partitions}: \
         work items would not be found. Set it back, or start with an empty store"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_info() {
        assert_eq!(version("# Server\r\nredis_version:7.0.15\r\nx:y\r\n"), Some((7, 0)));
        assert_eq!(version("redis_version:255.255.255\r\n"), Some((255, 255)));
        assert_eq!(version("redis_version:x\r\n"), None);
        assert_eq!(
            [(5, 9), (6, 0), (6, 2), (7, 0)].map(|found| found < MIN_VERSION),
            [true, true, false, false]
        );
    }
}
