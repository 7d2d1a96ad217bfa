//! Valid and invalid tokens, and texts that resemble tokens.

use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use callback_ingress::clock::Entropy;
use callback_ingress::domain::ids::{ConversationId, Sequence, TOKEN_PREFIX};
use callback_ingress::domain::time::Timestamp;
use callback_ingress::domain::token::{KeyId, Keyring, SigningKey};
use callback_ingress::domain::work_item::{Kind as WorkKind, WorkItem};

use super::search::{Kind, Secret};
use crate::collector::hex;

/// The HMAC, the last 32 of a token's 84 bytes.
pub(crate) fn code(token: &str) -> Vec<u8> {
    let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix(TOKEN_PREFIX).unwrap()).unwrap();
    bytes[49..].to_vec()
}

/// All secrets of a run.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<Vec<Secret>>);

impl Known {
    /// The prefix of a token is forbidden as well.
    pub(crate) fn new() -> Self {
        let known = Self::default();
        known.add(Secret::exactly("a token's beginning", "cbt_Ag"));
        known
    }

    pub(crate) fn add(&self, secret: Secret) {
        self.0.lock().unwrap().push(secret);
    }

    /// Registers a token as a secret.
    pub(crate) fn token(&self, name: &str, token: &str) {
        self.add(Secret::bytes(&format!("the code of the token of {name}"), &code(token)));
    }

    /// A new credential for the configuration.
    pub(crate) fn credential(&self, name: &str) -> String {
        let text = random_text(24);
        self.add(Secret::text(name, Kind::Credential, &text));
        text
    }

    /// A new signing key in the form of the configuration.
    pub(crate) fn signing_key(&self, id: &str) -> String {
        let bytes = random_bytes(48);
        let text = STANDARD.encode(&bytes);
        self.add(Secret::bytes(&format!("the signing key {id}"), &bytes));
        self.add(Secret::text(&format!("the text of the signing key {id}"), Kind::Credential, &text));
        format!("{id}:{text}")
    }

    /// A new secret text for a result.
    pub(crate) fn result(&self) -> String {
        let text = random_text(18);
        self.add(Secret::text("a result", Kind::Result, &text));
        text
    }

    pub(crate) fn all(&self) -> Vec<Secret> {
        self.0.lock().unwrap().clone()
    }
}

fn random_bytes(count: usize) -> Vec<u8> {
    (0..count).map(|_| rand::random()).collect()
}

fn random_text(bytes: usize) -> String {
    URL_SAFE_NO_PAD.encode(random_bytes(bytes))
}

/// Signs a token for an item that was never issued, with the service's key.
pub(crate) fn signed(key: &str, conversation: &str, expires_at: u64) -> String {
    let (id, secret) = key.split_once(':').unwrap();
    let key_id = KeyId::parse(id).unwrap();
    let ring = Keyring::new(SigningKey::new(key_id, STANDARD.decode(secret).unwrap()).unwrap(), Vec::new());
    let item = WorkItem {
        id: Entropy.work_item_id(),
        sequence: Sequence::FIRST,
        kind: WorkKind::Tool,
        turn_id: None,
        tool_call_id: None,
        name: None,
        issued_at: Timestamp::from_millis(0),
        deadline: Timestamp::from_millis(0),
        heartbeat_timeout_ms: None,
        expires_at: Timestamp::from_millis(expires_at),
        key_id,
        traceparent: None,
    };
    let reference = ConversationId::parse(conversation).unwrap().reference();
    ring.sign(reference, &item).expose().to_owned()
}

/// The token with another character at this index.
pub(crate) fn changed(token: &str, at: usize) -> String {
    let other = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
    let mut changed = token.to_owned();
    changed.replace_range(at..=at, other);
    changed
}

/// Percent-encodes every character.
pub(crate) fn escaped(text: &str) -> String {
    let digits = hex(text.as_bytes());
    let pairs: Vec<&str> = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]).collect();
    format!("%{}", pairs.join("%"))
}

/// Near-tokens, each with at least 20 characters of the token's HMAC.
pub(crate) fn texts(token: &str) -> Vec<Vec<u8>> {
    let last = token.len() - 1;
    let texts = [
        changed(token, last),
        changed(token, 0),
        changed(token, 8),
        changed(token, 70),
        token[..last].to_owned(),
        token[..token.len() - 20].to_owned(),
        format!("{token}="),
        format!("{token}{token}"),
        format!("{token},{}", changed(token, last)),
        format!(" {token}"),
        format!("{token} "),
        format!("%20{token}%0A"),
        format!("{}+{}", &token[..90], &token[90..]),
        format!("{} {}", &token[..90], &token[90..]),
        format!("{}\t{}", &token[..90], &token[90..]),
        format!("%63{}", &token[1..]),
        escaped(token),
        format!("\"{token}\""),
        format!("Bearer {token}"),
        format!("CBT_{}", &token[4..]),
        format!("{token}\u{e9}"),
    ];
    let mut texts: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
    texts.push([token.as_bytes(), b"\xff"].concat());
    texts.push([token.as_bytes(), b"\0"].concat());
    // Last, because it spends the token; twice, to include a repetition.
    texts.extend([token.as_bytes().to_vec(), token.as_bytes().to_vec()]);
    texts
}
