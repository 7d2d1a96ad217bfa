//! Searches captures for secrets in several encodings.

use std::collections::HashMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::collector::hex;

/// Number of consecutive characters of a secret that count as a leak.
const WINDOW_CHARS: usize = 12;
/// The same in bytes: 12 characters of base64 encode 9 bytes.
const WINDOW_BYTES: usize = 9;
/// Length of the prefix by which needles are indexed.
const HEAD: usize = 8;
/// Length of a block. If a block occurs in no needle, no needle starts at the positions before it.
const BLOCK: usize = 4;
/// Positions skipped then.
const STEP: usize = WINDOW_BYTES - BLOCK + 1;

/// The kind of a secret decides where it is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Allowed nowhere.
    Credential,
    /// Allowed on the channel and among held results.
    Result,
}

/// Something that must not be found.
#[derive(Clone, Debug)]
pub(crate) struct Secret {
    name: String,
    kind: Kind,
    /// The needles, each with the form of the secret.
    needles: Vec<(Vec<u8>, &'static str)>,
}

fn windows(of: &[u8], length: usize, form: &'static str) -> Vec<(Vec<u8>, &'static str)> {
    of.windows(length).map(|window| (window.to_vec(), form)).collect()
}

impl Secret {
    /// Exactly this text, however short.
    pub(crate) fn exactly(name: &str, text: &str) -> Self {
        let needles = vec![(text.as_bytes().to_vec(), "text")];
        Self { name: name.to_owned(), kind: Kind::Credential, needles }
    }

    /// A text: any 12 consecutive characters, and its bytes in other encodings.
    pub(crate) fn text(name: &str, kind: Kind, text: &str) -> Self {
        let mut secret = Self::bytes(name, text.as_bytes());
        secret.kind = kind;
        secret.needles.retain(|(_, form)| *form != "bytes");
        secret.needles.extend(windows(text.as_bytes(), WINDOW_CHARS, "text"));
        secret
    }

    /// Bytes: any 9 consecutive ones, raw, in hexadecimal, in base64 at any alignment, or as the list of numbers that
    /// `Debug` prints.
    pub(crate) fn bytes(name: &str, bytes: &[u8]) -> Self {
        let mut needles = windows(bytes, WINDOW_BYTES, "bytes");
        for window in bytes.windows(WINDOW_BYTES) {
            let hex = hex(window);
            needles.push((hex.to_uppercase().into_bytes(), "hexadecimal"));
            needles.push((hex.into_bytes(), "hexadecimal"));
            let numbers: Vec<String> = window.iter().map(u8::to_string).collect();
            needles.push((numbers.join(", ").into_bytes(), "list of numbers"));
        }
        for before in 0..3 {
            let mut shifted = vec![0; before];
            shifted.extend(bytes);
            for text in [URL_SAFE_NO_PAD.encode(&shifted), STANDARD_NO_PAD.encode(&shifted)] {
                // The outer characters may also encode bits of neighbouring bytes.
                let whole = &text.as_bytes()[(before * 8).div_ceil(6)..shifted.len() * 8 / 6];
                needles.extend(windows(whole, WINDOW_CHARS, "base64"));
            }
        }
        Self { name: name.to_owned(), kind: Kind::Credential, needles }
    }

    /// Number of needles.
    pub(crate) fn needles(&self) -> usize {
        self.needles.len()
    }
}

/// A captured output.
#[derive(Clone, Debug)]
pub(crate) struct Capture {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// Whether it may contain results.
    pub(crate) may_hold_results: bool,
}

impl Capture {
    /// A capture that may contain no secret.
    pub(crate) fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: bytes.into(), may_hold_results: false }
    }

    /// A capture that may contain results.
    pub(crate) fn with_results(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { may_hold_results: true, ..Self::new(name, bytes) }
    }
}

/// A secret in a forbidden place.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Leak {
    pub(crate) secret: String,
    pub(crate) form: &'static str,
    pub(crate) capture: String,
    /// The text around it.
    context: String,
}

impl fmt::Debug for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n  {} as {} in {}: …{}…", self.secret, self.form, self.capture, self.context)
    }
}

/// The needles with their secret and form.
type Needle<'a> = (&'a [u8], &'a Secret, &'static str);

/// The secrets of a run, indexed.
pub(crate) struct Searcher<'a> {
    by_head: HashMap<[u8; HEAD], Vec<Needle<'a>>>,
    /// The blocks in the prefixes of needles; most positions are skipped after one lookup.
    blocks: Vec<bool>,
    short: Vec<Needle<'a>>,
}

impl<'a> Searcher<'a> {
    pub(crate) fn new(secrets: &'a [Secret]) -> Self {
        let (mut by_head, mut blocks) = (HashMap::<_, Vec<_>>::new(), vec![false; 1 << HASH_BITS]);
        let mut short = Vec::new();
        let all = secrets.iter().flat_map(|secret| secret.needles.iter().map(move |needle| (secret, needle)));
        for (secret, (needle, form)) in all {
            let known = (needle.as_slice(), secret, *form);
            if needle.len() < WINDOW_BYTES {
                short.push(known);
                continue;
            }
            needle[..WINDOW_BYTES].windows(BLOCK).for_each(|block| blocks[hash(block)] = true);
            by_head.entry(needle[..HEAD].try_into().unwrap()).or_default().push(known);
        }
        Self { by_head, blocks, short }
    }

    /// Every forbidden secret in a capture, once for each form.
    pub(crate) fn find(&self, capture: &Capture) -> Vec<Leak> {
        let mut leaks = Vec::new();
        self.find_in(capture, &capture.bytes, &mut leaks);
        // Percent-encoding is decoded as well.
        if capture.bytes.contains(&b'%') {
            self.find_in(capture, &unescaped(&capture.bytes), &mut leaks);
        }
        leaks
    }

    fn find_in(&self, capture: &Capture, bytes: &[u8], leaks: &mut Vec<Leak>) {
        let mut found = |at: usize, (needle, secret, form): Needle<'_>| {
            let allowed = secret.kind == Kind::Result && capture.may_hold_results;
            let known = |leak: &Leak| leak.secret == secret.name && leak.form == form;
            if allowed || !bytes[at..].starts_with(needle) || leaks.iter().any(known) {
                return;
            }
            let around = &bytes[at.saturating_sub(80)..bytes.len().min(at + needle.len() + 40)];
            leaks.push(Leak {
                secret: secret.name.clone(),
                form,
                capture: capture.name.clone(),
                context: around.escape_ascii().to_string(),
            });
        };
        let mut at = 0;
        while at + WINDOW_BYTES <= bytes.len() {
            if !self.blocks[hash(&bytes[at + WINDOW_BYTES - BLOCK..at + WINDOW_BYTES])] {
                at += STEP;
                continue;
            }
            if let Some(needles) = self.by_head.get(&bytes[at..at + HEAD]) {
                for needle in needles {
                    found(at, *needle);
                }
            }
            at += 1;
        }
        for needle in &self.short {
            let mut from = 0;
            while let Some(ahead) = bytes[from..].iter().position(|byte| *byte == needle.0[0]) {
                found(from + ahead, *needle);
                from += ahead + 1;
            }
        }
    }
}

const HASH_BITS: u32 = 22;

fn hash(block: &[u8]) -> usize {
    let block = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    (block.wrapping_mul(0x9e37_79b1) >> (u32::BITS - HASH_BITS)) as usize
}

fn unescaped(bytes: &[u8]) -> Vec<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut read = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = if bytes[at] == b'%' { digit(at + 1).zip(digit(at + 2)) } else { None };
        let escaped = escaped.and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
        read.push(escaped.unwrap_or(bytes[at]));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    read
}
