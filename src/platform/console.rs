//! `/console`: a page that shows the conversations that hold results, and one conversation as a timeline.
//!
//! The page is an ordinary client of the platform API. Its files contain no data, so they need no service key. The page
//! asks for the key and sends it with its requests.

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::config::ConsoleConfig;

/// The path of the page, and the prefix of its script and style sheet.
const PATH: &str = "/console";

const PAGE: &str = include_str!("console/console.html");
const SCRIPT: &str = include_str!("console/console.js");
const STYLE: &str = include_str!("console/console.css");

/// The placeholder for `console.trace_url` in the page.
const TRACE_URL_MARK: &str = "{traceUrl}";

/// `no-cache`: browsers compare the `ETag` before they use a copy, so that a page of an earlier version never runs.
const HEADERS: [(HeaderName, &str); 4] = [
    (header::CACHE_CONTROL, "no-cache"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'; \
         base-uri 'none'; form-action 'none'",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
];

/// The routes of the page, its script and its style sheet. No routes if the console is disabled.
pub(super) fn routes(config: &ConsoleConfig) -> Router {
    if !config.enabled {
        return Router::new();
    }
    let trace_url = escaped(config.trace_url.as_deref().unwrap_or_default());
    let page = File::new("text/html; charset=utf-8", PAGE.replace(TRACE_URL_MARK, &trace_url));
    let script = File::new("text/javascript; charset=utf-8", SCRIPT);
    let style = File::new("text/css; charset=utf-8", STYLE);
    let serve = |file: File| get(move |headers: HeaderMap| async move { file.response(&headers) });
    Router::new()
        .route(PATH, serve(page))
        .route("/console/console.js", serve(script))
        .route("/console/console.css", serve(style))
}

/// Escapes a text for a double-quoted attribute.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}

/// A file in memory.
#[derive(Clone)]
struct File {
    media_type: &'static str,
    content: Bytes,
    etag: String,
}

impl File {
    fn new(media_type: &'static str, content: impl Into<Bytes>) -> Self {
        let content = content.into();
        let digest = Sha256::digest(&content);
        Self { media_type, etag: format!("\"{}\"", URL_SAFE_NO_PAD.encode(&digest[..12])), content }
    }

    fn response(&self, request: &HeaderMap) -> Response {
        let mut response = if self.is_known_to(request) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(header::CONTENT_TYPE, self.media_type)], self.content.clone()).into_response()
        };
        let headers = response.headers_mut();
        for (name, value) in HEADERS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Ok(etag) = HeaderValue::try_from(&self.etag) {
            headers.insert(header::ETAG, etag);
        }
        response
    }

    /// Whether the client has this version (RFC 9110 §13.1.2, which compares weakly).
    fn is_known_to(&self, request: &HeaderMap) -> bool {
        let lists = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|list| list.to_str().ok());
        let mut tags = lists.flat_map(|list| list.split(',')).map(str::trim);
        tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_one_place_for_the_trace_url() {
        assert_eq!(PAGE.matches(TRACE_URL_MARK).count(), 1);
        assert!(PAGE.contains(&format!("content=\"{TRACE_URL_MARK}\"")));
    }

    #[test]
    fn trace_url_cannot_leave_its_attribute() {
        assert_eq!(escaped(r#"https://x/?a=1&b="><script>"#), "https://x/?a=1&amp;b=&quot;>&lt;script>");
    }

    #[test]
    fn if_none_match_is_compared_weakly() {
        let file = File::new("text/css", "a");
        let is_known = |value: &str| {
            let headers = [(header::IF_NONE_MATCH, HeaderValue::try_from(value).unwrap())];
            file.is_known_to(&headers.into_iter().collect())
        };
        let tag = &file.etag;
        assert!(is_known(tag) && is_known(&format!("W/{tag}")) && is_known(&format!("\"x\", {tag}")));
        assert!(is_known("*") && !is_known("\"x\"") && !is_known(tag.trim_matches('"')));
        assert_ne!(*tag, File::new("text/css", "b").etag);
    }
}
