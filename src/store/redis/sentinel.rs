//! Resolves the primary through the sentinels, at each connection attempt.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult, Value, cmd};
use tokio::time::{Instant, timeout};

use super::servers::{Access, Address};
use super::settings::ConnectionSettings;

/// Time to wait for further replies after the first, because sentinels learn of a failover at different times.
const LATE_REPLY_WAIT: Duration = Duration::from_millis(100);

/// Time for which an epoch is remembered after it was last seen. After that, a lower one is accepted, because new
/// sentinels start at 0.
const EPOCH_MEMORY: Duration = Duration::from_secs(60);

/// The primary as one sentinel reports it.
#[derive(Debug)]
struct PrimaryReport {
    address: Address,
    /// The configuration epoch, which each failover increases. `None` if the ACL denies `SENTINEL MASTER`.
    epoch: Option<u64>,
}

/// The sentinels that monitor a service. `service` is what Sentinel calls the master name.
#[derive(Debug)]
pub(super) struct Sentinels {
    /// Credentials and TLS for the servers.
    pub(super) access: Access,
    /// Credentials and TLS for the sentinels.
    pub(super) sentinel_access: Access,
    pub(super) addresses: Vec<Address>,
    pub(super) service: String,
    pub(super) settings: ConnectionSettings,
    pub(super) last_seen: LastEpoch,
}

/// The epoch of the last primary that was connected to, and when it was connected to. All connections share it, so that
/// all of them know of a failover as soon as one of them does.
#[derive(Debug, Default)]
pub(super) struct LastEpoch(Mutex<Option<(u64, Instant)>>);

impl LastEpoch {
    fn get(&self) -> Option<u64> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|(_, seen)| seen.elapsed() < EPOCH_MEMORY).map(|(epoch, _)| epoch)
    }

    fn set(&self, epoch: Option<u64>) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *last = epoch.map(|epoch| (epoch, Instant::now())).or(*last);
    }
}

impl Sentinels {
    /// Queries all sentinels concurrently, and calls `connect` for each reported server until one succeeds, beginning
    /// with the highest epoch. Ignores reports with a lower epoch than that of a tried server or of the last primary: a
    /// restarted former primary claims to be the primary until it is reconfigured, and an outdated sentinel still
    /// reports it.
    pub(super) async fn primary<T, F: Future<Output = RedisResult<T>>>(
        &self,
        connect: impl Fn(Client, Address) -> F,
    ) -> RedisResult<T> {
        let mut replies: FuturesUnordered<_> =
            self.addresses.iter().map(|sentinel| self.query(sentinel)).collect();
        let mut tried = Vec::new();
        let (mut failure, mut latest) = (None, self.last_seen.get());
        while let Some(first) = replies.next().await {
            let mut reports = vec![first];
            let others = async {
                while let Some(other) = replies.next().await {
                    reports.push(other);
                }
            };
            // If none of these servers is the primary, the next round uses the later replies.
            let _: Result<(), _> = timeout(LATE_REPLY_WAIT, others).await;
            reports.sort_by_key(|report| Reverse(report.as_ref().ok().and_then(|report| report.epoch)));
            for report in reports {
                let attempt = match report {
                    Ok(PrimaryReport { address, .. }) if tried.contains(&address) => continue,
                    Ok(PrimaryReport { epoch, .. }) if epoch < latest => {
                        failure.get_or_insert_with(outdated);
                        continue;
                    }
                    Ok(PrimaryReport { address, epoch }) => {
                        latest = epoch;
                        tried.push(address.clone());
                        connect(self.access.client(&address)?, address).await
                    }
                    Err(error) => Err(error),
                };
                match attempt {
                    Ok(found) => {
                        self.last_seen.set(latest);
                        return Ok(found);
                    }
                    Err(error) => failure = Some(error),
                }
            }
        }
        Err(failure.unwrap_or_else(|| (ErrorKind::EmptySentinelList, "no sentinel is configured").into()))
    }

    async fn query(&self, sentinel: &Address) -> RedisResult<PrimaryReport> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.settings.connect))
            .set_response_timeout(Some(self.settings.response));
        let client = self.sentinel_access.client(sentinel)?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        // Only the epoch is used: during a failover, the address in this reply is still that of the former primary.
        let command = cmd("SENTINEL").arg("MASTER").arg(&self.service).to_owned();
        let fields: RedisResult<HashMap<String, String>> = command.query_async(&mut connection).await;
        let epoch = fields.ok().and_then(|fields| fields.get("config-epoch")?.parse().ok());
        let command = cmd("SENTINEL").arg("get-master-addr-by-name").arg(&self.service).to_owned();
        let address: Option<(String, u16)> = command.query_async(&mut connection).await?;
        let unknown = || {
            RedisError::from((
                ErrorKind::MasterNameNotFoundBySentinel,
                "the sentinel does not monitor this service",
            ))
        };
        let (host, port) = address.ok_or_else(unknown)?;
        Ok(PrimaryReport { address: Address { host, port }, epoch })
    }

    /// Fails if the server does not report that it is the primary, because a sentinel can be out of date. Uses `HELLO`,
    /// because `ROLE` is in the ACL category `@admin`.
    pub(super) async fn check_role(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let hello: Value = cmd("HELLO").query_async(connection).await?;
        match hello_field(&hello, "role") {
            Some("master") => Ok(()),
            _ => Err((ErrorKind::MasterNameNotFoundBySentinel, "the server is not the primary").into()),
        }
    }
}

fn outdated() -> RedisError {
    (ErrorKind::MasterNameNotFoundBySentinel, "the sentinel does not know of the latest failover").into()
}

/// A field of the reply to `HELLO`.
pub(super) fn hello_field<'a>(reply: &'a Value, name: &str) -> Option<&'a str> {
    let Value::Map(pairs) = reply else { return None };
    pairs.iter().find(|(key, _)| text(key) == Some(name)).and_then(|(_, value)| text(value))
}

/// The text of a bulk or simple string.
pub(super) fn text(value: &Value) -> Option<&str> {
    if let Value::BulkString(bytes) = value {
        std::str::from_utf8(bytes).ok()
    } else if let Value::SimpleString(text) = value {
        Some(text)
    } else {
        None
    }
}
