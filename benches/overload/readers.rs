//! Many readers that start from the beginning at once: `cargo bench --bench overload -- readers redis://…`.
//!
//! 200 event streams with `?from=0`, first on 200 conversations, then on one, each with four results of 1 MiB, during
//! 50 callbacks per second. Then one reader with a connection to Redis of 3 MB/s.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::connection::{Connection, request};
use super::service::Service;
use super::{Tally, authorization, callback, memory_of, tokens};

const READERS: usize = 200;
pub(crate) const RESULTS: usize = 4;
pub(crate) const RESULT_BYTES: usize = 1 << 20;
const POSTERS: usize = 10;
/// Interval of 50 callbacks per second.
const PAUSE: Duration = Duration::from_millis(200);
/// Bytes per second of the slow connection.
const SLOW_LINE: usize = 3_000_000;

pub(crate) fn redis(url: &str) -> redis::Connection {
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

/// Creates an ended conversation with results on its channel.
pub(crate) async fn filled(service: &Service, name: &str) {
    let body = format!("\"{}\"", "x".repeat(RESULT_BYTES - 2));
    let mut connection = Connection::open(&service.public).await;
    for token in tokens(service, name, RESULTS).await {
        let (status, body) = connection.ask(&callback(&token, &body)).await;
        assert_eq!(status, 202, "{body}");
    }
    let path = format!("/platform/v1/conversations/{name}");
    let mut platform = Connection::open(&service.platform).await;
    assert_eq!(platform.ask(&request("DELETE", &path, &authorization(), "")).await.0, 200);
}

pub(crate) async fn follow(service: &Service, name: &str) -> TcpStream {
    let path = format!("/platform/v1/conversations/{name}/events?from=0");
    let mut stream = TcpStream::connect(&service.platform).await.unwrap();
    stream.write_all(&request("GET", &path, &authorization(), "")).await.unwrap();
    stream
}

/// Reads a stream to its end; returns its length in bytes.
async fn read_all(mut stream: TcpStream) -> usize {
    let (mut length, mut buffer) = (0, vec![0; 64 * 1024]);
    let mut end = Vec::new();
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        assert_ne!(count, 0, "the stream was cut off after {length} bytes");
        length += count;
        end.extend_from_slice(&buffer[count.saturating_sub(8)..count]);
        if end.ends_with(b"\r\n0\r\n\r\n") {
            return length;
        }
        end.drain(..end.len().saturating_sub(8));
    }
}

/// Posts the tokens' results at fixed times.
async fn post(address: String, tokens: Vec<String>, delay: Duration, stop: Arc<AtomicBool>) -> Tally {
    let mut connection = Connection::open(&address).await;
    let mut tally = Tally::default();
    let mut next = Instant::now() + delay;
    for token in tokens {
        tokio::time::sleep_until(next).await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (status, _) = connection.ask(&callback(&token, r#"{"answer":42}"#)).await;
        tally.0.entry(status).or_default().push(next.elapsed());
        next += PAUSE;
    }
    tally
}

/// The largest total of Redis' client output buffers during `meanwhile`, in MiB.
async fn output_buffers<T>(url: &str, meanwhile: impl Future<Output = T>) -> (T, u64) {
    let stop = Arc::new(AtomicBool::new(false));
    let most = Arc::new(AtomicU64::new(0));
    let (url, seen, ended) = (url.to_owned(), Arc::clone(&most), Arc::clone(&stop));
    let looking = tokio::task::spawn_blocking(move || {
        let mut redis = redis(&url);
        while !ended.load(Ordering::Relaxed) {
            let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis).unwrap();
            let held = clients.split(' ').filter_map(|field| field.strip_prefix("omem="));
            seen.fetch_max(held.map(|bytes| bytes.parse::<u64>().unwrap()).sum(), Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let result = meanwhile.await;
    stop.store(true, Ordering::Relaxed);
    looking.await.unwrap();
    (result, most.load(Ordering::Relaxed) >> 20)
}

/// Reads these conversations while callbacks are posted. Returns the total time and the callbacks' response times.
async fn start_over(service: &Service, names: &[String], beside: Vec<String>) -> (Duration, Tally) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut posting = JoinSet::new();
    let each = beside.len() / POSTERS;
    for (number, tokens) in beside.chunks(each).enumerate() {
        let delay = PAUSE * u32::try_from(number).unwrap() / u32::try_from(POSTERS).unwrap();
        posting.spawn(post(service.public.clone(), tokens.to_vec(), delay, Arc::clone(&stop)));
    }
    sleep(Duration::from_millis(500)).await;
    let since = Instant::now();
    let mut reading = JoinSet::new();
    for number in 0..READERS {
        reading.spawn(read_all(follow(service, &names[number % names.len()]).await));
    }
    for length in reading.join_all().await {
        assert!(length > RESULTS * RESULT_BYTES, "{length}");
    }
    let took = since.elapsed();
    stop.store(true, Ordering::Relaxed);
    let mut tally = Tally::default();
    for part in posting.join_all().await {
        tally.add(part);
    }
    (took, tally)
}

/// A proxy to a server with limited throughput.
async fn slow_line(server: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let line = Arc::new(Mutex::new(()));
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let server = TcpStream::connect(&server).await.unwrap();
            let (mut from_server, mut to_server) = server.into_split();
            let line = Arc::clone(&line);
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 32 * 1024];
                while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                    let passing = line.lock().await;
                    sleep(Duration::from_micros((count * 1_000_000 / SLOW_LINE) as u64)).await;
                    drop(passing);
                    if to_client.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

pub(crate) async fn run(url: &str, arguments: &[&str]) {
    let service = Service::start(arguments);
    let run = std::process::id();
    let many: Vec<String> = (0..READERS).map(|number| format!("readers-{run}-{number}")).collect();
    for name in &many {
        filled(&service, name).await;
    }
    let mut broken = Vec::new();
    for (sentence, names) in
        [("200 readers of 200 channels", &many[..]), ("200 readers of one channel", &many[..1])]
    {
        let beside = tokens(&service, &format!("beside-{run}-{}", names.len()), 40 * 50).await;
        let reading = start_over(&service, names, beside);
        let ((took, mut tally), buffers) = output_buffers(url, reading).await;
        println!(
            "{sentence}: {took:.1?}, Redis' output buffers {buffers} MiB, memory {} MiB",
            memory_of(&service)
        );
        let p99 = tally.show("callbacks at the same time");
        if took > Duration::from_secs(15) || p99 > Duration::from_millis(50) || buffers >= 64 {
            broken.push(sentence);
        }
        if tally.0.keys().any(|status| *status != 202) {
            broken.push("not all callbacks were accepted");
        }
    }
    let (server, database) =
        url.strip_prefix("redis://").unwrap().split_once('/').unwrap_or((&url[8..], "0"));
    let slow = format!("redis://{}/{database}", slow_line(server.to_owned()).await);
    let arguments: Vec<&str> =
        arguments.iter().map(|&argument| if argument == url { &*slow } else { argument }).collect();
    let service = Service::start(&arguments);
    let since = Instant::now();
    read_all(follow(&service, &many[1]).await).await;
    println!("one reader over a line of {SLOW_LINE} bytes a second: {:.1?}", since.elapsed());
    if since.elapsed() > Duration::from_secs(5) {
        broken.push("a slow line");
    }
    assert!(broken.is_empty(), "{broken:?}");
}
