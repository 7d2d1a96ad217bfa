//! Each client posts results, is refused, and retries as docs/providers.md says.

use std::net::SocketAddr;

use callback_ingress::clock::Clock;
use callback_ingress::domain::time::Timestamp;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::Duration;

use super::faulty::{Fate, Faulty};
use super::program::Program;
use super::{built_with_go, node, python, source};
use crate::service::{CALLBACKS, Item, Service, until};

/// An HTTP client.
#[derive(Clone, Copy, Debug)]
enum Client {
    Python(&'static str),
    Node(&'static str),
    Java,
    Jetty,
    Go,
    Curl,
}

/// Jetty's client, from the package `libjetty9-extra-java`.
const JETTY: &str = "/usr/share/java/jetty9-client.jar:/usr/share/java/jetty9-http.jar:\
                     /usr/share/java/jetty9-io.jar:/usr/share/java/jetty9-util.jar";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_clients_are_served() {
    are_served(&["requests", "httpx", "aiohttp"].map(Client::Python)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_clients_are_served() {
    are_served(&["fetch", "axios", "undici"].map(Client::Node)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn java_clients_are_served() {
    are_served(&[Client::Java, Client::Jetty]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_client_and_curl_are_served() {
    are_served(&[Client::Go, Client::Curl]).await;
}

async fn are_served(clients: &[Client]) {
    let flags = [("http.max_body_bytes", "65536"), ("http.keep_alive_timeout_ms", "1000")];
    let service = Service::start(&flags).await;
    join_all(clients.iter().map(|&client| is_served(&service, client))).await;
}

async fn is_served(service: &Service, client: Client) {
    let mut provider = Provider { client, program: client.start() };
    provider.is_answered(service).await;
    provider.retries(service).await;
    provider.gives_up_at_the_deadline(service).await;
    provider.connects_again(service).await;
    assert_eq!(provider.program.finish().await, [""; 0], "{client:?}");
}

impl Client {
    fn start(self) -> Program {
        match self {
            Self::Python(library) => python("provider.py", &[library]),
            Self::Node(library) => node("provider.mjs", &[library]),
            Self::Java => Program::start("java", &["-cp", JETTY, &source("Provider.java"), "jdk"]),
            Self::Jetty => Program::start("java", &["-cp", JETTY, &source("Provider.java"), "jetty"]),
            Self::Go => Program::start(&built_with_go("provider.go"), &[]),
            Self::Curl => Program::start("bash", &[&source("provider.sh")]),
        }
    }
}

/// A provider that uses this client.
struct Provider {
    client: Client,
    program: Program,
}

fn callbacks(address: SocketAddr) -> String {
    format!("http://{address}{CALLBACKS}")
}

/// A deadline that the test does not reach.
fn far() -> Timestamp {
    Clock::System.now().plus_millis(60_000)
}

impl Provider {
    /// Posts a result; returns the status and the body of the reply.
    async fn post(&mut self, url: &str, token: &str, deadline: Timestamp, body: &str) -> (u16, String) {
        self.program.tell(&format!("{url}|{token}|{deadline}|{body}")).await;
        let line = self.program.line().await.unwrap_or_else(|| panic!("{:?} has ended", self.client));
        let (status, body) = line.split_once('|').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    async fn is_answered(&mut self, service: &Service) {
        let item = service.fresh_tool().await;
        let other = service.fresh_tool().await;
        let last = if item.token.ends_with('A') { 'B' } else { 'A' };
        let forged = format!("{}{last}", &item.token[..item.token.len() - 1]);
        let large = format!("\"{}\"", "x".repeat(200 * 1024));
        let [late, cancelled, ended] = over(service).await;
        let answer = r#"{"answer":42}"#;
        for (sentence, token, body, expected) in [
            ("the first", &item.token, answer, (202, "delivered")),
            ("a repetition", &item.token, answer, (200, "delivered")),
            ("another body", &item.token, "43", (409, "CALLBACK_TOKEN_USED")),
            ("a forged token", &forged, answer, (401, "CALLBACK_TOKEN_INVALID")),
            ("no token", &String::new(), answer, (401, "CALLBACK_TOKEN_MISSING")),
            ("half a failure", &other.token, r#"{"error":{"code":7}}"#, (400, "RESULT_SHAPE_INVALID")),
            ("a large body", &other.token, &large, (413, "BODY_TOO_LARGE")),
            ("after the deadline", &late.token, answer, (409, "WORK_ITEM_TIMED_OUT")),
            ("after a cancellation", &cancelled.token, answer, (409, "WORK_ITEM_CANCELLED")),
            ("after the end", &ended.token, answer, (409, "CONVERSATION_ENDED")),
            ("the corrected one", &other.token, "\"72 °F ✅\"", (202, "delivered")),
        ] {
            let (status, body) = self.post(&callbacks(service.public), token, far(), body).await;
            let reply: Value = serde_json::from_str(&body)
                .unwrap_or_else(|error| panic!("{:?}, {sentence}: {error}: {status} {body}", self.client));
            let word = reply["status"].as_str().or(reply["error"]["code"].as_str());
            assert_eq!((status, word.unwrap()), expected, "{:?}, {sentence}: {body}", self.client);
        }
        let channel = service.channel(&other.conversation, 1).await;
        assert!(channel[0].contains("\"result\":\"72 °F ✅\""), "{:?}: {}", self.client, channel[0]);
    }

    /// Repeats the same bytes after a refusal, a closed connection and a lost response.
    async fn retries(&mut self, service: &Service) {
        let fates = [Fate::Refused, Fate::Dropped, Fate::ReplyLost, Fate::Forwarded];
        let gateway = Faulty::start(service.public, &fates).await;
        let item = service.fresh_tool().await;
        let sent = r#"{"temperature":21.50,"text":"°"}"#;
        let (status, body) = self.post(&callbacks(gateway.address), &item.token, far(), sent).await;
        let reply: Value = serde_json::from_str(&body).unwrap_or(Value::Null);
        assert_eq!((status, &reply["replayed"]), (200, &json!(true)), "{:?}: {body}", self.client);
        let received = gateway.received();
        assert_eq!(received.len(), fates.len(), "{:?}: {received:?}", self.client);
        assert!(received.iter().all(|request| request.body == sent), "{:?}: {received:?}", self.client);
        // curl retries immediately if a reused connection was closed.
        let waits: &[u64] = if matches!(self.client, Client::Curl) { &[1_000] } else { &[1_000, 375, 750] };
        for (pair, at_least_ms) in received.windows(2).zip(waits) {
            let waited = pair[1].at - pair[0].at;
            // The clocks of two processes count milliseconds differently.
            let least = Duration::from_millis(at_least_ms - 5);
            assert!(waited >= least, "{:?} has waited {waited:?} of {least:?}", self.client);
        }
    }

    async fn gives_up_at_the_deadline(&mut self, service: &Service) {
        let gateway = Faulty::start(service.public, &[Fate::Refused]).await;
        let deadline = Clock::System.now().plus_millis(4_000);
        let (status, body) = self.post(&callbacks(gateway.address), "cbt_x", deadline, "1").await;
        assert_eq!((status, body.trim_matches('"')), (503, "unavailable"), "{:?}", self.client);
        let received = gateway.received();
        // curl's time is in whole seconds.
        assert!((2..=5).contains(&received.len()), "{:?}: {received:?}", self.client);
        assert!(received.iter().all(|request| request.body == "1"), "{:?}: {received:?}", self.client);
    }

    /// The service has closed the connection of the first callbacks in the meantime.
    async fn connects_again(&mut self, service: &Service) {
        let item = service.fresh_tool().await;
        let (status, body) = self.post(&callbacks(service.public), &item.token, far(), "7").await;
        assert_eq!(status, 202, "{:?}: {body}", self.client);
    }
}

/// Items that no callback can settle: timed out, cancelled, and of an ended conversation.
async fn over(service: &Service) -> [Item; 3] {
    let conversation = service.open().await;
    let late = service.issue(&conversation, &json!({"kind": "tool", "timeoutMs": 1})).await;
    let cancelled = service.tool(&conversation).await;
    assert_eq!(service.platform("DELETE", &cancelled.path()).send().await.status, 200);
    let ended = service.fresh_tool().await;
    service.end(&ended.conversation).await;
    until("it times out", async || service.state(&late).await != "awaiting").await;
    [late, cancelled, ended]
}
