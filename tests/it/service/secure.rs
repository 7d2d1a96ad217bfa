//! Self-signed certificates, and TLS clients that trust only them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{PATIENCE, Reply};

/// A connection over TLS.
pub(crate) type Secure = TlsStream<TcpStream>;
/// Sends HTTP/1.1 requests over it.
pub(crate) type Http1 = http1::SendRequest<Full<Bytes>>;

/// A certificate for 127.0.0.1, in files that can be replaced.
#[derive(Debug)]
pub(crate) struct Certificate {
    directory: TempDir,
    der: CertificateDer<'static>,
}

impl Certificate {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let der = write(&directory);
        Self { directory, der }
    }

    /// Replaces the files' content by a new certificate, which is returned.
    pub(crate) fn replace(&self) -> CertificateDer<'static> {
        write(&self.directory)
    }

    /// The first certificate.
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.der.clone()
    }

    /// The file of the certificate.
    pub(crate) fn chain(&self) -> PathBuf {
        self.directory.path().join("chain.pem")
    }

    /// The file of its key.
    pub(crate) fn key(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    /// Settings for both listeners.
    pub(crate) fn flags(&self) -> Vec<(&'static str, String)> {
        let (chain, key) = (self.chain().display().to_string(), self.key().display().to_string());
        vec![
            ("http.public_tls_cert", chain.clone()),
            ("http.public_tls_key", key.clone()),
            ("http.platform_tls_cert", chain),
            ("http.platform_tls_key", key),
        ]
    }
}

fn write(directory: &TempDir) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(directory.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(directory.path().join("chain.pem"), made.cert.pem()).unwrap();
    made.cert.into()
}

/// Connects, trusting this certificate and offering this ALPN protocol.
pub(crate) async fn connect(
    address: SocketAddr,
    trusted: CertificateDer<'static>,
    protocol: &str,
) -> std::io::Result<Secure> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let shaken = TlsConnector::from(Arc::new(config)).connect(address.ip().into(), stream);
    timeout(PATIENCE, shaken).await.expect("a handshake in time")
}

/// An HTTP/1.1 client that trusts this certificate.
pub(crate) async fn http1(address: SocketAddr, trusted: CertificateDer<'static>) -> Http1 {
    let stream = connect(address, trusted, "http/1.1").await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A callback with its token in the header.
pub(crate) fn callback(target: &str, token: &str, body: &'static str) -> Request<Full<Bytes>> {
    let request = Request::post(target).header("host", "x").header("content-type", "application/json");
    request.header("x-callback-token", token).body(body.into()).unwrap()
}

/// Reads a whole reply.
pub(crate) async fn whole(response: Response<hyper::body::Incoming>) -> Reply {
    let (head, body) = response.into_parts();
    let body = timeout(PATIENCE, body.collect()).await.expect("a whole reply in time").unwrap();
    Reply { status: head.status, headers: head.headers, body: body.to_bytes() }
}
