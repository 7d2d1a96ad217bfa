//! What is checked before a Redis is used: that it is what the URL says, new enough, partitioned as configured, and that
//! its user may do all that is needed.

use redis::{ErrorKind, FromRedisValue, RedisError, ServerErrorKind, Value, cmd};
use thiserror::Error;

use super::keys::LAYOUT;
use super::nodes::Nodes;
use super::rights::{self, Missing};
use super::sentinel::greeted;
use crate::store::StoreError;

/// The oldest server whose commands the scripts can use.
const MIN_VERSION: (u32, u32) = (6, 2);

/// The form of what is stored.
const LAYOUT_VERSION: u8 = 2;

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
        let cause = match &error {
            StoreError::Unavailable(cause) => cause.downcast_ref::<RedisError>(),
            StoreError::OutcomeUnknown(_) | StoreError::Broken(_) => None,
        };
        match cause.and_then(never_usable) {
            Some(why) => Self::Refused(why),
            None => Self::NotThere(error),
        }
    }
}

/// Why waiting for this server will not help, if it will not.
fn never_usable(error: &RedisError) -> Option<String> {
    let detail = error.detail().unwrap_or_default();
    if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) {
        return Some(format!("the Redis user under store.url lacks a right: {detail}"));
    }
    if detail.contains("cluster support disabled") {
        return Some("the server under store.url is no node of a cluster: use redis:// instead".into());
    }
    // Redis before 6 does not know `HELLO`, with which a connection begins.
    let unknown_greeting =
        error.kind() == ErrorKind::RESP3NotSupported || detail.starts_with("unknown command");
    unknown_greeting.then(|| too_old("older than 6"))
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

/// Whether the server works as the URL says.
fn mode_mismatch(greeting: &Value, nodes: &Nodes) -> Option<&'static str> {
    match (greeted(greeting, "mode"), nodes.is_cluster()) {
        (Some("cluster"), false) => {
            Some("the server under store.url is a node of a cluster: use redis+cluster:// instead")
        }
        (Some("sentinel"), _) => {
            Some("the server under store.url is a sentinel: use redis+sentinel:// instead")
        }
        _ => None,
    }
}

/// Checks the server and its user's rights, and the deployment's layout, and renews the mark of it. What is missing and
/// can be done without is the answer.
pub(super) async fn check(nodes: &Nodes, partitions: u16) -> Result<Missing, NotUsable> {
    let greeting = nodes.command(LAYOUT, &cmd("HELLO")).await?;
    if let Some(why) = mode_mismatch(&greeting, nodes) {
        return Err(NotUsable::Refused(why.into()));
    }
    let info = nodes.command(LAYOUT, cmd("INFO").arg("server")).await?;
    let info = String::from_redis_value(info).map_err(|_| StoreError::Broken("INFO is not a text".into()))?;
    let Some(found) = version(&info) else {
        return Err(NotUsable::Refused("the server under store.url does not tell its redis_version".into()));
    };
    if found < MIN_VERSION {
        return Err(NotUsable::Refused(too_old(&format!("{}.{}", found.0, found.1))));
    }
    let missing = rights::missing(nodes, partitions).await?;
    if let Some(complaint) = missing.complaint() {
        return Err(NotUsable::Refused(complaint));
    }
    let ours = format!("version={LAYOUT_VERSION} partitions={partitions}");
    let set = cmd("SET").arg(LAYOUT).arg(&ours).arg("NX").arg("PX").arg(LAYOUT_TTL_MS).to_owned();
    nodes.command(LAYOUT, &set).await?;
    nodes.command(LAYOUT, cmd("PEXPIRE").arg(LAYOUT).arg(LAYOUT_TTL_MS)).await?;
    let known = nodes.command(LAYOUT, cmd("GET").arg(LAYOUT)).await?;
    let Some(known) = Option::<String>::from_redis_value(known).ok().flatten() else {
        return Err(NotUsable::NotThere(StoreError::Unavailable(
            "the store has just lost its layout".into(),
        )));
    };
    if known == ours {
        return Ok(missing);
    }
    let version = format!("version={LAYOUT_VERSION} ");
    Err(NotUsable::Refused(match known.strip_prefix(&version) {
        Some(known) => format!(
            "the store is in use with {known}, this configuration says store.partitions = {partitions}: \
             work items would not be found. Set it back, or start with an empty store"
        ),
        None => format!(
            "the store has the data of another version of callback-ingress (its layout is {known}, this version's is \
             {LAYOUT_VERSION}): use an empty database, or the version that it was made with"
        ),
    }))
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
