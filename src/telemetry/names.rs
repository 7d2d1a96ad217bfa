//! The names of all attributes and metrics, and of some log fields and events.
//!
//! Names are those of OpenTelemetry's semantic conventions (version 1.42) where these have one. The `gen_ai` names are
//! literals here, because these conventions have moved to another repository and their constants are deprecated. Other
//! names of attributes and metrics start with `callback_ingress`, `callback`, `conversation`, `event_stream`, `request`
//! or `work_item`. A test compares [`RESOURCE`], [`ATTRIBUTES`] and [`METRICS`] with the tables of
//! `config/signoz/README.md`.

use opentelemetry_semantic_conventions::{attribute, metric};

/// The default of `service.name`, and the name of the instrumentation scope.
pub const SERVICE: &str = "callback-ingress";
/// `messaging.system` of channels in the memory store.
pub const MEMORY_CHANNEL_SYSTEM: &str = "callback_ingress";
/// Name of the log event at the end of a request.
pub const REQUEST_EVENT: &str = "request";
/// Duration of a request in microseconds, in its log line.
pub const DURATION_US: &str = "duration_us";
/// Value of [`LINK`]: a link to the request that issued the work item.
pub const ISSUED_IN: &str = "issued_in";
/// Value of [`LINK`]: a link to the operation that released the envelope.
pub const RELEASED_IN: &str = "released_in";
/// Defines the constants of attributes, and a table of them with their meanings.
macro_rules! attributes {
    ($(#[$documentation:meta])* $table:ident: $($constant:ident = $name:expr, $meaning:literal;)*) => {
        $(#[doc = $meaning] pub const $constant: &str = $name;)*

        $(#[$documentation])*
        pub const $table: &[(&str, &str)] = &[$(($constant, $meaning)),*];
    };
}

attributes! {
    /// Resource attributes, except for those of the SDK itself.
    RESOURCE:
    SERVICE_NAME = attribute::SERVICE_NAME, "`OTEL_SERVICE_NAME`, or `callback-ingress`";
    SERVICE_VERSION = attribute::SERVICE_VERSION, "the version; also an attribute of `callback_ingress.build.info`";
    SERVICE_INSTANCE_ID = attribute::SERVICE_INSTANCE_ID,
        "random for each run, unless set in `OTEL_RESOURCE_ATTRIBUTES`";
    DEPLOYMENT_ENVIRONMENT = attribute::DEPLOYMENT_ENVIRONMENT_NAME,
        "set only if `OTEL_RESOURCE_ATTRIBUTES` sets it or the older name";
    DEPLOYMENT_ENVIRONMENT_OLD = "deployment.environment",
        "the older name of the same attribute; SigNoz's own pages filter by it";
}

attributes! {
    /// Attributes of spans and fields of log lines.
    ATTRIBUTES:
    REQUEST_ID = "request.id", "the request id, `requestId` in responses";
    CONVERSATION_ID = "conversation.id", "the platform's id of the conversation";
    CONVERSATION_REFERENCE = "conversation.reference",
        "the first 32 hex digits of the SHA-256 of that id, which is what a token contains";
    WORK_ITEM_ID = "work_item.id", "the work item's id";
    WORK_ITEM_SEQUENCE = "work_item.sequence", "its position in the order of issue, from 1";
    WORK_ITEM_KIND = "work_item.kind", "`llm` or `tool`";
    TURN_ID = "conversation.turn_id", "the platform's `turnId` of the work item";
    TOOL_CALL_ID = "gen_ai.tool.call.id", "the platform's `toolCallId` of the work item";
    TOOL_NAME = "gen_ai.tool.name",
        "the `name` of the tool or provider; in metrics at most 100 values, then `other`; missing if the work item has \
         no name";
    DEADLINE = "work_item.deadline",
        "deadline of the work item; on successful platform requests, and on late callbacks and heartbeats";
    TIMEOUT_MS = "work_item.timeout_ms",
        "time from issue to deadline in milliseconds; on the same records as `work_item.deadline`";
    TIMEOUT_CAUSE = "work_item.timeout_cause",
        "why a work item timed out: `deadline`, or `heartbeat` if no heartbeat arrived in time";
    LATE_MS = "work_item.late_ms",
        "time from the timeout to the sweep that found it, or to the callback or heartbeat that came too late";
    CODE = "callback.code", "the code of a refusal; missing on success; in metrics, an empty string";
    OUTCOME = "callback.outcome", "`succeeded`, `failed`, `timed_out` or `cancelled`";
    DELIVERY = "callback.delivery", "`delivered`, or `held` until an earlier work item has an outcome";
    REPLAYED = "callback.replayed", "whether this was a repeated callback";
    HELD_BEHIND = "callback.held_behind", "the sequence that the envelope waited for; in later steps of a long release, that of the first envelope of the step";
    HELD_MS = "callback.held_ms", "time from the acceptance of the result to its release";
    TURNAROUND_MS = "callback.turnaround_ms", "time from the issue of the work item to its accepted result";
    CANCELLED = "callback.cancelled", "number of work items that the cancellation of a turn cancelled";
    REASON = "request.reason", "the `reason` of a cancellation, or of the end of a conversation";
    RELEASED = "callback.released", "number of envelopes that the operation released, at most 256";
    DROPPED_HELD = "conversation.dropped_held",
        "number of held items that the end of the conversation dropped";
    DROPPED_AWAITING = "conversation.dropped_awaiting",
        "number of awaiting items that the end of the conversation dropped";
    STATE = "work_item.state", "state of dropped items: `held` or `awaiting`";
    TOKEN_FINGERPRINT = "callback.token_fingerprint", "the first 8 hex digits of the token's SHA-256";
    BODY_DIGEST = "callback.body_digest",
        "the first 8 hex digits of the SHA-256 of the body without the token";
    ISSUED_TRACE = "callback.issued_trace_id", "the trace in which the work item was issued";
    RELEASED_TRACE = "callback.released_trace_id",
        "the trace of the operation that released the envelope, if it differs from the trace of the span";
    REPEATED = "callback.repeated", "number of refusals that a summary line covers";
    LINK = "callback.link",
        "type of a span link: `issued_in` to the issuing request, `released_in` to the releasing operation";
    CLIENT_ADDRESS = attribute::CLIENT_ADDRESS,
        "the client's address; on refusals, client disconnects and closed event streams";
    USER_AGENT = attribute::USER_AGENT_ORIGINAL,
        "the `User-Agent` header if it is ASCII, at most 120 characters; on the same records as `client.address`";
    EVENTS_SENT = "event_stream.sent", "number of envelopes that an event stream has sent";
    LAST_SEQUENCE = "event_stream.last_sequence", "sequence after which the next event stream would continue";
    CLOSED_BECAUSE = "event_stream.closed_because", "why an event stream has ended";
    HTTP_REQUEST_METHOD = attribute::HTTP_REQUEST_METHOD, "the method; `_OTHER` if it is not a standard one";
    HTTP_ROUTE = attribute::HTTP_ROUTE, "the route's template";
    URL_PATH = attribute::URL_PATH, "the route's template instead of the path, which can contain a token";
    URL_SCHEME = attribute::URL_SCHEME, "`http`, or `https` if the listener serves TLS";
    HTTP_REQUEST_BODY_SIZE = attribute::HTTP_REQUEST_BODY_SIZE, "size of the body in bytes";
    HTTP_RESPONSE_STATUS_CODE = attribute::HTTP_RESPONSE_STATUS_CODE,
        "the status; 499 when the client closed the connection before the response";
    ERROR_TYPE = attribute::ERROR_TYPE,
        "failures of the service only: the code of a 5xx response, or the kind of a store failure";
    MESSAGE = "callback.message", "the message of a refusal";
    DB_SYSTEM_NAME = attribute::DB_SYSTEM_NAME, "`redis`";
    DB_NAMESPACE = attribute::DB_NAMESPACE, "the number of the Redis database";
    DB_OPERATION_NAME = attribute::DB_OPERATION_NAME, "`EVALSHA` or another command";
    DB_STORED_PROCEDURE_NAME = attribute::DB_STORED_PROCEDURE_NAME, "the script";
    DB_RESPONSE_STATUS_CODE = attribute::DB_RESPONSE_STATUS_CODE, "the error code of Redis, such as `OOM`";
    SERVER_ADDRESS = attribute::SERVER_ADDRESS,
        "host of Redis; in a cluster, of the first configured node; with Sentinel, the `service` of `store.url`";
    SERVER_PORT = attribute::SERVER_PORT, "port of Redis; missing with Sentinel";
    MESSAGING_SYSTEM = attribute::MESSAGING_SYSTEM, "`redis`, or `callback_ingress` in the memory store";
    MESSAGING_OPERATION_NAME = attribute::MESSAGING_OPERATION_NAME, "`publish`";
    MESSAGING_OPERATION_TYPE = attribute::MESSAGING_OPERATION_TYPE, "`send`";
    MESSAGING_DESTINATION_NAME = attribute::MESSAGING_DESTINATION_NAME,
        "key of the channel's Redis stream; `channel:<conversation id>` in the memory store";
    MESSAGING_DESTINATION_TEMPLATE = attribute::MESSAGING_DESTINATION_TEMPLATE, "`channel:{conversation}`";
    MESSAGING_MESSAGE_ID = attribute::MESSAGING_MESSAGE_ID, "the envelope's id on the channel";
    MESSAGING_MESSAGE_CONVERSATION_ID = attribute::MESSAGING_MESSAGE_CONVERSATION_ID, "the conversation's id";
    SIGNAL = "callback_ingress.signal", "`traces`, `metrics`, `logs`, or `stderr`";
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The name. For Prometheus, dots become underscores, and the unit and `total` are appended.
    pub name: &'static str,
    /// The unit in UCUM notation.
    pub unit: &'static str,
    /// The type of instrument.
    pub instrument: &'static str,
    /// The description.
    pub meaning: &'static str,
    /// The attributes.
    pub attributes: &'static [&'static str],
}

/// Defines the constants of metrics and [`METRICS`].
macro_rules! metrics {
    ($(
        $constant:ident = $name:expr, $unit:literal, $instrument:literal, $meaning:literal, [$($attribute:ident),*];
    )*) => {
        $(#[doc = $meaning]
        pub const $constant: Metric = Metric {
            name: $name,
            unit: $unit,
            instrument: $instrument,
            meaning: $meaning,
            attributes: &[$($attribute),*],
        };)*

        /// All metrics of this crate.
        pub const METRICS: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    REQUEST_DURATION = metric::HTTP_SERVER_REQUEST_DURATION, "s", "histogram",
        "time from the head of a request to the head of its response",
        [HTTP_REQUEST_METHOD, HTTP_ROUTE, URL_SCHEME, HTTP_RESPONSE_STATUS_CODE, ERROR_TYPE, CODE, OUTCOME];
    REQUEST_BODY_SIZE = metric::HTTP_SERVER_REQUEST_BODY_SIZE, "By", "histogram",
        "size of request bodies that were read to their end",
        [HTTP_REQUEST_METHOD, HTTP_ROUTE, URL_SCHEME, HTTP_RESPONSE_STATUS_CODE, ERROR_TYPE];
    ACTIVE_REQUESTS = metric::HTTP_SERVER_ACTIVE_REQUESTS, "{request}", "up-down counter",
        "requests in flight", [];
    ACCEPT_DURATION = "callback_ingress.accept.duration", "s", "histogram",
        "time from a callback's last byte to its acceptance or refusal", [CODE, OUTCOME];
    TURNAROUND = "callback_ingress.result.turnaround", "s", "histogram",
        "time from issue to acceptance, for each accepted result", [WORK_ITEM_KIND, OUTCOME, TOOL_NAME];
    HOLD_TIME = "callback_ingress.result.hold_time", "s", "histogram",
        "time from settlement to release", [WORK_ITEM_KIND, OUTCOME];
    END_TO_END = "callback_ingress.result.end_to_end", "s", "histogram",
        "time from issue to release", [WORK_ITEM_KIND, OUTCOME];
    ISSUED = "callback_ingress.work_item.issued", "{work_item}", "counter",
        "issued work items", [WORK_ITEM_KIND];
    WORK_ITEM_RELEASED = "callback_ingress.work_item.released", "{work_item}", "counter",
        "released envelopes; at most 256 per operation are counted", [WORK_ITEM_KIND, OUTCOME, TOOL_NAME];
    DROPPED = "callback_ingress.work_item.dropped", "{work_item}", "counter",
        "work items that the end of their conversation dropped", [STATE];
    AWAITING = "callback_ingress.work_item.awaiting", "{work_item}", "gauge",
        "work items without an outcome, in the whole store", [];
    HELD = "callback_ingress.result.held", "{result}", "gauge",
        "results held until an earlier work item has an outcome, in the whole store", [];
    HELD_BYTES = "callback_ingress.result.held.size", "By", "gauge",
        "bytes of held results, in the whole store", [];
    LATENESS = "callback_ingress.sweeper.lateness", "s", "histogram",
        "time from timeout to sweep, for each work item that the sweeper timed out", [WORK_ITEM_KIND, TIMEOUT_CAUSE];
    STORE_DURATION = metric::DB_CLIENT_OPERATION_DURATION, "s", "histogram",
        "duration of calls to Redis, including retries",
        [DB_SYSTEM_NAME, DB_OPERATION_NAME, DB_STORED_PROCEDURE_NAME, DB_NAMESPACE, SERVER_ADDRESS, SERVER_PORT,
        ERROR_TYPE, DB_RESPONSE_STATUS_CODE];
    CONNECTIONS = "callback_ingress.store.connections", "{connection}", "counter",
        "connections made to Redis, including reconnections", [];
    REACHABLE = "callback_ingress.store.reachable", "", "gauge",
        "1 if the store (in a cluster: at least one node) responded to the last check, otherwise 0", [];
    REFUSED = "callback_ingress.request.refused", "{request}", "counter",
        "refused requests; starts at 0 for each code", [CODE, ERROR_TYPE];
    EVENT_STREAMS = "callback_ingress.event_stream.open", "{stream}", "gauge",
        "open event streams", [];
    PANICS = "callback_ingress.panic", "{panic}", "counter",
        "panics, each of which is a bug", [];
    LOST = "callback_ingress.telemetry.lost", "{item}", "counter",
        "spans and log records that were not exported, failed metric exports, and log lines dropped because their queue was full",
        [SIGNAL];
    BUILD = "callback_ingress.build.info", "", "gauge",
        "always 1; the version is an attribute", [SERVICE_VERSION];
}
