//! `keys new`: creates a signing key and a service key.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};

use super::outcome::{Failure, print};
use crate::app::new_service_key;
use crate::clock::Entropy;
use crate::domain::token::{KeyId, MIN_KEY_BYTES};

#[derive(Debug, Args)]
pub(super) struct NewKeysArgs {
    /// Id of the signing key, 1 to 8 characters of A-Z a-z 0-9 _ -; random by default
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = KeyFormat::Toml)]
    format: KeyFormat,
}

/// Form of the output.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[expect(clippy::doc_markdown, reason = "shown as help on the terminal")]
enum KeyFormat {
    /// Both keys for a configuration file
    Toml,
    /// Both keys as lines for a shell
    Shell,
    /// The line of a signing key for token.keys_file
    SigningKey,
    /// The line of a service key for platform.service_keys_file
    ServiceKey,
}

/// A new signing key as `kid:base64`. Its id is random by default, because the ids in a list of keys must differ.
fn signing_key(id: Option<&str>) -> Result<String, Failure> {
    let random = || Entropy.bytes::<MIN_KEY_BYTES>().map_err(|error| Failure::Runtime(error.into()));
    let id = if let Some(id) = id {
        let id = KeyId::parse(id).map_err(|error| Failure::Usage(format!("--id: {error}").into()))?;
        id.to_string()
    } else {
        let random = random()?;
        format!("k{:07x}", u32::from_be_bytes([random[0], random[1], random[2], random[3]]) >> 4)
    };
    Ok(format!("{id}:{}", STANDARD.encode(random()?)))
}

pub(super) fn new(arguments: &NewKeysArgs) -> Result<(), Failure> {
    let signing = signing_key(arguments.id.as_deref())?;
    let service = new_service_key().map_err(|error| Failure::Runtime(error.into()))?;
    print(&match arguments.format {
        KeyFormat::Toml => {
            format!("[token]\nkeys = [\"{signing}\"]\n\n[platform]\nservice_keys = [\"{service}\"]\n")
        }
        KeyFormat::Shell => format!(
            "export CALLBACK_INGRESS__TOKEN__KEYS='[\"{signing}\"]'\n\
             export CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS='[\"{service}\"]'\n"
        ),
        KeyFormat::SigningKey => format!("{signing}\n"),
        KeyFormat::ServiceKey => format!("{service}\n"),
    })
}
