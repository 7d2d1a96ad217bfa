//! Sends requests over non-blocking connections, in a closed or an open loop, and counts.
//!
//! Each thread polls its own connections. This costs less than an async runtime, and is precise to about 50
//! microseconds instead of a millisecond.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, Timespec, poll};

use super::connection::Connection;
use crate::protocol::{Percentiles, Tally};

/// Number of threads of a closed loop.
const THREADS: usize = 2;
/// Maximum number of requests in flight in an open loop. The service accepts at least as many.
const OPEN_CONNECTIONS: usize = 256;
/// Number of connections that are opened without a pause.
const AT_ONCE: usize = 32;
/// Maximum time without a reply.
const STUCK: Duration = Duration::from_secs(20);

/// The requests, and the expected status.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) head: Vec<u8>,
    pub(crate) expected: u16,
}

/// Bodies of replies, by the number of the request.
pub(super) type Bodies = Vec<(usize, Vec<u8>)>;

/// Closed loop: each connection sends its next request after the reply, until all requests are sent or the time is
/// over.
pub(super) fn closed(
    address: SocketAddr,
    requests: &[Request],
    body: &[u8],
    connections: usize,
    seconds: f64,
) -> Tally {
    run_closed(address, requests, body, connections, seconds, false).0
}

/// Like `closed`, for requests that include their bodies. Keeps the bodies of the replies.
pub(super) fn closed_keeping(
    address: SocketAddr,
    requests: &[Request],
    connections: usize,
    seconds: f64,
) -> (Tally, Bodies) {
    run_closed(address, requests, &[], connections, seconds, true)
}

fn run_closed(
    address: SocketAddr,
    requests: &[Request],
    body: &[u8],
    connections: usize,
    seconds: f64,
    keep: bool,
) -> (Tally, Bodies) {
    let threads = THREADS.min(connections);
    let share = |number| connections / threads + usize::from(number < connections % threads);
    let drives = (0..threads).map(|number| Drive::new(address, share(number), requests, body, keep));
    let drives: Vec<_> = drives.collect();
    let (begin, next) = (Instant::now(), AtomicUsize::new(0));
    let end = begin + Duration::from_secs_f64(seconds);
    let parts = std::thread::scope(|scope| {
        let running: Vec<_> = drives
            .into_iter()
            .map(|drive| {
                let next = &next;
                scope.spawn(move || {
                    let take = |now: Instant| {
                        let at = (now < end).then(|| next.fetch_add(1, Ordering::Relaxed));
                        at.filter(|&at| at < requests.len()).map_or(Next::Over, |at| Next::Send(at, now))
                    };
                    drive.run(take)
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    tally(parts, begin.elapsed())
}

/// Open loop: sends at a fixed rate. The latency of a request starts at its scheduled time.
pub(super) fn open(address: SocketAddr, requests: &[Request], body: &[u8], rate: f64) -> Tally {
    let drive = Drive::new(address, OPEN_CONNECTIONS, requests, body, false);
    let begin = Instant::now();
    let due = |at: usize| begin + Duration::from_secs_f64(at as f64 / rate);
    let mut next = 0;
    let take = |now: Instant| {
        if next == requests.len() {
            return Next::Over;
        }
        let due = due(next);
        if due > now {
            return Next::Wait(due);
        }
        next += 1;
        Next::Send(next - 1, due)
    };
    let counted = drive.run(take);
    tally(vec![counted], begin.elapsed()).0
}

/// The next action of a thread.
enum Next {
    /// Send this request. Its latency starts at this time.
    Send(usize, Instant),
    Wait(Instant),
    Over,
}

/// Replies and latencies of one thread.
struct Counted {
    latencies: Histogram<u64>,
    statuses: Vec<(u16, u64)>,
    unexpected: u64,
    bodies: Bodies,
}

/// The connections of a thread, and the requests that they send.
struct Drive<'a> {
    requests: &'a [Request],
    body: &'a [u8],
    idle: Vec<Connection>,
    busy: Vec<Connection>,
    /// Whether to keep the bodies of the replies.
    keep: bool,
    counted: Counted,
}

impl<'a> Drive<'a> {
    fn new(
        address: SocketAddr,
        connections: usize,
        requests: &'a [Request],
        body: &'a [u8],
        keep: bool,
    ) -> Self {
        let open = |number| {
            // The listener's backlog is short: a connection that does not fit waits for a second.
            if number % AT_ONCE == AT_ONCE - 1 {
                std::thread::sleep(Duration::from_millis(2));
            }
            Connection::open(address)
        };
        let idle = (0..connections).map(open).collect();
        let counted =
            Counted { latencies: histogram(), statuses: Vec::new(), unexpected: 0, bodies: Vec::new() };
        Self { requests, body, idle, busy: Vec::new(), keep, counted }
    }

    fn run(mut self, mut take: impl FnMut(Instant) -> Next) -> Counted {
        let mut over = false;
        loop {
            let mut wake = None;
            while let Some(mut connection) = (!over).then(|| self.idle.pop()).flatten() {
                match take(Instant::now()) {
                    Next::Send(at, since) => {
                        connection.send(at, since, &self.requests[at].head, self.body);
                        self.busy.push(connection);
                        continue;
                    }
                    Next::Wait(due) => wake = Some(due),
                    Next::Over => over = true,
                }
                self.idle.push(connection);
                break;
            }
            if over && self.busy.is_empty() {
                return self.counted;
            }
            let ready = self.poll(wake);
            for at in ready.into_iter().rev() {
                self.proceed(at);
            }
        }
    }

    /// The busy connections that are ready, in ascending order.
    fn poll(&self, wake: Option<Instant>) -> Vec<usize> {
        let wait = wake.map_or(STUCK, |due| due.saturating_duration_since(Instant::now()));
        let wait = Timespec::try_from(wait).unwrap();
        let mut polled: Vec<PollFd<'_>> = self.busy.iter().map(Connection::interest).collect();
        let ready = poll(&mut polled, Some(&wait)).unwrap();
        assert!(ready > 0 || wake.is_some(), "no reply within {STUCK:?}");
        let ready = polled.iter().enumerate().filter(|(_, polled)| !polled.revents().is_empty());
        ready.map(|(at, _)| at).collect()
    }

    fn proceed(&mut self, at: usize) {
        let connection = &mut self.busy[at];
        let request = &self.requests[connection.current];
        let Some(reply) = connection.proceed(&request.head, self.body) else { return };
        let latency = u64::try_from(connection.since.elapsed().as_nanos() / 1000).unwrap();
        self.counted.latencies.saturating_record(latency);
        match self.counted.statuses.iter_mut().find(|(status, _)| *status == reply.status) {
            Some((_, count)) => *count += 1,
            None => self.counted.statuses.push((reply.status, 1)),
        }
        if reply.status != request.expected {
            if self.counted.unexpected == 0 {
                let (status, expected) = (reply.status, request.expected);
                let text = String::from_utf8_lossy(connection.body(reply));
                eprintln!("a reply has status {status} where {expected} is expected: {text}");
            }
            self.counted.unexpected += 1;
        }
        if self.keep {
            self.counted.bodies.push((connection.current, connection.body(reply).to_vec()));
        }
        connection.finish();
        let connection = self.busy.swap_remove(at);
        self.idle.push(connection);
    }
}

/// A histogram of microseconds up to a minute, with three significant digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).unwrap()
}

pub(super) fn percentiles(latencies: &Histogram<u64>) -> Percentiles {
    let at = |quantile| latencies.value_at_quantile(quantile);
    Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: latencies.max() }
}

fn tally(parts: Vec<Counted>, elapsed: Duration) -> (Tally, Bodies) {
    let (mut latencies, mut bodies) = (histogram(), Vec::new());
    let mut tally = Tally { seconds: elapsed.as_secs_f64(), ..Tally::default() };
    for part in parts {
        latencies.add(part.latencies).unwrap();
        bodies.extend(part.bodies);
        tally.unexpected += part.unexpected;
        for (status, count) in part.statuses {
            *tally.statuses.entry(status).or_default() += count;
        }
    }
    tally.requests = latencies.len();
    tally.latency = percentiles(&latencies);
    (tally, bodies)
}
