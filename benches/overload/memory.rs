//! Bounds on memory, and its release: `cargo bench --bench overload -- memory redis://…`.
//!
//! 400 clients retry posts of 1 MiB while Redis is suspended for 15 seconds and for a minute after it resumes. Then
//! 1,000 event streams on a channel of four results of 1 MiB are not read.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::connection::{Connection, request};
use super::readers::{RESULT_BYTES, filled, redis};
use super::service::Service;
use super::{Tally, authorization, callback, memory_of, tokens};

const CLIENTS: usize = 400;
const SILENCE: Duration = Duration::from_secs(15);
const STREAMS: usize = 1_000;
/// The default of `http.max_buffered_bytes`, in MiB.
const BUDGET: u64 = 256;

/// The peak memory during `meanwhile`, in MiB.
async fn most_memory<T>(service: &Service, meanwhile: impl Future<Output = T>) -> (T, u64) {
    let most = AtomicU64::new(0);
    let looking = async {
        loop {
            most.fetch_max(memory_of(service), Ordering::Relaxed);
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        result = meanwhile => (result, most.load(Ordering::Relaxed)),
        () = looking => unreachable!(),
    }
}

/// Retries a post until it succeeds.
async fn retry_until_accepted(address: String, token: String) -> Tally {
    let body = format!("\"{}\"", "x".repeat(RESULT_BYTES - 2));
    let request = callback(&token, &body);
    let mut tally = Tally::default();
    let mut connection = Connection::open(&address).await;
    loop {
        let sent = Instant::now();
        // A refusal may close the connection before the whole body is read.
        let Ok((status, _)) = connection.try_ask(&request).await else {
            connection = Connection::open(&address).await;
            continue;
        };
        tally.0.entry(status).or_default().push(sent.elapsed());
        if status < 300 {
            return tally;
        }
        assert_eq!(status, 503);
        sleep(Duration::from_millis(250)).await;
    }
}

fn signal(pid: &str, name: &str) {
    assert!(Command::new("kill").args(["-s", name, pid]).status().unwrap().success());
}

pub(crate) async fn run(url: &str, arguments: &[&str]) {
    let info: String = ::redis::cmd("INFO").arg("server").query(&mut redis(url)).unwrap();
    let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap().trim().to_owned();
    let service = Arc::new(Service::start(arguments));
    let run = std::process::id();
    let mut all = Vec::new();
    for number in 0..8 {
        all.extend(tokens(&service, &format!("silence-{run}-{number}"), CLIENTS / 8).await);
    }
    let start = memory_of(&service);
    println!("{:<40} {start} MiB", "memory at the start");
    let mut broken = Vec::new();

    signal(&pid, "STOP");
    let mut posting = JoinSet::new();
    for token in all {
        posting.spawn(retry_until_accepted(service.public.clone(), token));
    }
    let ((), silent) = most_memory(&service, sleep(SILENCE)).await;
    signal(&pid, "CONT");
    let since = Instant::now();
    let (tallies, after) = most_memory(&service, posting.join_all()).await;
    let mut tally = Tally::default();
    for part in tallies {
        tally.add(part);
    }
    println!(
        "{:<40} {silent} MiB, {after} MiB until all were accepted, {:.1?}",
        "memory while Redis is suspended",
        since.elapsed()
    );
    tally.show("posted");
    if silent.max(after) > BUDGET * 3 / 2 {
        broken.push("too much memory while Redis is suspended");
    }
    for seconds in [1, 10, 49] {
        sleep(Duration::from_secs(seconds)).await;
        println!("{:<40} {} MiB", "memory after it", memory_of(&service));
    }
    if memory_of(&service) > start + 64 {
        broken.push("memory is not released");
    }

    let name = format!("unread-{run}");
    filled(&service, &name).await;
    let path = format!("/platform/v1/conversations/{name}/events?from=0");
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(service.platform.parse().unwrap()).await.unwrap();
        stream.write_all(&request("GET", &path, &authorization(), "")).await.unwrap();
        streams.push(stream);
    }
    let ((), unread) = most_memory(&service, sleep(SILENCE)).await;
    println!("{:<40} {unread} MiB", format!("{STREAMS} streams that never read"));
    if unread > BUDGET + 64 {
        broken.push("too much memory for streams that never read");
    }
    drop(streams);
    sleep(Duration::from_secs(10)).await;
    println!("{:<40} {} MiB", "memory after them", memory_of(&service));
    assert!(broken.is_empty(), "{broken:?}");
}
