//! Requires that a body is declared as JSON: Content-Type (RFC 9110, section 8.3) and Content-Encoding (section 8.4).
//!
//! Does not use the `mime` or `mediatype` crate: both reject headers that real clients send, such as an empty parameter
//! or a repeated type.

use std::borrow::Cow;

use axum::http::{HeaderMap, HeaderValue, header};

use super::code::Code;
use super::refusal::Refusal;
use crate::domain::ids::contains_token;

/// The expected media type.
const JSON: &str = "application/json";
/// Maximum length of a charset or a coding in a message. Shorter than every service key, so that a message cannot
/// repeat one.
const MAX_NAME: usize = 15;
/// Maximum length of a media type in a message.
const MAX_TYPE: usize = 64;
/// The registered top-level types. A media type with another top-level type is not repeated in a message.
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

/// Checks each media type. There can be several, in one header line or more: some frameworks append their own to the
/// one that the caller has set.
fn check_types(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut is_declared = false;
    for line in headers.get_all(header::CONTENT_TYPE) {
        for media_type in split(line.to_str().unwrap_or("not ASCII"), ',') {
            let mut parts = split(media_type, ';').map(str::trim);
            let essence = parts.next().filter(|essence| !essence.is_empty());
            let Some(essence) = essence else { continue };
            if !is_json(essence) {
                let message = format!("the Content-Type is {}; send application/json", shown(essence));
                return Err(unsupported(message));
            }
            parts.try_for_each(check_parameter)?;
            is_declared = true;
        }
    }
    let missing = || unsupported("the request has no Content-Type; send application/json");
    is_declared.then_some(()).ok_or_else(missing)
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

/// A media type, a charset or a coding for a message; `unknown` if it could be a misplaced credential.
fn shown(name: &str) -> &str {
    let (max, subtype) = match name.split_once('/') {
        Some((top_level, subtype)) if TOP_LEVEL.contains(&top_level) => (MAX_TYPE, subtype),
        _ => (MAX_NAME, name),
    };
    if name.len() <= max && is_token(subtype) && !contains_token(name) { name } else { "unknown" }
}

/// `application/json` and `application/*+json`.
fn is_json(essence: &str) -> bool {
    let essence = essence.to_ascii_lowercase();
    let is_suffixed = |subtype: &str| subtype.strip_suffix("+json").is_some_and(is_token);
    essence == JSON || essence.strip_prefix("application/").is_some_and(is_suffixed)
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
            "application/json, application/problem+json",
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
            ("json", "is json;"),
            ("application", "is application;"),
            ("application/json; charset=latin1", "charset is latin1;"),
            ("application/json; charset=\"UTF-16\"", "charset is UTF-16;"),
            (
                "application/json; charset=utf-8, application/json; charset=iso-8859-1",
                "charset is iso-8859-1;",
            ),
            ("application/x-www-form-urlencoded", "is application/x-www-form-urlencoded;"),
            ("application/json, text/plain", "is text/plain;"),
            ("application/a/b+json", "is unknown;"),
            ("a type", "is unknown;"),
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
            (header::CONTENT_TYPE, "sixteen-characters"),
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
