//! One shared connection to Redis that replaces itself.
//!
//! A connection manager of the client library would do for availability, but it does not tell a request that was
//! never sent from one whose answer was lost. The promise made to providers hangs on that difference. The library's
//! cluster client repeats requests by itself after I/O errors, and so loses it, too.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, PushInfo, PushKind, RedisError,
    RedisResult, Script, ServerErrorKind, Value,
};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::fate::{Fate, fate};
use super::sentinel::Sentinels;
use super::servers::{Access, Address};

/// How long the requests of a connection may take, and how many may queue for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionLimits {
    /// Longest time to a connection.
    pub(super) connect: Duration,
    /// Longest time to an answer.
    pub(super) response: Duration,
    /// After this many answers in a row that did not come in time, the connection is replaced.
    timeouts_in_a_row: u32,
    /// How many requests queue to be written.
    queue: usize,
}

impl ConnectionLimits {
    pub(super) const fn new(connect: Duration, response: Duration, queue: usize) -> Self {
        Self { connect, response, timeouts_in_a_row: 3, queue }
    }

    fn config(self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect))
            .set_response_timeout(Some(self.response))
            .set_pipeline_buffer_size(self.queue)
    }

    /// For what may bring much over a slow line: 1 MiB at 300 KB/s. One that does not come in time is on its way for
    /// long after: what is asked next must not wait behind it.
    pub(super) fn for_reads(self) -> Self {
        let response = (5 * self.response).max(Duration::from_secs(5));
        Self { response, timeouts_in_a_row: 1, ..self }
    }
}

/// After a connection could not be made, requests fail at once for this long, rather than queue for the next try.
const BACK_OFF: Duration = Duration::from_millis(100);
/// For this long a new connection is kept although its server refuses to take writes: it may do so for long, and each
/// request would make another connection.
const KEPT_READ_ONLY: Duration = Duration::from_millis(250);

fn ended_early() -> RedisError {
    io::Error::other("connecting ended early").into()
}

/// Where a link leads.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// To this server.
    Server { access: Access, address: Address },
    /// To whichever server is the master when a connection is made.
    Master(Arc<Sentinels>),
}

/// The run of a server's process: another one has another.
pub(super) type RunId = Arc<str>;

/// A connection that was made.
#[derive(Clone)]
struct Live {
    connection: MultiplexedConnection,
    address: Address,
    run: Option<RunId>,
    since: Instant,
    dead: Arc<AtomicBool>,
    timeouts: Arc<AtomicU32>,
    timeouts_in_a_row: u32,
}

impl Live {
    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Tells what became of a request, and gives the connection up where it is of no more use.
    fn judge<T>(&self, answer: RedisResult<T>) -> Result<T, Failed> {
        let error = match answer {
            Ok(value) => {
                self.timeouts.store(0, Ordering::Relaxed);
                return Ok(value);
            }
            Err(error) => error,
        };
        let fate = fate(&error, &self.address);
        let given_up = match fate {
            Fate::Disconnected => true,
            Fate::NoMaster => self.since.elapsed() >= KEPT_READ_ONLY,
            Fate::Late => self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= self.timeouts_in_a_row,
            Fate::Refused | Fate::Astray | Fate::Moved(..) | Fate::Ask(_) | Fate::Mistake => false,
        };
        if given_up {
            self.dead.store(true, Ordering::Release);
        }
        Err(Failed { fate, error })
    }
}

/// How far a link's connection is.
enum State {
    /// Nobody has needed one yet.
    Unused,
    /// It is being made, for whoever waits for it.
    Connecting,
    Connected(Live),
    /// It could not be made.
    Failed(Instant, RedisError),
}

impl State {
    fn usable(&self) -> Option<&Live> {
        match self {
            Self::Connected(live) if !live.is_dead() => Some(live),
            Self::Unused | Self::Connecting | Self::Connected(_) | Self::Failed(..) => None,
        }
    }

    /// Changes to `Connecting`, if it is time for a new connection.
    fn begin(&mut self) -> bool {
        let begins = match self {
            Self::Unused => true,
            Self::Connecting => false,
            Self::Connected(live) => live.is_dead(),
            Self::Failed(at, _) => at.elapsed() >= BACK_OFF,
        };
        if begins {
            *self = Self::Connecting;
        }
        begins
    }
}

/// See the module.
pub(super) struct Link {
    connector: Arc<Connector>,
    state: watch::Sender<State>,
}

/// Makes a link's connections.
struct Connector {
    target: Target,
    limits: ConnectionLimits,
    /// Whether to ask each server for its run.
    identify: bool,
    /// How many connections were made, by this link and by others.
    connections: Arc<AtomicU64>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("limits", &self.connector.limits).finish_non_exhaustive()
    }
}

/// What can be sent.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    command: &'a Cmd,
    /// Loaded where the server does not know it.
    script: Option<&'a Script>,
    /// Sent right before, by nobody interrupted.
    first: Option<&'a Cmd>,
    /// Sent instead, when the request may have been executed and is repeated.
    again: Option<&'a Cmd>,
}

impl<'a> Request<'a> {
    /// A command.
    pub(super) const fn command(command: &'a Cmd) -> Self {
        Self { command, script: None, first: None, again: None }
    }

    /// A script's call by its digest.
    pub(super) const fn script(script: &'a Script, call: &'a Cmd) -> Self {
        Self { command: call, script: Some(script), first: None, again: None }
    }

    /// The same with another command right before it, which must not fail either.
    pub(super) const fn after(self, first: &'a Cmd) -> Self {
        Self { first: Some(first), ..self }
    }

    /// The same, with another command should it have to be repeated.
    pub(super) const fn or(self, again: &'a Cmd) -> Self {
        Self { again: Some(again), ..self }
    }

    /// As it is sent when it may have been executed before.
    pub(super) fn repeated(self) -> Self {
        Self { command: self.again.unwrap_or(self.command), ..self }
    }

    async fn send_once(self, connection: &mut MultiplexedConnection) -> RedisResult<Value> {
        let Some(first) = self.first else { return self.command.query_async(connection).await };
        let pair = redis::pipe().add_command(first.clone()).add_command(self.command.clone()).to_owned();
        let mut last = Value::Nil;
        for answer in connection.send_packed_commands(&pair, 0, 2).await? {
            last = answer.extract_error()?;
        }
        Ok(last)
    }

    async fn send(self, connection: &mut MultiplexedConnection) -> RedisResult<Value> {
        let answer = self.send_once(connection).await;
        match (self.script, answer) {
            // Nothing has happened then.
            (Some(script), Err(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                script.load_async(connection).await?;
                self.send_once(connection).await
            }
            (_, answer) => answer,
        }
    }
}

/// An answer, and the run of the server that gave it, where that is asked for.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) value: Value,
    pub(super) run: Option<RunId>,
}

/// A request that failed, and what became of it.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) fate: Fate,
    pub(super) error: RedisError,
}

impl Connector {
    async fn connect(&self) -> Result<Live, RedisError> {
        match &self.target {
            Target::Server { access, address } => self.open(&access.client(address)?, address).await,
            Target::Master(sentinels) => {
                let found = sentinels.master(async |client, address| {
                    let mut live = self.open(&client, &address).await?;
                    sentinels.check_role(&mut live.connection).await?;
                    Ok(live)
                });
                timeout(self.limits.connect, found).await.map_err(io::Error::from)?
            }
        }
    }

    async fn open(&self, client: &Client, address: &Address) -> Result<Live, RedisError> {
        let dead = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&dead);
        let config = self.limits.config().set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                told.store(true, Ordering::Release);
            }
            Ok::<(), ()>(())
        });
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        let run = if self.identify {
            let info = redis::cmd("INFO").arg("server").query_async::<String>(&mut connection).await?;
            info.lines().find_map(|line| line.strip_prefix("run_id:")).map(|run| run.trim().into())
        } else {
            None
        };
        Ok(Live {
            connection,
            address: address.clone(),
            run,
            since: Instant::now(),
            dead,
            timeouts: Arc::default(),
            timeouts_in_a_row: self.limits.timeouts_in_a_row,
        })
    }
}

impl Link {
    /// Counts in `connections` each that is made.
    pub(super) fn new(
        target: Target,
        limits: ConnectionLimits,
        identify: bool,
        connections: Arc<AtomicU64>,
    ) -> Self {
        let connector = Connector { target, limits, identify, connections };
        Self { connector: Arc::new(connector), state: watch::Sender::new(State::Unused) }
    }

    async fn connection(&self) -> Result<Live, RedisError> {
        if let Some(live) = self.state.borrow().usable() {
            return Ok(live.clone());
        }
        let mut state = self.state.subscribe();
        if self.state.send_if_modified(State::begin) {
            self.begin_to_connect();
        }
        let ended = state.wait_for(|state| !matches!(state, State::Connecting)).await;
        match ended.as_deref() {
            Ok(State::Connected(live)) => Ok(live.clone()),
            Ok(State::Failed(_, error)) => Err(error.clone()),
            Ok(State::Unused | State::Connecting) | Err(_) => Err(ended_early()),
        }
    }

    /// In a task of its own: whoever asked first may go away, and others wait for the same connection.
    fn begin_to_connect(&self) {
        let (connector, state) = (Arc::clone(&self.connector), self.state.clone());
        let attempt = tokio::spawn(async move { connector.connect().await });
        tokio::spawn(async move {
            // After a panic the next request must be able to try again.
            let connected = attempt.await.unwrap_or_else(|_| Err(ended_early()));
            state.send_replace(match connected {
                Ok(live) => State::Connected(live),
                Err(error) => State::Failed(Instant::now(), error),
            });
        });
    }

    /// Sends a request once.
    pub(super) async fn send(&self, request: Request<'_>) -> Result<Answered, Failed> {
        let mut live = self.live_or_astray().await?;
        let answer = request.send(&mut live.connection).await;
        let value = live.judge(answer)?;
        Ok(Answered { value, run: live.run })
    }

    /// Sends several commands at once; what is refused of them is among the answers.
    pub(super) async fn send_all(&self, commands: &Pipeline) -> Result<Vec<Value>, Failed> {
        let mut live = self.live_or_astray().await?;
        let answers = live.connection.send_packed_commands(commands, 0, commands.len()).await;
        live.judge(answers)
    }

    async fn live_or_astray(&self) -> Result<Live, Failed> {
        self.connection().await.map_err(|error| Failed { fate: Fate::Astray, error })
    }

    /// Asks a question of a few words, whose answer is text.
    pub(super) async fn text(&self, question: &[&str]) -> Result<String, Failed> {
        let mut command = Cmd::new();
        command.arg(question);
        let answered = self.send(Request::command(&command)).await?;
        String::from_redis_value(answered.value)
            .map_err(|error| Failed { fate: Fate::Mistake, error: error.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_clients_queue_has_a_place_for_every_request_under_way() {
        let config = format!("{:?}", ConnectionLimits::new(SECOND, SECOND, 1_024).config());
        assert!(config.contains("pipeline_buffer_size: Some(1024)"), "{config}");
    }

    #[test]
    fn reads_have_five_times_as_long_and_five_seconds_at_least() {
        let reads = |response| ConnectionLimits::new(SECOND, response, 1).for_reads().response;
        assert_eq!([SECOND / 100, SECOND, 2 * SECOND].map(reads), [5 * SECOND, 5 * SECOND, 10 * SECOND]);
    }
}
