//! A token: only signed tokens verify, and their claims are those that were signed. The reference implements the documented
//! format of tokens, and shares only the hash function with the service.

use callback_ingress::domain::ids::{ConversationRef, Sequence, WorkItemId};
use callback_ingress::domain::time::Timestamp;
use callback_ingress::domain::token::{Claims, KeyId, Keyring, SigningKey, TokenRefused};
use callback_ingress::domain::work_item::{Kind, WorkItem};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

/// The keys of the keyring: the first signs, both verify.
const RING: [(&str, &[u8]); 2] = [("k1", &[1; 32]), ("key-0002", &[2; 40])];
/// Keys outside the keyring: one with an unknown id, and one with a known id.
const FOREIGN: [&[u8]; 2] = [&[3; 32], b"k1"];
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const SIGNED: usize = 52;
const CHARS: usize = 116;
/// The maximum of a timestamp, in milliseconds.
const LAST: u64 = 253_402_300_799_999;

/// The input is used as the text of a token. It is also used as one byte that selects a key, 52 bytes to sign, and a text
/// to corrupt the signed token.
pub fn check(input: &[u8]) {
    let ring = ring();
    let text = String::from_utf8_lossy(input);
    assert_eq!(verified(&ring, &text, 0), reference(&text, 0), "{text:?}");
    let Some((&choice, rest)) = input.split_first() else { return };
    let Some((signed, spoiling)) = rest.split_at_checked(SIGNED) else { return };
    let keys = RING.map(|(_, secret)| secret).into_iter().chain(FOREIGN);
    let secrets: Vec<_> = keys.collect();
    let token = sign(signed, secrets[usize::from(choice) % secrets.len()]);
    check_signed(&ring, signed, &token);
    check_spoilt(&ring, &token, spoiling);
}

fn ring() -> Keyring {
    let [first, other] =
        RING.map(|(id, secret)| SigningKey::new(KeyId::parse(id).unwrap(), secret.to_vec()).unwrap());
    Keyring::new(first, vec![other])
}

/// For any bytes signed with any key, the service and the reference agree before, at and after the expiry.
fn check_signed(ring: &Keyring, signed: &[u8], token: &str) {
    let expiry = expiry(signed);
    for now in [0, expiry.saturating_sub(1), expiry, expiry.saturating_add(1), LAST] {
        let now = now.min(LAST);
        let verified = verified(ring, token, now);
        assert_eq!(verified, reference(token, now), "{signed:?} at {now}");
        let (Ok(claims) | Err(Some(claims))) = verified else { continue };
        assert_eq!(verified.is_ok(), now < expiry.min(LAST));
        // A token has one encoding: signing its claims again returns the same text.
        if expiry <= LAST {
            assert_eq!(ring.sign(claims.conversation, &item(&claims, key_id(signed))).expose(), token);
        }
    }
}

fn item(claims: &Claims, key_id: KeyId) -> WorkItem {
    WorkItem {
        id: claims.work_item,
        sequence: claims.sequence,
        kind: claims.kind,
        turn_id: None,
        tool_call_id: None,
        name: None,
        issued_at: Timestamp::from_millis(0),
        deadline: Timestamp::from_millis(0),
        heartbeat_timeout_ms: None,
        expires_at: claims.expires_at,
        key_id,
        traceparent: None,
    }
}

fn key_id(signed: &[u8]) -> KeyId {
    let text = std::str::from_utf8(&signed[2..10]).unwrap();
    KeyId::parse(text.trim_end_matches('\0')).unwrap()
}

/// A token that is changed in any way is refused.
fn check_spoilt(ring: &Keyring, token: &str, spoiling: &[u8]) {
    let [from, length, spoiling @ ..] = spoiling else { return };
    let spoiling = String::from_utf8_lossy(spoiling);
    let from = usize::from(*from) % (CHARS + 1);
    let to = (from + usize::from(*length) % 8).min(CHARS);
    let mut spoilt = token.to_owned();
    spoilt.replace_range(from..to, &spoiling);
    must_be_refused(ring, token, &spoilt);
    let Some(other) = spoiling.chars().next() else { return };
    for at in 0..CHARS {
        let mut spoilt = token.to_owned();
        spoilt.replace_range(at..=at, other.encode_utf8(&mut [0; 4]));
        must_be_refused(ring, token, &spoilt);
    }
}

fn must_be_refused(ring: &Keyring, token: &str, spoilt: &str) {
    if spoilt != token {
        assert_eq!(verified(ring, spoilt, 0), Err(None), "{spoilt:?} is not {token:?}");
    }
}

fn mac(signed: &[u8], secret: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    mac.update(signed);
    mac.finalize().into_bytes().to_vec()
}

fn sign(signed: &[u8], secret: &[u8]) -> String {
    let bytes = [signed, &mac(signed, secret)].concat();
    let mut text = String::from("cbt_");
    for group in bytes.chunks_exact(3) {
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        text.extend([18, 12, 6, 0].map(|shift| char::from(ALPHABET[(bits >> shift) as usize & 63])));
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let encoded = text.strip_prefix("cbt_").filter(|_| text.len() == CHARS)?;
    let mut bytes = Vec::new();
    for group in encoded.as_bytes().chunks_exact(4) {
        let mut bits = 0;
        for character in group {
            let value = ALPHABET.iter().position(|known| known == character)?;
            bits = bits << 6 | u32::try_from(value).unwrap();
        }
        bytes.extend(&bits.to_be_bytes()[1..]);
    }
    Some(bytes)
}

fn expiry(signed: &[u8]) -> u64 {
    signed[10..16].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Verifies a text with the service. The error contains the claims of an expired token.
fn verified(ring: &Keyring, text: &str, now: u64) -> Result<Claims, Option<Claims>> {
    ring.verify(text, Timestamp::from_millis(now)).map_err(|refused| match refused {
        TokenRefused::Invalid(_) => None,
        TokenRefused::Expired(claims) => Some(claims),
    })
}

/// Verifies a text with the reference.
fn reference(text: &str, now: u64) -> Result<Claims, Option<Claims>> {
    let bytes = decode(text).ok_or(None)?;
    let (signed, code) = bytes.split_at(SIGNED);
    let key = RING.iter().find(|(id, _)| {
        let mut padded = id.as_bytes().to_vec();
        padded.resize(8, 0);
        padded == signed[2..10]
    });
    let authentic = key.is_some_and(|(_, secret)| mac(signed, secret) == code);
    let kind = match (authentic, signed[0], signed[1]) {
        (true, 2, 1) => Kind::Llm,
        (true, 2, 2) => Kind::Tool,
        _ => return Err(None),
    };
    let claims = Claims {
        conversation: ConversationRef::from_bytes(signed[16..32].try_into().unwrap()),
        work_item: WorkItemId::from_uuid(Uuid::from_slice(&signed[32..48]).unwrap()),
        sequence: Sequence::new(u32::from_be_bytes(signed[48..].try_into().unwrap()).into()),
        kind,
        expires_at: Timestamp::from_millis(expiry(signed)),
    };
    if now >= expiry(signed).min(LAST) { Err(Some(claims)) } else { Ok(claims) }
}
