//! Requires that a body is declared as JSON: Content-Type (RFC 9110, section 8.3) and Content-Encoding (section 8.4).
//!
//! Does not use `mime` or `mediatype`, because both refuse what real clients send, such as an empty parameter or the
//! type twice.

use std::borrow::Cow;

use axum::http::{HeaderMap, HeaderValue, header};

use super::code::Code;
use super::refusal::Refusal;
use crate::domain::ids::contains_token;

/// The expected media type.
const JSON: &str = "application/json";
/// Maximum length of a charset or a coding in a message. Shorter than every service key, so that a message never
/// repeats a key.
const MAX_NAME: usize = 15;
/// Maximum length of a media type in a message.
const MAX_TYPE: usize = 64;
/// Common top-level types. A message repeats only a media type with one of these.
const TOP_LEVEL: [&str; 9] =
    ["application", "audio", "font", "image", "message", "model", "multipart", "text", "video"];

/// Requires a JSON Content-Type in UTF-8 and no content coding.
pub fn check_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let is_usual = types.next().is_some_and(|value| value == JSON) && types.next().is_none();
    if !is_usual {
        check_types(headers)?;
    }
    check_codings(headers)
}

/// The same type may be repeated, in one line or in several: some frameworks add it to what the caller has set.
fn check_types(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut found: Option<&str> = None;
    for line in headers.get_all(header::CONTENT_TYPE) {
        let line =
            line.to_str().map_err(|_| unsupported("the Content-Type is not ASCII; send application/json"))?;
        for media_type in split(line, ',') {
            let mut parts = split(media_type, ';').map(str::trim);
            let essence = parts.next().filter(|essence| !essence.is_empty());
            let Some(essence) = essence else { continue };
            if !is_json(essence) {
                return Err(not_json(essence));
            }
            if found.is_some_and(|other| !other.eq_ignore_ascii_case(essence)) {
                return Err(unsupported(
                    "the request has two different Content-Types; send one, application/json",
                ));
            }
            parts.try_for_each(check_parameter)?;
            found = Some(essence);
        }
    }
    found.map(|_| ()).ok_or_else(|| unsupported("the request has no Content-Type; send application/json"))
}

/// Refuses a charset other than UTF-8. Unknown parameters are ignored.
fn check_parameter(parameter: &str) -> Result<(), Refusal> {
    let Some((name, value)) = parameter.split_once('=') else { return Ok(()) };
    let charset = value.trim_matches(|c: char| c.is_ascii_whitespace() || matches!(c, '"' | '\''));
    let is_utf8 = ["", "utf-8", "utf8"].iter().any(|utf8| charset.eq_ignore_ascii_case(utf8));
    if is_utf8 || !name.trim().eq_ignore_ascii_case("charset") {
        return Ok(());
    }
    Err(unsupported(format!(
        "the charset is {}; send UTF-8, with charset=utf-8 or without charset",
        shown(charset)
    )))
}

fn check_codings(headers: &HeaderMap) -> Result<(), Refusal> {
    for line in headers.get_all(header::CONTENT_ENCODING) {
        for coding in line.to_str().unwrap_or("not ASCII").split(',').map(str::trim) {
            if !coding.is_empty() && !coding.eq_ignore_ascii_case("identity") {
                let message =
                    format!("the Content-Encoding is {}; send the body uncompressed", shown(coding));
                return Err(unsupported(message)
                    .with_header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity")));
            }
        }
    }
    Ok(())
}

fn unsupported(message: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::new(Code::ContentTypeUnsupported, message)
}

fn not_json(essence: &str) -> Refusal {
    let named = essence.split_once('/').filter(|(top_level, subtype)| {
        TOP_LEVEL.iter().any(|known| top_level.eq_ignore_ascii_case(known))
            && essence.len() <= MAX_TYPE
            && is_token(subtype)
            && !contains_token(essence)
    });
    match named {
        Some(_) => unsupported(format!("the Content-Type is {essence}; send application/json")),
        None => unsupported("the Content-Type is not a JSON media type; send application/json"),
    }
}

/// A charset or a coding for a message, or `unknown` if it may be a misplaced credential.
fn shown(name: &str) -> &str {
    if name.len() <= MAX_NAME && is_token(name) && !contains_token(name) { name } else { "unknown" }
}

/// `application/json` and `application/*+json`.
fn is_json(essence: &str) -> bool {
    let Some((top_level, subtype)) = essence.split_once('/') else { return false };
    let suffix = subtype.len().checked_sub("+json".len()).and_then(|at| subtype.split_at_checked(at));
    let is_json = subtype.eq_ignore_ascii_case("json")
        || suffix.is_some_and(|(name, suffix)| is_token(name) && suffix.eq_ignore_ascii_case("+json"));
    is_json && top_level.eq_ignore_ascii_case("application")
}

/// `token` of RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    let is_token_char = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(is_token_char)
}

/// Splits at separators outside quoted strings.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |c| {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ => return c == separator && !is_quoted,
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn check(lines: &[(HeaderName, &'static str)]) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        check_json(&headers).map_err(|refusal| refusal.message.into_owned())
    }

    fn of_type(value: &'static str) -> Result<(), String> {
        check(&[(header::CONTENT_TYPE, value)])
    }

    #[test]
    fn spellings_of_json_are_accepted() {
        for good in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/problem+json",
            "application/vnd.api+JSON",
            "application/json;charset=\"utf-8\"; v=1",
            "application/json; charset=utf8",
            "application/json; CHARSET = \"UTF8\" ;",
            "application/json ; charset=",
            "application/json;;odata=verbose;",
            "application/json; a=\"b;charset=latin1,c\\\";\"",
            "application/json; profile",
            "application/json, application/json",
            "application/json; charset=utf-8,Application/Json",
            ", application/json,",
        ] {
            assert_eq!(of_type(good), Ok(()), "{good}");
        }
        let twice = [
            (header::CONTENT_TYPE, "application/json"),
            (header::CONTENT_TYPE, "APPLICATION/JSON;charset=utf8"),
        ];
        assert_eq!(check(&twice), Ok(()));
    }

    #[test]
    fn refused_type_and_charset_are_named() {
        for (bad, named) in [
            ("", "no Content-Type"),
            ("; charset=utf-8", "no Content-Type"),
            ("text/json", "is text/json;"),
            ("application/jsonp", "is application/jsonp;"),
            ("application/+json", "is application/+json;"),
            ("json", "not a JSON media type"),
            ("application/json; charset=latin1", "charset is latin1;"),
            ("application/json; charset=\"UTF-16\"", "charset is UTF-16;"),
            (
                "application/json; charset=utf-8, application/json; charset=iso-8859-1",
                "charset is iso-8859-1;",
            ),
            ("application/x-www-form-urlencoded", "is application/x-www-form-urlencoded;"),
            ("application/json, text/plain", "is text/plain;"),
            ("application/json, application/problem+json", "two different Content-Types"),
            ("application/a/b+json", "not a JSON media type"),
        ] {
            let message = of_type(bad).unwrap_err();
            assert!(message.contains(named), "{bad}: {message}");
        }
    }

    #[test]
    fn only_identity_coding_is_accepted() {
        let coded = |value| check(&[(header::CONTENT_TYPE, JSON), (header::CONTENT_ENCODING, value)]);
        for none in ["", "identity", "Identity", "identity, IDENTITY", " , "] {
            assert_eq!(coded(none), Ok(()), "{none}");
        }
        for (coding, named) in [("gzip", "is gzip;"), ("identity, br", "is br;")] {
            let message = coded(coding).unwrap_err();
            assert!(message.contains(named), "{coding}: {message}");
        }
    }

    #[test]
    fn credentials_are_not_repeated() {
        for (name, value) in [
            (header::CONTENT_TYPE, "cbt_AQJrMQ"),
            (header::CONTENT_TYPE, "text/cbt_AQJrMQ"),
            (header::CONTENT_TYPE, "Bearer sixteen-characters"),
            (header::CONTENT_TYPE, "sixteen-chars/sixteen-chars"),
            (header::CONTENT_TYPE, "application/json; charset=cbt_AQJrMQ"),
            (header::CONTENT_TYPE, "application/json; charset=sixteen-character"),
            (header::CONTENT_ENCODING, "cbt_AQJrMQ"),
            (header::CONTENT_ENCODING, "sixteen-character"),
        ] {
            let message = check(&[(name, value), (header::CONTENT_TYPE, JSON)]).unwrap_err();
            assert!(!message.contains("cbt_") && !message.contains("sixteen"), "{message}");
        }
    }
}
