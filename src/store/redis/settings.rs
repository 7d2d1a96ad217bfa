//! Settings of the store and of its connections.

use std::time::Duration;

use redis::AsyncConnectionConfig;
use secrecy::SecretString;

use super::servers::TlsFiles;
use crate::domain::gate::Limits;

/// Settings of the Redis store.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// The URL of the servers. `config/default.toml` lists its forms.
    pub url: SecretString,
    /// TLS files. Only valid with a `rediss` URL.
    pub tls: TlsFiles,
    /// User name for the sentinels. Only valid with a sentinel URL.
    pub sentinel_username: Option<String>,
    /// Password for the sentinels. Only valid with a sentinel URL.
    pub sentinel_password: Option<SecretString>,
    /// Replicas that must confirm a write before it is acknowledged. `None`: no replicas.
    pub replicas: Option<Replicas>,
    /// Number of partitions. It cannot be changed while the store has data.
    pub partitions: u16,
    /// Timeout for connecting.
    pub connect_timeout: Duration,
    /// Timeout for a reply. Read-only queries, for example `inspect` and `read`, have a longer one: five times this,
    /// and at least 5 s.
    pub response_timeout: Duration,
    /// Maximum number of requests in flight per listener. The queue of each connection has twice this
    /// size.
    pub max_requests_in_flight: usize,
    /// Limits of a conversation.
    pub limits: Limits,
}

/// The replicas that must confirm a write before it is acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Replicas {
    /// Number of replicas.
    pub count: u64,
    /// Timeout of `WAIT`.
    pub timeout: Duration,
}

/// Timeouts and queue size of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionSettings {
    /// Timeout for connecting.
    pub(super) connect: Duration,
    /// Timeout for a reply.
    pub(super) response: Duration,
    /// Number of consecutive timeouts after which the connection is replaced.
    pub(super) timeouts_in_a_row: u32,
    /// Maximum number of requests that wait to be written.
    queue: usize,
}

impl ConnectionSettings {
    pub(super) const fn new(connect: Duration, response: Duration, queue: usize) -> Self {
        Self { connect, response, timeouts_in_a_row: 3, queue }
    }

    pub(super) fn config(self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect))
            .set_response_timeout(Some(self.response))
            .set_pipeline_buffer_size(self.queue)
    }

    /// Settings for large replies. The response timeout is at least 5 s, enough for 1 MiB at 300 KB/s. The connection
    /// is replaced after the first timeout, because the late reply would delay the next one.
    pub(super) fn for_reads(self) -> Self {
        let response = (5 * self.response).max(Duration::from_secs(5));
        Self { response, timeouts_in_a_row: 1, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn queue_has_the_given_size() {
        let config = format!("{:?}", ConnectionSettings::new(SECOND, SECOND, 1_024).config());
        assert!(config.contains("pipeline_buffer_size: Some(1024)"), "{config}");
    }

    #[test]
    fn read_timeout_is_five_times_the_response_timeout_and_at_least_5_s() {
        let reads = |response| ConnectionSettings::new(SECOND, response, 1).for_reads().response;
        assert_eq!([SECOND / 100, SECOND, 2 * SECOND].map(reads), [5 * SECOND, 5 * SECOND, 10 * SECOND]);
    }
}
