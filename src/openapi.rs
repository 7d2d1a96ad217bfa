//! Builds OpenAPI documents. `public/openapi.rs` and `platform/openapi.rs` use it to describe the two listeners.
//!
//! The documents are not derived from types, because carriers, names and limits depend on settings, and handlers parse
//! their requests themselves. Tests compare the documents with the routes, the codes and the responses of the running
//! service.

use std::collections::BTreeMap;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::domain::ids::RequestId;
use crate::domain::work_item::Outcome;
use crate::http::code::Code;
use crate::http::refusal::Refusal;

/// The example of a request id.
const REQUEST_ID: &str = "018f0000-0000-7000-8000-00000000abcd";
/// The example of a trace id.
const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
/// The example of the id of a work item.
pub const WORK_ITEM_ID: &str = "01970000-0000-7000-8000-000000000001";
/// The example of a timestamp.
pub const TIME: &str = "2026-11-28T12:00:00.000Z";

/// The version of OpenAPI.
const VERSION: &str = "3.1.1";

/// A route that serves a document.
pub fn document_route(path: &str, document: Bytes) -> Router {
    let media_type = [(header::CONTENT_TYPE, "application/json")];
    Router::new().route(path, get(move || async move { (media_type, document) }))
}

/// A document under construction.
#[derive(Debug)]
pub struct Document(Value);

impl Document {
    /// A document without paths. `server`: the base URL of the paths.
    pub fn new(title: &str, description: &str, server: &str) -> Self {
        Self(json!({
            "openapi": VERSION,
            "info": {
                "title": title,
                "description": description,
                "version": env!("CARGO_PKG_VERSION"),
                "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
            },
            "servers": [{"url": server}],
            "paths": {},
            "components": {"schemas": shared_schemas(), "headers": headers(), "securitySchemes": {}},
        }))
    }

    /// Adds schemas. `schemas`: an object whose members are named schemas.
    pub fn schemas(&mut self, schemas: Value) {
        if let (Value::Object(all), Value::Object(new)) = (&mut self.0["components"]["schemas"], schemas) {
            all.extend(new);
        }
    }

    /// Adds an authentication scheme.
    pub fn security_scheme(&mut self, name: &str, scheme: Value) {
        self.0["components"]["securitySchemes"][name] = scheme;
    }

    /// Adds an operation. `method` is in lower case.
    pub fn operation(&mut self, method: &str, path: &str, operation: PathOperation) {
        self.0["paths"][path][method] = operation.0;
    }

    /// Adds the health checks.
    pub fn health(&mut self) {
        let ok = |description| json_response(description, "Health", &json!({"status": "ok"}));
        let health = PathOperation::new("health", "Health check for load balancers")
            .responds(200, ok("The service can handle requests."))
            .refuses(&[Code::MethodNotAllowed, Code::Draining, Code::StoreUnavailable]);
        let live = PathOperation::new("live", "Liveness check for orchestrators")
            .responds(200, ok("The process is running."))
            .refuses(&[Code::MethodNotAllowed]);
        self.operation("get", "/health", health);
        self.operation("get", "/health/live", live);
        self.schemas(json!({
            "Health": object(&["status"], &json!({"status": {"const": "ok"}})),
        }));
    }

    /// The document as JSON.
    pub fn finish(self) -> Bytes {
        self.0.to_string().into()
    }
}

/// An operation under construction.
#[derive(Clone, Debug)]
pub struct PathOperation(Value);

impl PathOperation {
    /// An operation without responses, which needs no authentication.
    pub fn new(id: &str, summary: &str) -> Self {
        Self(json!({"operationId": id, "summary": summary, "security": [], "responses": {}}))
    }

    /// Sets a field.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0[field] = value.into();
        self
    }

    /// Adds a response.
    #[must_use]
    pub fn responds(mut self, status: u16, response: Value) -> Self {
        self.0["responses"][status.to_string()] = response;
        self
    }

    /// Adds the response of the operation that returns the document itself.
    #[must_use]
    pub fn responds_with_document(self) -> Self {
        self.responds(
            200,
            json!({
                "description": "An OpenAPI document.",
                "headers": response_headers(&[]),
                "content": {"application/json": {"schema": {"type": "object"}}},
            }),
        )
    }

    /// Adds the refusals with these codes, one response for each status.
    #[must_use]
    pub fn refuses(mut self, codes: &[Code]) -> Self {
        let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
        for code in codes {
            by_status.entry(code.status().as_u16()).or_default().push(*code);
        }
        for (status, codes) in by_status {
            self = self.responds(status, refusal(&codes));
        }
        self
    }
}

/// A response with a JSON body.
pub fn json_response(description: &str, schema: &str, example: &Value) -> Value {
    json!({
        "description": description,
        "headers": response_headers(&[]),
        "content": {"application/json": {"schema": schema_ref(schema), "example": example}},
    })
}

/// A reference to a schema of the document.
pub fn schema_ref(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// The schema of an object that has only these properties.
pub fn object(required: &[&str], properties: &Value) -> Value {
    json!({
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": false,
    })
}

/// References to the headers that every response has, and to `others`.
pub fn response_headers(others: &[&str]) -> Value {
    let names = ["X-Request-Id", "X-Trace-Id", "traceresponse", "Server-Timing"].iter().chain(others);
    names
        .map(|name| ((*name).to_owned(), json!({"$ref": format!("#/components/headers/{name}")})))
        .collect::<Map<_, _>>()
        .into()
}

/// The response for these codes, which all have the same status.
fn refusal(codes: &[Code]) -> Value {
    let lines: Vec<String> =
        codes.iter().map(|code| format!("`{}`: {}", code.as_str(), code.description())).collect();
    let names: Vec<&str> = codes.iter().map(|code| code.as_str()).collect();
    let examples: Map<String, Value> = codes
        .iter()
        .map(|code| {
            let example = json!({"summary": code.description(), "value": envelope(*code)});
            (code.as_str().to_owned(), example)
        })
        .collect();
    let mut retryable: Vec<bool> = codes.iter().map(|code| code.retryable()).collect();
    retryable.dedup();
    json!({
        "description": lines.join("\n\n"),
        "headers": response_headers(&refusal_headers(codes)),
        "content": {"application/json": {
            "schema": {
                "allOf": [schema_ref("Error")],
                "properties": {"error": {"properties": {
                    "code": {"enum": names},
                    "retryable": {"enum": retryable},
                }}},
            },
            "examples": examples,
        }},
    })
}

fn envelope(code: Code) -> Value {
    let id = RequestId::parse(REQUEST_ID).map(|id| {
        Refusal::new(code, code.description().trim_end_matches('.').to_owned()).envelope(id, TRACE_ID)
    });
    id.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
}

/// The headers that all refusals with these codes have.
fn refusal_headers(codes: &[Code]) -> Vec<&'static str> {
    let all = |has: fn(Code) -> bool| codes.iter().all(|code| has(*code));
    [
        ("WWW-Authenticate", all(|code| code.challenge().is_some())),
        ("Retry-After", all(|code| code.retry_after().is_some())),
        ("webhook-delivery", all(|code| !code.retryable())),
        ("Accept", all(|code| code == Code::ContentTypeUnsupported)),
        ("Allow", all(|code| code.status() == StatusCode::METHOD_NOT_ALLOWED)),
    ]
    .into_iter()
    .filter_map(|(name, has)| has.then_some(name))
    .collect()
}

/// The header components that responses refer to.
fn headers() -> Value {
    let header = |description: &str, schema: Value| json!({"description": description, "required": true, "schema": schema});
    let text = || json!({"type": "string"});
    json!({
        "X-Request-Id": header("Identifies the request in logs; quote it when you report a problem.", uuid()),
        "X-Trace-Id": header("The trace of the request.", pattern("^[0-9a-f]{32}$")),
        "traceresponse": header("The span of the request (W3C Trace Context Level 2).", text()),
        "Server-Timing": header("The same span, for scripts in a browser: `trace;desc=<traceparent>`.", text()),
        "WWW-Authenticate": header("`CallbackToken` or `Bearer`.", json!({"enum": ["CallbackToken", "Bearer"]})),
        "Retry-After": header("Seconds to wait before a retry.", json!({"type": "integer", "minimum": 0})),
        "webhook-delivery": header("Do not send the same request again.", json!({"const": "abort-message"})),
        "Accept": header("The media type that the body must have.", json!({"const": "application/json"})),
        "Allow": header("The methods that the path supports.", text()),
        "Cache-Control": header("Responses with tokens and receipts are not cached.", json!({"const": "no-store"})),
        "Idempotent-Replayed": {
            "description": "Present if the idempotency key was already used. The response repeats the first one.",
            "schema": {"const": "true"},
        },
    })
}

/// The schema of a UUID.
pub fn uuid() -> Value {
    json!({"type": "string", "format": "uuid"})
}

/// The schema of a string that matches a regular expression.
pub fn pattern(pattern: &str) -> Value {
    json!({"type": "string", "pattern": pattern})
}

fn shared_schemas() -> Value {
    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    let outcomes = Outcome::ALL.map(Outcome::as_str);
    let error = object(
        &["code", "message", "requestId", "retryable", "traceId"],
        &json!({
            "code": {"type": "string", "enum": codes, "description": "Machine-readable and stable."},
            "message": {"type": "string", "description": "Human-readable; the text can change."},
            "requestId": uuid(),
            "retryable": {"type": "boolean", "description": "Whether the same request can succeed later."},
            "traceId": pattern("^[0-9a-f]{32}$"),
            "outcome": {"description": "The outcome that the work item already has.", "allOf": [schema_ref("Outcome")]},
        }),
    );
    json!({
        "Error": object(&["error"], &json!({"error": error})),
        "Outcome": {"type": "string", "enum": outcomes},
        "Sequence": {"type": "integer", "minimum": 1, "description": "Position in the order of issue."},
        "State": {
            "type": "string",
            "enum": ["awaiting", "held", "released", "dropped"],
            "description": "`held`: waits for an earlier work item. `dropped`: the conversation ended before the \
                            release.",
        },
        "Timestamp": {
            "type": "string",
            "format": "date-time",
            "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
            "examples": [TIME],
        },
    })
}
