//! A TCP proxy in front of Redis that injects faults: it closes the connection before a script call, after it or in the
//! middle of its reply; it delays or drops data; and it replaces the hashes of called scripts.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Where in a script call the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Before the call reaches Redis.
    Call,
    /// After the call has reached Redis, before its reply.
    Answer,
    /// In the middle of the reply.
    HalfAnswer,
}

#[derive(Debug, Default)]
struct Faults {
    /// The kind of the next cuts, and how many are left.
    cuts: Mutex<(Option<Cut>, usize)>,
    delay_ms: AtomicU64,
    /// Drops all data and keeps the connections open.
    swallows: AtomicBool,
    /// Script hashes, each with its replacement.
    exchanged: Vec<(String, String)>,
}

impl Faults {
    /// Uses up one cut, if the next one is of these kinds.
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

/// A running proxy. Without faults it forwards both directions unchanged.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    faults: Arc<Faults>,
}

impl Proxy {
    /// Forwards to this port of loopback.
    pub fn to(port: u16) -> Self {
        Self::exchanging(port, Vec::new())
    }

    /// Forwards to this port, with the first script hash of each pair replaced by the second.
    pub fn exchanging(port: u16, exchanged: Vec<(String, String)>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let faults = Arc::new(Faults { exchanged, ..Faults::default() });
        let proxy = Self { port: listener.local_addr().unwrap().port(), faults: Arc::clone(&faults) };
        thread::spawn(move || {
            for client in listener.incoming() {
                // Without a server, the client's connection is dropped here.
                if let Ok(server) = TcpStream::connect(("127.0.0.1", port)) {
                    pass_on(client.unwrap(), server, &faults);
                }
            }
        });
        proxy
    }

    /// The port that the proxy listens on.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Closes the connection at each of the next `times` script calls.
    pub fn cut(&self, cut: Cut, times: usize) {
        *self.faults.cuts.lock().unwrap() = (Some(cut), times);
    }

    /// The number of cuts that have not happened yet.
    pub fn cuts_left(&self) -> usize {
        self.faults.cuts.lock().unwrap().1
    }

    /// Switches dropping of all data on or off. Connections stay open.
    pub fn swallow(&self, everything: bool) {
        self.faults.swallows.store(everything, Ordering::SeqCst);
    }

    /// Delays all data by this many milliseconds from now on.
    pub fn delay(&self, millis: u64) {
        self.faults.delay_ms.store(millis, Ordering::SeqCst);
    }
}

fn pass_on(client: TcpStream, server: TcpStream, faults: &Arc<Faults>) {
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let called = Arc::new(Mutex::new(false));
    let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (calls, answers) = (Arc::clone(faults), Arc::clone(faults));
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

/// Replaces a word by another one of the same length, in place.
fn exchange(bytes: &mut [u8], word: &[u8], other: &[u8]) {
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(word.len()).position(|window| window == word) {
        let start = at + found;
        at = start + word.len();
        bytes[start..at].copy_from_slice(other);
    }
}

/// How much of a chunk is forwarded. After `Half` and `Nothing`, both connections are closed.
enum Pass {
    All,
    Half,
    Nothing,
    /// Nothing of this chunk or of later ones; the connections stay open.
    Swallowed,
}

fn copy(mut from: TcpStream, mut to: TcpStream, mut pass: impl FnMut(&mut [u8]) -> Pass) {
    let mut buffer = [0; 16 * 1024];
    let mut broken = false;
    while let Ok(length) = from.read(&mut buffer) {
        let chunk = &mut buffer[..length];
        if chunk.is_empty() {
            break;
        }
        let passed = match pass(chunk) {
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
        if to.write_all(&chunk[..passed]).is_err() || passed < length {
            break;
        }
    }
    // Fails where the connection is already closed.
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}
