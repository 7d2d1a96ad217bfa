//! The head and the first byte of an event stream.

use tokio::time::{Duration, timeout};

use crate::service::{Raw, SERVICE_KEY, Service};

#[tokio::test]
async fn comment_is_sent_before_the_first_event() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    let mut raw = Raw::connect(service.platform).await;
    raw.send(format!(
        "GET /platform/v1/conversations/{conversation}/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SERVICE_KEY}\r\n\r\n"
    ))
    .await;
    // Less than the interval of the comments that keep a stream alive.
    let read = timeout(Duration::from_secs(10), raw.until("\n\n\r\n")).await.expect("a comment at once");
    let read = String::from_utf8(read).unwrap();
    let (head, body) = read.split_once("\r\n\r\n").unwrap();
    for line in [
        "content-type: text/event-stream; charset=utf-8",
        "cache-control: no-cache, no-transform",
        "x-accel-buffering: no",
    ] {
        assert!(head.lines().any(|header| header == line), "{line}: {head}");
    }
    assert!(body.contains("\r\n:") && !body.contains("data:"), "{body:?}");
}
