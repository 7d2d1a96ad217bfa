//! Overloads the program and measures the effect on other clients:
//! `cargo bench --bench overload -- [seconds] [redis://…]`. Loopback only. Fails if a bound is exceeded.
//!
//! In this order: 10,000 idle and 2,000 slow connections; 2,000 connections that post as fast as they can, by default
//! for 60 seconds; recovery; one conversation with 10,000 held results and one with results of 1 MiB, each with a
//! stream that is never read.
//!
//! With `readers` or `memory` before the URL, that module runs instead.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

mod connection;
mod memory;
mod readers;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::connection::{Connection, request};
use self::service::{KEY, Service};

const IDLE: u32 = 10_000;
const SLOW: u32 = 2_000;
const GREEDY: usize = 2_000;
const HELD: usize = 10_000;

/// Response times by status.
#[derive(Default)]
struct Tally(BTreeMap<u16, Vec<Duration>>);

impl Tally {
    fn add(&mut self, other: Self) {
        for (status, durations) in other.0 {
            self.0.entry(status).or_default().extend(durations);
        }
    }

    /// Prints them; returns the 99th percentile of successful responses.
    fn show(&mut self, name: &str) -> Duration {
        let mut taken = Duration::ZERO;
        for (status, durations) in &mut self.0 {
            durations.sort();
            let at = |percent: usize| durations[(durations.len() - 1) * percent / 100];
            println!("{name:<40} {status} {:>9} p50 {:>9.1?} p99 {:>9.1?}", durations.len(), at(50), at(99));
            if (200..300).contains(status) {
                taken = taken.max(at(99));
            }
        }
        taken
    }
}

/// The program's resident memory now, in MiB.
fn memory_of(service: &Service) -> u64 {
    service.resident() / 1024
}

fn authorization() -> String {
    format!("Authorization: Bearer {KEY}\r\n")
}

/// Opens a conversation and issues `count` items; returns their tokens.
async fn tokens(service: &Service, name: &str, count: usize) -> Vec<String> {
    let mut platform = Connection::open(&service.platform).await;
    let path = format!("/platform/v1/conversations/{name}");
    platform.ask(&request("PUT", &path, &authorization(), "{}")).await;
    let asked = r#"{"kind":"tool","timeoutMs":900000}"#;
    let issue = request("POST", &format!("{path}/work-items"), &authorization(), asked);
    let mut tokens = Vec::new();
    for _ in 0..count {
        let (status, body) = platform.ask(&issue).await;
        assert_eq!(status, 201, "{body}");
        let issued: serde_json::Value = serde_json::from_str(&body).unwrap();
        tokens.push(issued["callback"]["token"].as_str().unwrap().to_owned());
    }
    tokens
}

fn callback(token: &str, body: &str) -> Vec<u8> {
    request("POST", "/api/v1/webhooks/callbacks", &format!("X-Callback-Token: {token}\r\n"), body)
}

/// Posts with pauses until `stop` is set.
async fn post(address: String, token: String, pause: Duration, stop: Arc<AtomicBool>) -> Tally {
    let mut connection = Connection::open(&address).await;
    let request = callback(&token, r#"{"answer":42}"#);
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let (status, _) = connection.ask(&request).await;
        tally.0.entry(status).or_default().push(sent.elapsed());
        sleep(pause).await;
    }
    tally
}

/// Response times of a second client that posts every 5 ms during the overload.
async fn measure_other_client<T>(
    service: &Service,
    token: &str,
    meanwhile: impl Future<Output = T>,
) -> (T, Tally) {
    let stop = Arc::new(AtomicBool::new(false));
    let pause = Duration::from_millis(5);
    let other = tokio::spawn(post(service.public.clone(), token.to_owned(), pause, Arc::clone(&stop)));
    let result = meanwhile.await;
    stop.store(true, Ordering::Relaxed);
    (result, other.await.unwrap())
}

/// A connection from one of several loopback addresses, so that ports do not run out.
async fn connect(address: &str, number: u32) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("127.0.0.{}:0", 2 + number % 8).parse().unwrap()).unwrap();
    socket.connect(address.parse().unwrap()).await.unwrap()
}

/// Opens idle connections and connections that send a body slowly. Returns the additional memory, in MiB.
async fn open_idle_and_slow(service: &Service) -> u64 {
    let before = memory_of(service);
    let mut idle = Vec::new();
    for number in 0..IDLE {
        idle.push(connect(&service.public, number).await);
    }
    let mut slow = JoinSet::new();
    for number in 0..SLOW {
        let address = service.public.clone();
        slow.spawn(async move {
            loop {
                let mut stream = connect(&address, number).await;
                let head =
                    b"POST /api/v1/webhooks/callbacks HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
                let mut bytes = head.to_vec();
                // Reads until the service closes the slow connection.
                while stream.write_all(&bytes).await.is_ok() {
                    bytes = b" ".to_vec();
                    sleep(Duration::from_secs(1)).await;
                }
            }
        });
    }
    sleep(Duration::from_secs(15)).await;
    memory_of(service) - before
}

/// Posts as fast as possible over many connections. Returns the response times and the peak memory.
async fn flood(service: &Service, tokens: &[String], seconds: u64) -> (Tally, u64) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut posting = JoinSet::new();
    for number in 0..GREEDY {
        let token = tokens[number % tokens.len()].clone();
        posting.spawn(post(service.public.clone(), token, Duration::ZERO, Arc::clone(&stop)));
    }
    let mut memory = 0;
    for _ in 0..seconds {
        sleep(Duration::from_secs(1)).await;
        memory = memory.max(memory_of(service));
    }
    stop.store(true, Ordering::Relaxed);
    let mut tally = Tally::default();
    for part in posting.join_all().await {
        tally.add(part);
    }
    (tally, memory)
}

/// Sends the results of a conversation with the first one last, while an event stream of it is not read.
async fn hold(service: &Service, name: &str, count: usize, bytes: usize) -> Tally {
    let mut tokens = tokens(service, name, count + 1).await;
    let mut greedy = TcpStream::connect(&service.platform).await.unwrap();
    let follow = format!("/platform/v1/conversations/{name}/events?from=0");
    greedy.write_all(&request("GET", &follow, &authorization(), "")).await.unwrap();
    let body = format!("\"{}\"", "x".repeat(bytes - 2));
    let mut connection = Connection::open(&service.public).await;
    let mut tally = Tally::default();
    let first = tokens.remove(0);
    tokens.push(first);
    for token in tokens {
        let sent = Instant::now();
        let (status, _) = connection.ask(&callback(&token, &body)).await;
        tally.0.entry(status).or_default().push(sent.elapsed());
    }
    tally
}

async fn run(seconds: u64, arguments: &[&str]) {
    let service = Service::start(arguments);
    let items = tokens(&service, &format!("flood-{}", std::process::id()), 64).await;
    let bound = Duration::from_millis(250);
    let mut broken = Vec::new();
    let mut check = |holds: bool, what: &'static str| broken.extend((!holds).then_some(what));
    println!("{:<40} {} MiB", "memory at the start", memory_of(&service));

    let (cost, mut tally) = measure_other_client(&service, &items[0], open_idle_and_slow(&service)).await;
    println!("{IDLE} idle and {SLOW} slow connections: {cost} MiB");
    check(tally.show("another client, meanwhile") < bound, "many connections delay another client");
    check(cost < 200, "many connections use too much memory");

    let (mut tally, memory) = flood(&service, &items, seconds).await;
    println!("{GREEDY} connections for {seconds} s: {memory} MiB at most");
    check(tally.show("posted") < bound, "accepted callbacks take too long");
    check(tally.0.keys().all(|status| [200, 202, 429, 503].contains(status)), "unexpected status");
    let after = measure_other_client(&service, &items[0], sleep(Duration::from_millis(500)));
    check(
        after.await.1.show("another client, in the half second after") < bound / 5,
        "the service does not recover",
    );

    let name = format!("held-{}", std::process::id());
    for (sentence, count, bytes) in
        [("small results, held", HELD, 64), ("results of 1 MiB, held", 200, 1 << 20)]
    {
        let name = format!("{name}-{bytes}");
        let (mut held, mut tally) =
            measure_other_client(&service, &items[0], hold(&service, &name, count, bytes)).await;
        held.show(sentence);
        check(
            tally.show("another client, meanwhile") < bound,
            "a conversation with held results delays another client",
        );
        println!("{:<40} {} MiB", "memory", memory_of(&service));
    }
    assert!(broken.is_empty(), "{broken:?}");
}

fn main() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let mut arguments = vec!["--log-level", "off,callback_ingress::cli=info"];
    let mut seconds = 60;
    let given: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut mode = "";
    for argument in &given {
        if ["readers", "memory"].contains(&argument.as_str()) {
            mode = argument;
        } else if argument.starts_with("redis") {
            arguments.extend(["--store", argument]);
        } else {
            seconds = argument.parse().unwrap();
        }
    }
    let url = arguments.last().copied().unwrap_or_default().to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match mode {
        "readers" => runtime.block_on(readers::run(&url, &arguments)),
        "memory" => runtime.block_on(memory::run(&url, &arguments)),
        _ => runtime.block_on(run(seconds, &arguments)),
    }
}
