//! Counts the instructions of a callback on the memory store, from the bytes of the request to those of the reply.
//!
//! ```sh
//! cargo bench --bench instructions            # fails if the count differs from the recorded one by more than the tolerance
//! cargo bench --bench instructions -- --record
//! ```
//!
//! Times depend on the machine and its load; instruction counts hardly do. The program runs itself under callgrind, which
//! requires `valgrind`. Does not use gungraun, because it requires a separately installed runner of the same version.
//! For a profile: `callgrind_annotate target/tmp/callgrind.out`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark: it stops at whatever goes wrong, and prints"
)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};

use callback_ingress::app;
use callback_ingress::clock::Clock;
use callback_ingress::config::{self, Sources};
use callback_ingress::telemetry::Telemetry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

/// Number of callbacks.
const CALLBACKS: usize = 500;
/// Maximum difference from the recorded count, in percent.
const TOLERANCE: u64 = 3;
const KEY: &str = "the-service-key-of-the-benchmark";
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
const PROFILE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/callgrind.out");
const RESULT: &str =
    "a result of some length, as a tool would return it: the weather in Oslo is 12 degrees and rain";

fn main() -> ExitCode {
    if matches!(std::env::args().nth(1).as_deref(), Some("--bench" | "--record")) {
        return check();
    }
    // Runs under callgrind, and under `cargo test`, which checks that the callbacks are accepted.
    take_callbacks();
    ExitCode::SUCCESS
}

fn check() -> ExitCode {
    let counted = count();
    if std::env::args().any(|argument| argument == "--record") {
        fs::write(RECORDED, format!("{counted}\n")).unwrap();
        println!("{counted} instructions a callback: recorded");
        return ExitCode::SUCCESS;
    }
    let recorded: u64 = fs::read_to_string(RECORDED).unwrap().trim().parse().unwrap();
    println!("{counted} instructions a callback, {recorded} recorded");
    let difference = counted.abs_diff(recorded);
    if difference * 100 > recorded * TOLERANCE {
        eprintln!(
            "the difference is more than {TOLERANCE} %: find the cause, or record the new count (--record)"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Number of instructions per callback, measured by callgrind.
fn count() -> u64 {
    fs::create_dir_all(Path::new(PROFILE).parent().unwrap()).unwrap();
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*post_all*", "-q"])
        .arg(format!("--callgrind-out-file={PROFILE}"))
        .arg(std::env::current_exe().unwrap())
        .arg("callbacks")
        .status();
    assert!(ran.expect("valgrind is installed").success(), "the callbacks were not taken");
    let profile = fs::read_to_string(PROFILE).unwrap();
    let total = profile.lines().find_map(|line| line.strip_prefix("totals: ")).expect("a total");
    total.trim().parse::<u64>().unwrap() / CALLBACKS as u64
}

fn take_callbacks() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (public, tokens) = runtime.block_on(start());
    let mut stream = runtime.block_on(TcpStream::connect(public)).unwrap();
    // The warm-up creates everything that is created only once.
    let (first, others) = tokens.split_first().unwrap();
    runtime.block_on(post(&mut stream, first));
    post_all(&runtime, &mut stream, others);
}

#[inline(never)]
fn post_all(runtime: &Runtime, stream: &mut TcpStream, tokens: &[String]) {
    for token in tokens {
        runtime.block_on(post(stream, token));
    }
}

async fn post(stream: &mut TcpStream, token: &str) {
    let body = format!("{{\"answer\":\"{RESULT}\"}}");
    let head =
        "POST /api/v1/webhooks/callbacks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
    let length = body.len();
    let request = format!("{head}\r\nx-callback-token: {token}\r\ncontent-length: {length}\r\n\r\n{body}");
    let reply = say(stream, &request).await;
    assert!(reply.starts_with("HTTP/1.1 202"), "{reply}");
}

/// Sends a request, and reads a reply until the closing brace of its body.
async fn say(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::with_capacity(2_048);
    while !reply.ends_with(b"}") {
        assert_ne!(stream.read_buf(&mut reply).await.unwrap(), 0, "{:?}", String::from_utf8_lossy(&reply));
    }
    String::from_utf8(reply).unwrap()
}

/// Starts the service and issues the work items. Returns the address for callbacks, and the tokens.
async fn start() -> (SocketAddr, Vec<String>) {
    let service_keys = format!("[{KEY:?}]");
    let flags = [
        ("http.public_addr", "127.0.0.1:0"),
        ("http.platform_addr", "127.0.0.1:0"),
        ("platform.service_keys", &service_keys),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let config = config::load(Sources { flags, ..Sources::default() }).unwrap().config;
    let app = app::build(&config, Clock::System, Telemetry::local()).await.unwrap();
    let (public, platform) = (app.public_addr(), app.platform_addr());
    tokio::spawn(app.run(std::future::pending()));
    let mut stream = TcpStream::connect(platform).await.unwrap();
    let call = |line: &str, body: &str| {
        let length = body.len();
        let headers = "host: localhost\r\ncontent-type: application/json";
        format!(
            "{line} HTTP/1.1\r\n{headers}\r\nauthorization: Bearer {KEY}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    };
    say(&mut stream, &call("PUT /platform/v1/conversations/call-1", "{}")).await;
    let issue = call("POST /platform/v1/conversations/call-1/work-items", r#"{"kind":"tool"}"#);
    let mut tokens = Vec::new();
    for _ in 0..=CALLBACKS {
        let issued = say(&mut stream, &issue).await;
        let at = issued.find("cbt_").expect("a token");
        tokens.push(issued[at..].split('"').next().unwrap().to_owned());
    }
    (public, tokens)
}
