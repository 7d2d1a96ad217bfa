//! The provider's listener, on a memory store with two awaiting work items.

use std::io::{self, Write};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use callback_ingress::clock::{Clock, ManualClock};
use callback_ingress::config::{self, Carrier, Config, Sources};
use callback_ingress::domain::envelope::EnvelopeJson;
use callback_ingress::domain::gate::{Issue, Open};
use callback_ingress::domain::ids::{AttemptId, ConversationId, WorkItemId};
use callback_ingress::domain::time::Timestamp;
use callback_ingress::domain::token::{KeyId, Keyring, SigningKey};
use callback_ingress::domain::work_item::{Kind, State, WorkItem};
use callback_ingress::http::admission::{Admission, Lifecycle};
use callback_ingress::http::body::{BodyBudget, BodyLimits};
use callback_ingress::http::client_address::Peer;
use callback_ingress::http::context::{Instrumentation, Listener};
use callback_ingress::http::health::Health;
use callback_ingress::http::metrics::RequestMetrics;
use callback_ingress::http::refusal_summaries::RefusalSummaries;
use callback_ingress::public::{self, Carriers, ClientLimits, Public};
use callback_ingress::store::memory::MemoryStore;
use callback_ingress::store::{Backend, InstrumentedStore, Store};
use callback_ingress::telemetry::Telemetry;
use futures_util::stream;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;
use tracing::Dispatch;
use uuid::Uuid;

use super::written::Written;

/// Maximum size of a body. Small, so that small inputs exceed it.
pub(crate) const MOST_BYTES: usize = 2048;
/// A memory budget for any body.
const BUDGET: usize = 1 << 20;
const NOW: u64 = 1_795_000_000_000;

thread_local! {
    pub(crate) static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().unwrap();
    /// The captured log of this thread, and the guard of its subscriber.
    pub(crate) static LOGGED: (Log, Dispatch) = {
        let log = Log::default();
        (log.clone(), log.into())
    };
}
static CONFIG: LazyLock<Config> = LazyLock::new(|| config::load(Sources::default()).unwrap().config);
/// A configuration without rate limits, because most inputs have invalid tokens.
static UNLIMITED: LazyLock<Config> = LazyLock::new(|| {
    let flags = [("rate_limit.failed_max", "0"), ("http.trusted_proxies", r#"["127.0.0.0/8"]"#)];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    config::load(Sources { flags, ..Sources::default() }).unwrap().config
});
static TELEMETRY: LazyLock<Telemetry> = LazyLock::new(Telemetry::local);

/// The tokens that replace the placeholders of an input.
pub(crate) struct Tokens {
    pub(crate) tool: String,
    pub(crate) llm: String,
    pub(crate) expired: String,
    pub(crate) forged: String,
}

impl Tokens {
    pub(crate) fn marked(&self, mark: [u8; 3]) -> Option<&str> {
        match &mark {
            b"{T}" => Some(&self.tool),
            b"{L}" => Some(&self.llm),
            b"{E}" => Some(&self.expired),
            b"{F}" => Some(&self.forged),
            _ => None,
        }
    }
}

pub(crate) struct Stage {
    pub(crate) tokens: Tokens,
    /// The first item of the conversation.
    pub(crate) tool: WorkItem,
    /// The second item of the conversation.
    pub(crate) llm: WorkItem,
    conversation: ConversationId,
    keyring: Arc<Keyring>,
    clock: Clock,
    store: Arc<InstrumentedStore>,
    allowed: String,
    router: Router,
}

/// A complete reply.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }
}

impl Stage {
    pub(crate) async fn new() -> Self {
        let clock = Clock::Manual(ManualClock::at(Timestamp::from_millis(NOW)));
        let memory = MemoryStore::new(clock.clone(), CONFIG.limits());
        let store = Arc::new(InstrumentedStore::new(Backend::Memory(memory), TELEMETRY.clone()));
        store.check_health().await;
        let key_id = KeyId::parse("k1").unwrap();
        let keyring = Arc::new(Keyring::new(SigningKey::new(key_id, vec![7; 32]).unwrap(), Vec::new()));
        let conversation = ConversationId::parse("call-1").unwrap();
        let attempt = AttemptId::from_random(1);
        let open = Open { conversation: conversation.clone(), idle_ttl_ms: None, traceparent: None, attempt };
        store.open(open).await.unwrap().unwrap();
        let tool = issue(&store, &conversation, key_id, Kind::Tool, 1).await;
        let llm = issue(&store, &conversation, key_id, Kind::Llm, 2).await;
        let sign = |item: &WorkItem| keyring.sign(conversation.reference(), item).expose().to_owned();
        // Expired for longer than the clock leeway, so that the store is not called.
        let past = WorkItem { expires_at: Timestamp::from_millis(NOW - 25 * 3_600_000), ..tool.clone() };
        let mut forged = sign(&tool);
        let other = if forged.pop() == Some('A') { 'B' } else { 'A' };
        forged.push(other);
        let tokens = Tokens { tool: sign(&tool), llm: sign(&llm), expired: sign(&past), forged };
        let allowed = String::new();
        Self { tokens, tool, llm, conversation, keyring, clock, store, allowed, router: Router::new() }
    }

    /// Enables the carriers with these first letters, or all carriers if there is none.
    pub(crate) fn allow(&mut self, letters: &str) {
        let ways =
            [('h', Carrier::Header), ('q', Carrier::Query), ('b', Carrier::Body), ('p', Carrier::Path)];
        let mut named: Vec<_> = ways.into_iter().filter(|(letter, _)| letters.contains(*letter)).collect();
        if named.is_empty() {
            named = ways.to_vec();
        }
        self.allowed = named.iter().map(|(letter, _)| letter).collect();
        let mut token = CONFIG.token.clone();
        token.carriers = named.iter().map(|(_, carrier)| *carrier).collect();
        let lifecycle = Lifecycle::default();
        let public = Public {
            store_timeout: Duration::from_secs(1),
            store: Arc::clone(&self.store),
            keyring: Arc::clone(&self.keyring),
            clock: self.clock.clone(),
            base_url: String::new(),
            carriers: Arc::new(Carriers::new(&token)),
            body: BodyLimits { max_bytes: MOST_BYTES, timeout: Duration::from_secs(10), copies: 1 },
            authenticated: BodyBudget::new(BUDGET),
            anonymous: BodyBudget::new(BUDGET),
            admission: Admission::new(lifecycle.clone(), 1),
            clients: ClientLimits::new(&UNLIMITED),
        };
        let health = Health { store: Arc::clone(&self.store), lifecycle };
        let trusted_proxies = UNLIMITED.trusted_proxies();
        let telemetry = TELEMETRY.clone();
        let observation = Instrumentation {
            listener: Listener::Public,
            scheme: "http",
            trusted_proxies,
            metrics: Arc::new(RequestMetrics::new(&telemetry.metrics)),
            telemetry,
            refusal_summaries: Arc::new(RefusalSummaries::new(64)),
        };
        self.router = public::router(Arc::new(public), observation, health);
    }

    pub(crate) fn allows(&self, letter: char) -> bool {
        self.allowed.contains(letter)
    }

    /// Sends a request, with its body in chunks.
    pub(crate) async fn ask(&self, written: &Written) -> Reply {
        let pieces: Vec<io::Result<Bytes>> = written
            .body
            .chunks(1 + written.body.len() % 100)
            .map(|piece| Ok(piece.to_vec().into()))
            .collect();
        let mut request = Request::new(Body::from_stream(stream::iter(pieces)));
        *request.method_mut() = written.method.clone();
        *request.uri_mut() = written.uri.clone();
        *request.headers_mut() = written.headers.clone();
        request.extensions_mut().insert(Peer([127, 0, 0, 1].into()));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn channel(&self) -> Vec<EnvelopeJson> {
        self.store.read(self.conversation.reference(), None, 10).await.unwrap().unwrap().envelopes
    }

    pub(crate) async fn state(&self, item: &WorkItem) -> State {
        self.store.work_item(self.conversation.reference(), item.id).await.unwrap().unwrap().state
    }
}

async fn issue(
    store: &InstrumentedStore,
    conversation: &ConversationId,
    key_id: KeyId,
    kind: Kind,
    id: u128,
) -> WorkItem {
    let issue = Issue {
        conversation: conversation.reference(),
        work_item: WorkItemId::from_uuid(Uuid::from_u128(id << 32)),
        kind,
        turn_id: None,
        tool_call_id: None,
        name: None,
        timeout_ms: 60_000,
        heartbeat_timeout_ms: None,
        replay_window_ms: 600_000,
        key_id,
        traceparent: None,
        request_traceparent: None,
        idempotency: None,
    };
    store.issue(issue).await.unwrap().unwrap().item
}

/// Captures the log at all levels.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Removes and returns the captured log.
    pub(crate) fn take(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut *self.0.lock().unwrap())).into_owned()
    }
}

impl From<Log> for Dispatch {
    fn from(log: Log) -> Self {
        let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
        lines.without_time().with_writer(move || log.clone()).finish().into()
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
