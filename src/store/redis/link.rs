//! One shared connection to Redis that replaces itself.
//!
//! A connection manager of the client library would do for availability, but it does not tell a request that was
//! never sent from one whose answer was lost. The promise made to providers hangs on that difference. The library's
//! cluster client repeats requests by itself after I/O errors, and so loses it, too.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, PushInfo, PushKind, RedisError,
    RedisResult, Script, ServerErrorKind, Value,
};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::fate::{Fate, fate};
use super::sentinel::Sentinels;
use super::servers::{Access, Address};

/// How long requests may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) connect: Duration,
    pub(super) response: Duration,
}

/// After this many answers in a row that did not come in time, the connection is replaced.
const TIMEOUTS_IN_A_ROW: u32 = 3;
/// After a connection could not be made, requests fail at once for this long, rather than queue for the next try.
const BACK_OFF: Duration = Duration::from_millis(100);

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

#[derive(Clone)]
struct Live {
    connection: MultiplexedConnection,
    address: Address,
    run: Option<RunId>,
    dead: Arc<AtomicBool>,
    timeouts: Arc<AtomicU32>,
}

impl Live {
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
            Fate::Disconnected | Fate::NoMaster => true,
            Fate::Late => self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= TIMEOUTS_IN_A_ROW,
            Fate::Refused | Fate::Astray | Fate::Moved(..) | Fate::Ask(_) | Fate::Mistake => false,
        };
        if given_up {
            self.dead.store(true, Ordering::Release);
        }
        Err(Failed { fate, error })
    }
}

/// See the module.
pub(super) struct Link {
    target: Target,
    timeouts: Timeouts,
    /// Whether to ask each server for its run.
    identify: bool,
    live: RwLock<Option<Live>>,
    connecting: Mutex<Option<(Instant, RedisError)>>,
    /// How many connections were made, by this link and by others.
    connections: Arc<AtomicU64>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("timeouts", &self.timeouts).finish_non_exhaustive()
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
}

impl<'a> Request<'a> {
    /// A command.
    pub(super) const fn command(command: &'a Cmd) -> Self {
        Self { command, script: None, first: None }
    }

    /// A script's call by its digest.
    pub(super) const fn script(script: &'a Script, call: &'a Cmd) -> Self {
        Self { command: call, script: Some(script), first: None }
    }

    /// The same with another command right before it, which must not fail either.
    pub(super) const fn after(self, first: &'a Cmd) -> Self {
        Self { first: Some(first), ..self }
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

impl Link {
    /// Counts in `connections` each that is made.
    pub(super) fn new(
        target: Target,
        timeouts: Timeouts,
        identify: bool,
        connections: Arc<AtomicU64>,
    ) -> Self {
        Self {
            target,
            timeouts,
            identify,
            live: RwLock::new(None),
            connecting: Mutex::new(None),
            connections,
        }
    }

    fn current(&self) -> Option<Live> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.as_ref().filter(|live| !live.dead.load(Ordering::Acquire)).cloned()
    }

    async fn connection(&self) -> Result<Live, RedisError> {
        if let Some(live) = self.current() {
            return Ok(live);
        }
        let mut last_failure = self.connecting.lock().await;
        if let Some(live) = self.current() {
            return Ok(live);
        }
        if let Some((at, error)) = &*last_failure
            && at.elapsed() < BACK_OFF
        {
            return Err(error.clone());
        }
        match self.connect().await {
            Ok(live) => {
                *self.live.write().unwrap_or_else(PoisonError::into_inner) = Some(live.clone());
                *last_failure = None;
                Ok(live)
            }
            Err(error) => {
                *last_failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Live, RedisError> {
        match &self.target {
            Target::Server { access, address } => self.open(&access.client(address)?, address).await,
            Target::Master(sentinels) => {
                let found = sentinels.master(async |client, address| {
                    let mut live = self.open(&client, &address).await?;
                    sentinels.check_role(&mut live.connection).await?;
                    Ok(live)
                });
                timeout(self.timeouts.connect, found).await.map_err(std::io::Error::from)?
            }
        }
    }

    async fn open(&self, client: &Client, address: &Address) -> Result<Live, RedisError> {
        let dead = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&dead);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeouts.connect))
            .set_response_timeout(Some(self.timeouts.response))
            .set_push_sender(move |push: PushInfo| {
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
        Ok(Live { connection, address: address.clone(), run, dead, timeouts: Arc::default() })
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
