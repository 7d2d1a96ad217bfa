//! The same checks over TLS, whose library logs keys at level trace.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use super::nothing_leaks;
use super::running::Running;
use super::search::Capture;
use super::session::Session;
use super::tokens::{Known, changed};
use super::wire::Wire;

type Request = hyper::Request<Full<Bytes>>;

/// Places for a token: method, target, and a header.
const PLACES: &[(&str, &str, &str, &str)] = &[
    ("POST", "/api/v1/webhooks/callbacks", "x-callback-token", "{T}"),
    ("POST", "/api/v1/webhooks/callbacks/{T}", "accept", "*/*"),
    ("POST", "/api/v1/webhooks/callbacks?callbackToken={T}", "accept", "*/*"),
    ("POST", "/api/v1/webhooks/callbacks/{T}/{T}", "x-callback-token", "{T}"),
    ("GET", "/api/v1/webhooks/callbacks/{T}", "cookie", "callbackToken={T}"),
    ("POST", "/{T}", "authorization", "Bearer {T}"),
    ("POST", "/api/v1/webhooks/callbacks", "x-request-id", "{T}"),
    ("POST", "/api/v1/webhooks/callbacks", "traceparent", "{T}"),
    ("POST", "/api/v1/webhooks/callbacks", "content-type", "{T}"),
    ("POST", "/api/v1/webhooks/callbacks", "te", "{T}"),
];

/// A certificate for 127.0.0.1, in `chain.pem` and `key.pem`.
fn certificate(directory: &Path, known: &Known) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::write(directory.join("chain.pem"), made.cert.pem()).unwrap();
    fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    known.add(super::search::Secret::bytes("the listener's private key", made.signing_key.serialized_der()));
    made.cert.into()
}

async fn connect(address: &str, trusted: CertificateDer<'static>) -> SendRequest<Full<Bytes>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = stream.peer_addr().unwrap().ip().into();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends a request; returns head and body of the reply, and its status.
async fn say(client: &mut SendRequest<Full<Bytes>>, request: Request) -> Option<(u16, Vec<u8>)> {
    let (head, body) = client.send_request(request).await.ok()?.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    Some((head.status.as_u16(), [format!("{:?}", head.headers).as_bytes(), &body].concat()))
}

#[test]
fn nothing_leaks_over_tls() {
    let known = Arc::new(Known::new());
    let directory = tempfile::tempdir().unwrap();
    let trusted = certificate(directory.path(), &known);
    let service_key = known.credential("the service key");
    let file = |name: &str| directory.path().join(name).display().to_string();
    let running = Running::start(&[
        ("CALLBACK_INGRESS__HTTP__PUBLIC_ADDR", "127.0.0.1:0".to_owned()),
        ("CALLBACK_INGRESS__HTTP__PLATFORM_ADDR", "127.0.0.1:0".to_owned()),
        ("CALLBACK_INGRESS__HTTP__PUBLIC_TLS_CERT", file("chain.pem")),
        ("CALLBACK_INGRESS__HTTP__PUBLIC_TLS_KEY", file("key.pem")),
        ("CALLBACK_INGRESS__HTTP__DRAIN_GRACE_MS", "0".to_owned()),
        ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", format!("[{service_key:?}]")),
        ("CALLBACK_INGRESS__TELEMETRY__LOG_LEVEL", "trace".to_owned()),
    ]);
    let wire = Wire::to(&running, &known);
    let mut session = Session::new(wire, &service_key);
    let mut statuses = BTreeSet::new();
    let runtime = Runtime::new().unwrap();
    for (method, path, name, value) in PLACES {
        let (_, item) = session.tool();
        for token in [changed(&item.token, 90), item.token] {
            let filled = |template: &str| template.replace("{T}", &token);
            let request = hyper::Request::builder()
                .method(*method)
                .uri(filled(path))
                .header("host", "callbacks.test")
                .header("content-type", "application/json")
                .header(*name, filled(value));
            let request = request.body(session.result.clone().into()).unwrap();
            // A refusal may close the connection.
            let mut client = runtime.block_on(connect(&running.public, trusted.clone()));
            if let Some((status, reply)) = runtime.block_on(say(&mut client, request)) {
                statuses.insert(status);
                session.wire.captures.push(Capture::new(format!("the reply to {method} {path}"), reply));
            }
        }
    }
    assert!([202, 401, 404, 405].iter().all(|status| statuses.contains(status)), "{statuses:?}");
    running.process.signal("TERM");
    let mut captures = session.wire.captures;
    captures.extend(running.ended(0));
    nothing_leaks(&known, &captures);
}
