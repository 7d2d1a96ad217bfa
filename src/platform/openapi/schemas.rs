//! The schemas of the platform's calls, and their examples.

use serde_json::{Map, Value, json};

use crate::config::Carrier;
use crate::domain::gate::Limits;
use crate::domain::work_item::Kind;
use crate::openapi::{TIME, WORK_ITEM_ID, object, pattern, schema_ref, uuid};
use crate::platform::{PLATFORM_PATH, Platform};
use crate::public::CALLBACKS_PATH;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// The pattern of names and turn ids. They must not contain the token prefix, in upper or lower case.
const NAME: &str = r"^(?!.*[cC][bB][tT]_)[A-Za-z0-9._:-]+$";
/// The pattern of conversation ids: that of names, without `.` and `..`, which clients remove from the path of a URL.
const ID: &str = r"^(?!\.{1,2}$)(?!.*[cC][bB][tT]_)[A-Za-z0-9._:-]+$";

/// All schemas.
pub(super) fn schemas(platform: &Platform) -> Value {
    let mut all = Map::new();
    for part in [words(), requests(platform), conversations(), waiting(), work_items(platform), events()] {
        if let Value::Object(part) = part {
            all.extend(part);
        }
    }
    all.into()
}

/// Strings.
fn words() -> Value {
    json!({
        "Id": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": ID},
        "TurnId": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": NAME},
        "ToolName": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": NAME},
        "ToolCallId": {
            "type": "string",
            "minLength": 1,
            "maxLength": 128,
            "pattern": r"^(?!.*[cC][bB][tT]_)[!-~]+$",
            "description": "The platform's id of the tool call.",
        },
        "Reason": {
            "type": "string",
            "minLength": 1,
            "maxLength": 200,
            "pattern": r"^(?!.*[cC][bB][tT]_)[^\u0000-\u001f\u007f-\u009f\u2028\u2029]+$",
        },
        "Kind": {"type": "string", "enum": Kind::ALL.map(Kind::as_str)},
        "TraceParent": pattern("^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$"),
        "Cursor": pattern("^[0-9]{1,15}(-[0-9]{1,15})?$"),
        "LastEventId": {
            "description": "An empty value counts as absent.",
            "anyOf": [schema_ref("Cursor"), {"const": ""}],
        },
    })
}

fn carriers(platform: &Platform) -> Vec<&'static str> {
    let all = [Carrier::Header, Carrier::Query, Carrier::Body, Carrier::Path];
    all.into_iter().filter(|carrier| platform.carriers.allows(*carrier)).map(Carrier::as_str).collect()
}

/// A field that can be absent or null.
fn optional(schema: &str) -> Value {
    json!({"anyOf": [schema_ref(schema), {"type": "null"}]})
}

fn optional_ms(description: &str, max: u64) -> Value {
    json!({"type": ["integer", "null"], "minimum": 1, "maximum": max, "description": description})
}

/// The bodies of requests.
fn requests(platform: &Platform) -> Value {
    let mut carrier = carriers(platform).into_iter().map(Value::from).collect::<Vec<_>>();
    carrier.push(Value::Null);
    let timeout = format!("Time to the deadline. Default: {} ms.", platform.default_timeout_ms);
    let issue = json!({
        "kind": schema_ref("Kind"),
        "turnId": optional("TurnId"),
        "timeoutMs": optional_ms(&timeout, platform.max_timeout_ms),
        "carrier": {"enum": carrier, "description": "Where the provider sends the token."},
        "traceparent": optional("TraceParent"),
        "toolCallId": optional("ToolCallId"),
        "name": optional("ToolName"),
        "heartbeatTimeoutMs": optional_ms(
            "The work item times out after this time without a heartbeat. At most `timeoutMs`.",
            platform.max_timeout_ms,
        ),
    });
    json!({
        "OpenConversation": object(&[], &json!({
            "idleTtlMs": optional_ms(
                "The conversation ends when it has been idle for this time.",
                Limits::MAX_IDLE_TTL_MS,
            ),
            "traceparent": optional("TraceParent"),
        })),
        "IssueWorkItem": object(&["kind"], &issue),
    })
}

fn conversations() -> Value {
    let count = || json!({"type": "integer", "minimum": 0});
    let (id, time) = (|| schema_ref("Id"), || schema_ref("Timestamp"));
    let mut held = work_item_properties();
    held["bytes"] = json!({"type": "integer", "minimum": 0, "description": "Size of the result in bytes."});
    held["ageMs"] = json!({
        "type": "integer",
        "minimum": 0,
        "description": "Time in milliseconds since the work item was settled.",
    });
    json!({
        "Channel": object(&["events"], &json!({
            "events": {"type": "string", "description": "Path of the event stream on this listener."},
            "redisStream": {"type": "string", "description": "Key of the Redis stream, if the store is Redis."},
        })),
        "OpenedConversation": object(&["conversationId", "state", "channel"], &json!({
            "conversationId": id(),
            "state": {"const": "live"},
            "channel": schema_ref("Channel"),
        })),
        "Conversation": object(
            &["conversationId", "state", "openedAt", "nextSequence", "waitingFor", "awaiting", "held", "heldBytes",
              "channel"],
            &json!({
                "conversationId": id(),
                "state": {"type": "string", "enum": ["live", "ended"]},
                "openedAt": time(),
                "idleAt": {"description": "When the conversation ends, unless it is used before.", "allOf": [time()]},
                "endedAt": time(),
                "reason": schema_ref("Reason"),
                "nextSequence": schema_ref("Sequence"),
                "waitingFor": {
                    "description": "Sequence of the first work item without an outcome, or `nextSequence` if there is \
                                    none. Later results are held until it has an outcome.",
                    "allOf": [schema_ref("Sequence")],
                },
                "awaiting": {"type": "array", "items": schema_ref("WorkItem")},
                "held": {"type": "array", "items": schema_ref("HeldWorkItem")},
                "heldBytes": count(),
                "droppedHeld": count(),
                "droppedAwaiting": count(),
                "traceparent": schema_ref("TraceParent"),
                "channel": schema_ref("Channel"),
            }),
        ),
        "HeldWorkItem": object(&[&WORK_ITEM[..], &["bytes", "ageMs"]].concat(), &held),
        "EndedConversation": object(
            &["conversationId", "state", "endedAt", "droppedHeld", "droppedAwaiting", "channel"],
            &json!({
                "conversationId": id(),
                "state": {"const": "ended"},
                "endedAt": time(),
                "reason": schema_ref("Reason"),
                "droppedHeld": count(),
                "droppedAwaiting": count(),
                "channel": schema_ref("Channel"),
            }),
        ),
    })
}

fn waiting() -> Value {
    let count = || json!({"type": "integer", "minimum": 0});
    let waiting_for = object(
        &["sequence", "workItemId", "kind", "issuedAt", "deadline"],
        &json!({
            "sequence": schema_ref("Sequence"),
            "workItemId": uuid(),
            "kind": schema_ref("Kind"),
            "name": schema_ref("ToolName"),
            "toolCallId": schema_ref("ToolCallId"),
            "turnId": schema_ref("TurnId"),
            "issuedAt": schema_ref("Timestamp"),
            "deadline": schema_ref("Timestamp"),
            "heartbeatDeadline": {
                "description": "When the work item times out unless a heartbeat arrives before then.",
                "allOf": [schema_ref("Timestamp")],
            },
        }),
    );
    let conversation = object(
        &["conversationId", "waitingFor", "held", "since"],
        &json!({
            "conversationId": schema_ref("Id"),
            "waitingFor": waiting_for,
            "held": object(&["count", "bytes"], &json!({"count": count(), "bytes": count()})),
            "since": {"description": "When the oldest held result was received.", "allOf": [schema_ref("Timestamp")]},
        }),
    );
    json!({
        "WaitingConversations": object(&["conversations", "truncated"], &json!({
            "conversations": {
                "type": "array",
                "items": conversation,
                "description": "Sorted by `since`, oldest first.",
            },
            "truncated": {"type": "boolean", "description": "Whether there may be more conversations."},
        })),
    })
}

/// The members that every inspected work item has.
const WORK_ITEM: [&str; 7] =
    ["workItemId", "conversationId", "sequence", "kind", "state", "issuedAt", "deadline"];

/// The properties that are fixed when a work item is issued, and the time at which a heartbeat is due.
fn issued_properties(which_heartbeat: &str) -> Value {
    json!({
        "workItemId": uuid(),
        "conversationId": schema_ref("Id"),
        "sequence": schema_ref("Sequence"),
        "kind": schema_ref("Kind"),
        "turnId": schema_ref("TurnId"),
        "toolCallId": schema_ref("ToolCallId"),
        "name": schema_ref("ToolName"),
        "issuedAt": schema_ref("Timestamp"),
        "deadline": schema_ref("Timestamp"),
        "heartbeatTimeoutMs": {"type": "integer", "minimum": 1},
        "heartbeatDeadline": {
            "description": format!("When the {which_heartbeat} heartbeat is due."),
            "allOf": [schema_ref("Timestamp")],
        },
    })
}

fn work_item_properties() -> Value {
    let mut properties = issued_properties("next");
    properties["state"] = schema_ref("State");
    properties["outcome"] = schema_ref("Outcome");
    properties["reason"] = json!({
        "description": "Why the work item was cancelled, or `heartbeat` if no heartbeat arrived in time.",
        "allOf": [schema_ref("Reason")],
    });
    properties["lastHeartbeatAt"] = schema_ref("Timestamp");
    properties["receivedAt"] = schema_ref("Timestamp");
    properties["traceparent"] = schema_ref("TraceParent");
    properties
}

fn work_items(platform: &Platform) -> Value {
    let callback = json!({
        "url": {"type": "string", "format": "uri"},
        "heartbeatUrl": {
            "type": "string",
            "format": "uri",
            "description": "Where to send heartbeats. Present if the work item was issued with `heartbeatTimeoutMs`.",
        },
        "method": {"const": "POST"},
        "token": {"type": "string"},
        "carrier": {"type": "string", "enum": carriers(platform)},
        "name": {
            "type": "string",
            "description": "Name of the header, query parameter or body field that carries the token.",
        },
        "headers": {"type": "object", "additionalProperties": {"type": "string"}},
        "deadline": {"description": "The provider should retry until then.", "allOf": [schema_ref("Timestamp")]},
        "expiresAt": {
            "description": "Until then, a repeated callback gets the receipt again.",
            "allOf": [schema_ref("Timestamp")],
        },
    });
    let required = ["url", "method", "token", "carrier", "name", "headers", "deadline", "expiresAt"];
    let mut callback = object(&required, &callback);
    callback["description"] = "Pass this object to the provider unchanged.".into();
    let mut issued = issued_properties("first");
    issued["callback"] = schema_ref("Callback");
    let required = ["workItemId", "conversationId", "sequence", "kind", "issuedAt", "deadline", "callback"];
    json!({
        "Callback": callback,
        "IssuedWorkItem": object(&required, &issued),
        "WorkItem": object(&WORK_ITEM, &work_item_properties()),
        "CancelledTurn": object(&["conversationId", "turnId", "cancelled", "workItems"], &json!({
            "conversationId": schema_ref("Id"),
            "turnId": schema_ref("TurnId"),
            "cancelled": {
                "type": "integer",
                "minimum": 0,
                "description": "Number of work items that this request cancelled.",
            },
            "workItems": {
                "type": "array",
                "items": schema_ref("WorkItem"),
                "description": "The work items of the turn that were not released before this request.",
            },
        })),
    })
}

fn events() -> Value {
    let mut envelope = object(
        &[
            "sequence",
            "conversationId",
            "workItemId",
            "kind",
            "outcome",
            "issuedAt",
            "receivedAt",
            "releasedAt",
        ],
        &json!({
            "sequence": schema_ref("Sequence"),
            "conversationId": schema_ref("Id"),
            "workItemId": uuid(),
            "turnId": schema_ref("TurnId"),
            "toolCallId": schema_ref("ToolCallId"),
            "name": schema_ref("ToolName"),
            "kind": schema_ref("Kind"),
            "outcome": schema_ref("Outcome"),
            "result": {"description": "The provider's body, if the outcome is `succeeded`."},
            "error": {"type": "object", "description": "The provider's `error`, if the outcome is `failed`."},
            "reason": {
                "description": "Why the work item was cancelled, or `heartbeat` if no heartbeat arrived in time.",
                "allOf": [schema_ref("Reason")],
            },
            "issuedAt": schema_ref("Timestamp"),
            "receivedAt": schema_ref("Timestamp"),
            "releasedAt": schema_ref("Timestamp"),
            "requestId": {
                "description": "The request that settled the work item. Missing after a timeout.",
                "allOf": [uuid()],
            },
            "traceparent": schema_ref("TraceParent"),
        }),
    );
    let progress = object(
        &["sequence", "workItemId", "kind", "at"],
        &json!({
            "sequence": schema_ref("Sequence"),
            "workItemId": uuid(),
            "kind": schema_ref("Kind"),
            "turnId": schema_ref("TurnId"),
            "toolCallId": schema_ref("ToolCallId"),
            "name": schema_ref("ToolName"),
            "message": {"type": "string"},
            "data": {"description": "Any JSON."},
            "at": schema_ref("Timestamp"),
        }),
    );
    let event = |schema: &str, rest: &Value| {
        let mut event = rest.clone();
        event["properties"]["data"] = json!({
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": schema_ref(schema),
        });
        event
    };
    let only_with = |outcome: &str, member: &str| {
        json!({
            "if": {"properties": {"outcome": {"const": outcome}}},
            "then": {"required": [member]},
            "else": {"not": {"required": [member]}},
        })
    };
    envelope["allOf"] = json!([only_with("succeeded", "result"), only_with("failed", "error")]);
    envelope["examples"] = json!([{
        "sequence": 1, "conversationId": "call-7", "workItemId": WORK_ITEM_ID, "turnId": "turn-3", "name": "weather",
        "kind": "tool", "outcome": "succeeded", "result": {"temperature": 21.5}, "issuedAt": TIME, "receivedAt": TIME,
        "releasedAt": TIME, "requestId": "018f0000-0000-7000-8000-00000000abcd", "traceparent": TRACEPARENT,
    }]);
    json!({
        "Envelope": envelope,
        "Progress": progress,
        "Event": {
            "description": "A server-sent event.",
            "type": "object",
            "required": ["data"],
            "properties": {"event": {"type": "string"}, "id": {"type": "string"}},
            "oneOf": [
                event("Envelope", &json!({"properties": {"event": {"const": "message"}}, "required": ["id"]})),
                event("Progress", &json!({"properties": {"event": {"const": "progress"}}, "required": ["event"]})),
                event("EndEvent", &json!({"properties": {"event": {"const": "end"}}, "required": ["event"]})),
            ],
        },
        "EndEvent": object(&["conversationId", "state"], &json!({
            "conversationId": schema_ref("Id"),
            "state": {"const": "ended"},
            "reason": schema_ref("Reason"),
        })),
    })
}

/// A work item with this outcome.
pub(super) fn work_item_example(outcome: &str) -> Value {
    json!({
        "workItemId": WORK_ITEM_ID, "conversationId": "call-7", "sequence": 1, "kind": "tool", "turnId": "turn-3",
        "name": "weather", "state": "released", "outcome": outcome, "issuedAt": TIME, "deadline": TIME,
        "receivedAt": TIME,
    })
}

pub(super) fn conversation_example() -> Value {
    json!({
        "conversationId": "call-7", "state": "live", "openedAt": TIME, "idleAt": TIME, "nextSequence": 2,
        "waitingFor": 1, "held": [], "heldBytes": 0,
        "awaiting": [{
            "workItemId": WORK_ITEM_ID, "conversationId": "call-7", "sequence": 1, "kind": "tool", "state": "awaiting",
            "issuedAt": TIME, "deadline": TIME,
        }],
        "channel": {"events": format!("{PLATFORM_PATH}/conversations/call-7/events")},
    })
}

pub(super) fn issued_example(platform: &Platform) -> Value {
    let location = platform.carriers.location(None);
    json!({
        "workItemId": WORK_ITEM_ID, "conversationId": "call-7", "sequence": 1, "kind": "tool", "turnId": "turn-3",
        "name": "weather", "issuedAt": TIME, "deadline": TIME,
        "callback": {
            "url": format!("{}{CALLBACKS_PATH}", platform.public_base_url),
            "method": "POST",
            "token": "cbt_…",
            "carrier": location.map(|location| location.carrier.as_str()),
            "name": location.map(|location| location.name),
            "headers": {"Content-Type": "application/json"},
            "deadline": TIME,
            "expiresAt": TIME,
        },
    })
}
