//! A listener's certificate, which is reloaded when its files change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Interval at which the files are checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The files of a listener's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The chain, its own certificate first, in PEM.
    pub chain: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {file}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{file} holds no {what}")]
    NotPem {
        /// The file.
        file: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// Why.
        source: pem::Error,
    },
    /// The key is not the certificate's, or of a kind that is not known.
    #[error("{chain} and {key} cannot be used together")]
    Unusable {
        /// The certificate's file.
        chain: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// A listener's TLS, with the certificate that is served now.
#[derive(Clone, Debug)]
pub struct Tls {
    files: Files,
    /// Digest of the loaded files.
    fingerprint: [u8; 32],
    served: Arc<Served>,
    config: Arc<ServerConfig>,
}

#[derive(Debug)]
struct Served(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(file).map_err(|source| TlsError::Unreadable { file: file.to_owned(), source })
}

/// The certificate chain in a file.
pub fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let not_pem = |source| TlsError::NotPem { file: file.to_owned(), what: "certificate", source };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    let chain = chain.map_err(not_pem)?;
    if chain.is_empty() { Err(not_pem(pem::Error::NoItemsFound)) } else { Ok(chain) }
}

impl Files {
    fn load(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let Self { chain: chain_file, key: key_file } = self;
        let not_pem = |source| TlsError::NotPem { file: key_file.clone(), what: "private key", source };
        let key = PrivateKeyDer::from_pem_slice(&read(key_file)?).map_err(not_pem)?;
        CertifiedKey::from_der(chain(chain_file)?, key, provider).map_err(|source| TlsError::Unusable {
            chain: chain_file.clone(),
            key: key_file.clone(),
            source,
        })
    }

    /// Digest of the files' contents. An unreadable file counts as empty.
    fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for file in [&self.chain, &self.key] {
            let content = std::fs::read(file).unwrap_or_default();
            hash.update((content.len() as u64).to_be_bytes());
            hash.update(content);
        }
        hash.finalize().into()
    }
}

impl Tls {
    /// Loads the files. An error stops the startup.
    pub fn new(files: Files) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        // Taken before the files are read, so that a replacement in between is noticed.
        let fingerprint = files.fingerprint();
        let served = Arc::new(Served(RwLock::new(Arc::new(files.load(&provider)?))));
        let unusable =
            |source| TlsError::Unusable { chain: files.chain.clone(), key: files.key.clone(), source };
        let config = ServerConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().map_err(unusable)?;
        let resolver: Arc<dyn ResolvesServerCert> = Arc::<Served>::clone(&served);
        let mut config = config.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { files, fingerprint, served, config: Arc::new(config) })
    }

    /// Accepts TLS connections with the certificate that is current at the handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// Reloads the certificate when its files change. Checks each second and when `check` is notified. Existing
    /// connections keep theirs; files that cannot be used are ignored.
    pub async fn watch_and_reload(self, check: Arc<Notify>, stop: CancellationToken) {
        let mut known = self.fingerprint;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = check.notified() => {}
                () = sleep(CHECK_INTERVAL) => {}
            }
            let files = self.files.clone();
            let Ok(found) = tokio::task::spawn_blocking(move || files.fingerprint()).await else { continue };
            if found == known {
                continue;
            }
            known = found;
            let (files, provider) = (&self.files, self.config.crypto_provider());
            match files.load(provider) {
                Ok(loaded) => {
                    *self.served.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                    tracing::info!(file = %files.chain.display(), "certificate reloaded");
                }
                Err(error) => tracing::warn!(
                    error = %error,
                    cause = std::error::Error::source(&error).map(tracing::field::display),
                    "the new certificate cannot be used; the previous one is still served"
                ),
            }
        }
    }
}

/// Performs the TLS handshake within `limit`.
pub(super) async fn accept<S>(
    acceptor: &TlsAcceptor,
    stream: S,
    limit: Duration,
) -> io::Result<tokio_rustls::server::TlsStream<S>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    timeout(limit, acceptor.accept(stream)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path) -> (Files, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let files = Files { chain: directory.join("chain.pem"), key: directory.join("key.pem") };
        std::fs::write(&files.chain, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        (files, made.cert.der().clone())
    }

    #[tokio::test]
    async fn a_certificate_that_is_replaced_while_the_service_starts_is_served_soon() {
        let directory = tempfile::tempdir().unwrap();
        let (files, _) = write(directory.path());
        let tls = Tls::new(files).unwrap();
        let (_, replaced) = write(directory.path());
        let (served, check, stop) =
            (Arc::clone(&tls.served), Arc::new(Notify::new()), CancellationToken::new());
        check.notify_one();
        let kept = tokio::spawn(tls.watch_and_reload(check, stop.clone()));
        let is_served = async {
            while served.0.read().unwrap().cert.first() != Some(&replaced) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), is_served).await.unwrap();
        stop.cancel();
        kept.await.unwrap();
    }
}
