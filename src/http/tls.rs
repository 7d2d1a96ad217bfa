//! The certificate of a listener. It is reloaded when its files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Interval at which the files are checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The files of a listener's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate chain in PEM format, with the listener's certificate first.
    pub chain: PathBuf,
    /// The private key in PEM format.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read, or does not contain the named item.
    #[error("cannot read a {1} from {path}", path = .0.display())]
    Unreadable(PathBuf, &'static str, #[source] pem::Error),
    /// The key does not belong to the certificate, or has an unsupported type.
    #[error("{chain} and {key} cannot be used together", chain = .0.chain.display(), key = .0.key.display())]
    Unusable(CertificateFiles, #[source] rustls::Error),
}

/// Reads the certificate chain in a file. Fails if the file contains no certificate.
pub fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Unreadable(file.to_owned(), "certificate", source);
    let chain = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(unreadable)?;
    if chain.is_empty() { Err(unreadable(pem::Error::NoItemsFound)) } else { Ok(chain) }
}

impl CertificateFiles {
    fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let unreadable = |source| TlsError::Unreadable(self.key.clone(), "private key", source);
        let unusable = |source| TlsError::Unusable(self.clone(), source);
        let chain = chain(&self.chain)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(unreadable)?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().map_err(unusable)?;
        let mut config = config.with_no_client_auth().with_single_cert(chain, key).map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// The digest of the contents of both files. An unreadable file counts as empty.
    fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for file in [&self.chain, &self.key] {
            hash.update(std::fs::read(file).unwrap_or_default());
        }
        hash.finalize().into()
    }
}

/// The TLS configuration of a listener, with its current certificate.
#[derive(Debug)]
pub struct Tls {
    files: CertificateFiles,
    /// The digest of the files at the last attempt to load them.
    fingerprint: [u8; 32],
    config: watch::Sender<Arc<ServerConfig>>,
}

impl Tls {
    /// Loads the files.
    pub fn new(files: CertificateFiles) -> Result<Self, TlsError> {
        // Computed before the files are loaded, so that files replaced in between are noticed.
        let fingerprint = files.fingerprint();
        let config = watch::Sender::new(files.load()?);
        Ok(Self { files, fingerprint, config })
    }

    /// The current configuration. Each handshake reads it from this receiver.
    pub fn current(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.config.subscribe()
    }

    /// Reloads the certificate when its files change. Checks every second and when `check` is notified. Existing
    /// connections keep their certificate. If the new files cannot be used, logs a warning and keeps the old
    /// certificate.
    pub async fn watch_and_reload(mut self, check: Arc<Notify>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = check.notified() => {}
                () = sleep(CHECK_INTERVAL) => {}
            }
            let files = self.files.clone();
            let Ok(found) = tokio::task::spawn_blocking(move || files.fingerprint()).await else { continue };
            if found == self.fingerprint {
                continue;
            }
            self.fingerprint = found;
            match self.files.load() {
                Ok(loaded) => {
                    self.config.send_replace(loaded);
                    tracing::info!(
                        name: "certificate.reloaded",
                        file = %self.files.chain.display(),
                        "certificate reloaded"
                    );
                }
                Err(error) => tracing::warn!(
                    name: "certificate.invalid",
                    error = %error,
                    cause = std::error::Error::source(&error).map(tracing::field::display),
                    "the new certificate cannot be used; the previous one is still served"
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    fn write(directory: &Path) -> CertificateFiles {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let files = CertificateFiles { chain: directory.join("chain.pem"), key: directory.join("key.pem") };
        std::fs::write(&files.chain, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        files
    }

    #[tokio::test]
    async fn certificate_replaced_during_startup_is_reloaded() {
        let directory = tempfile::tempdir().unwrap();
        let tls = Tls::new(write(directory.path())).unwrap();
        write(directory.path());
        let (mut config, stop) = (tls.current(), CancellationToken::new());
        let watching = tokio::spawn(tls.watch_and_reload(Arc::new(Notify::new()), stop.clone()));
        timeout(Duration::from_secs(30), config.changed()).await.unwrap().unwrap();
        stop.cancel();
        watching.await.unwrap();
    }
}
