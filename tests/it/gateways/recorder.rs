//! A wire between a gateway and the service that writes down what the service says on it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// An answer of the service, as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: String,
    /// Without it the service has not handled a request: the HTTP library refuses by itself.
    pub(super) request_id: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What the service has said, for each connection.
    said: Mutex<Vec<Vec<u8>>>,
    open: AtomicUsize,
}

impl Recorder {
    /// A wire to this address.
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

    /// How many connections the gateway has not ended.
    pub(super) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// How many connections there have been.
    pub(super) fn connections(&self) -> usize {
        self.shared.said.lock().unwrap().len()
    }

    /// All answers up to now.
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

/// Passes on what comes, and the end of it. Reads on when nobody takes it any more.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut record: impl FnMut(&[u8])) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        record(&piece[..length]);
        drop(to.write_all(&piece[..length]).await);
    }
    drop(to.shutdown().await);
}

/// The answers on one connection. No body of the service has a status line in it, and if one had, it would count as
/// an answer too many.
pub(super) fn answers(said: &[u8]) -> Vec<Answer> {
    let said = String::from_utf8_lossy(said);
    let mut answers = Vec::new();
    for answer in said.split("HTTP/1.").skip(1) {
        let status = answer.get(2..5).unwrap_or_default().to_owned();
        // `100 Continue` comes before an answer, and a body may name the version.
        if status.is_empty() || status == "100" || !status.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let head = answer.split("\r\n\r\n").next().unwrap_or_default();
        let id = head.split("\r\n").find_map(|line| line.strip_prefix("x-request-id: "));
        answers.push(Answer { status, request_id: id.map(plain) });
    }
    answers
}

/// An id without the lines between its parts, which nginx does not write.
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
