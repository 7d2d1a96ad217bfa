//! A TCP proxy between a gateway and the service that records the service's responses.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// A response of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: String,
    /// Missing when the HTTP library refused the request itself.
    pub(super) request_id: Option<String>,
}

/// A running recorder.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The bytes received from the service, for each connection.
    said: Mutex<Vec<Vec<u8>>>,
    open: AtomicUsize,
}

impl Recorder {
    /// Starts a recorder in front of this address.
    pub(super) async fn to(service: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let recorder = Self { address, shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            loop {
                let (gateway, _) = listener.accept().await.unwrap();
                shared.open.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let service = TcpStream::connect(service).await.unwrap();
                    drop((gateway.set_nodelay(true), service.set_nodelay(true)));
                    shared.pass_on(gateway, service).await;
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        recorder
    }

    /// Number of connections that the gateway has not closed.
    pub(super) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Number of connections so far.
    pub(super) fn connections(&self) -> usize {
        self.shared.said.lock().unwrap().len()
    }

    /// All responses so far.
    pub(super) fn answers(&self) -> Vec<Answer> {
        self.shared.said.lock().unwrap().iter().flat_map(|said| answers(said)).collect()
    }
}

impl Shared {
    async fn pass_on(&self, gateway: TcpStream, service: TcpStream) {
        let number = {
            let mut said = self.said.lock().unwrap();
            said.push(Vec::new());
            said.len() - 1
        };
        let (from_gateway, to_gateway) = gateway.into_split();
        let (from_service, to_service) = service.into_split();
        let asked = copy(from_gateway, to_service, |_| {});
        let answered = copy(from_service, to_gateway, |piece| {
            self.said.lock().unwrap()[number].extend_from_slice(piece);
        });
        tokio::join!(asked, answered);
    }
}

/// Forwards data and the end of the stream. Continues to read after the receiver has closed.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut record: impl FnMut(&[u8])) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        record(&piece[..length]);
        drop(to.write_all(&piece[..length]).await);
    }
    drop(to.shutdown().await);
}

/// The responses on one connection. A status line within a body would count as a response too many; the service sends
/// none.
pub(super) fn answers(said: &[u8]) -> Vec<Answer> {
    let said = String::from_utf8_lossy(said);
    let mut answers = Vec::new();
    for answer in said.split("HTTP/1.").skip(1) {
        let status = answer.get(2..5).unwrap_or_default().to_owned();
        // `100 Continue` precedes a response, and a body may contain the version.
        if status.is_empty() || status == "100" || !status.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let head = answer.split("\r\n\r\n").next().unwrap_or_default();
        let id = head.split("\r\n").find_map(|line| line.strip_prefix("x-request-id: "));
        answers.push(Answer { status, request_id: id.map(plain) });
    }
    answers
}

/// An id without hyphens, because nginx logs it so.
pub(super) fn plain(id: &str) -> String {
    id.replace('-', "")
}

#[test]
fn responses_are_matched_to_requests() {
    let said = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nx-request-id: a-b\r\n\r\n{}\
                HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    let expected = [("202", Some("ab")), ("400", None)];
    let expected =
        expected.map(|(status, id)| Answer { status: status.to_owned(), request_id: id.map(str::to_owned) });
    assert_eq!(answers(said.as_bytes()), expected);
}
