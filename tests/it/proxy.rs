//! A wire to Redis that a test can cut, before a script's call is passed on, after it, or in the middle of its
//! answer; that can be slow; and that can have other scripts called than those that were asked for.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Where the wire is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The call does not arrive.
    Call,
    /// The call arrives, and its answer does not.
    Answer,
    /// Of the answer, only the first half arrives.
    HalfAnswer,
}

#[derive(Debug, Default)]
struct Orders {
    /// The next cuts, and how many of them are left.
    cuts: Mutex<(Option<Cut>, usize)>,
    delay_ms: AtomicU64,
    /// Whatever comes is lost, and no connection is closed.
    swallows: AtomicBool,
    /// Hashes of scripts, and of those that are called in their place.
    exchanged: Vec<(String, String)>,
}

impl Orders {
    /// Takes one cut of these kinds, if there is one.
    fn take(&self, kinds: &[Cut]) -> Option<Cut> {
        let mut cuts = self.cuts.lock().unwrap();
        let cut = cuts.0.filter(|cut| cuts.1 > 0 && kinds.contains(cut))?;
        cuts.1 -= 1;
        Some(cut)
    }

    fn all_or_swallowed(&self) -> Pass {
        if self.swallows.load(Ordering::SeqCst) { Pass::Swallowed } else { Pass::All }
    }

    fn wait(&self) {
        let delay = self.delay_ms.load(Ordering::SeqCst);
        if delay > 0 {
            thread::sleep(Duration::from_millis(delay));
        }
    }
}

/// Passes everything on, both ways, until it is told otherwise.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    orders: Arc<Orders>,
}

impl Proxy {
    /// A wire to this port.
    pub(crate) fn to(port: u16) -> Self {
        Self::exchanging(port, Vec::new())
    }

    /// A wire to this port that calls other scripts: each hash is exchanged for the one beside it.
    pub(crate) fn exchanging(port: u16, exchanged: Vec<(String, String)>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let orders = Arc::new(Orders { exchanged, ..Orders::default() });
        let proxy = Self { port: listener.local_addr().unwrap().port(), orders: Arc::clone(&orders) };
        thread::spawn(move || {
            for client in listener.incoming() {
                // A server that is not there closes its client's connection as well.
                if let Ok(server) = TcpStream::connect(("127.0.0.1", port)) {
                    pass_on(client.unwrap(), server, &orders);
                }
            }
        });
        proxy
    }

    /// Its own port.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Cuts the wire at the next so many calls of scripts.
    pub(crate) fn cut(&self, cut: Cut, times: usize) {
        *self.orders.cuts.lock().unwrap() = (Some(cut), times);
    }

    /// How many cuts are left.
    pub(crate) fn cuts_left(&self) -> usize {
        self.orders.cuts.lock().unwrap().1
    }

    /// From now on, or not any more, whatever comes is swallowed, and no connection is closed.
    pub(crate) fn swallow(&self, everything: bool) {
        self.orders.swallows.store(everything, Ordering::SeqCst);
    }

    /// Whatever is passed on from now on comes so many milliseconds late.
    pub(crate) fn delay(&self, millis: u64) {
        self.orders.delay_ms.store(millis, Ordering::SeqCst);
    }
}

fn pass_on(client: TcpStream, server: TcpStream, orders: &Arc<Orders>) {
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let called = Arc::new(Mutex::new(false));
    let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (calls, answers) = (Arc::clone(orders), Arc::clone(orders));
    let call_sent = Arc::clone(&called);
    thread::spawn(move || {
        copy(from_client, to_server, |request| {
            if contains(request, b"EVALSHA") {
                if calls.take(&[Cut::Call]).is_some() {
                    return Pass::Nothing;
                }
                for (asked, called) in &calls.exchanged {
                    exchange(request, asked.as_bytes(), called.as_bytes());
                }
                *call_sent.lock().unwrap() = true;
            }
            calls.wait();
            calls.all_or_swallowed()
        });
    });
    thread::spawn(move || {
        copy(server, client, |_| {
            answers.wait();
            if !std::mem::take(&mut *called.lock().unwrap()) {
                return answers.all_or_swallowed();
            }
            match answers.take(&[Cut::Answer, Cut::HalfAnswer]) {
                None => answers.all_or_swallowed(),
                Some(Cut::HalfAnswer) => Pass::Half,
                Some(_) => Pass::Nothing,
            }
        });
    });
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// Writes one word over another of its length.
fn exchange(bytes: &mut [u8], word: &[u8], other: &[u8]) {
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(word.len()).position(|window| window == word) {
        let start = at + found;
        at = start + word.len();
        bytes[start..at].copy_from_slice(other);
    }
}

/// How much of a piece is passed on; after less than all of it, both connections are closed.
enum Pass {
    All,
    Half,
    Nothing,
    /// Nothing of it, or of what follows, while the connections stay.
    Swallowed,
}

fn copy(mut from: TcpStream, mut to: TcpStream, mut pass: impl FnMut(&mut [u8]) -> Pass) {
    let mut buffer = [0; 16 * 1024];
    let mut broken = false;
    while let Ok(length) = from.read(&mut buffer) {
        let piece = &mut buffer[..length];
        if piece.is_empty() {
            break;
        }
        let passed = match pass(piece) {
            Pass::All => length,
            Pass::Half => length / 2,
            Pass::Nothing => 0,
            Pass::Swallowed => {
                broken = true;
                0
            }
        };
        if broken {
            continue;
        }
        if to.write_all(&piece[..passed]).is_err() || passed < length {
            break;
        }
    }
    // One that is closed already needs no closing.
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}
