//! A wire to Redis that a test can cut: after a script was sent, and before its answer is passed on.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Passes everything on, both ways, until it is told otherwise.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    cuts: Arc<AtomicUsize>,
}

impl Proxy {
    /// A wire to this port.
    pub(crate) fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let proxy = Self { port: listener.local_addr().unwrap().port(), cuts: Arc::default() };
        let cuts = Arc::clone(&proxy.cuts);
        thread::spawn(move || {
            for client in listener.incoming() {
                // A server that is down takes no connection, and the client is told so by the end of its own.
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                pass_on(client.unwrap(), server, Arc::clone(&cuts));
            }
        });
        proxy
    }

    /// Its own port.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// The answers to the next scripts are lost, as many as this, each with its connection.
    pub(crate) fn lose_answers(&self, answers: usize) {
        self.cuts.store(answers, Ordering::SeqCst);
    }

    /// How many answers are still to be lost.
    pub(crate) fn answers_to_lose(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

fn pass_on(client: TcpStream, server: TcpStream, cuts: Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicBool::new(false));
    let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let script_sent = Arc::clone(&asked);
    thread::spawn(move || {
        copy(from_client, to_server, |request| {
            if request.windows(7).any(|word| word == b"EVALSHA") {
                script_sent.store(true, Ordering::SeqCst);
            }
            true
        });
    });
    thread::spawn(move || {
        copy(server, client, |_| {
            let lost = asked.swap(false, Ordering::SeqCst)
                && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            !lost
        });
    });
}

/// Passes on what comes, as long as it may; then closes both sides.
fn copy(mut from: TcpStream, mut to: TcpStream, mut may_pass: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length) = from.read(&mut buffer) {
        if length == 0 || !may_pass(&buffer[..length]) || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // One that is closed already needs no closing.
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}
