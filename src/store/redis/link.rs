//! One shared connection to Redis that replaces itself.
//!
//! A connection manager of the client library would do for availability, but it does not tell a request that was
//! never sent from one whose answer was lost. The promise made to providers hangs on that difference.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, PushInfo, PushKind, RedisError, RedisResult,
    ScriptInvocation, ServerErrorKind, Value,
};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::store::StoreError;

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

#[derive(Clone)]
struct Live {
    connection: MultiplexedConnection,
    dead: Arc<AtomicBool>,
    timeouts: Arc<AtomicU32>,
}

/// See the module.
pub(super) struct Link {
    client: Client,
    timeouts: Timeouts,
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

/// What became of a request that failed.
enum Fate {
    /// The server did not execute it.
    NotExecuted,
    /// It may have been executed, and the connection is lost.
    Disconnected,
    /// It may have been executed, or may still be.
    Late,
    /// The server executed it and it failed: a mistake of ours.
    Mistake,
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library may add kinds: the careful answer is for all of them"
)]
fn fate(error: &RedisError) -> Fate {
    // Words with which Redis refuses a script's first write; Redis 6 wraps them in a text of its own.
    const REFUSALS: [&str; 8] =
        ["OOM", "MISCONF", "READONLY", "NOREPLICAS", "BUSY", "LOADING", "NOAUTH", "NOPERM"];
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::ResponseError | ServerErrorKind::ExecAbort)
        | ErrorKind::Extension => {
            let code = error.code().unwrap_or_default();
            let detail = error.detail().unwrap_or_default();
            let refused = REFUSALS.iter().any(|word| code == *word || detail.contains(&format!("-{word}")));
            if refused { Fate::NotExecuted } else { Fate::Mistake }
        }
        ErrorKind::Server(_)
        | ErrorKind::Client
        | ErrorKind::InvalidClientConfig
        | ErrorKind::AuthenticationFailed => Fate::NotExecuted,
        _ if error.is_timeout() => Fate::Late,
        _ => Fate::Disconnected,
    }
}

/// What can be sent.
#[derive(Clone, Copy)]
pub(super) enum Request<'a> {
    Script(&'a ScriptInvocation<'a>),
    Command(&'a Cmd),
}

impl Request<'_> {
    async fn send(self, connection: &mut MultiplexedConnection) -> RedisResult<Value> {
        match self {
            // Loads the script where the server does not know it, and calls it again: nothing has happened then.
            Self::Script(invocation) => invocation.invoke_async(connection).await,
            Self::Command(command) => command.query_async(connection).await,
        }
    }
}

impl Link {
    pub(super) fn new(client: Client, timeouts: Timeouts, connections: Arc<AtomicU64>) -> Self {
        Self { client, timeouts, live: RwLock::new(None), connecting: Mutex::new(None), connections }
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
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Live { connection, dead, timeouts: Arc::default() })
    }

    /// Sends a request that can be repeated without harm. After a lost connection it is repeated once; what
    /// cannot be known then is told as [`StoreError::OutcomeUnknown`].
    pub(super) async fn call(&self, request: Request<'_>) -> Result<Value, StoreError> {
        let mut lost: Option<RedisError> = None;
        loop {
            let mut live = match self.connection().await {
                Ok(live) => live,
                Err(error) => {
                    return Err(match lost {
                        Some(lost) => StoreError::OutcomeUnknown(lost.into()),
                        None => StoreError::Unavailable(error.into()),
                    });
                }
            };
            let error = match request.send(&mut live.connection).await {
                Ok(value) => {
                    live.timeouts.store(0, Ordering::Relaxed);
                    return Ok(value);
                }
                Err(error) => error,
            };
            match fate(&error) {
                Fate::Mistake => return Err(StoreError::Broken(error.to_string())),
                Fate::NotExecuted => {
                    if error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
                        live.dead.store(true, Ordering::Release);
                    }
                    return Err(match lost {
                        Some(lost) => StoreError::OutcomeUnknown(lost.into()),
                        None => StoreError::Unavailable(error.into()),
                    });
                }
                Fate::Late => {
                    if live.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= TIMEOUTS_IN_A_ROW {
                        live.dead.store(true, Ordering::Release);
                    }
                    return Err(StoreError::OutcomeUnknown(error.into()));
                }
                Fate::Disconnected => {
                    live.dead.store(true, Ordering::Release);
                    if lost.is_some() {
                        return Err(StoreError::OutcomeUnknown(error.into()));
                    }
                    lost = Some(error);
                }
            }
        }
    }
}
