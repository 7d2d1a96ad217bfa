//! A client that retries as docs/providers.md says: after a missing reply or a retryable status it repeats the same
//! bytes. Its times are scaled down to the deadlines of the histories.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use callback_ingress::clock::Entropy;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::deployment::Deployment;
use crate::record::{Action, Attempt, Operation, Reply, Stopwatch};
use crate::replica::SERVICE_KEY;

type Pool = hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>;

/// Maximum number of attempts of a request.
const TRIES: usize = 9;
/// The same where a failover takes longer.
const TRIES_ELSEWHERE: usize = 16;
const FIRST_DELAY: Duration = Duration::from_millis(25);
const LONGEST_DELAY: Duration = Duration::from_millis(800);
/// Timeout of an attempt.
const ANSWER_WITHIN: Duration = Duration::from_millis(1_500);

/// A request that any instance can answer.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: &'static str,
    /// Whether it goes to the public listener.
    pub(crate) public: bool,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

impl Call {
    /// A request to the platform listener; the path is below its conversations.
    pub(crate) fn platform(method: &'static str, path: &str) -> Self {
        let headers = vec![("authorization", format!("Bearer {SERVICE_KEY}"))];
        let path = format!("/platform/v1/conversations/{path}");
        Self { method, public: false, path, headers, body: Bytes::new() }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn json(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header("content-type", "application/json")
    }
}

/// Sends requests to a deployment and records the replies.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) deployment: Arc<Deployment>,
    pub(crate) stopwatch: Stopwatch,
    pool: Pool,
}

impl Client {
    pub(crate) fn new(deployment: Arc<Deployment>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let mut pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
        // No retries in the HTTP client: each attempt is at most one request.
        let pool = pool.retry_canceled_requests(false).build(connector);
        Self { deployment, stopwatch: Stopwatch::start(), pool }
    }

    /// Repeats a request until it is answered or the attempts are used up.
    pub(crate) async fn perform(&self, action: Action, call: &Call) -> Operation {
        let tries = if self.deployment.kind.fails_over() { TRIES_ELSEWHERE } else { TRIES };
        let mut attempts = Vec::new();
        let mut delay = FIRST_DELAY;
        loop {
            attempts.push(self.attempt(call).await);
            let answered = attempts.last().is_some_and(|attempt| attempt.answer().is_some());
            if answered || attempts.len() == tries {
                return Operation { action, attempts };
            }
            sleep(delay).await;
            delay = (2 * delay).min(LONGEST_DELAY);
        }
    }

    async fn attempt(&self, call: &Call) -> Attempt {
        let request_id = Entropy.request_id().to_string();
        let invoked = self.stopwatch.now();
        let (replica, answered) = self.send(call, &request_id);
        let read = async {
            let (head, body) = answered.await?.into_parts();
            let body = body.collect().await.ok()?.to_bytes();
            let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
            Some(Reply {
                status: head.status.as_u16(),
                request_id: header("x-request-id").unwrap_or_default().to_owned(),
                idempotent_replay: header("idempotent-replayed") == Some("true"),
                body: serde_json::from_slice(&body).unwrap_or(Value::Null),
            })
        };
        let reply = timeout(ANSWER_WITHIN, read).await.ok().flatten();
        Attempt { replica, request_id, invoked, returned: self.stopwatch.now(), reply }
    }

    /// Sends a request to the next instance.
    pub(crate) fn send(
        &self,
        call: &Call,
        request_id: &str,
    ) -> (usize, impl Future<Output = Option<Response<Incoming>>> + use<>) {
        let (replica, addresses) = self.deployment.turn();
        let address = if call.public { addresses.public } else { addresses.platform };
        let mut request =
            Request::builder().method(call.method).uri(format!("http://{address}{}", call.path));
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        let request = request.header("x-request-id", request_id).body(Full::new(call.body.clone())).unwrap();
        let answer = self.pool.request(request);
        (replica, async move { answer.await.ok() })
    }
}
