//! TLS on both listeners, and reloaded certificates.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use tokio::io::AsyncReadExt;
use tokio::time::{Duration, Instant};

use crate::service::secure::{callback, connect, http1, whole};
use crate::service::{CALLBACKS, Certificate, Raw, SERVICE_KEY, Service, until};

async fn start(certificate: &Certificate, flags: &[(&str, &str)]) -> Service {
    let own = certificate.flags();
    let own: Vec<_> = own.iter().map(|(key, value)| (*key, value.as_str())).collect();
    Service::start(&[&own[..], flags].concat()).await
}

/// A request to the platform listener.
fn platform(method: &str, path: &str, body: &'static str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(format!("/platform/v1/conversations/{path}"));
    let request = request.header("host", "x").header("authorization", format!("Bearer {SERVICE_KEY}"));
    request.header("content-type", "application/json").body(body.into()).unwrap()
}

/// Issues a work item and returns the reply's `callback`.
async fn issue(service: &Service, certificate: &Certificate, call: &str) -> serde_json::Value {
    let mut client = http1(service.platform, certificate.der()).await;
    client.send_request(platform("PUT", call, "")).await.unwrap();
    let request = platform("POST", &format!("{call}/work-items"), r#"{"kind":"tool"}"#);
    let issued = whole(client.send_request(request).await.unwrap()).await;
    assert_eq!(issued.status, 201, "{}", issued.text());
    issued.json()["callback"].clone()
}

#[tokio::test]
async fn both_listeners_support_tls() {
    let certificate = Certificate::new();
    let service = start(&certificate, &[]).await;
    let told = issue(&service, &certificate, "call-1").await;
    let url = format!("https://{}{CALLBACKS}", service.public);
    assert_eq!(told["url"].as_str().unwrap(), url);
    let token = told["token"].as_str().unwrap();

    let mut client = http1(service.public, certificate.der()).await;
    let reply = whole(client.send_request(callback(CALLBACKS, token, "[1]")).await.unwrap()).await;
    assert_eq!(reply.verdict(), (202, "delivered".to_owned()));
    let reply = whole(client.send_request(callback(CALLBACKS, token, "[1]")).await.unwrap()).await;
    assert_eq!(reply.verdict(), (200, "delivered".to_owned()));
    let reply = whole(client.send_request(callback(CALLBACKS, token, "2")).await.unwrap()).await;
    assert_eq!(reply.verdict(), (409, "CALLBACK_TOKEN_USED".to_owned()));
    let reply = whole(client.send_request(callback(CALLBACKS, "cbt_x", "2")).await.unwrap()).await;
    assert_eq!(reply.verdict(), (401, "CALLBACK_TOKEN_INVALID".to_owned()));
    assert!(reply.header("x-request-id").is_some());

    let mut client = http1(service.platform, certificate.der()).await;
    let request = Request::get("/metrics").header("host", "x").body(Full::default()).unwrap();
    let metrics = whole(client.send_request(request).await.unwrap()).await;
    let metrics = metrics.text();
    assert!(
        metrics.contains(r#"url_scheme="https""#) && !metrics.contains(r#"url_scheme="http""#),
        "{metrics}"
    );
}

#[tokio::test]
async fn client_without_tls_is_disconnected() {
    let service = start(&Certificate::new(), &[("http.head_timeout_ms", "150")]).await;
    let mut clear = Raw::connect(service.public).await;
    clear.send("GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let said = clear.closed().await;
    assert!(!said.starts_with(b"HTTP"), "{said:?}");
    let since = Instant::now();
    let mut silent = Raw::connect(service.public).await;
    assert_eq!(silent.closed().await, b"", "a handshake has its time, too");
    assert!(since.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn certificates_are_reloaded_if_valid() {
    let certificate = Certificate::new();
    let service = start(&certificate, &[]).await;
    let mut before = http1(service.public, certificate.der()).await;
    let health = || Request::get("/health").header("host", "x").body(Full::default()).unwrap();
    assert_eq!(before.send_request(health()).await.unwrap().status(), 200);

    let second = certificate.replace();
    until("the second is served", async || {
        connect(service.public, second.clone(), "http/1.1").await.is_ok()
            && connect(service.platform, second.clone(), "http/1.1").await.is_ok()
    })
    .await;
    assert!(
        connect(service.public, certificate.der(), "http/1.1").await.is_err(),
        "the first is not served any more"
    );
    assert!(connect(service.public, second.clone(), "h2").await.is_err(), "HTTP/1.1 only");

    // The key of another certificate, then no key at all.
    let key = std::fs::read(certificate.key()).unwrap();
    for broken in [&Certificate::new().key(), &certificate.chain()] {
        std::fs::copy(broken, certificate.key()).unwrap();
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(1_500) {
            connect(service.public, second.clone(), "http/1.1").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    std::fs::write(certificate.key(), key).unwrap();
    let third = certificate.replace();
    until("the third is served", async || connect(service.public, third.clone(), "http/1.1").await.is_ok())
        .await;
    let reply = whole(before.send_request(health()).await.unwrap()).await;
    assert_eq!(reply.verdict(), (200, "ok".to_owned()), "the first connection goes on");
}

#[tokio::test]
async fn slow_clients_are_disconnected_over_tls() {
    let certificate = Certificate::new();
    let flags = [
        ("http.head_timeout_ms", "150"),
        ("http.keep_alive_timeout_ms", "1000"),
        ("http.write_timeout_ms", "200"),
    ];
    let service = start(&certificate, &flags).await;
    let mut slow = connect(service.public, certificate.der(), "http/1.1").await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut slow, b"GET /health HTTP/1.1\r\n").await.unwrap();
    let mut idle = connect(service.public, certificate.der(), "http/1.1").await.unwrap();
    let since = Instant::now();
    let mut rest = Vec::new();
    // The connection may end in either way, but without a reply.
    drop(slow.read_to_end(&mut rest).await);
    assert_eq!(rest, b"");
    assert!(since.elapsed() < Duration::from_secs(1), "a head has its time: {:?}", since.elapsed());
    drop(idle.read_to_end(&mut rest).await);
    assert!(
        since.elapsed() < Duration::from_secs(10),
        "and so has an idle connection: {:?}",
        since.elapsed()
    );
}
