//! Timeouts for slow clients.

use tokio::time::{Duration, Instant};

use crate::service::{CALLBACKS, Raw, Service};

const HEAD_MS: u64 = 150;
const BODY_MS: u64 = 150;

async fn impatient() -> Service {
    Service::start(&[("http.head_timeout_ms", "150"), ("http.body_timeout_ms", "150")]).await
}

#[tokio::test]
async fn slow_callback_body_times_out_and_spends_nothing() {
    let service = impatient().await;
    let item = service.fresh_tool().await;
    for length in ["content-length: 5", "transfer-encoding: chunked"] {
        let mut raw = Raw::connect(service.public).await;
        let since = Instant::now();
        raw.send(format!(
            "POST {CALLBACKS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-callback-token: {}\r\n{length}\r\n\r\n",
            item.token
        ))
        .await;
        let reply = raw.reply().await;
        assert_eq!(reply.verdict(), (408, "REQUEST_TIMEOUT".to_owned()), "{length}");
        assert!(since.elapsed() >= Duration::from_millis(BODY_MS));
        assert_eq!(reply.header("connection"), Some("close"));
        assert_eq!(raw.closed().await, b"");
    }
    assert_eq!(service.state(&item).await, "awaiting");
    assert_eq!(service.callback(&item.token, "1").verdict().await, (202, "delivered".to_owned()));
}

#[tokio::test]
async fn slow_platform_body_times_out() {
    let service = impatient().await;
    let mut raw = Raw::connect(service.platform).await;
    raw.send(format!(
        "PUT /platform/v1/conversations/slow HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 2\r\n\r\n",
        crate::service::SERVICE_KEY
    ))
    .await;
    assert_eq!(raw.reply().await.verdict(), (408, "REQUEST_TIMEOUT".to_owned()));
}

#[tokio::test]
async fn slow_head_closes_the_connection() {
    let service = impatient().await;
    let mut raw = Raw::connect(service.public).await;
    let since = Instant::now();
    raw.send("GET /health HTTP/1.1\r\n").await;
    while since.elapsed() < Duration::from_millis(HEAD_MS * 4) && !raw.is_closed() {
        raw.send("x-a: x\r\n").await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(raw.closed().await, b"");
    assert!(since.elapsed() < Duration::from_millis(HEAD_MS * 4), "{:?}", since.elapsed());
}

#[tokio::test]
async fn idle_connection_is_closed() {
    let service = Service::start(&[("http.keep_alive_timeout_ms", "1000")]).await;
    let mut raw = Raw::connect(service.public).await;
    raw.send("GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(raw.reply().await.verdict(), (200, "ok".to_owned()));
    let since = Instant::now();
    assert_eq!(raw.closed().await, b"");
    assert!(since.elapsed() >= Duration::from_millis(900), "{:?}", since.elapsed());
}

#[tokio::test]
async fn pause_between_requests_is_not_a_slow_head() {
    let service = impatient().await;
    let mut raw = Raw::connect(service.public).await;
    for _ in 0..2 {
        // Longer than the head timeout, which starts at the first byte.
        tokio::time::sleep(Duration::from_millis(HEAD_MS * 2)).await;
        raw.send("GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert_eq!(raw.reply().await.verdict(), (200, "ok".to_owned()));
    }
}

#[tokio::test]
async fn unread_responses_close_the_connection() {
    let service = Service::start(&[("http.write_timeout_ms", "150"), ("http.max_connections", "1")]).await;
    let mut greedy = tokio::net::TcpStream::connect(service.public).await.unwrap();
    let requests = "GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1_000);
    // Ends when the service closes the connection.
    let sending = async {
        while tokio::io::AsyncWriteExt::write_all(&mut greedy, requests.as_bytes()).await.is_ok() {}
    };
    tokio::time::timeout(Duration::from_secs(30), sending).await.expect("its connection is held for ever");
    let item = service.fresh_tool().await;
    assert_eq!(service.callback(&item.token, "1").verdict().await, (202, "delivered".to_owned()));
}

#[tokio::test]
async fn event_stream_outlives_the_keep_alive_timeout() {
    let service = Service::start(&[("http.keep_alive_timeout_ms", "1000")]).await;
    let item = service.fresh_tool().await;
    let mut stream = Raw::connect(service.platform).await;
    stream
        .send(format!(
            "GET /platform/v1/conversations/{}/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
            item.conversation,
            crate::service::SERVICE_KEY
        ))
        .await;
    stream.until("text/event-stream").await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(service.callback(&item.token, "1").verdict().await, (202, "delivered".to_owned()));
    stream.until("\"result\":1,").await;
}

#[tokio::test]
async fn pipelining_is_not_a_slow_head() {
    let service = impatient().await;
    let mut raw = Raw::connect(service.public).await;
    let requests = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n".repeat(3);
    raw.send(&requests).await;
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(HEAD_MS * 5) {
        // The next requests arrive before the first replies.
        raw.send(&requests).await;
        for _ in 0..3 {
            assert_eq!(raw.reply().await.verdict(), (200, "ok".to_owned()));
        }
    }
}
