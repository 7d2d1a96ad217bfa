//! The OpenAPI document of the platform's listener.

mod schemas;

use bytes::Bytes;
use serde_json::{Value, json};

use self::schemas::{conversation_example, issued_example, schemas, work_item_example};
use super::{PLATFORM_PATH, Platform, waiting};
use crate::http::code::Code;
use crate::http::metrics;
use crate::openapi::{
    Document, PathOperation, TIME, WORK_ITEM_ID, json_response, response_headers, schema_ref,
};

/// Where the document is served, below [`PLATFORM_PATH`]. Like all calls, it needs the service key.
pub(super) const PATH: &str = "/openapi.json";

/// Refusals of every call below [`PLATFORM_PATH`].
const GUARD: [Code; 8] = [
    Code::ServiceKeyMissing,
    Code::ServiceKeyInvalid,
    Code::NotFound,
    Code::MethodNotAllowed,
    Code::RateLimited,
    Code::Internal,
    Code::Draining,
    Code::Overloaded,
];
/// Further refusals of a call that reads from the store.
const READ: [Code; 3] = [Code::RequestInvalid, Code::ConversationNotFound, Code::StoreUnavailable];
/// Further refusals of a call that changes something.
const WRITE: [Code; 1] = [Code::OutcomeUnknown];
/// Further refusals of a call with a body.
const WITH_BODY: [Code; 5] = [
    Code::BodyMalformed,
    Code::RequestMalformed,
    Code::RequestTimeout,
    Code::BodyTooLarge,
    Code::ContentTypeUnsupported,
];

/// The document for these settings.
pub(super) fn document(platform: &Platform) -> Bytes {
    let mut document = Document::new(
        "callback-ingress for the platform",
        "Opens conversations, issues work items to providers, and delivers their results in the order of issue.",
        "/",
    );
    document.security_scheme("serviceKey", json!({"type": "http", "scheme": "bearer"}));
    document.schemas(schemas(platform));
    document.health();
    let metrics = PathOperation::new("metrics", "Metrics for Prometheus")
        .responds(
            200,
            json!({
                "description": "The text format of Prometheus.",
                "headers": response_headers(&[]),
                "content": {"text/plain": {"schema": {"type": "string"}}},
            }),
        )
        .refuses(&[Code::MethodNotAllowed]);
    document.operation("get", metrics::PATH, metrics);
    let own = guarded("openapi", "This document", &[]).responds_with_document();
    document.operation("get", &format!("{PLATFORM_PATH}{PATH}"), own);
    conversations(&mut document);
    work_items(&mut document, platform);
    document.finish()
}

/// An operation that needs the service key.
fn guarded(id: &str, summary: &str, refusals: &[&[Code]]) -> PathOperation {
    let refusals = refusals.concat();
    PathOperation::new(id, summary)
        .with("security", json!([{"serviceKey": []}]))
        .refuses(&[&GUARD, &refusals[..]].concat())
}

fn conversation_id() -> Value {
    json!({
        "name": "conversationId",
        "in": "path",
        "required": true,
        "description": "The platform's own id of the conversation.",
        "schema": schema_ref("Id"),
        "example": "call-7",
    })
}

fn work_item_id() -> Value {
    json!({
        "name": "workItemId",
        "in": "path",
        "required": true,
        "schema": schema_ref("Id"),
        "example": WORK_ITEM_ID,
    })
}

fn reason() -> Value {
    json!({
        "name": "reason",
        "in": "query",
        "description": "Why the conversation ends or the work items are cancelled. Logged, and included in responses \
                        and events.",
        "schema": schema_ref("Reason"),
    })
}

fn traceparent() -> Value {
    json!({
        "name": "traceparent",
        "in": "header",
        "description": "The caller's span (W3C Trace Context). An invalid one is ignored.",
        "schema": {"type": "string"},
    })
}

fn request_body(schema: &str, example: &Value) -> Value {
    json!({"content": {"application/json": {"schema": schema_ref(schema), "example": example}}})
}

/// Links to operations on the conversation in this response.
fn conversation_links() -> Value {
    let parameters = json!({"conversationId": "$response.body#/conversationId"});
    let link = |operation: &str| json!({"operationId": operation, "parameters": parameters});
    json!({
        "show": link("showConversation"),
        "issue": link("issueWorkItem"),
        "cancelTurn": link("cancelTurn"),
        "end": link("endConversation"),
    })
}

fn conversations(document: &mut Document) {
    let waiting_example = json!({"conversations": [{
        "conversationId": "call-7",
        "waitingFor": {"sequence": 3, "workItemId": WORK_ITEM_ID, "kind": "tool", "name": "weather",
            "issuedAt": TIME, "deadline": TIME},
        "held": {"count": 2, "bytes": 1234},
        "since": TIME,
    }], "truncated": false});
    let list = guarded(
        "listWaiting",
        "List the conversations that hold results",
        &[&[Code::RequestInvalid, Code::StoreUnavailable]],
    )
    .with(
        "parameters",
        json!([
            {
                "name": "waiting",
                "in": "query",
                "required": true,
                "description": "Required: only waiting conversations can be listed.",
                "schema": {"const": "true"},
            },
            {
                "name": "limit",
                "in": "query",
                "schema": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": waiting::MAX_LIMIT,
                    "default": waiting::DEFAULT_LIMIT,
                },
            },
        ]),
    )
    .responds(200, json_response("The conversations.", "WaitingConversations", &waiting_example));
    document.operation("get", &format!("{PLATFORM_PATH}/conversations"), list);

    let path = format!("{PLATFORM_PATH}/conversations/{{conversationId}}");
    let opened = json!({"conversationId": "call-7", "state": "live", "channel": {
        "events": format!("{PLATFORM_PATH}/conversations/call-7/events"),
    }});
    let opened_response = |description: &str| {
        let mut response = json_response(description, "OpenedConversation", &opened);
        response["links"] = conversation_links();
        response
    };
    let open = guarded(
        "openConversation",
        "Open a conversation",
        &[&READ[..1], &READ[2..], &WRITE, &WITH_BODY, &[Code::ConversationEnded]],
    )
    .with("parameters", json!([conversation_id(), traceparent()]))
    .with("requestBody", request_body("OpenConversation", &json!({"idleTtlMs": 3_600_000})))
    .responds(201, opened_response("The conversation was opened."))
    .responds(200, opened_response("The conversation was already open."));
    document.operation("put", &path, open);

    let show = guarded("showConversation", "Show the state of a conversation", &[&READ])
        .with("parameters", json!([conversation_id()]))
        .responds(200, json_response("The conversation.", "Conversation", &conversation_example()));
    document.operation("get", &path, show);

    let ended = json!({"conversationId": "call-7", "state": "ended", "endedAt": TIME, "droppedHeld": 1,
        "droppedAwaiting": 0, "channel": opened["channel"]});
    let end = guarded("endConversation", "End a conversation", &[&READ, &WRITE])
        .with("description", "Ending a conversation that has already ended returns the same response.")
        .with("parameters", json!([conversation_id(), reason()]))
        .responds(200, json_response("The conversation has ended.", "EndedConversation", &ended));
    document.operation("delete", &path, end);

    let events = guarded("followEvents", "Follow the channel of a conversation", &[&READ])
        .with(
            "description",
            "Server-sent events. The schema describes one event. An event without a type is an `Envelope`, and its \
             id can be sent as `Last-Event-ID` to continue after it. A `progress` event reports a heartbeat. It is \
             sent at most once, and its order relative to the envelopes is not defined. `end` is the last event. \
             If the stream closes without it, open the stream again.",
        )
        .with("parameters", json!([
            conversation_id(),
            {
                "name": "from",
                "in": "query",
                "description": "Start after this event. 0: start at the first event. Without this parameter and \
                                without `Last-Event-ID`: only new events.",
                "schema": schema_ref("Cursor"),
                "example": "0",
            },
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "Start after this event.",
                "schema": schema_ref("LastEventId"),
            },
        ]))
        .responds(200, json!({
            "description": "The events.",
            "headers": response_headers(&[]),
            "content": {"text/event-stream": {"schema": schema_ref("Event")}},
        }));
    document.operation("get", &format!("{path}/events"), events);
}

fn work_items(document: &mut Document, platform: &Platform) {
    let list = format!("{PLATFORM_PATH}/conversations/{{conversationId}}/work-items");
    let mut issued = json_response("The work item was issued.", "IssuedWorkItem", &issued_example(platform));
    issued["headers"] = response_headers(&["Cache-Control", "Idempotent-Replayed"]);
    let link = |operation: &str| {
        json!({"operationId": operation, "parameters": {
            "conversationId": "$response.body#/conversationId",
            "workItemId": "$response.body#/workItemId",
        }})
    };
    issued["links"] = json!({"show": link("showWorkItem"), "cancel": link("cancelWorkItem")});
    let issue = guarded("issueWorkItem", "Issue the next work item", &[
        &READ,
        &WRITE,
        &WITH_BODY,
        &[Code::ConversationEnded, Code::IdempotencyKeyReused, Code::AwaitingLimit, Code::ChannelLimit],
    ])
    .with(
        "description",
        "The work item is stored before the response is sent, so no callback can arrive before it exists.",
    )
    .with("parameters", json!([conversation_id(), traceparent(), {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Requests with the same key issue one work item and get the first response. The key can be \
                        enclosed in double quotes.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    }]))
    .with("requestBody", request_body("IssueWorkItem", &json!({"kind": "tool", "turnId": "turn-3", "name": "weather"})))
    .responds(201, issued);
    document.operation("post", &list, issue);

    let cancelled = json!({"conversationId": "call-7", "turnId": "turn-3", "cancelled": 1,
        "workItems": [work_item_example("cancelled")]});
    let cancel_turn = guarded("cancelTurn", "Cancel the awaiting work items of a turn", &[
        &READ, &WRITE, &[Code::ConversationEnded],
    ])
    .with("parameters", json!([
        conversation_id(),
        {"name": "turnId", "in": "query", "required": true, "schema": schema_ref("TurnId"), "example": "turn-3"},
        reason(),
    ]))
    .responds(200, json_response("No work item of the turn is awaiting any more.", "CancelledTurn", &cancelled));
    document.operation("delete", &list, cancel_turn);

    let path = format!("{list}/{{workItemId}}");
    let parameters = json!([conversation_id(), work_item_id()]);
    let show = guarded("showWorkItem", "Show the state of a work item", &[&READ, &[Code::WorkItemNotFound]])
        .with("parameters", parameters)
        .responds(200, json_response("The work item.", "WorkItem", &work_item_example("succeeded")));
    document.operation("get", &path, show);

    let cancel = guarded(
        "cancelWorkItem",
        "Cancel a work item",
        &[&READ, &WRITE, &[Code::WorkItemNotFound, Code::ConversationEnded, Code::WorkItemSettled]],
    )
    .with("parameters", json!([conversation_id(), work_item_id(), reason()]))
    .responds(
        200,
        json_response("The work item was cancelled.", "WorkItem", &work_item_example("cancelled")),
    );
    document.operation("delete", &path, cancel);
}
