//! The three files over HTTP.

use crate::service::{Call, Service};

const FILES: [(&str, &str); 3] = [
    ("/console", "text/html; charset=utf-8"),
    ("/console/console.js", "text/javascript; charset=utf-8"),
    ("/console/console.css", "text/css; charset=utf-8"),
];

fn file<'a>(service: &'a Service, method: &str, path: &str) -> Call<'a> {
    Call::new(&service.client, method, format!("http://{}{path}", service.platform))
}

#[tokio::test]
async fn files_need_no_key_and_are_isolated() {
    let service = Service::on_memory().await;
    for (path, media_type) in FILES {
        let reply = file(&service, "GET", path).send().await;
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.text().len() > 1_000, "{path}");
        for (name, value) in [
            ("content-type", media_type),
            (
                "content-security-policy",
                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                 frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
            ),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-cache"),
        ] {
            assert_eq!(reply.header(name), Some(value), "{path}");
        }
        let tag = reply.header("etag").unwrap().to_owned();
        let known = file(&service, "GET", path).header("if-none-match", &tag).send().await;
        assert_eq!((known.status.as_u16(), known.header("etag")), (304, Some(tag.as_str())), "{path}");
        assert!(known.body.is_empty(), "{path}");
        let other = file(&service, "GET", path).header("if-none-match", "\"other\"").send().await;
        assert_eq!(other.body, reply.body, "{path}");
        let head = file(&service, "HEAD", path).send().await;
        assert_eq!((head.status.as_u16(), head.body.len()), (200, 0), "{path}");
        assert_eq!(head.header("content-length"), Some(reply.body.len().to_string().as_str()), "{path}");
    }
}

#[tokio::test]
async fn files_can_only_be_read() {
    let service = Service::on_memory().await;
    for (path, _) in FILES {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let reply = file(&service, method, path).send().await;
            assert_eq!(reply.verdict(), (405, "METHOD_NOT_ALLOWED".to_owned()), "{method} {path}");
            assert_eq!(reply.allowed_methods(), ["GET", "HEAD"], "{method} {path}");
        }
    }
    for path in ["/console/", "/console/console.html", "/console/x", "/Console"] {
        assert_eq!(file(&service, "GET", path).verdict().await, (404, "NOT_FOUND".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn disabled_console_responds_with_404() {
    let service = Service::start(&[("console.enabled", "false")]).await;
    for (path, _) in FILES {
        assert_eq!(file(&service, "GET", path).verdict().await, (404, "NOT_FOUND".to_owned()), "{path}");
    }
    assert_eq!(service.health().send().await.status, 200);
}

#[tokio::test]
async fn public_listener_has_no_console() {
    let service = Service::on_memory().await;
    for (path, _) in FILES {
        let reply = service.provider("GET", path).send().await;
        assert_eq!(reply.verdict(), (404, "NOT_FOUND".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn trace_url_is_escaped_in_the_page() {
    let service = Service::start(&[super::TRACE_URL]).await;
    let page = file(&service, "GET", "/console").send().await;
    let expected = r#"content="https://signoz.example.com/trace/{traceId}?a=&quot;>&lt;b>""#;
    assert!(page.text().contains(expected), "{}", page.text());
    assert!(!page.text().contains("{traceUrl}"));
    let other = Service::on_memory().await;
    let without = file(&other, "GET", "/console").send().await;
    assert!(without.text().contains(r#"<meta name="trace-url" content="">"#));
    assert_ne!(page.header("etag"), without.header("etag"));
}

#[test]
fn files_refer_to_nothing_elsewhere() {
    for text in [
        include_str!("../../../src/platform/console/console.html"),
        include_str!("../../../src/platform/console/console.css"),
        include_str!("../../../src/platform/console/console.js"),
    ] {
        for word in
            ["http:", "https:", "url(", "@import", "innerHTML", "insertAdjacentHTML", "localStorage", "eval("]
        {
            assert!(!text.contains(word), "{word}");
        }
    }
}
