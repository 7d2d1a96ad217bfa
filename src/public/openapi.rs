//! The OpenAPI document of the provider's listener.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{CALLBACKS_PATH, Carriers, HEARTBEAT_SEGMENT, Public};
use crate::config::Carrier;
use crate::domain::progress;
use crate::http::code::Code;
use crate::openapi::{
    Document, PathOperation, TIME, WORK_ITEM_ID, json_response, object, response_headers, schema_ref, uuid,
};

/// Where the document is served.
pub(super) const PATH: &str = "/api/v1/webhooks/openapi.json";

/// The refusals of a callback and of a heartbeat.
const COMMON: [Code; 21] = [
    Code::BodyMalformed,
    Code::RequestMalformed,
    Code::TokenCarriersDisagree,
    Code::CallbackTokenMissing,
    Code::CallbackTokenInvalid,
    Code::CallbackTokenExpired,
    Code::NotFound,
    Code::MethodNotAllowed,
    Code::RequestTimeout,
    Code::WorkItemTimedOut,
    Code::WorkItemCancelled,
    Code::WorkItemUnknown,
    Code::ConversationEnded,
    Code::BodyTooLarge,
    Code::ContentTypeUnsupported,
    Code::RateLimited,
    Code::Internal,
    Code::StoreUnavailable,
    Code::OutcomeUnknown,
    Code::Draining,
    Code::Overloaded,
];
/// Further refusals of a callback.
const CALLBACK: [Code; 4] =
    [Code::ResultShapeInvalid, Code::CallbackTokenUsed, Code::ChannelLimit, Code::HeldLimit];
/// Further refusals of a heartbeat.
const HEARTBEAT: [Code; 1] = [Code::RequestInvalid];

/// The document for these settings.
pub(super) fn document(public: &Public) -> Bytes {
    let carriers = &public.carriers;
    let mut document = Document::new(
        "callback-ingress for providers",
        "Accepts the results of asynchronous work. A work item comes with a `callback` object, which says where to \
         send its token. The first accepted callback settles the work item. After 408, 429, 500, 502, 503, 504 or \
         no response, send the same bytes again until `callback.deadline`.",
        &public.base_url,
    );
    document.schemas(schemas(carriers));
    document.health();
    let own = PathOperation::new("openapi", "This document")
        .responds_with_document()
        .refuses(&[Code::MethodNotAllowed]);
    document.operation("get", PATH, own);
    let mut security = Vec::new();
    for (carrier, place, scheme) in
        [(Carrier::Header, "header", "tokenInHeader"), (Carrier::Query, "query", "tokenInQuery")]
    {
        if let Some(location) = carriers.location(Some(carrier)) {
            let description = "The token of one work item, from its `callback`.";
            let value =
                json!({"type": "apiKey", "in": place, "name": location.name, "description": description});
            document.security_scheme(scheme, value);
            security.push(json!({scheme: []}));
        }
    }
    if carriers.body_field().is_some() {
        // OpenAPI has no security scheme for a body field. The schemas of the bodies describe it instead.
        security.push(json!({}));
    }
    let callback = callback_operation("postCallback", public).with("security", security.clone());
    document.operation("post", CALLBACKS_PATH, callback);
    let heartbeat = heartbeat_operation("postHeartbeat").with("security", security);
    document.operation("post", &format!("{CALLBACKS_PATH}{HEARTBEAT_SEGMENT}"), heartbeat);
    if carriers.allows(Carrier::Path) {
        let token = json!([{
            "name": "token",
            "in": "path",
            "required": true,
            "description": "The token of one work item.",
            "schema": {"type": "string", "minLength": 1},
        }]);
        let path = format!("{CALLBACKS_PATH}/{{token}}");
        let callback =
            callback_operation("postCallbackWithTokenInPath", public).with("parameters", token.clone());
        document.operation("post", &path, callback);
        let heartbeat = heartbeat_operation("postHeartbeatWithTokenInPath").with("parameters", token);
        document.operation("post", &format!("{path}{HEARTBEAT_SEGMENT}"), heartbeat);
    }
    document.finish()
}

fn callback_operation(id: &str, public: &Public) -> PathOperation {
    let receipt = json!({
        "status": "delivered",
        "workItemId": WORK_ITEM_ID,
        "conversationId": "call-7",
        "sequence": 2,
        "outcome": "succeeded",
        "receivedAt": TIME,
        "replayed": false,
    });
    let mut replayed = receipt.clone();
    replayed["replayed"] = true.into();
    let response = |description: &str, example: &Value| {
        let mut response = json_response(description, "Receipt", example);
        response["headers"] = response_headers(&["Cache-Control"]);
        response
    };
    let max_bytes = public.body.max_bytes;
    PathOperation::new(id, "Post the result of a work item")
        .with(
            "description",
            format!(
                "The body is the result: at most {max_bytes} bytes of JSON in UTF-8. Only an accepted callback uses \
                 up the token."
            ),
        )
        .with(
            "requestBody",
            json!({
                "required": true,
                "content": {"application/json": {
                    "schema": schema_ref("CallbackBody"),
                    "examples": {
                        "tool": {"value": {"temperature": 21.5, "unit": "C"}},
                        "llm": {"value": {"content": "Here is the weather.", "model": "m-1"}},
                        "failure": {"value": {"error": {"code": "NO_SUCH_CITY", "message": "there is no such city"}}},
                    },
                }},
            }),
        )
        .responds(202, response("The result was accepted.", &receipt))
        .responds(200, response("The same result was accepted before.", &replayed))
        .refuses(&[&COMMON[..], &CALLBACK].concat())
}

fn heartbeat_operation(id: &str) -> PathOperation {
    let receipt =
        json!({"state": "awaiting", "deadline": TIME, "heartbeatDeadline": TIME, "cancelRequested": false});
    let mut response = json_response(
        "The heartbeat was accepted. If the work item already has a result, nothing changes.",
        "HeartbeatReceipt",
        &receipt,
    );
    response["headers"] = response_headers(&["Cache-Control"]);
    PathOperation::new(id, "Report that the work is in progress")
        .with(
            "description",
            "Does not use up the token, and does not change the deadline. The body can be empty.",
        )
        .with(
            "requestBody",
            json!({"content": {"application/json": {
                "schema": schema_ref("Heartbeat"),
                "example": {"message": "half done", "data": {"rows": 500}},
            }}}),
        )
        .responds(200, response)
        .refuses(&[&COMMON[..], &HEARTBEAT].concat())
}

fn schemas(carriers: &Carriers) -> Value {
    let string = || json!({"type": "string"});
    let mut failure = object(
        &["error"],
        &json!({"error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": string(), "message": string()},
            "description": "Can have other members with details.",
        }}),
    );
    failure["description"] =
        "The work has failed. `error` is the only member, except for the token's field if the \
                              schema has one."
            .into();
    let mut llm_object = json!({
        "type": "object",
        "required": ["content"],
        "properties": {"content": {"type": ["string", "array"]}},
    });
    let mut heartbeat = object(
        &[],
        &json!({
            "message": {
                "type": ["string", "null"],
                "maxLength": progress::MAX_MESSAGE,
                "pattern": r"^(?!.*[cC][bB][tT]_)[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$",
            },
            "data": {"description": format!("Any JSON of at most {} bytes.", progress::MAX_DATA)},
        }),
    );
    heartbeat["description"] =
        "Progress is sent to the platform's open event streams: at most once per heartbeat, and at most every \
         500 ms per work item."
            .into();
    if let Some(field) = carriers.body_field() {
        let description = "The token. It is not passed on to the platform.";
        let token = json!({"type": ["string", "null"], "description": description});
        failure["properties"][field] = token.clone();
        heartbeat["properties"][field] = token.clone();
        llm_object["properties"][field] = token;
    }
    let mut receipt = object(
        &["status", "workItemId", "conversationId", "sequence", "outcome", "receivedAt", "replayed"],
        &json!({
            "status": {
                "type": "string",
                "enum": ["delivered", "held"],
                "description": "`held`: the result waits for the work item with the sequence `waitingFor`.",
            },
            "workItemId": uuid(),
            "conversationId": string(),
            "sequence": schema_ref("Sequence"),
            "outcome": {"type": "string", "enum": ["succeeded", "failed"]},
            "receivedAt": schema_ref("Timestamp"),
            "waitingFor": schema_ref("Sequence"),
            "replayed": {"type": "boolean", "description": "Whether the result had already been accepted."},
        }),
    );
    receipt["if"] = json!({"properties": {"status": {"const": "held"}}});
    receipt["then"] = json!({"required": ["waitingFor"]});
    receipt["else"] = json!({"not": {"required": ["waitingFor"]}});
    json!({
        "Receipt": receipt,
        "Heartbeat": heartbeat,
        "HeartbeatReceipt": object(&["state", "deadline", "cancelRequested"], &json!({
            "state": schema_ref("State"),
            "deadline": schema_ref("Timestamp"),
            "heartbeatDeadline": schema_ref("Timestamp"),
            "cancelRequested": {
                "const": false,
                "description": "Always false: after a cancellation, heartbeats are refused.",
            },
        })),
        "CallbackBody": {
            "description": "A failure, or a result of the work item's kind. An object whose `error` is an object \
                            must be a valid `Failure`; otherwise it is refused.",
            "anyOf": [schema_ref("Failure"), schema_ref("LlmResult"), schema_ref("ToolResult")],
        },
        "Failure": failure,
        "LlmResult": {
            "description": "The result of a work item of the kind `llm`.",
            "anyOf": [string(), llm_object],
        },
        "ToolResult": {
            "description": "The result of a work item of the kind `tool`: any JSON, as the synchronous tool would \
                            have returned it.",
        },
    })
}
