//! Tests that the OpenAPI documents describe the existing routes and codes, and no others.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use http_body_util::BodyExt;
use secrecy::ExposeSecret;
use serde_json::Value;
use tower::ServiceExt;

use super::{App, build};
use crate::clock::Clock;
use crate::config::{Exports, Sources, load};
use crate::http::client_address::Peer;
use crate::http::code::Code;
use crate::telemetry;

async fn app() -> App {
    let flags = [
        ("http.public_addr", "127.0.0.1:0"),
        ("http.platform_addr", "127.0.0.1:0"),
        ("token.carriers", r#"["header","query","body","path"]"#),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let loaded = load(Sources { file: None, variables: Vec::new(), flags }).unwrap();
    let (telemetry, _guard) = telemetry::start(&loaded.config.telemetry, Exports::default()).unwrap();
    build(&loaded.config, Clock::System, telemetry).await.unwrap()
}

/// Both listeners with their documents.
async fn documents(app: &App) -> [(&Router, Value); 2] {
    let mut documents = Vec::new();
    for (router, path) in [
        (&app.public.router, "/api/v1/webhooks/openapi.json"),
        (&app.platform.router, "/platform/v1/openapi.json"),
    ] {
        let response = request(app, router, "GET", path).await;
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        documents.push((router, serde_json::from_slice(&body).unwrap()));
    }
    documents.try_into().unwrap()
}

async fn request(app: &App, router: &Router, method: &str, path: &str) -> Response {
    let key = app.generated_service_key().unwrap().expose_secret();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {key}"))
        .extension(Peer(Ipv4Addr::LOCALHOST.into()));
    router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

/// The paths of a router. axum has no function that returns them, but its `Debug` output contains them.
fn paths(router: &Router) -> BTreeSet<String> {
    let shown = format!("{router:?}");
    let (_, rest) = shown.split_once("paths: {").expect("axum shows the paths of a router");
    let (paths, _) = rest.split_once("},").unwrap();
    paths.split('"').skip(1).step_by(2).map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn every_route_is_documented_and_every_documented_route_exists() {
    let app = app().await;
    for (router, document) in documents(&app).await {
        let documented = document["paths"].as_object().unwrap();
        let undocumented = paths(router).into_iter().filter(|path| !documented.contains_key(path));
        // The console is for people. `{*` is the fallback of the nested router.
        let undocumented: Vec<_> =
            undocumented.filter(|path| !path.contains("{*") && !path.starts_with("/console")).collect();
        assert_eq!(undocumented, Vec::<String>::new());
        for (path, operations) in documented {
            let response = request(&app, router, "PATCH", path).await;
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
            let allow = response.headers()[header::ALLOW].to_str().unwrap().to_ascii_lowercase();
            // GET includes HEAD.
            let allowed: BTreeSet<&str> = allow.split(',').filter(|method| *method != "head").collect();
            let methods: BTreeSet<&str> =
                operations.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(methods, allowed, "{path}");
        }
    }
}

/// All values of a member, at any depth.
fn members<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get(name));
            object.values().for_each(|value| members(value, name, found));
        }
        Value::Array(values) => values.iter().for_each(|value| members(value, name, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[tokio::test]
async fn every_code_is_documented_with_its_status_and_an_example() {
    let app = app().await;
    let mut documented = BTreeMap::new();
    for (_, document) in documents(&app).await {
        let mut responses = Vec::new();
        members(&document["paths"], "responses", &mut responses);
        for (status, response) in responses.iter().flat_map(|responses| responses.as_object().unwrap()) {
            let json = &response["content"]["application/json"];
            let codes = &json["schema"]["properties"]["error"]["properties"]["code"]["enum"];
            for code in codes.as_array().into_iter().flatten().map(|code| code.as_str().unwrap()) {
                assert_eq!(json["examples"][code]["value"]["error"]["code"], code);
                documented.insert(code.to_owned(), status.clone());
            }
        }
    }
    let defined =
        Code::ALL.iter().map(|code| (code.as_str().to_owned(), code.status().as_u16().to_string())).collect();
    assert_eq!(documented, defined);
}

#[tokio::test]
async fn references_resolve_and_operation_ids_are_unique() {
    let app = app().await;
    for (_, document) in documents(&app).await {
        let mut references = Vec::new();
        members(&document, "$ref", &mut references);
        assert!(references.len() > 20);
        for reference in references {
            let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        let mut ids = Vec::new();
        for operations in document["paths"].as_object().unwrap().values() {
            ids.extend(operations.as_object().unwrap().values().map(|operation| &operation["operationId"]));
        }
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "{ids:?}");
    }
}
