//! The gateways in `config/`, in front of two instances of the service.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use test_support::redis_server::RedisServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinSet, block_in_place};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::program::{Gateway, Instance, Shipped};
use crate::service::{CALLBACKS, PATIENCE, SERVICE_KEY, Service, until};

/// Runs each test, an `async fn(Shipped)`, behind each gateway.
macro_rules! behind_each_gateway {
    ($($test:ident),+ $(,)?) => {
        mod nginx {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test(super::Shipped::Nginx).await; })+
        }
        mod fastify {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test(super::Shipped::Fastify).await; })+
        }
    };
}
behind_each_gateway!(
    rolling_restart_loses_nothing_and_shows_no_error,
    client_address_request_id_and_trace_context_are_passed_on,
    refusals_of_the_gateway_have_the_form_of_the_service,
);

const CARRIERS: [&str; 4] = ["header", "query", "body", "path"];

/// A client of the gateway.
#[derive(Clone, Debug)]
struct Caller {
    pool: Pool<HttpConnector, Full<Bytes>>,
    gateway: SocketAddr,
}

impl Caller {
    fn of(gateway: SocketAddr) -> Self {
        Self { pool: Pool::builder(TokioExecutor::new()).build_http(), gateway }
    }

    /// Connects from this address of loopback.
    fn from_address(gateway: SocketAddr, client: Ipv4Addr) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_local_address(Some(IpAddr::V4(client)));
        Self { pool: Pool::builder(TokioExecutor::new()).build(connector), gateway }
    }

    /// Status, headers and body of the reply; the error if there was none.
    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Reply, String> {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap());
        request = request.uri(format!("http://{}{path}", self.gateway));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let exchange = async {
            let (head, body) =
                self.pool.request(request).await.map_err(|error| format!("{error:?}"))?.into_parts();
            let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
            let headers = head.headers.iter();
            let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
            Ok(Reply { status: head.status, headers: headers.collect(), body })
        };
        timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    /// A request of the platform, repeated while it fails.
    async fn platform(&self, method: &str, path: &str, key: &str, body: &Value) -> Value {
        let authorization = format!("Bearer {SERVICE_KEY}");
        let headers = [
            ("authorization", &*authorization),
            ("content-type", "application/json"),
            ("idempotency-key", key),
        ];
        let path = format!("/platform/v1/conversations/{path}");
        let since = Instant::now();
        loop {
            let body = if body.is_null() { String::new() } else { body.to_string() };
            match self.send(method, &path, &headers, body).await {
                Ok(reply) if reply.status.is_success() => return reply.json(),
                failed => assert!(since.elapsed() < PATIENCE, "{failed:?}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[derive(Debug)]
struct Reply {
    status: StatusCode,
    headers: BTreeMap<String, String>,
    body: Bytes,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Two instances on one Redis, behind a gateway.
struct Deployment {
    redis: RedisServer,
    services: Vec<Service>,
    gateway: Gateway,
}

/// The service as `config/` deploys it. The gateway is a trusted proxy, other addresses of loopback are clients.
fn settings<'a>(redis: &'a str, extra: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut settings = vec![
        ("store.url", redis),
        ("http.trusted_proxies", "[\"127.0.0.1\"]"),
        ("http.drain_grace_ms", "500"),
    ];
    settings.extend(extra);
    settings
}

impl Deployment {
    async fn start(kind: Shipped, extra: &[(&str, &str)]) -> Self {
        let redis = RedisServer::start();
        let url = redis.url(0);
        let mut services = Vec::new();
        for _ in 0..2 {
            services.push(Service::start(&settings(&url, extra)).await);
        }
        let instances = [instance(&services[0]), instance(&services[1])];
        let gateway = block_in_place(|| Gateway::shipped(kind, instances));
        Self { redis, services, gateway }
    }

    /// Replaces an instance by a new one on the same addresses.
    async fn restart(&mut self, index: usize) {
        let service = self.services.remove(index);
        let Instance { public, platform } = instance(&service);
        service.drain();
        service.ended().await;
        for address in [public, platform] {
            until("the port is free again", async || TcpListener::bind(address).await.is_ok()).await;
        }
        let (url, public, platform) = (self.redis.url(0), public.to_string(), platform.to_string());
        let addresses = [("http.public_addr", &*public), ("http.platform_addr", &*platform)];
        let service = Service::start(&settings(&url, &addresses)).await;
        until("the new instance is ready", async || service.health().send().await.status == 200).await;
        self.services.insert(index, service);
    }
}

fn instance(service: &Service) -> Instance {
    Instance { public: service.public, platform: service.platform }
}

/// The responses that one provider got.
#[derive(Debug, Default)]
struct Seen {
    accepted: AtomicUsize,
    /// Replies other than 2xx, and requests without a reply.
    errors: AtomicUsize,
    is_over: AtomicBool,
}

/// Issues work in one conversation and posts its results until the restarts are over. Returns the number of work items.
async fn converse(conversation: String, platform: Caller, providers: Caller, seen: Arc<Seen>) -> u64 {
    platform.platform("PUT", &conversation, "", &Value::Null).await;
    let mut count = 0;
    while !seen.is_over.load(Ordering::SeqCst) {
        let key = format!("{conversation}-{count}");
        let carrier = CARRIERS[usize::try_from(count).unwrap() % CARRIERS.len()];
        let work = json!({"kind": "tool", "timeoutMs": 60_000, "carrier": carrier});
        let issued = platform.platform("POST", &format!("{conversation}/work-items"), &key, &work).await;
        count += 1;
        assert_eq!(issued["sequence"], count);
        let callback = &issued["callback"];
        let url = callback["url"].as_str().unwrap();
        let path = &url[url.find("/api/").unwrap()..];
        let headers = callback["headers"].as_object().unwrap();
        let mut headers: Vec<_> =
            headers.iter().map(|(name, value)| (&**name, value.as_str().unwrap())).collect();
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            headers.push(("content-type", "application/json"));
        }
        let mut body = json!({"count": count});
        if carrier == "body" {
            body[callback["name"].as_str().unwrap()] = callback["token"].clone();
        }
        let since = Instant::now();
        loop {
            let reply = providers.send("POST", path, &headers, body.to_string()).await;
            if reply.as_ref().is_ok_and(|reply| reply.status.is_success()) {
                seen.accepted.fetch_add(1, Ordering::SeqCst);
                break;
            }
            seen.errors.fetch_add(1, Ordering::SeqCst);
            let is_retryable = reply
                .as_ref()
                .map_or(true, |reply| matches!(reply.status.as_u16(), 408 | 429 | 500 | 502..=504));
            assert!(is_retryable && since.elapsed() < PATIENCE, "{reply:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }
    platform.platform("DELETE", &conversation, "", &Value::Null).await;
    count
}

/// Follows a channel to its end, and reconnects with the last id if the stream closes earlier. Returns the sequences.
async fn follow(conversation: String, platform: SocketAddr) -> Vec<u64> {
    let mut sequences = Vec::new();
    let mut last = String::new();
    let since = Instant::now();
    loop {
        assert!(since.elapsed() < 4 * PATIENCE, "{sequences:?}");
        let pool: Pool<_, Full<Bytes>> = Pool::builder(TokioExecutor::new()).build_http();
        let uri = format!("http://{platform}/platform/v1/conversations/{conversation}/events?from=0");
        let mut request =
            Request::builder().uri(uri).header("authorization", format!("Bearer {SERVICE_KEY}"));
        if !last.is_empty() {
            request = request.header("last-event-id", &last);
        }
        let response = pool.request(request.body(Full::default()).unwrap()).await;
        let Ok(response) = response else { continue };
        if response.status() != 200 {
            sleep(Duration::from_millis(50)).await;
            continue;
        }
        let mut body = response.into_body();
        let mut read = String::new();
        while let Some(Ok(frame)) = body.frame().await {
            read.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            while let Some((event, rest)) = read.split_once("\n\n") {
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
                if field("event: ") == Some("end") {
                    return sequences;
                }
                if let (Some(id), Some(data)) = (field("id: "), field("data: ")) {
                    id.clone_into(&mut last);
                    let envelope: Value = serde_json::from_str(data).unwrap();
                    assert_eq!(envelope["result"], json!({"count": envelope["sequence"]}), "{envelope}");
                    sequences.push(envelope["sequence"].as_u64().unwrap());
                }
                read = rest.to_owned();
            }
        }
    }
}

async fn rolling_restart_loses_nothing_and_shows_no_error(kind: Shipped) {
    const CONVERSATIONS: usize = 8;
    let mut deployment = Deployment::start(kind, &[]).await;
    let (public, platform) = (deployment.gateway.address, deployment.gateway.platform);
    let seen = Arc::new(Seen::default());
    let (mut conversations, mut readers) = (JoinSet::new(), JoinSet::new());
    let (platform_caller, providers) = (Caller::of(platform), Caller::of(public));
    for number in 0..CONVERSATIONS {
        let name = format!("call-{number}");
        platform_caller.platform("PUT", &name, "", &Value::Null).await;
        readers.spawn(follow(name.clone(), platform));
        conversations.spawn(converse(name, platform_caller.clone(), providers.clone(), Arc::clone(&seen)));
    }
    let more = async || {
        let now = seen.accepted.load(Ordering::SeqCst);
        until("callbacks go on", async || seen.accepted.load(Ordering::SeqCst) > now + 2 * CONVERSATIONS)
            .await;
    };
    more().await;
    for index in [0, 1, 0] {
        deployment.restart(index).await;
        more().await;
    }
    seen.is_over.store(true, Ordering::SeqCst);
    let mut issued: Vec<u64> = conversations.join_all().await;
    let mut delivered: Vec<u64> = Vec::new();
    for sequences in readers.join_all().await {
        let count = u64::try_from(sequences.len()).unwrap();
        assert_eq!(sequences, (1..=count).collect::<Vec<_>>(), "in order, each once");
        delivered.push(count);
    }
    issued.sort_unstable();
    delivered.sort_unstable();
    assert_eq!(issued, delivered, "nothing is lost");
    let written = deployment.gateway.written();
    assert_eq!(seen.errors.load(Ordering::SeqCst), 0, "{seen:?}\n{written}");
    assert!(!written.contains("cbt_"), "no token is in a log of the gateway");
}

/// An upstream that keeps the heads of requests, and responds 200.
async fn recording(heads: Arc<std::sync::Mutex<Vec<String>>>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let heads = Arc::clone(&heads);
            tokio::spawn(async move {
                let mut read = Vec::new();
                while !read.ends_with(b"\r\n\r\n{}") {
                    if stream.read_buf(&mut read).await.unwrap() == 0 {
                        return;
                    }
                }
                heads.lock().unwrap().push(String::from_utf8(read).unwrap());
                let response = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
                stream.write_all(response).await.unwrap();
            });
        }
    });
    address
}

async fn client_address_request_id_and_trace_context_are_passed_on(kind: Shipped) {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let spoofed = [
        ("content-type", "application/json"),
        ("x-forwarded-for", "203.0.113.7"),
        ("x-request-id", "00000000-0000-4000-8000-000000000000"),
        ("traceparent", TRACE),
        ("tracestate", "vendor=1"),
    ];

    let heads = Arc::default();
    let upstream = recording(Arc::clone(&heads)).await;
    let upstream = Instance { public: upstream, platform: upstream };
    let gateway = block_in_place(|| Gateway::shipped(kind, [upstream; 2]));
    let caller = Caller::from_address(gateway.address, Ipv4Addr::new(127, 0, 0, 2));
    let path = format!("{CALLBACKS}/cbt_x?callbackToken=a%20b");
    assert_eq!(caller.send("POST", &path, &spoofed, "{}").await.unwrap().status, 200);
    let head = heads.lock().unwrap().pop().unwrap();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some(&*format!("POST {path} HTTP/1.1")));
    let lines: Vec<_> = lines.filter_map(|line| line.split_once(": ")).collect();
    let value = |wanted: &str| {
        let values: Vec<_> = lines
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| *value)
            .collect();
        let [value] = values[..] else { panic!("{wanted}: {head}") };
        value
    };
    assert_eq!(value("x-forwarded-for"), "127.0.0.2", "the client cannot set its address");
    assert_eq!((value("traceparent"), value("tracestate")), (TRACE, "vendor=1"));
    assert_eq!((value("content-type"), value("content-length")), ("application/json", "2"));
    let id = value("x-request-id");
    assert_ne!(id, spoofed[2].1);
    assert_eq!(Uuid::try_parse(id).unwrap().to_string(), id);

    if matches!(kind, Shipped::Nginx) {
        for route in ["/heartbeat", "/{token}/heartbeat", "/{token}"] {
            let path = format!("{CALLBACKS}{}", route.replace("{token}", "cbt_x"));
            assert_eq!(caller.send("POST", &path, &spoofed, "{}").await.unwrap().status, 200);
            let logged = format!("\"route\":\"{CALLBACKS}{route}\"");
            until("its route is in the log", async || gateway.written().contains(&logged)).await;
        }
    }

    // The service limits the failed attempts per client, and keeps the gateway's request id.
    let limit = ("rate_limit.failed_max", "1");
    let deployment = Deployment::start(kind, &[limit]).await;
    let mut statuses = Vec::new();
    for last in [2, 2, 2, 2, 3] {
        let caller = Caller::from_address(deployment.gateway.address, Ipv4Addr::new(127, 0, 0, last));
        let reply = caller.send("POST", &format!("{CALLBACKS}/cbt_x"), &spoofed, "{}").await.unwrap();
        let id = reply.headers["x-request-id"].clone();
        assert_eq!(reply.json()["error"]["requestId"], *id);
        until("it is in the gateway's log", async || deployment.gateway.written().contains(&id)).await;
        statuses.push(reply.status.as_u16());
    }
    // Two instances count separately.
    assert_eq!(statuses, [401, 401, 429, 429, 401]);
    assert!(!deployment.gateway.written().contains("cbt_"));
}

async fn refusals_of_the_gateway_have_the_form_of_the_service(kind: Shipped) {
    let mut deployment = Deployment::start(kind, &[]).await;
    let caller = Caller::of(deployment.gateway.address);
    let json = [("content-type", "application/json")];
    let item = deployment.services[0].fresh_tool().await;
    let own = format!("{CALLBACKS}/{}", item.token);
    let large = vec![b'1'; 1024 * 1024];
    let expected = |reply: &Reply, status: u16, code: &str| {
        assert_eq!(reply.status.as_u16(), status, "{reply:?}");
        let error = &reply.json()["error"];
        assert_eq!(error["code"], code);
        assert_eq!(error["requestId"], *reply.headers["x-request-id"]);
        assert_eq!(error["retryable"], status >= 500);
        assert_eq!(reply.headers.contains_key("retry-after"), status >= 500);
        assert_eq!(reply.headers.contains_key("webhook-delivery"), status < 500);
    };

    // A client that is still sending may lose the connection before it has read the reply.
    let since = Instant::now();
    let too_large = loop {
        match caller.send("POST", &own, &json, [&large[..], b"1"].concat()).await {
            Ok(reply) => break reply,
            Err(lost) => assert!(since.elapsed() < PATIENCE, "{lost}"),
        }
    };
    expected(&too_large, 413, "BODY_TOO_LARGE");
    let nowhere = caller.send("GET", "/platform/v1/conversations/call-1", &json, "").await.unwrap();
    expected(&nowhere, 404, "NOT_FOUND");
    assert_eq!(caller.send("GET", "/health", &[], "").await.unwrap().status, 200);
    // The service and the gateway have the same limit. An event arrives while its stream is open.
    let platform = Service::elsewhere(deployment.gateway.address, deployment.gateway.platform);
    let mut events = platform.events(&item.conversation, "?from=0").await;
    assert_eq!(caller.send("POST", &own, &json, large).await.unwrap().status, 202);
    assert_eq!(events.next().await.unwrap().sequence(), 1);
    drop(events);

    // The service's own refusal arrives complete.
    deployment.redis.kill();
    until("health notices", async || caller.send("GET", "/health", &[], "").await.unwrap().status == 503)
        .await;
    let unavailable = caller.send("POST", &own, &json, "1").await.unwrap();
    assert_eq!(unavailable.json()["error"]["code"], "STORE_UNAVAILABLE", "{unavailable:?}");
    assert!(
        unavailable.headers.contains_key("traceresponse") && unavailable.headers.contains_key("retry-after")
    );

    for service in deployment.services.drain(..) {
        service.drain();
        service.ended().await;
    }
    expected(&caller.send("POST", &own, &json, "1").await.unwrap(), 502, "GATEWAY_UNAVAILABLE");
    let written = deployment.gateway.written();
    assert!(!written.contains("cbt_"), "{written}");
}

/// The default of a setting, as a number.
fn default(section: &str, key: &str) -> u64 {
    let defaults: toml::Table = toml::from_str(include_str!("../../../config/default.toml")).unwrap();
    defaults[section][key].as_integer().unwrap().try_into().unwrap()
}

#[test]
fn limits_of_the_shipped_gateways_agree_with_the_defaults() {
    let nginx = include_str!("../../../config/nginx.conf");
    let directive = |name: &str| -> Vec<&str> {
        let lines = nginx.lines().filter_map(|line| line.trim().strip_prefix(name)?.strip_prefix(' '));
        lines.map(|value| value.trim_end_matches(';')).collect()
    };
    let seconds = |key: &str| format!("{}s", default("http", key) / 1_000);
    assert_eq!(directive("client_header_timeout"), [seconds("head_timeout_ms")]);
    assert_eq!(directive("client_body_timeout"), [seconds("body_timeout_ms")]);
    assert_eq!(directive("send_timeout"), [seconds("write_timeout_ms")]);
    assert_eq!(default("http", "max_body_bytes"), 1024 * 1024);
    assert_eq!(
        (directive("client_max_body_size"), directive("client_body_buffer_size")),
        (vec!["1m"], vec!["1m"])
    );
    // Of clients, then of each upstream.
    let idle = seconds("keep_alive_timeout_ms");
    assert_eq!(directive("keepalive_timeout"), [&idle, "60s", "60s"]);
    assert!(default("http", "keep_alive_timeout_ms") > 60_000);

    let fastify = include_str!("../../../config/fastify/server.js");
    let (head, body) = (default("http", "head_timeout_ms"), default("http", "body_timeout_ms"));
    for (name, value) in [
        ("const MAX_BODY_BYTES = ", default("http", "max_body_bytes")),
        ("const HEAD_TIMEOUT_MS = ", head),
        ("const REQUEST_TIMEOUT_MS = ", head + body),
        ("  keepAliveTimeout: ", 60_000),
    ] {
        let line = fastify.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert_eq!(line.replace('_', "").parse(), Ok(value), "{name}");
    }
}
