//! A shared connection to Redis that is reopened after a failure.
//!
//! The connection manager of the `redis` crate does not distinguish a request that was never sent from one whose reply
//! was lost, and its cluster client repeats requests after I/O errors. The service needs the distinction, because
//! `STORE_UNAVAILABLE` guarantees that nothing was changed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    Client, Cmd, ErrorKind, FromRedisValue, Pipeline, PushInfo, PushKind, RedisError, RedisResult, Script,
    ServerErrorKind, Value,
};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::failure::{FailureKind, classify};
use super::sentinel::Sentinels;
use super::servers::{Access, Address};
use super::settings::ConnectionSettings;

/// Time between a failed connection attempt and the next one. Requests fail immediately in between.
const RECONNECT_DELAY: Duration = Duration::from_millis(100);
/// Minimum age at which a connection to a read-only server is replaced, so that not every request reconnects.
const READ_ONLY_MIN_AGE: Duration = Duration::from_millis(250);

fn connect_aborted() -> RedisError {
    io::Error::other("the connection attempt was aborted").into()
}

/// The server that a connection is opened to.
#[derive(Clone, Debug)]
pub(super) enum Endpoint {
    /// A fixed server.
    Server { access: Access, address: Address },
    /// The current primary, which the sentinels report at each connection attempt.
    Primary(Arc<Sentinels>),
}

/// The `run_id` of a server, which changes when its process restarts.
pub(super) type RunId = Arc<str>;

/// An open connection.
#[derive(Clone)]
struct ActiveConnection {
    connection: MultiplexedConnection,
    address: Address,
    run_id: Option<RunId>,
    since: Instant,
    dead: Arc<AtomicBool>,
    timeouts: Arc<AtomicU32>,
    timeouts_in_a_row: u32,
}

impl ActiveConnection {
    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Classifies a failure. Marks the connection as dead if it must be replaced.
    fn check<T>(&self, answer: RedisResult<T>) -> Result<T, RequestError> {
        let error = match answer {
            Ok(value) => {
                self.timeouts.store(0, Ordering::Relaxed);
                return Ok(value);
            }
            Err(error) => error,
        };
        let kind = classify(&error, &self.address);
        let discard = match kind {
            FailureKind::ConnectionLost => true,
            FailureKind::NotPrimary => self.since.elapsed() >= READ_ONLY_MIN_AGE,
            FailureKind::TimedOut => {
                self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= self.timeouts_in_a_row
            }
            FailureKind::Rejected
            | FailureKind::NotSent
            | FailureKind::Moved(..)
            | FailureKind::Ask(_)
            | FailureKind::ScriptFailed => false,
        };
        if discard {
            self.dead.store(true, Ordering::Release);
        }
        Err(RequestError { kind, error })
    }
}

/// The state of a [`ReconnectingConnection`].
enum ConnectionState {
    /// Not opened yet. The first request opens it.
    Unused,
    /// A connection attempt is running. Requests wait for its result.
    Connecting,
    Connected(ActiveConnection),
    /// The last attempt failed at this time.
    Failed(Instant, RedisError),
}

impl ConnectionState {
    fn usable(&self) -> Option<&ActiveConnection> {
        match self {
            Self::Connected(active) if !active.is_dead() => Some(active),
            Self::Unused | Self::Connecting | Self::Connected(_) | Self::Failed(..) => None,
        }
    }

    /// Changes the state to `Connecting` if a new connection is needed and the delay has elapsed. Returns whether it
    /// changed the state.
    fn begin_connecting(&mut self) -> bool {
        let is_needed = match self {
            Self::Unused => true,
            Self::Connecting => false,
            Self::Connected(active) => active.is_dead(),
            Self::Failed(at, _) => at.elapsed() >= RECONNECT_DELAY,
        };
        if is_needed {
            *self = Self::Connecting;
        }
        is_needed
    }
}

/// A connection that is opened at its first use, and again after it was lost.
pub(super) struct ReconnectingConnection {
    connector: Arc<Connector>,
    state: watch::Sender<ConnectionState>,
}

/// Opens the connections of a [`ReconnectingConnection`].
struct Connector {
    endpoint: Endpoint,
    settings: ConnectionSettings,
    /// Whether to query the `run_id` of the server.
    query_run_id: bool,
    /// Counter of opened connections, shared by the whole store.
    connections: Arc<AtomicU64>,
}

impl std::fmt::Debug for ReconnectingConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReconnectingConnection")
            .field("settings", &self.connector.settings)
            .finish_non_exhaustive()
    }
}

/// A command, or a script call that loads the script if the server has not cached it.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    command: &'a Cmd,
    /// Loaded after a `NOSCRIPT` error.
    script: Option<&'a Script>,
    /// Sent directly before `command`, with no other command between them.
    preceding: Option<&'a Cmd>,
    /// Sent instead of `command` when the request is retried and may already have been executed.
    retry: Option<&'a Cmd>,
}

impl<'a> Request<'a> {
    pub(super) const fn command(command: &'a Cmd) -> Self {
        Self { command, script: None, preceding: None, retry: None }
    }

    /// `call` is the `EVALSHA` command of `script`.
    pub(super) const fn script(script: &'a Script, call: &'a Cmd) -> Self {
        Self { command: call, script: Some(script), preceding: None, retry: None }
    }

    /// Sets a command that is sent directly before this one. If it fails, the request fails.
    pub(super) const fn preceded_by(self, preceding: &'a Cmd) -> Self {
        Self { preceding: Some(preceding), ..self }
    }

    /// Sets the command to send instead when the request is retried.
    pub(super) const fn with_retry(self, retry: &'a Cmd) -> Self {
        Self { retry: Some(retry), ..self }
    }

    /// The request to send when this one may already have been executed.
    pub(super) fn into_retry(self) -> Self {
        Self { command: self.retry.unwrap_or(self.command), ..self }
    }

    async fn send_once(self, connection: &mut MultiplexedConnection) -> RedisResult<Value> {
        let Some(preceding) = self.preceding else { return self.command.query_async(connection).await };
        let pair = redis::pipe().add_command(preceding.clone()).add_command(self.command.clone()).to_owned();
        let mut last = Value::Nil;
        for answer in connection.send_packed_commands(&pair, 0, 2).await? {
            last = answer.extract_error()?;
        }
        Ok(last)
    }

    async fn send(self, connection: &mut MultiplexedConnection) -> RedisResult<Value> {
        let answer = self.send_once(connection).await;
        match (self.script, answer) {
            // `NOSCRIPT` means that the script did not run, so it is safe to send the call again.
            (Some(script), Err(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                script.load_async(connection).await?;
                self.send_once(connection).await
            }
            (_, answer) => answer,
        }
    }
}

/// A reply, and the `run_id` of the server if the connection has queried it.
#[derive(Debug)]
pub(super) struct ServerReply {
    pub(super) value: Value,
    pub(super) run_id: Option<RunId>,
}

/// A failed request.
#[derive(Debug)]
pub(super) struct RequestError {
    pub(super) kind: FailureKind,
    pub(super) error: RedisError,
}

impl Connector {
    async fn connect(&self) -> Result<ActiveConnection, RedisError> {
        match &self.endpoint {
            Endpoint::Server { access, address } => self.open(&access.client(address)?, address).await,
            Endpoint::Primary(sentinels) => {
                let found = sentinels.primary(async |client, address| {
                    let mut active = self.open(&client, &address).await?;
                    sentinels.check_role(&mut active.connection).await?;
                    Ok(active)
                });
                timeout(self.settings.connect, found).await.map_err(io::Error::from)?
            }
        }
    }

    async fn open(&self, client: &Client, address: &Address) -> Result<ActiveConnection, RedisError> {
        let dead = Arc::new(AtomicBool::new(false));
        let closed = Arc::clone(&dead);
        let config = self.settings.config().set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                closed.store(true, Ordering::Release);
            }
            Ok::<(), ()>(())
        });
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        let run_id = if self.query_run_id {
            let info = redis::cmd("INFO").arg("server").query_async::<String>(&mut connection).await?;
            info.lines().find_map(|line| line.strip_prefix("run_id:")).map(|id| id.trim().into())
        } else {
            None
        };
        Ok(ActiveConnection {
            connection,
            address: address.clone(),
            run_id,
            since: Instant::now(),
            dead,
            timeouts: Arc::default(),
            timeouts_in_a_row: self.settings.timeouts_in_a_row,
        })
    }
}

impl ReconnectingConnection {
    /// `query_run_id`: whether to query the `run_id` of each server. `connections` counts opened connections.
    pub(super) fn new(
        endpoint: Endpoint,
        settings: ConnectionSettings,
        query_run_id: bool,
        connections: Arc<AtomicU64>,
    ) -> Self {
        let connector = Connector { endpoint, settings, query_run_id, connections };
        Self { connector: Arc::new(connector), state: watch::Sender::new(ConnectionState::Unused) }
    }

    async fn connection(&self) -> Result<ActiveConnection, RedisError> {
        if let Some(active) = self.state.borrow().usable() {
            return Ok(active.clone());
        }
        let mut state = self.state.subscribe();
        if self.state.send_if_modified(ConnectionState::begin_connecting) {
            self.start_connecting();
        }
        let ended = state.wait_for(|state| !matches!(state, ConnectionState::Connecting)).await;
        match ended.as_deref() {
            Ok(ConnectionState::Connected(active)) => Ok(active.clone()),
            Ok(ConnectionState::Failed(_, error)) => Err(error.clone()),
            Ok(ConnectionState::Unused | ConnectionState::Connecting) | Err(_) => Err(connect_aborted()),
        }
    }

    /// Connects in a separate task, so that a dropped request does not abort the attempt for other requests.
    fn start_connecting(&self) {
        let (connector, state) = (Arc::clone(&self.connector), self.state.clone());
        let attempt = tokio::spawn(async move { connector.connect().await });
        tokio::spawn(async move {
            // If the attempt panicked, `Failed` lets a later request connect again.
            let connected = attempt.await.unwrap_or_else(|_| Err(connect_aborted()));
            state.send_replace(match connected {
                Ok(active) => ConnectionState::Connected(active),
                Err(error) => ConnectionState::Failed(Instant::now(), error),
            });
        });
    }

    /// Sends a request once; does not retry.
    pub(super) async fn send(&self, request: Request<'_>) -> Result<ServerReply, RequestError> {
        let mut active = self.active().await?;
        let answer = request.send(&mut active.connection).await;
        let value = active.check(answer)?;
        Ok(ServerReply { value, run_id: active.run_id })
    }

    /// Sends a pipeline. The returned values include error replies.
    pub(super) async fn send_all(&self, commands: &Pipeline) -> Result<Vec<Value>, RequestError> {
        let mut active = self.active().await?;
        let answers = active.connection.send_packed_commands(commands, 0, commands.len()).await;
        active.check(answers)
    }

    async fn active(&self) -> Result<ActiveConnection, RequestError> {
        self.connection().await.map_err(|error| RequestError { kind: FailureKind::NotSent, error })
    }

    /// Sends a command whose reply is text.
    pub(super) async fn text(&self, words: &[&str]) -> Result<String, RequestError> {
        let mut command = Cmd::new();
        command.arg(words);
        let answered = self.send(Request::command(&command)).await?;
        String::from_redis_value(answered.value)
            .map_err(|error| RequestError { kind: FailureKind::ScriptFailed, error: error.into() })
    }
}
