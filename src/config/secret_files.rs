//! Files with secrets: keys, one in each line, and a password. Error messages never show their content.

use std::io;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use thiserror::Error;

use super::values::{self, ServiceKeys, SigningKeys};

/// Why a file with secrets cannot be used.
#[derive(Debug, Error)]
pub enum SecretFileError {
    /// It cannot be read, or is not UTF-8.
    #[error("cannot read {file}: {source}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It does not have the expected content.
    #[error("{file}: {message}")]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong. Does not show the content.
        message: String,
    },
}

fn read(file: &Path) -> Result<String, SecretFileError> {
    std::fs::read_to_string(file)
        .map_err(|source| SecretFileError::Unreadable { file: file.to_owned(), source })
}

/// The lines with their numbers, without blank lines and comments.
fn entries(text: &str) -> Vec<(String, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (format!("line {}", index + 1), line.trim()));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).collect()
}

fn keys<K>(
    file: &Path,
    parse: impl FnOnce(&[(String, &str)]) -> Result<K, String>,
) -> Result<K, SecretFileError> {
    let text = read(file)?;
    let entries = entries(&text);
    let keys = if entries.is_empty() { Err("contains no key".into()) } else { parse(&entries) };
    keys.map_err(|message| SecretFileError::Invalid { file: file.to_owned(), message })
}

/// Signing keys as `kid:base64`.
pub(super) fn signing_keys(file: &Path) -> Result<SigningKeys, SecretFileError> {
    keys(file, values::signing_keys)
}

/// Service keys.
pub(super) fn service_keys(file: &Path) -> Result<ServiceKeys, SecretFileError> {
    keys(file, values::service_keys)
}

/// A password: the only line.
pub(super) fn password(file: &Path) -> Result<SecretString, SecretFileError> {
    let text = read(file)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains('\n') {
        let message = "must consist of one line, the password".to_owned();
        return Err(SecretFileError::Invalid { file: file.to_owned(), message });
    }
    Ok(line.into())
}
