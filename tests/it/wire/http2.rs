//! Connections of HTTP/2 that are not used as they should be, frame by frame.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Duration, Instant, timeout};

use crate::service::secure::{Secure, callback, connect, http2, whole};
use crate::service::{CALLBACKS, Certificate, SERVICE_KEY, Service};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// GET / of the host x, in the static table of RFC 7541.
const GET: &[u8] = b"\x82\x87\x84\x01\x01x";

/// A text as HPACK writes a short one.
fn literal(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

/// The head of a callback, without a token.
fn post() -> Vec<u8> {
    [&b"\x83\x87\x04"[..], &literal(CALLBACKS), b"\x01\x01x"].concat()
}

/// One frame.
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// A client that says exactly what it wants.
struct Frames(Secure);

impl Frames {
    async fn connect(service: &Service, certificate: &Certificate, settings: &[u8]) -> Self {
        Self::to(service.public, certificate, settings).await
    }

    async fn to(address: std::net::SocketAddr, certificate: &Certificate, settings: &[u8]) -> Self {
        let mut stream = connect(address, certificate.der(), "h2").await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut frames = Self(stream);
        frames.send(SETTINGS, 0, 0, settings).await;
        frames
    }

    /// A service that has had enough does not listen to all of it.
    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).await.is_ok() && self.0.flush().await.is_ok()
    }

    /// The next frame; `None` when there are no more.
    async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        let read = timeout(crate::service::PATIENCE, self.0.read_exact(&mut head)).await;
        read.expect("a frame, or the end of the connection, in time").ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// Reads to the end; tells the error code with which the service went away, if it said one.
    async fn end(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                code = Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
            }
        }
        code
    }
}

async fn start(certificate: &Certificate, flags: &[(&str, &str)]) -> Service {
    let own = certificate.flags();
    let own: Vec<_> = own.iter().map(|(key, value)| (*key, value.as_str())).collect();
    Service::start(&[&own[..], flags].concat()).await
}

async fn answers(service: &Service, certificate: &Certificate) {
    let mut client = http2(service.public, certificate.der()).await;
    let request = callback(&format!("https://x{CALLBACKS}"), "cbt_x", "1");
    let reply = whole(client.send_request(request).await.unwrap()).await;
    assert_eq!(reply.verdict(), (401, "CALLBACK_TOKEN_INVALID".to_owned()));
}

#[tokio::test]
async fn streams_that_are_reset_as_soon_as_they_are_opened_cost_their_connection() {
    let certificate = Certificate::new();
    let service = start(&certificate, &[]).await;
    let client = Frames::connect(&service, &certificate, b"").await;
    let (mut replies, mut requests) = tokio::io::split(client.0);
    tokio::spawn(async move { tokio::io::copy(&mut replies, &mut tokio::io::sink()).await });
    let mut sent = 0_u32;
    // Opened and reset in one breath, again and again, until it is enough.
    let head = post();
    let length = u8::try_from(head.len()).unwrap();
    let attack = async {
        loop {
            let mut breath = Vec::new();
            for _ in 0..500 {
                let stream = (2 * sent + 1).to_be_bytes();
                breath.extend([0, 0, length, HEADERS, END_HEADERS]);
                breath.extend(stream);
                breath.extend(&head);
                breath.extend([0, 0, 4, RST_STREAM, 0]);
                breath.extend(stream);
                breath.extend([0, 0, 0, 8]);
                sent += 1;
            }
            if requests.write_all(&breath).await.is_err() || requests.flush().await.is_err() {
                return;
            }
            // The service runs in this thread.
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), attack).await.expect("it is enough some time");
    assert!(sent < 20_000, "{sent}");
    answers(&service, &certificate).await;
}

#[tokio::test]
async fn streams_that_are_reset_once_they_are_looked_at_cost_their_connection_too() {
    let certificate = Certificate::new();
    let service = start(&certificate, &[]).await;
    let mut client = Frames::connect(&service, &certificate, b"").await;
    let head = post();
    let mut given_up = 0;
    'attack: while given_up < 1_000 {
        let stream = 2 * given_up + 1;
        client.send(HEADERS, END_HEADERS, stream, &head).await;
        client.send(PING, 0, 0, b"look at!").await;
        loop {
            match client.next().await {
                None => break 'attack,
                Some(frame) if frame.kind == PING && frame.flags & ACK == ACK => break,
                Some(_) => {}
            }
        }
        client.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes()).await;
        given_up += 1;
    }
    assert!((200..400).contains(&given_up), "{given_up}");
    answers(&service, &certificate).await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_under_way_holds_no_drain_up() {
    let certificate = Certificate::new();
    let service = start(&certificate, &[("http.drain_timeout_ms", "20000")]).await;
    // It answers nothing, not even that it has understood that it ends.
    let mut client = Frames::connect(&service, &certificate, b"").await;
    client.send(HEADERS, END_STREAM | END_HEADERS, 1, GET).await;
    while client.next().await.unwrap().flags & END_STREAM == 0 {}
    let since = Instant::now();
    service.drain();
    service.ended().await;
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_head_in_frames_without_end_costs_its_connection() {
    let certificate = Certificate::new();
    let service = start(&certificate, &[]).await;
    let mut client = Frames::connect(&service, &certificate, b"").await;
    client.send(HEADERS, END_STREAM, 1, GET).await;
    let mut field = b"\x00\x01a\x7f\xa1\x1e".to_vec();
    field.extend([b'x'; 4_000]);
    let mut sent = 0;
    while sent < 10_000 && client.send(CONTINUATION, 0, 1, b"").await {
        sent += 1;
    }
    let mut other = Frames::connect(&service, &certificate, b"").await;
    other.send(HEADERS, END_STREAM, 1, GET).await;
    let mut large = 0;
    while large < 1_000 && other.send(CONTINUATION, 0, 1, &field).await {
        large += 1;
    }
    assert!(sent < 10_000 && large < 1_000, "{sent} empty, {large} large ones were read");
    answers(&service, &certificate).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let certificate = Certificate::new();
    let service = start(&certificate, &[]).await;
    let mut client = http2(service.public, certificate.der()).await;
    let mut request = callback(&format!("https://x{CALLBACKS}"), "cbt_x", "1");
    request.headers_mut().insert("x-a", "x".repeat(17_000).parse().unwrap());
    match client.send_request(request).await {
        Ok(response) => assert_eq!(response.status(), 431),
        // The service has said what it takes, and the client may keep to it by itself.
        Err(error) => assert!(error.is_user() || error.is_closed() || error.to_string().contains("http2")),
    }
    answers(&service, &certificate).await;
}

#[tokio::test]
async fn more_streams_than_a_hundred_at_once_are_refused() {
    let certificate = Certificate::new();
    let service = start(&certificate, &[]).await;
    let mut client = Frames::connect(&service, &certificate, b"").await;
    for number in 0..101 {
        client.send(HEADERS, END_HEADERS, 2 * number + 1, &post()).await;
    }
    let refused = loop {
        let frame = client.next().await.expect("the connection goes on");
        if frame.kind == RST_STREAM || frame.kind == GOAWAY {
            break frame;
        }
    };
    let expected = (RST_STREAM, 201, 7_u32.to_be_bytes().to_vec());
    assert_eq!((refused.kind, refused.stream, refused.payload), expected, "REFUSED_STREAM");
}

#[tokio::test]
async fn a_connection_that_is_idle_or_does_not_answer_is_let_go() {
    let certificate = Certificate::new();
    let flags = [("http.keep_alive_timeout_ms", "1000"), ("http.write_timeout_ms", "200")];
    let service = start(&certificate, &flags).await;
    let mut idle = Frames::connect(&service, &certificate, b"").await;
    let since = Instant::now();
    assert_eq!(idle.end().await, Some(0), "told that there is nothing wrong");
    assert!(since.elapsed() >= Duration::from_millis(900), "{:?}", since.elapsed());

    let service = start(&certificate, &[("http.head_timeout_ms", "150")]).await;
    // Within a head that does not end, no ping can be answered.
    let mut silent = Frames::connect(&service, &certificate, b"").await;
    silent.send(HEADERS, END_STREAM, 1, GET).await;
    let since = Instant::now();
    silent.end().await;
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    // Who answers is left alone.
    let mut lively = Frames::connect(&service, &certificate, b"").await;
    for _ in 0..3 {
        let ping = loop {
            let frame = lively.next().await.expect("the connection goes on");
            if frame.kind == PING && frame.flags & ACK == 0 {
                break frame;
            }
        };
        lively.send(PING, ACK, 0, &ping.payload).await;
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_replies_loses_its_connection() {
    let certificate = Certificate::new();
    let flags = [("http.write_timeout_ms", "200"), ("http.keep_alive_timeout_ms", "1000")];
    let service = start(&certificate, &flags).await;
    // SETTINGS_INITIAL_WINDOW_SIZE 0: the reply's head can be sent, and nothing of its body.
    let no_window = [0, 4, 0, 0, 0, 0];
    let mut client = Frames::connect(&service, &certificate, &no_window).await;
    let since = Instant::now();
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, GET).await;
    client.end().await;
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());

    // An event stream, which would otherwise go on for ever.
    let mut platform = http2(service.platform, certificate.der()).await;
    let request = |method: &str, path: &str, body: &'static str| {
        let uri = format!("https://x/platform/v1/conversations/call-1{path}");
        let request = hyper::Request::builder().method(method).uri(uri);
        let request = request.header("authorization", format!("Bearer {SERVICE_KEY}"));
        request.header("content-type", "application/json").body(body.into()).unwrap()
    };
    platform.send_request(request("PUT", "", "")).await.unwrap();
    let issued = platform.send_request(request("POST", "/work-items", r#"{"kind":"tool"}"#)).await.unwrap();
    let token = whole(issued).await.json()["callback"]["token"].as_str().unwrap().to_owned();
    let mut public = http2(service.public, certificate.der()).await;
    let posted = public.send_request(callback(&format!("https://x{CALLBACKS}"), &token, "1"));
    assert_eq!(posted.await.unwrap().status(), 202);
    let mut greedy = Frames::to(service.platform, &certificate, &no_window).await;
    let path = "/platform/v1/conversations/call-1/events?from=0";
    let key = format!("Bearer {SERVICE_KEY}");
    let named = b"\x01\x01x\x00\x0dauthorization";
    let head = [&b"\x82\x87\x04"[..], &literal(path), named, &literal(&key)].concat();
    greedy.send(HEADERS, END_HEADERS | END_STREAM, 1, &head).await;
    let since = Instant::now();
    greedy.end().await;
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_body_that_is_slow_or_not_as_long_as_it_says_is_never_taken() {
    let certificate = Certificate::new();
    let service = start(&certificate, &[("http.body_timeout_ms", "150")]).await;
    let mut slow = Frames::connect(&service, &certificate, b"").await;
    slow.send(HEADERS, END_HEADERS, 1, &post()).await;
    slow.send(DATA, 0, 1, b"1").await;
    let body = loop {
        let frame = slow.next().await.expect("the connection goes on");
        if frame.kind == DATA {
            break String::from_utf8(frame.payload).unwrap();
        }
    };
    assert!(body.contains("REQUEST_TIMEOUT"), "{body}");
    // The length is the stream's own affair in HTTP/2: another one in the head makes it malformed.
    let shorter = [&post()[..], b"\x0f\x0d\x011"].concat();
    slow.send(HEADERS, END_HEADERS, 3, &shorter).await;
    slow.send(DATA, END_STREAM, 3, b"12").await;
    let refused = loop {
        let frame = slow.next().await.expect("an answer");
        if frame.stream == 3 {
            break frame;
        }
    };
    assert_eq!(refused.kind, RST_STREAM, "{refused:?}");
    let chunked = [&post()[..], b"\x00\x11transfer-encoding\x07chunked"].concat();
    let mut client = Frames::connect(&service, &certificate, b"").await;
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, &chunked).await;
    let refused = loop {
        let frame = client.next().await.expect("an answer");
        if frame.kind != SETTINGS && frame.kind != PING && frame.kind != 8 {
            break frame;
        }
    };
    assert!([RST_STREAM, GOAWAY].contains(&refused.kind), "{refused:?}");
}
