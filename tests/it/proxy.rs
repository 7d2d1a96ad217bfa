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
    swallows: Arc<AtomicBool>,
}

impl Proxy {
    /// A wire to this port.
    pub(crate) fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port_of_its_own = listener.local_addr().unwrap().port();
        let proxy = Self { port: port_of_its_own, cuts: Arc::default(), swallows: Arc::default() };
        let (cuts, swallows) = (Arc::clone(&proxy.cuts), Arc::clone(&proxy.swallows));
        thread::spawn(move || {
            for client in listener.incoming() {
                // A server that is down takes no connection, and the client is told so by the end of its own.
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                pass_on(client.unwrap(), server, Arc::clone(&cuts), Arc::clone(&swallows));
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

    /// From now on, or not any more, whatever comes is swallowed, and no connection is closed.
    pub(crate) fn swallow(&self, everything: bool) {
        self.swallows.store(everything, Ordering::SeqCst);
    }

    /// How many answers are still to be lost.
    pub(crate) fn answers_to_lose(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

/// What becomes of some bytes on their way.
enum Way {
    Passed,
    /// Lost with their connection.
    Cut,
    /// Lost, and with them all that follow, while the connection stays.
    Swallowed,
}

fn pass_on(client: TcpStream, server: TcpStream, cuts: Arc<AtomicUsize>, swallows: Arc<AtomicBool>) {
    let asked = Arc::new(AtomicBool::new(false));
    let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (script_sent, swallowed) = (Arc::clone(&asked), Arc::clone(&swallows));
    thread::spawn(move || {
        copy(from_client, to_server, |request| {
            if request.windows(7).any(|word| word == b"EVALSHA") {
                script_sent.store(true, Ordering::SeqCst);
            }
            if swallowed.load(Ordering::SeqCst) { Way::Swallowed } else { Way::Passed }
        });
    });
    thread::spawn(move || {
        copy(server, client, |_| {
            let lost = asked.swap(false, Ordering::SeqCst)
                && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            match (lost, swallows.load(Ordering::SeqCst)) {
                (true, _) => Way::Cut,
                (false, true) => Way::Swallowed,
                (false, false) => Way::Passed,
            }
        });
    });
}

/// Passes on what comes, as long as it may; then closes both sides.
fn copy(mut from: TcpStream, mut to: TcpStream, mut way: impl FnMut(&[u8]) -> Way) {
    let mut buffer = [0; 16 * 1024];
    let mut broken = false;
    while let Ok(length) = from.read(&mut buffer) {
        let way = way(&buffer[..length]);
        broken = broken || matches!(way, Way::Swallowed);
        if length == 0 || matches!(way, Way::Cut) || (!broken && to.write_all(&buffer[..length]).is_err()) {
            break;
        }
    }
    // One that is closed already needs no closing.
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}
