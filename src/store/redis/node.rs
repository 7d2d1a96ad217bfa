//! A server that accepts writes, with one connection per role.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use redis::RedisResult;
use redis::aio::PubSub;

use super::connection::{Endpoint, ReconnectingConnection};
use super::replicas::ReplicationBarrier;
use super::settings::{ConnectionSettings, Replicas};

/// The purpose of a connection; each node has one per role. Redis replies in order, so a large reply delays all later
/// replies on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionRole {
    /// Writes, and queries with short replies and the timeout of a write.
    Commands,
    /// Read-only queries. Separate, so that the state of a large conversation does not delay a callback.
    Reads,
    /// Pages of channels. Separate, so that they do not delay other reads.
    Pages,
}

/// A primary, or the single server, with its connections.
#[derive(Debug)]
pub(super) struct Node {
    endpoint: Endpoint,
    commands: ReconnectingConnection,
    reads: ReconnectingConnection,
    pages: ReconnectingConnection,
    pub(super) barrier: Option<ReplicationBarrier>,
}

impl Node {
    pub(super) fn new(
        endpoint: Endpoint,
        settings: ConnectionSettings,
        replicas: Option<Replicas>,
        connections: &Arc<AtomicU64>,
    ) -> Self {
        let connection = |settings, query_run_id| {
            ReconnectingConnection::new(endpoint.clone(), settings, query_run_id, Arc::clone(connections))
        };
        Self {
            commands: connection(settings, replicas.is_some()),
            reads: connection(settings.for_reads(), false),
            pages: connection(settings.for_reads(), false),
            barrier: replicas.map(|replicas| {
                ReplicationBarrier::new(endpoint.clone(), settings, replicas, Arc::clone(connections))
            }),
            endpoint,
        }
    }

    pub(super) const fn connection(&self, role: ConnectionRole) -> &ReconnectingConnection {
        match role {
            ConnectionRole::Commands => &self.commands,
            ConnectionRole::Reads => &self.reads,
            ConnectionRole::Pages => &self.pages,
        }
    }

    /// Opens a pub/sub connection.
    pub(super) async fn listen(&self) -> RedisResult<PubSub> {
        match &self.endpoint {
            Endpoint::Server { access, address } => access.client(address)?.get_async_pubsub().await,
            Endpoint::Primary(sentinels) => {
                sentinels.primary(|client, _| async move { client.get_async_pubsub().await }).await
            }
        }
    }
}
