//! The log has the location of a panic, never its message.

use std::io::Write;
use std::panic::panic_any;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use callback_ingress::config::{Exports, Sources, load};
use callback_ingress::http::connection::ConnectionLimits;
use callback_ingress::http::context::{Instrumentation, Listener};
use callback_ingress::http::metrics::RequestMetrics;
use callback_ingress::http::observe::observe_requests;
use callback_ingress::http::refusal_summaries::RefusalSummaries;
use callback_ingress::http::server;
use callback_ingress::telemetry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::search::Capture;
use super::tokens::{Known, signed};
use super::{nothing_leaks, wire};
use crate::collector::{Collector, Protocol};

/// The messages of the panics.
const SAID: &str = "WHAT_THE_PANICS_SAY";
/// Ways in which a handler panics.
const WAYS: [&str; 5] = ["text", "value", "unwrap", "task", "drop"];

#[test]
fn panic_messages_are_not_logged_or_sent() {
    let known = Known::new();
    let token = signed(&known.signing_key("k1"), "call-1", 4_000_000_000_000);
    known.token("a work item", &token);
    let said = format!("{token} {} {}", known.credential("the service key"), known.result());
    let collector = Collector::start(Protocol::Http);
    // In a process of its own, because the panic hook is global.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "secrecy::panics::a_process_that_panics", "--nocapture"])
        .env_clear()
        .env(SAID, said)
        .env("RUST_BACKTRACE", "full")
        .envs(collector.variables())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{out}\n{err}");
    assert_eq!(out.matches(r#""code":"INTERNAL""#).count(), WAYS.len(), "{out}");
    // One panic in the task and one in the code that awaits it.
    assert_eq!(err.matches("panic (this is a bug)").count(), WAYS.len() + 1, "{err}");
    assert!(err.contains(file!()), "where it happened is told: {err}");
    let received = collector.received();
    assert!(received.logs.len() >= 2 * WAYS.len() && received.spans.len() >= WAYS.len(), "{received:?}");
    let mut captures = vec![Capture::new("standard output", out), Capture::new("standard error", err)];
    captures.extend(received.raw.iter().map(|raw| Capture::new("what was exported", raw.clone())));
    nothing_leaks(&known, &captures);
}

struct PanicsWhenDropped(String);

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("{}", self.0);
    }
}

async fn panicking(way: &str, said: String) -> &'static str {
    match way {
        "text" => panic!("{said}"),
        "value" => panic_any(said),
        "unwrap" => serde_json::from_value(said.into()).map(|(): ()| "not reached").unwrap(),
        "task" => tokio::spawn(async move { panic!("{said}") }).await.unwrap(),
        _ => {
            drop(PanicsWhenDropped(said));
            "not reached"
        }
    }
}

/// Panics in a handler, within the service's middleware.
#[test]
#[expect(clippy::disallowed_methods, reason = "what it is to do is told to the process by variables")]
#[ignore = "the process in which `panic_messages_are_not_logged_or_sent` lets handlers panic"]
fn a_process_that_panics() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let flags = vec![("telemetry.log_level".to_owned(), "trace".to_owned())];
        let config = load(Sources { flags, ..Sources::default() }).unwrap().config;
        let exports = Exports::from_variables(|name| std::env::var(name).ok()).unwrap();
        let (telemetry, flush) = telemetry::start(&config.telemetry, exports).unwrap();
        let said = std::env::var(SAID).unwrap();
        let mut routes = Router::new();
        for way in WAYS {
            let said = said.clone();
            routes = routes.route(&format!("/{way}"), post(move || panicking(way, said)));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = ConnectionLimits {
            head_timeout: Duration::from_secs(9),
            write_timeout: Duration::from_secs(9),
            keep_alive_timeout: Duration::from_secs(9),
            max_connections: 9,
            half_close: true,
        };
        let stop = CancellationToken::new();
        let trusted_proxies = config.trusted_proxies();
        let refusal_summaries = Arc::new(RefusalSummaries::new(64));
        let instrumentation = Instrumentation {
            listener: Listener::Public,
            scheme: "http",
            trusted_proxies,
            metrics: Arc::new(RequestMetrics::new(&telemetry.metrics)),
            telemetry,
            refusal_summaries,
        };
        let routes = observe_requests(instrumentation, routes);
        let serving = tokio::spawn(server::serve(listener, routes, limits, None, stop.clone()));
        for way in WAYS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&wire::request(&format!("POST /{way}\n\n"), &[])).await.unwrap();
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply).await.unwrap();
            std::io::stdout().write_all(&reply).unwrap();
        }
        stop.cancel();
        serving.await.unwrap();
        flush.flush(Duration::from_secs(9)).await;
    });
}
