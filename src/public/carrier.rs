//! Finds the token in a request: header, query, path or body.

use std::borrow::Cow;

use axum::http::request::Parts;
use memchr::memmem;

use super::{CALLBACKS_PATH, HEARTBEAT_SEGMENT};
use crate::config::{Carrier, TokenConfig, TokenHeader};
use crate::domain::ids::TOKEN_PREFIX;
use crate::domain::json::{Scan, decode_string};
use crate::domain::token::TOKEN_CHARS;
use crate::http::code::Code;
use crate::http::refusal::Refusal;

/// Where tokens are accepted, and under which names.
#[derive(Clone, Debug)]
pub struct Carriers {
    allowed: Vec<Carrier>,
    default: Carrier,
    header: TokenHeader,
    query: String,
    field: String,
}

/// Where the provider must send its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenLocation<'a> {
    /// What carries it.
    pub carrier: Carrier,
    /// The name of the header, parameter or field.
    pub name: &'a str,
}

/// A token as received. `None`: the value is not valid text.
pub(super) type SentToken<'a> = Option<Cow<'a, str>>;

/// Maximum number of candidates (texts with the token prefix) that are verified in a body.
const MAX_CANDIDATES: usize = 4;

impl Carriers {
    /// The carriers as configured.
    pub fn new(config: &TokenConfig) -> Self {
        Self {
            allowed: config.carriers.clone(),
            default: config.default_carrier,
            header: config.header_name.clone(),
            query: config.query_name.clone(),
            field: config.body_field.clone(),
        }
    }

    /// Whether a carrier is enabled.
    pub fn allows(&self, carrier: Carrier) -> bool {
        self.allowed.contains(&carrier)
    }

    /// The location of a token. `None`: the carrier is disabled.
    pub fn location(&self, wanted: Option<Carrier>) -> Option<TokenLocation<'_>> {
        let carrier = wanted.unwrap_or(self.default);
        let name = match carrier {
            Carrier::Header => &self.header.text,
            Carrier::Query => &self.query,
            Carrier::Body => &self.field,
            Carrier::Path => "token",
        };
        self.allows(carrier).then_some(TokenLocation { carrier, name })
    }

    /// The body's field for a token, if that carrier is enabled.
    pub fn body_field(&self) -> Option<&str> {
        self.allows(Carrier::Body).then_some(self.field.as_str())
    }

    /// The token in the request's head, if it has one.
    pub(super) fn in_head<'a>(&self, parts: &'a Parts) -> Result<Option<SentToken<'a>>, Refusal> {
        only(self.all_in_head(parts))
    }

    /// All tokens in the request's head.
    pub(super) fn all_in_head<'a>(&self, parts: &'a Parts) -> impl Iterator<Item = SentToken<'a>> {
        self.in_header(parts).chain(self.in_query(parts)).chain(self.in_path(parts))
    }

    /// The token in the head or the body. If both have one, they must be equal.
    pub(super) fn in_request<'a>(
        &self,
        in_head: Option<SentToken<'a>>,
        body: Option<&'a Scan<'_>>,
    ) -> Result<SentToken<'a>, Refusal> {
        only(in_head.into_iter().chain(self.in_body(body)))?.ok_or_else(|| self.missing(body.is_some()))
    }

    fn in_header<'a>(&self, parts: &'a Parts) -> impl Iterator<Item = SentToken<'a>> {
        let values = self.allows(Carrier::Header).then(|| parts.headers.get_all(&self.header.name));
        values.into_iter().flatten().map(|value| value.to_str().ok().map(Cow::Borrowed))
    }

    fn in_query<'a>(&self, parts: &'a Parts) -> impl Iterator<Item = SentToken<'a>> {
        let query = parts.uri.query().filter(|_| self.allows(Carrier::Query)).unwrap_or_default();
        form_urlencoded::parse(query.as_bytes())
            .filter_map(|(name, value)| (name == self.query.as_str()).then_some(Some(value)))
    }

    /// Not percent-decoded: a token has exactly one encoding.
    fn in_path<'a>(&self, parts: &'a Parts) -> impl Iterator<Item = SentToken<'a>> {
        let rest = parts.uri.path().strip_prefix(CALLBACKS_PATH);
        let token = rest.map(|rest| rest.strip_suffix(HEARTBEAT_SEGMENT).unwrap_or(rest));
        let token = token.and_then(|rest| rest.strip_prefix('/'));
        token.filter(|_| self.allows(Carrier::Path)).map(|token| Some(Cow::Borrowed(token))).into_iter()
    }

    fn in_body<'a>(&self, body: Option<&'a Scan<'_>>) -> impl Iterator<Item = SentToken<'a>> {
        let values = self.body_field().zip(body).map(|(field, scan)| scan.values(field).collect::<Vec<_>>());
        values
            .into_iter()
            .flatten()
            .filter(|value| *value != "null")
            .map(|value| decode_string(value).map(|token| Cow::Owned(token.into_owned())))
    }

    /// Whether the body contains text that `is_valid` accepts as a token, among the first [`MAX_CANDIDATES`]
    /// candidates. Cheaper than parsing.
    pub(super) fn contains_token(body: &[u8], is_valid: impl Fn(&str) -> bool) -> bool {
        let at = memmem::find_iter(body, TOKEN_PREFIX).take(MAX_CANDIDATES);
        let mut candidates = at.filter_map(|at| body.get(at..at + TOKEN_CHARS));
        candidates.any(|candidate| std::str::from_utf8(candidate).is_ok_and(&is_valid))
    }

    fn missing(&self, body_is_json: bool) -> Refusal {
        let mut places: Vec<String> = Vec::new();
        for carrier in &self.allowed {
            places.push(match carrier {
                Carrier::Header => format!("the header {}", self.header.text),
                Carrier::Query => format!("the query parameter {}", self.query),
                Carrier::Body => format!("the body's top-level field {}", self.field),
                Carrier::Path => "the path".to_owned(),
            });
        }
        let unread = self.allows(Carrier::Body) && !body_is_json;
        let hint = if unread { "; the body is not JSON, so its fields could not be read" } else { "" };
        Refusal::new(Code::CallbackTokenMissing, format!("no token in {}{hint}", places.join(", ")))
    }
}

/// The single token. Empty values count as absent, as does `null` in a body; two different tokens are an error.
fn only<'a>(found: impl Iterator<Item = SentToken<'a>>) -> Result<Option<SentToken<'a>>, Refusal> {
    let mut found = found.filter(|token| token.as_deref() != Some(""));
    let first = found.next();
    if found.any(|other| Some(&other) != first.as_ref()) {
        let message = "the request has two different tokens; send one";
        return Err(Refusal::new(Code::TokenCarriersDisagree, message));
    }
    Ok(first)
}
