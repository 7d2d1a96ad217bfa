//! Identifiers. Parsing validates them once; the types hold only valid values.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use thiserror::Error;
use uuid::Uuid;
use uuid::fmt::Simple;

/// The prefix of every token.
pub const TOKEN_PREFIX: &str = "cbt_";

/// Whether a text contains the token prefix, in upper or lower case, percent-encoded or not. Such a text is not a valid
/// id, and must not be logged or returned.
pub fn contains_token(text: &str) -> bool {
    let prefix = TOKEN_PREFIX.as_bytes();
    let contains = |text: &[u8]| text.windows(prefix.len()).any(|part| part.eq_ignore_ascii_case(prefix));
    contains(text.as_bytes()) || text.contains('%') && contains(&percent_decoded(text))
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => (decoded.push(byte), rest = &after[2..]),
            None => (decoded.push(*first), rest = after),
        };
    }
    decoded
}

/// In characters.
const MAX_EXTERNAL_ID: usize = 128;

/// The text is not a valid identifier.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "must be 1 to 128 characters of A-Z a-z 0-9 . _ : - and must not contain the token prefix cbt_; a \
     conversation id must not be . or .."
)]
pub struct InvalidId;

/// In characters.
const MAX_TOOL_NAME: usize = 64;

/// The text is not a valid name of a tool or provider.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("must be 1 to 64 characters of A-Z a-z 0-9 . _ : - and must not contain the token prefix cbt_")]
pub struct InvalidToolName;

/// In characters.
const MAX_TOOL_CALL_ID: usize = 128;

/// The text is not a valid id of a tool call.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "must be 1 to 128 visible ASCII characters, without spaces, and must not contain the token prefix cbt_"
)]
pub struct InvalidToolCallId;

/// Whether a text has 1 to `max` allowed characters and does not contain the token prefix: ids are logged, and tokens
/// must not be.
fn is_id(text: &str, max: usize, allowed: impl Fn(u8) -> bool) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(allowed) && !contains_token(text)
}

/// The alphabet of identifiers.
const fn is_id_character(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-')
}

fn check_conversation_id(text: &str) -> Result<(), InvalidId> {
    // Clients remove `.` and `..` from the path of a URL.
    if matches!(text, "." | "..") { Err(InvalidId) } else { check_turn_id(text) }
}

fn check_turn_id(text: &str) -> Result<(), InvalidId> {
    is_id(text, MAX_EXTERNAL_ID, is_id_character).then_some(()).ok_or(InvalidId)
}

fn check_tool_name(text: &str) -> Result<(), InvalidToolName> {
    is_id(text, MAX_TOOL_NAME, is_id_character).then_some(()).ok_or(InvalidToolName)
}

fn check_tool_call_id(text: &str) -> Result<(), InvalidToolCallId> {
    is_id(text, MAX_TOOL_CALL_ID, |b| b.is_ascii_graphic()).then_some(()).ok_or(InvalidToolCallId)
}

macro_rules! external_id {
    ($(#[$doc:meta])* $name:ident, $check:ident, $error:ident, $characters:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            #[doc = concat!("Accepts ", $characters, ". Refuses a text that contains the token prefix.")]
            pub fn parse(text: &str) -> Result<Self, $error> {
                $check(text)?;
                Ok(Self(text.into()))
            }

            /// The unchanged text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

external_id!(
    /// The platform's id of a conversation.
    ConversationId, check_conversation_id, InvalidId, "1–128 characters of `A-Za-z0-9._:-`, but not `.` or `..` alone"
);
external_id!(
    /// The platform's id of a turn in a conversation.
    TurnId, check_turn_id, InvalidId, "1–128 characters of `A-Za-z0-9._:-`"
);
external_id!(
    /// The platform's id of the tool call for which a work item was issued.
    ToolCallId, check_tool_call_id, InvalidToolCallId, "1–128 visible ASCII characters"
);
external_id!(
    /// The name of the tool or provider that a work item was sent to.
    ToolName, check_tool_name, InvalidToolName, "1–64 characters of `A-Za-z0-9._:-`"
);

impl ConversationId {
    /// The reference that stores and tokens use for this conversation.
    pub fn reference(&self) -> ConversationRef {
        let digest = Sha256::digest(self.0.as_bytes());
        let mut reference = [0; 16];
        reference.copy_from_slice(&digest[..16]);
        ConversationRef(reference)
    }
}

/// The first 16 bytes of the SHA-256 of a [`ConversationId`]: fixed size, and safe in Redis keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConversationRef([u8; 16]);

impl ConversationRef {
    /// A reference from its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The reference's bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The partition of this conversation, less than `partitions`.
    pub fn partition(&self, partitions: u16) -> u16 {
        let [a, b, c, d, ..] = self.0;
        let partition = u32::from_be_bytes([a, b, c, d]) % u32::from(partitions.max(1));
        u16::try_from(partition).unwrap_or_default()
    }
}

impl fmt::Display for ConversationRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Fast, because this is part of every key, log line and span.
        Uuid::from_bytes(self.0).simple().fmt(f)
    }
}

impl fmt::Debug for ConversationRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for ConversationRef {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let nibbles: Option<Vec<u8>> =
            text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
        let nibbles: [u8; 32] = nibbles.ok_or(InvalidId)?.try_into().map_err(|_| InvalidId)?;
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(nibbles.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self(bytes))
    }
}

/// The id of a work item: a `UUIDv7` whose last 32 bits are the item's sequence. Globally unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkItemId(Uuid);

impl WorkItemId {
    /// A work item's id from a UUID.
    pub const fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    /// Accepts only the hyphenated lower-case form, so that each id has one text form.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Uuid::try_parse(text).ok()?;
        (id.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text).then_some(Self(id))
    }

    /// The id's 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The same id with another sequence in its last 32 bits.
    #[must_use]
    pub const fn with_sequence(self, sequence: Sequence) -> Self {
        let attempt = self.0.as_u128() & !0xffff_ffff;
        Self(Uuid::from_u128(attempt | (sequence.get() & 0xffff_ffff) as u128))
    }

    /// The sequence in the last 32 bits.
    #[expect(clippy::cast_possible_truncation, reason = "the last 32 bits are wanted")]
    pub const fn sequence(self) -> Sequence {
        Sequence::new(self.0.as_u128() as u32 as u64)
    }
}

impl fmt::Display for WorkItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for WorkItemId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The id of an HTTP request: in `X-Request-Id`, error bodies, envelopes and log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(Uuid);

impl RequestId {
    /// A request's id from a UUID.
    pub const fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    /// Accepts every text form of a UUID.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Identifies a store command, so that a retry after a lost reply is recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttemptId(u64);

impl AttemptId {
    /// An attempt's id from a random number.
    pub const fn from_random(random: u64) -> Self {
        Self(random)
    }

    /// The attempt's 8 bytes.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A work item's position in its conversation, in order of issue: 1, 2, 3 …
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Sequence(u64);

impl Sequence {
    /// The first sequence of every conversation.
    pub const FIRST: Self = Self(1);

    /// A sequence from its number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The sequence's number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The following sequence.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A `traceparent` of W3C Trace Context, version 00.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent(Arc<str>);

impl Serialize for TraceParent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The text is not a valid `traceparent`.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "must be a W3C traceparent: 00-<32 lower-case hex>-<16 lower-case hex>-<2 lower-case hex>, with nonzero ids"
)]
pub struct InvalidTraceParent;

impl TraceParent {
    /// Accepts version 00 with nonzero trace and parent ids.
    pub fn parse(text: &str) -> Result<Self, InvalidTraceParent> {
        let parts: Vec<&str> = text.split('-').collect();
        let hex = |part: &str, length| {
            part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let zero = |part: &str| part.bytes().all(|b| b == b'0');
        match parts.as_slice() {
            ["00", trace, parent, flags]
                if hex(trace, 32) && hex(parent, 16) && hex(flags, 2) && !zero(trace) && !zero(parent) =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(InvalidTraceParent),
        }
    }

    /// Builds a `traceparent`. `None` if an id is zero.
    pub fn of(trace_id: [u8; 16], span_id: [u8; 8], flags: u8) -> Option<Self> {
        // Formats the digits as parts of UUIDs, which is faster than `format!`.
        let rest = u128::from(u64::from_be_bytes(span_id)) << 8 | u128::from(flags);
        let [trace, rest] = [Uuid::from_bytes(trace_id), Uuid::from_u128(rest)].map(Uuid::simple);
        let (mut trace_digits, mut rest_digits) = ([0; Simple::LENGTH], [0; Simple::LENGTH]);
        let trace = &*trace.encode_lower(&mut trace_digits);
        let (span, flags) = rest.encode_lower(&mut rest_digits)[14..].split_at(16);
        let traceparent = || Self(["00-", trace, "-", span, "-", flags].concat().into());
        (trace_id != [0; 16] && span_id != [0; 8]).then(traceparent)
    }

    /// The trace id, the span id and the flags. Never `None`, because the text has been checked.
    pub fn ids(&self) -> Option<([u8; 16], [u8; 8], u8)> {
        let trace_id = Uuid::try_parse(self.trace_id()).ok()?.into_bytes();
        let span_id = u64::from_str_radix(&self.0[36..52], 16).ok()?;
        Some((trace_id, span_id.to_be_bytes(), u8::from_str_radix(&self.0[53..], 16).ok()?))
    }

    /// The full text, 55 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trace id: 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        &self.0[3..35]
    }
}

/// The SHA-256 of an `Idempotency-Key`. The key itself is not stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdempotencyDigest([u8; 32]);

impl IdempotencyDigest {
    /// In characters.
    const MAX_KEY: usize = 255;

    /// The digest of a key. `None` unless the key is 1–255 visible ASCII characters.
    pub fn of(key: &str) -> Option<Self> {
        let visible = key.bytes().all(|b| b.is_ascii_graphic());
        ((1..=Self::MAX_KEY).contains(&key.len()) && visible).then(|| Self(Sha256::digest(key).into()))
    }

    /// The first 8 hexadecimal digits.
    pub fn short(&self) -> String {
        format!("{:08x}", u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]]))
    }

    /// The digest's 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for IdempotencyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for IdempotencyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The SHA-256 of a request body, to compare bodies.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The first 8 hexadecimal digits.
    pub fn short(&self) -> String {
        format!("{:08x}", u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]]))
    }

    /// The digest's 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn external_ids_exclude_the_delimiters_of_keys() {
        for bad in ["", "{}", "a b", "a\0", "a/b", "ä", "a%2F", "a\n", &"x".repeat(129)] {
            assert_eq!(ConversationId::parse(bad), Err(InvalidId), "{bad:?}");
        }
        for good in ["a", "A.b_c:d-9", "cbt", "cbt-1", "...", ".a", &"x".repeat(128)] {
            assert_eq!(ConversationId::parse(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn dot_segments_of_urls_are_refused() {
        assert_eq!([".", ".."].map(ConversationId::parse), [Err(InvalidId), Err(InvalidId)]);
        assert!(TurnId::parse("..").is_ok(), "turn ids are not used in URL paths");
    }

    #[test]
    fn ids_that_contain_a_token_are_refused() {
        for bad in ["cbt_AQJrMQ", "cbt_", "CBT_AQJrMQ", "call-7:cbt_AQJrMQ"] {
            assert_eq!(ConversationId::parse(bad), Err(InvalidId), "{bad:?}");
            assert_eq!(TurnId::parse(bad), Err(InvalidId), "{bad:?}");
        }
        let message = InvalidId.to_string();
        assert!(
            message.contains(TOKEN_PREFIX) && message.contains(&MAX_EXTERNAL_ID.to_string()),
            "{message}"
        );
    }

    #[test]
    fn tool_names_and_tool_call_ids_have_their_own_bounds() {
        for bad in ["", "a b", "a\n", "ä", "weather/v2", "a{}", "CBT_AQJrMQ", &"x".repeat(65)] {
            assert_eq!(ToolName::parse(bad), Err(InvalidToolName), "{bad:?}");
        }
        for bad in ["", "a b", "a\u{7f}", "a\0", "ä", "call:cbt_AQJrMQ", "%63BT%5fAQJrMQ", &"x".repeat(129)]
        {
            assert_eq!(ToolCallId::parse(bad), Err(InvalidToolCallId), "{bad:?}");
        }
        assert!(ToolName::parse(&"x".repeat(64)).is_ok());
        for good in ["toolu_01A/b", "100%", "%+1%zz", "%25", "{\"call\":1}", "!~\\", &"x".repeat(128)] {
            assert_eq!(ToolCallId::parse(good).unwrap().as_str(), good);
        }
        for (message, max) in
            [(InvalidToolName.to_string(), MAX_TOOL_NAME), (InvalidToolCallId.to_string(), MAX_TOOL_CALL_ID)]
        {
            assert!(message.contains(TOKEN_PREFIX) && message.contains(&max.to_string()), "{message}");
        }
    }

    #[test]
    fn reference_is_a_digest_prefix_and_round_trips() {
        let reference = ConversationId::parse("abc").unwrap().reference();
        assert_eq!(reference.to_string(), "ba7816bf8f01cfea414140de5dae2223");
        assert_eq!(reference.to_string().parse(), Ok(reference));
        assert_eq!("ba78".parse::<ConversationRef>(), Err(InvalidId));
        assert_eq!(reference.partition(64), (0xba78_16bf_u32 % 64) as u16);
        assert_eq!(reference.partition(1), 0);
    }

    #[test]
    fn work_item_ids_have_one_text_form() {
        let text = "0190163d-8694-739b-aea5-966c26f8ad91";
        assert_eq!(WorkItemId::parse(text).unwrap().to_string(), text);
        assert_eq!(WorkItemId::parse(&text.to_uppercase()), None);
        assert_eq!(WorkItemId::parse(&text.replace('-', "")), None);
    }

    #[test]
    fn malformed_traceparents_are_refused() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parsed = TraceParent::parse(good).unwrap();
        assert_eq!(parsed.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        let (trace_id, span_id) = (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128, 0xb7ad_6b71_6920_3331_u64);
        let (trace_id, span_id) = (trace_id.to_be_bytes(), span_id.to_be_bytes());
        assert_eq!(TraceParent::of(trace_id, span_id, 1), Some(parsed.clone()));
        assert_eq!(parsed.ids(), Some((trace_id, span_id, 1)));
        assert_eq!(TraceParent::of([1; 16], [2; 8], 0xfe).unwrap().ids(), Some(([1; 16], [2; 8], 0xfe)));
        assert_eq!(TraceParent::of([0; 16], span_id, 1), None);
        assert_eq!(TraceParent::of(trace_id, [0; 8], 1), None);
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceParent::parse(bad), Err(InvalidTraceParent), "{bad:?}");
        }
    }
}
