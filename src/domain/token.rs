//! Callback tokens: single-use credentials of a work item.
//!
//! A token is `cbt_` followed by 84 bytes as 112 characters of base64url without padding:
//!
//! | bytes | content |
//! |---|---|
//! | 1 | version: 2 |
//! | 1 | kind: 1 `llm`, 2 `tool` (lets the service check the form of a result without the store) |
//! | 8 | key id, padded with zero bytes |
//! | 6 | expiry, milliseconds since the Unix epoch, big endian |
//! | 16 | the conversation's reference |
//! | 16 | the work item's id |
//! | 4 | the work item's sequence, big endian |
//! | 32 | HMAC-SHA256 over the preceding 52 bytes |
//!
//! 84 is a multiple of 3, so base64 has no unused bits and each token has exactly one text form.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use sha2::{Digest, Sha256};
use thiserror::Error;
use uuid::Uuid;

use super::ids::{ConversationRef, Sequence, TOKEN_PREFIX, WorkItemId};
use super::time::Timestamp;
use super::work_item::{Kind, WorkItem};

/// Minimum length of a signing key in bytes: the output size of SHA-256 (RFC 2104, section 3).
pub const MIN_KEY_BYTES: usize = 32;

const VERSION: u8 = 2;
const KEY_ID_BYTES: usize = 8;
const SIGNED_BYTES: usize = 1 + 1 + KEY_ID_BYTES + 6 + 16 + 16 + 4;
const TOKEN_BYTES: usize = SIGNED_BYTES + 32;
/// Length of every token in characters.
pub const TOKEN_CHARS: usize = TOKEN_PREFIX.len() + TOKEN_BYTES / 3 * 4;

/// The id of a signing key: 1–8 characters of `A-Za-z0-9_-`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId([u8; KEY_ID_BYTES]);

/// The text is not a valid key id.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a key id must be 1 to 8 characters of A-Z a-z 0-9 _ -")]
pub struct InvalidKeyId;

impl KeyId {
    /// Accepts 1–8 characters of `A-Za-z0-9_-`.
    pub fn parse(text: &str) -> Result<Self, InvalidKeyId> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if !(1..=KEY_ID_BYTES).contains(&text.len()) || !text.bytes().all(allowed) {
            return Err(InvalidKeyId);
        }
        let mut id = [0; KEY_ID_BYTES];
        id[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(id))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take_while(|b| **b != 0).try_for_each(|b| write!(f, "{}", char::from(*b)))
    }
}

/// A key that signs and verifies tokens. `Debug` shows only the id.
#[derive(Clone)]
pub struct SigningKey {
    id: KeyId,
    /// Initialized with the key: cloning it saves two SHA-256 blocks per token.
    mac: Hmac<Sha256>,
}

/// The key has fewer than [`MIN_KEY_BYTES`] bytes.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a signing key needs at least {MIN_KEY_BYTES} bytes")]
pub struct KeyTooShort;

impl SigningKey {
    /// A key with a secret of at least [`MIN_KEY_BYTES`] bytes.
    pub fn new(id: KeyId, secret: Vec<u8>) -> Result<Self, KeyTooShort> {
        let secret: SecretSlice<u8> = secret.into();
        let secret = secret.expose_secret();
        if secret.len() < MIN_KEY_BYTES {
            return Err(KeyTooShort);
        }
        // HMAC accepts keys of any length.
        let mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|_| KeyTooShort)?;
        Ok(Self { id, mac })
    }

    /// The id, which is not secret.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    fn mac(&self, signed: &[u8]) -> Hmac<Sha256> {
        self.mac.clone().chain_update(signed)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.id)
    }
}

/// The content of an authentic token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claims {
    /// The conversation.
    pub conversation: ConversationRef,
    /// The work item that the token can settle.
    pub work_item: WorkItemId,
    /// The work item's sequence.
    pub sequence: Sequence,
    /// The work item's kind.
    pub kind: Kind,
    /// Expiry of the token.
    pub expires_at: Timestamp,
}

/// Why a token is not authentic. For logs only, because a caller must not learn which key ids exist.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TokenDefect {
    /// Not 116 characters of the token alphabet, or a token of another version.
    #[error("the token is malformed")]
    Malformed,
    /// Signed with a key that is not in the keyring.
    #[error("the token names an unknown key")]
    UnknownKey,
    /// Changed after it was signed, or forged.
    #[error("the token's signature is wrong")]
    WrongSignature,
}

/// Why a token was refused. The message does not say why a token is not authentic, so that an attacker learns nothing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TokenRefused {
    /// Malformed, forged, or signed with a key that is not in the keyring.
    #[error("the token is not authentic")]
    Invalid(TokenDefect),
    /// Authentic, but expired.
    #[error("the token has expired")]
    Expired(Claims),
}

/// A token in clear text. `Debug` does not show it. The memory is zeroed on drop.
#[derive(Clone)]
pub struct Token(SecretString);

impl Token {
    /// The token's text. Must not be logged.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The first 8 hexadecimal digits of a token's SHA-256: the only form of a token in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenFingerprint([u8; 4]);

impl TokenFingerprint {
    /// The fingerprint of a text, which does not have to be an authentic token.
    pub fn of(text: &str) -> Self {
        let digest = Sha256::digest(text);
        Self([digest[0], digest[1], digest[2], digest[3]])
    }
}

impl fmt::Display for TokenFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// The signing keys. The first one signs, all of them verify. They can be replaced at any time.
pub struct Keyring(RwLock<Arc<SigningKeyList>>);

#[derive(Debug)]
struct SigningKeyList {
    first: SigningKey,
    others: Vec<SigningKey>,
}

impl SigningKeyList {
    fn key(&self, id: KeyId) -> Option<&SigningKey> {
        std::iter::once(&self.first).chain(&self.others).find(|key| key.id == id)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys();
        f.debug_struct("Keyring").field("first", &keys.first).field("others", &keys.others).finish()
    }
}

impl Keyring {
    /// A keyring in which `first` signs, and `first` and `others` verify.
    pub fn new(first: SigningKey, others: Vec<SigningKey>) -> Self {
        Self(RwLock::new(Arc::new(SigningKeyList { first, others })))
    }

    /// Replaces all keys. Tokens signed with a key that is not among the new ones become invalid.
    pub fn replace(&self, first: SigningKey, others: Vec<SigningKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(SigningKeyList { first, others });
    }

    fn keys(&self) -> Arc<SigningKeyList> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The id of the key that signs.
    pub fn signing_key_id(&self) -> KeyId {
        self.keys().first.id
    }

    /// The token of a work item. Deterministic as long as the item's key is in the keyring.
    pub fn sign(&self, conversation: ConversationRef, item: &WorkItem) -> Token {
        let keys = self.keys();
        let key = keys.key(item.key_id).unwrap_or(&keys.first);
        let mut bytes = Vec::with_capacity(TOKEN_BYTES);
        bytes.push(VERSION);
        bytes.push(kind_byte(item.kind));
        bytes.extend(key.id.0);
        bytes.extend(&item.expires_at.as_millis().to_be_bytes()[2..]);
        bytes.extend(conversation.as_bytes());
        bytes.extend(item.id.as_bytes());
        bytes.extend(&item.sequence.get().to_be_bytes()[4..]);
        let mac = key.mac(&bytes).finalize().into_bytes();
        bytes.extend(mac);
        let mut text = String::with_capacity(TOKEN_CHARS);
        text.push_str(TOKEN_PREFIX);
        URL_SAFE_NO_PAD.encode_string(&bytes, &mut text);
        Token(text.into())
    }

    /// Verifies a token without the store. Compares the HMAC in constant time. Computes an HMAC even for an unknown
    /// key, so that the response time does not reveal key ids.
    pub fn verify(&self, text: &str, now: Timestamp) -> Result<Claims, TokenRefused> {
        let malformed = TokenRefused::Invalid(TokenDefect::Malformed);
        let encoded = text.strip_prefix(TOKEN_PREFIX).ok_or(malformed)?;
        let mut bytes = [0; TOKEN_BYTES];
        if text.len() != TOKEN_CHARS
            || URL_SAFE_NO_PAD.decode_slice(encoded, &mut bytes) != Ok(TOKEN_BYTES)
            || bytes[0] != VERSION
        {
            return Err(malformed);
        }
        let (signed, mac) = bytes.split_at(SIGNED_BYTES);
        let mut key_id = [0; KEY_ID_BYTES];
        key_id.copy_from_slice(&signed[2..10]);
        let keys = self.keys();
        let key = keys.key(KeyId(key_id));
        let authentic = key.unwrap_or(&keys.first).mac(signed).verify_slice(mac).is_ok();
        if key.is_none() {
            return Err(TokenRefused::Invalid(TokenDefect::UnknownKey));
        }
        if !authentic {
            return Err(TokenRefused::Invalid(TokenDefect::WrongSignature));
        }
        let kind = kind_of(signed[1]).ok_or(malformed)?;
        let mut expiry = [0; 8];
        expiry[2..].copy_from_slice(&signed[10..16]);
        let mut reference = [0; 16];
        reference.copy_from_slice(&signed[16..32]);
        let mut item = [0; 16];
        item.copy_from_slice(&signed[32..48]);
        let mut sequence = [0; 4];
        sequence.copy_from_slice(&signed[48..52]);
        let claims = Claims {
            conversation: ConversationRef::from_bytes(reference),
            work_item: WorkItemId::from_uuid(Uuid::from_bytes(item)),
            sequence: Sequence::new(u32::from_be_bytes(sequence).into()),
            kind,
            expires_at: Timestamp::from_millis(u64::from_be_bytes(expiry)),
        };
        if now >= claims.expires_at { Err(TokenRefused::Expired(claims)) } else { Ok(claims) }
    }
}

const fn kind_byte(kind: Kind) -> u8 {
    match kind {
        Kind::Llm => 1,
        Kind::Tool => 2,
    }
}

const fn kind_of(byte: u8) -> Option<Kind> {
    match byte {
        1 => Some(Kind::Llm),
        2 => Some(Kind::Tool),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::ids::ConversationId;

    fn key(id: &str, byte: u8) -> SigningKey {
        SigningKey::new(KeyId::parse(id).unwrap(), vec![byte; 32]).unwrap()
    }

    fn item(key_id: KeyId, kind: Kind, expires_at: u64, id: u128) -> WorkItem {
        WorkItem {
            id: WorkItemId::from_uuid(Uuid::from_u128(id)),
            sequence: Sequence::FIRST,
            kind,
            turn_id: None,
            tool_call_id: None,
            name: None,
            issued_at: Timestamp::from_millis(0),
            deadline: Timestamp::from_millis(0),
            heartbeat_timeout_ms: None,
            expires_at: Timestamp::from_millis(expires_at),
            key_id,
            traceparent: None,
        }
    }

    fn conversation() -> ConversationRef {
        ConversationId::parse("call-1").unwrap().reference()
    }

    #[test]
    fn expired_token_is_refused_with_its_claims() {
        let ring = Keyring::new(key("k1", 1), vec![]);
        let token = ring.sign(conversation(), &item(ring.signing_key_id(), Kind::Llm, 1000, 7));
        let claims = ring.verify(token.expose(), Timestamp::from_millis(999)).unwrap();
        let expired = ring.verify(token.expose(), Timestamp::from_millis(1000));
        assert_eq!(expired, Err(TokenRefused::Expired(claims)));
    }

    #[test]
    fn tokens_survive_a_key_rotation() {
        let now = Timestamp::from_millis(0);
        let before = Keyring::new(key("old", 1), vec![]);
        let issued = item(before.signing_key_id(), Kind::Tool, 1000, 7);
        let token = before.sign(conversation(), &issued);
        let during = Keyring::new(key("new", 2), vec![key("old", 1)]);
        assert!(during.verify(token.expose(), now).is_ok());
        assert_eq!(during.sign(conversation(), &issued).expose(), token.expose());
        let after = Keyring::new(key("new", 2), vec![]);
        assert_eq!(after.verify(token.expose(), now), Err(TokenRefused::Invalid(TokenDefect::UnknownKey)));
        // The key id alone does not authenticate.
        let imposter = Keyring::new(key("old", 9), vec![]);
        let forged = Err(TokenRefused::Invalid(TokenDefect::WrongSignature));
        assert_eq!(imposter.verify(token.expose(), now), forged);
    }

    #[test]
    fn replaced_keys_take_effect_at_once() {
        let now = Timestamp::from_millis(0);
        let ring = Keyring::new(key("old", 1), vec![]);
        let issued = item(ring.signing_key_id(), Kind::Tool, 1000, 7);
        let token = ring.sign(conversation(), &issued);
        ring.replace(key("new", 2), vec![key("old", 1)]);
        assert_eq!(ring.signing_key_id(), KeyId::parse("new").unwrap());
        assert!(ring.verify(token.expose(), now).is_ok());
        ring.replace(key("new", 2), vec![]);
        assert_eq!(ring.verify(token.expose(), now), Err(TokenRefused::Invalid(TokenDefect::UnknownKey)));
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let ring = Keyring::new(key("k1", b'S'), vec![]);
        let token = ring.sign(conversation(), &item(ring.signing_key_id(), Kind::Tool, 1000, 7));
        assert_eq!(format!("{token:?}"), "Token(…)");
        assert_eq!(
            format!("{ring:?}"),
            "Keyring { first: SigningKey(k1), others: [] }",
            "Debug shows only the key id"
        );
    }

    #[test]
    fn short_keys_and_invalid_key_ids_are_refused() {
        let id = KeyId::parse("k1").unwrap();
        assert_eq!(SigningKey::new(id, vec![0; 31]).map(|_| ()), Err(KeyTooShort));
        for bad in ["", "123456789", "a:b", "ä"] {
            assert_eq!(KeyId::parse(bad), Err(InvalidKeyId));
        }
    }

    proptest! {
        #[test]
        fn claims_round_trip(expires in 1u64..253_402_300_799_999, id: u128, llm: bool) {
            let ring = Keyring::new(key("k1", 1), vec![]);
            let kind = if llm { Kind::Llm } else { Kind::Tool };
            let item = item(ring.signing_key_id(), kind, expires, id);
            let token = ring.sign(conversation(), &item);
            prop_assert_eq!(token.expose().len(), 116);
            let claims = ring.verify(token.expose(), Timestamp::from_millis(expires - 1)).unwrap();
            prop_assert_eq!(claims.conversation, conversation());
            prop_assert_eq!((claims.work_item, claims.sequence), (item.id, item.sequence));
            prop_assert_eq!(claims.kind, kind);
            prop_assert_eq!(claims.expires_at, item.expires_at);
        }

        #[test]
        fn token_changed_in_any_character_is_refused(at in 0usize..116, other in "[ -~]") {
            let ring = Keyring::new(key("k1", 1), vec![key("k2", 2)]);
            let token = ring.sign(conversation(), &item(ring.signing_key_id(), Kind::Tool, 1000, 7));
            let mut changed = token.expose().to_owned();
            changed.replace_range(at..=at, &other);
            prop_assume!(changed != token.expose());
            let verified = ring.verify(&changed, Timestamp::from_millis(0));
            prop_assert!(matches!(verified, Err(TokenRefused::Invalid(_))));
        }

        #[test]
        fn arbitrary_text_is_refused(text in ".{0,200}") {
            let ring = Keyring::new(key("k1", 1), vec![]);
            let malformed = Err(TokenRefused::Invalid(TokenDefect::Malformed));
            prop_assert_eq!(ring.verify(&text, Timestamp::from_millis(0)), malformed);
        }
    }

    #[test]
    fn padded_truncated_and_longer_tokens_are_refused() {
        let ring = Keyring::new(key("k1", 1), vec![]);
        let token = ring.sign(conversation(), &item(ring.signing_key_id(), Kind::Tool, 1000, 7));
        let text = token.expose();
        for bad in [format!("{text}="), format!("{text}A"), text[..115].to_owned(), text[4..].to_owned()] {
            let malformed = Err(TokenRefused::Invalid(TokenDefect::Malformed));
            assert_eq!(ring.verify(&bad, Timestamp::from_millis(0)), malformed, "{bad}");
        }
    }
}
