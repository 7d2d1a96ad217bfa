//! Measures the time from a post to its event on the platform's event stream, on an idle machine.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::http;
use super::issue::{Items, authorization};
use super::run::{Request, histogram, percentiles};
use crate::protocol::{Issuer, Latencies, Target};

/// Timeout of an event.
const LATEST: Duration = Duration::from_secs(10);

/// Posts the results of the first conversation one by one. Each post waits for the event of the previous one.
pub(super) fn follow(
    target: &Target,
    items: &Items,
    requests: &[Request],
    body: &[u8],
    pause_ms: u64,
) -> Latencies {
    let Issuer::Service { platform, key } = &target.issuer else { panic!("a peer has no event stream") };
    let mut stream = TcpStream::connect(platform).unwrap();
    let path = format!("/platform/v1/conversations/{}/events?from=0", items.conversations[0]);
    stream.write_all(&http::head("GET", &path, &authorization(key), 0)).unwrap();
    let events = read_events(stream);
    let mut poster = TcpStream::connect(target.public).unwrap();
    poster.set_nodelay(true).unwrap();
    let (mut posts, mut seen, mut unexpected) = (histogram(), histogram(), 0);
    for (number, request) in requests.iter().enumerate() {
        std::thread::sleep(Duration::from_millis(pause_ms));
        let message = [&request.head, body].concat();
        let sent = Instant::now();
        poster.write_all(&message).unwrap();
        let status = read_reply(&mut poster);
        let took = sent.elapsed();
        unexpected += u64::from(status != request.expected);
        let event = events.recv_timeout(LATEST).expect("an event follows each post");
        // The first posts are the warm-up.
        if number >= requests.len() / 10 {
            posts.saturating_record(micros(took));
            seen.saturating_record(micros(event.saturating_duration_since(sent)));
        }
    }
    Latencies { post: percentiles(&posts), event: percentiles(&seen), unexpected }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap()
}

fn read_reply(stream: &mut TcpStream) -> u16 {
    let (mut buffer, mut filled) = ([0; 4096], 0);
    loop {
        let read = stream.read(&mut buffer[filled..]).unwrap();
        assert_ne!(read, 0, "the connection was closed before the reply");
        filled += read;
        if let Some(reply) = http::reply(&buffer[..filled]).filter(|reply| reply.end <= filled) {
            return reply.status;
        }
    }
}

/// Sends the time at which each event was read. An event is a `data:` line; at most one is in flight.
fn read_events(mut stream: TcpStream) -> mpsc::Receiver<Instant> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut buffer, mut text) = ([0; 8192], Vec::<u8>::new());
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            let now = Instant::now();
            text.extend(&buffer[..read]);
            let has_data = text.windows(5).any(|window| window == b"data:");
            if text.windows(2).any(|window| window == b"\n\n") {
                text.clear();
                if has_data && sender.send(now).is_err() {
                    break;
                }
            }
        }
    });
    receiver
}
