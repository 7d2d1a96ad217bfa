//! A request parsed from an input.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use super::stage::Tokens;

/// A request that the HTTP parser accepts.
pub(crate) struct Written {
    pub(crate) carriers: String,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Written {
    /// `None` if the HTTP parser would refuse it.
    pub(crate) fn parse(input: &[u8], tokens: &Tokens) -> Option<Self> {
        let input = filled(input, tokens);
        let (carriers, rest) = line(&input)?;
        let (request, mut rest) = line(rest)?;
        let mut words = request.splitn(2, |byte| *byte == b' ');
        let method = Method::from_bytes(words.next()?).ok()?;
        let uri = Uri::try_from(words.next()?).ok()?;
        let mut headers = HeaderMap::new();
        while let Some((header, after)) = line(rest) {
            rest = after;
            if header.is_empty() {
                break;
            }
            let mut halves = header.splitn(2, |byte| *byte == b':');
            let name = HeaderName::from_bytes(halves.next()?).ok()?;
            headers.append(name, HeaderValue::from_bytes(halves.next()?.trim_ascii()).ok()?);
        }
        let carriers = String::from_utf8_lossy(carriers).into_owned();
        Some(Self { carriers, method, uri, headers, body: rest.to_vec() })
    }

    /// A valid request.
    pub(crate) fn plain(token: &str) -> Self {
        Self {
            carriers: String::new(),
            method: Method::POST,
            uri: Uri::from_static(super::model::CALLBACKS),
            headers: HeaderMap::from_iter([
                (HeaderName::from_static("content-type"), HeaderValue::from_static("application/json")),
                (HeaderName::from_static("x-callback-token"), HeaderValue::try_from(token).unwrap()),
            ]),
            body: b"{\"plain\":true}".to_vec(),
        }
    }
}

fn line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    Some((&text[..end], &text[end + 1..]))
}

/// The input with its placeholders replaced by tokens.
fn filled(input: &[u8], tokens: &Tokens) -> Vec<u8> {
    let mut filled = Vec::with_capacity(input.len());
    let mut rest = input;
    while let [first, after @ ..] = rest {
        if let Some(token) = rest.first_chunk().and_then(|mark| tokens.marked(*mark)) {
            filled.extend(token.as_bytes());
            rest = &rest[3..];
        } else {
            filled.push(*first);
            rest = after;
        }
    }
    filled
}
