//! A GET request over TLS to this service's own listener. The certificate is compared with the configured one instead
//! of being verified by name, because the request goes to a loopback address.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, header};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::client::{ClientError, ClientResponse};
use crate::http::tls;

/// Requests `path`. Trusts only a server that presents the first certificate in the file `chain` and has its private
/// key.
pub(super) async fn get(
    address: SocketAddr,
    path: &str,
    chain: &Path,
    time_limit: Duration,
) -> Result<ClientResponse, ClientError> {
    let config = pinned_config(chain)?;
    let request = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::from(address.ip());
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends when `sender` is dropped.
        tokio::spawn(connection);
        let request = Request::get(path).header(header::HOST, address.to_string()).body(Body::empty())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok(ClientResponse { status, body: response.into_body().collect().await?.to_bytes() })
    };
    timeout(time_limit, request).await?
}

/// Trusts only a server that presents the first certificate in the file `chain` and has its private key.
pub(super) fn pinned_config(chain: &Path) -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(ring::default_provider());
    let certificate = tls::chain(chain)?.into_iter().next().ok_or("no certificate")?;
    let pinned = PinnedVerifier { certificate, provider: Arc::clone(&provider) };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth())
}

#[derive(Debug)]
struct PinnedVerifier {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::General("the listener's certificate is not the configured one".into()))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
