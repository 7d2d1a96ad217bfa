//! Who the master is, as the sentinels tell: asked whenever a connection is made.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult, Value, cmd};
use tokio::time::timeout;

use super::link::ConnectionLimits;
use super::servers::{Access, Address};

/// How long a second opinion is waited for: sentinels learn of a failover one after the other.
const SECOND_OPINION: Duration = Duration::from_millis(100);

/// Who the master is, as one sentinel knows.
#[derive(Debug)]
struct Opinion {
    address: Address,
    /// The latest failover that it knows of, where it may be asked for that.
    epoch: Option<u64>,
}

/// The sentinels of a service.
#[derive(Debug)]
pub(super) struct Sentinels {
    /// How the servers are connected to.
    pub(super) access: Access,
    /// How the sentinels are.
    pub(super) asking: Access,
    pub(super) addresses: Vec<Address>,
    pub(super) service: String,
    pub(super) limits: ConnectionLimits,
}

impl Sentinels {
    /// Asks all sentinels at once, and tries each server that one of them names who knows of the latest failover, until
    /// one is the master. A master that was replaced, and has come back, takes itself for the master until somebody
    /// tells it, and so does a sentinel that is late to know.
    pub(super) async fn master<T, F: Future<Output = RedisResult<T>>>(
        &self,
        connect: impl Fn(Client, Address) -> F,
    ) -> RedisResult<T> {
        let mut answers: FuturesUnordered<_> = self.addresses.iter().map(|one| self.ask(one)).collect();
        let mut tried = Vec::new();
        let (mut failure, mut latest) = (None, None);
        while let Some(first) = answers.next().await {
            let mut opinions = vec![first];
            let others = async {
                while let Some(other) = answers.next().await {
                    opinions.push(other);
                }
            };
            // Who answers later than that is heard if nobody else names a master.
            let _: Result<(), _> = timeout(SECOND_OPINION, others).await;
            opinions.sort_by_key(|opinion| Reverse(opinion.as_ref().ok().and_then(|one| one.epoch)));
            for opinion in opinions {
                let attempt = match opinion {
                    Ok(Opinion { address, epoch }) if tried.contains(&address) || epoch < latest => continue,
                    Ok(Opinion { address, epoch }) => {
                        latest = epoch;
                        tried.push(address.clone());
                        connect(self.access.client(&address)?, address).await
                    }
                    Err(error) => Err(error),
                };
                match attempt {
                    Ok(found) => return Ok(found),
                    Err(error) => failure = Some(error),
                }
            }
        }
        Err(failure.unwrap_or_else(|| (ErrorKind::EmptySentinelList, "there is no sentinel to ask").into()))
    }

    async fn ask(&self, sentinel: &Address) -> RedisResult<Opinion> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.limits.connect))
            .set_response_timeout(Some(self.limits.response));
        let client = self.asking.client(sentinel)?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        // Not the address as well: while it fails over, that is still the old one.
        let question = cmd("SENTINEL").arg("MASTER").arg(&self.service).to_owned();
        let told: RedisResult<HashMap<String, String>> = question.query_async(&mut connection).await;
        let epoch = told.ok().and_then(|told| told.get("config-epoch")?.parse().ok());
        let question = cmd("SENTINEL").arg("get-master-addr-by-name").arg(&self.service).to_owned();
        let answer: Option<(String, u16)> = question.query_async(&mut connection).await?;
        let unknown = || RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "no such service"));
        let (host, port) = answer.ok_or_else(unknown)?;
        Ok(Opinion { address: Address { host, port }, epoch })
    }

    /// A sentinel may be late to know: the server itself says what it is. Not by ROLE, which only an administrator may
    /// ask for.
    pub(super) async fn check_role(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let greeting: Value = cmd("HELLO").query_async(connection).await?;
        match greeted(&greeting, "role") {
            Some("master") => Ok(()),
            _ => Err((ErrorKind::MasterNameNotFoundBySentinel, "the server is not the master").into()),
        }
    }
}

/// What a server's answer to `HELLO` says of itself under a name.
pub(super) fn greeted<'a>(greeting: &'a Value, name: &str) -> Option<&'a str> {
    let Value::Map(pairs) = greeting else { return None };
    pairs.iter().find(|(key, _)| text(key) == Some(name)).and_then(|(_, value)| text(value))
}

/// A text, however it is framed.
pub(super) fn text(value: &Value) -> Option<&str> {
    if let Value::BulkString(bytes) = value {
        std::str::from_utf8(bytes).ok()
    } else if let Value::SimpleString(text) = value {
        Some(text)
    } else {
        None
    }
}
