//! Finds the token of a request, wherever it travels.

use std::borrow::Cow;

use axum::http::request::Parts;

use super::CALLBACKS_PATH;
use crate::config::{self, Carrier, TokenHeader};
use crate::domain::json::{Scan, decode_string};
use crate::domain::token::TokenRefused;
use crate::http::code::Code;
use crate::http::refusal::Refusal;

/// Where tokens may travel, and under which names.
#[derive(Clone, Debug)]
pub struct Carriers {
    allowed: Vec<Carrier>,
    default: Carrier,
    header: TokenHeader,
    query: String,
    field: String,
}

/// Where a provider is told to put its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// What carries it.
    pub carrier: Carrier,
    /// The name of the header, parameter or field.
    pub name: &'a str,
}

/// A token as it was presented; `None` is one that cannot be read.
type Presented<'a> = Option<Cow<'a, str>>;

impl Carriers {
    /// The carriers as configured.
    pub fn new(config: &config::Token) -> Self {
        Self {
            allowed: config.carriers.clone(),
            default: config.default_carrier,
            header: config.header_name.clone(),
            query: config.query_name.clone(),
            field: config.body_field.clone(),
        }
    }

    /// Whether tokens may travel so.
    pub fn allows(&self, carrier: Carrier) -> bool {
        self.allowed.contains(&carrier)
    }

    /// The place for a token; `None` when the wanted carrier is switched off.
    pub fn place(&self, wanted: Option<Carrier>) -> Option<Place<'_>> {
        let carrier = wanted.unwrap_or(self.default);
        let name = match carrier {
            Carrier::Header => &self.header.text,
            Carrier::Query => &self.query,
            Carrier::Body => &self.field,
            Carrier::Path => "token",
        };
        self.allows(carrier).then_some(Place { carrier, name })
    }

    /// The body's field that carries a token, when one may.
    pub(super) fn body_field(&self) -> Option<&str> {
        self.allows(Carrier::Body).then_some(self.field.as_str())
    }

    /// The one token of a request. What stands empty is not there; what stands twice must be the same.
    pub(super) fn token<'a>(
        &self,
        parts: &'a Parts,
        scan: Option<&'a Scan<'_>>,
    ) -> Result<Cow<'a, str>, Refusal> {
        let found = self.in_header(parts).chain(self.in_query(parts));
        let found = found.chain(self.in_path(parts)).chain(self.in_body(scan));
        let mut found = found.filter(|token| token.as_deref() != Some(""));
        let Some(first) = found.next() else { return Err(self.missing(scan.is_some())) };
        if found.any(|other| other != first) {
            let message = "the request has two different tokens; send one";
            return Err(Refusal::new(Code::TokenCarriersDisagree, message));
        }
        first.ok_or_else(|| TokenRefused::Invalid.into())
    }

    fn in_header<'a>(&self, parts: &'a Parts) -> impl Iterator<Item = Presented<'a>> {
        let values = self.allows(Carrier::Header).then(|| parts.headers.get_all(&self.header.name));
        values.into_iter().flatten().map(|value| value.to_str().ok().map(Cow::Borrowed))
    }

    fn in_query<'a>(&self, parts: &'a Parts) -> impl Iterator<Item = Presented<'a>> {
        let query = parts.uri.query().filter(|_| self.allows(Carrier::Query)).unwrap_or_default();
        form_urlencoded::parse(query.as_bytes())
            .filter_map(|(name, value)| (name == self.query.as_str()).then_some(Some(value)))
    }

    /// As it stands in the path: a token needs no percent-encoding, and has one spelling.
    fn in_path<'a>(&self, parts: &'a Parts) -> impl Iterator<Item = Presented<'a>> {
        let token = parts.uri.path().strip_prefix(CALLBACKS_PATH).and_then(|rest| rest.strip_prefix('/'));
        token.filter(|_| self.allows(Carrier::Path)).map(|token| Some(Cow::Borrowed(token))).into_iter()
    }

    fn in_body<'a>(&self, scan: Option<&'a Scan<'_>>) -> impl Iterator<Item = Presented<'a>> {
        let values = self.body_field().zip(scan).map(|(field, scan)| scan.values(field).collect::<Vec<_>>());
        values
            .into_iter()
            .flatten()
            .map(|value| decode_string(value).map(|token| Cow::Owned(token.into_owned())))
    }

    fn missing(&self, body_is_json: bool) -> Refusal {
        let mut places: Vec<String> = Vec::new();
        for carrier in &self.allowed {
            places.push(match carrier {
                Carrier::Header => format!("the header {}", self.header.text),
                Carrier::Query => format!("the query parameter {}", self.query),
                Carrier::Body => format!("the body's top-level field {}", self.field),
                Carrier::Path => "the path's last segment".to_owned(),
            });
        }
        let unread = self.allows(Carrier::Body) && !body_is_json;
        let hint = if unread { "; the body is not JSON, so its fields could not be read" } else { "" };
        Refusal::new(Code::CallbackTokenMissing, format!("no token in {}{hint}", places.join(", ")))
    }
}
