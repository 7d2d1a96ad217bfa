//! All names of attributes, metrics and log fields.
//!
//! Names are those of OpenTelemetry's semantic conventions (version 1.42) where these have one. The others start with
//! `callback_ingress`, `callback`, `conversation`, `request` or `work_item`. A test compares [`RESOURCE`],
//! [`ATTRIBUTES`] and [`METRICS`] with the tables of `config/signoz/README.md`.

use opentelemetry_semantic_conventions::{attribute, metric};

/// The service's name, unless `OTEL_SERVICE_NAME` is set.
pub const SERVICE: &str = "callback-ingress";
/// The instrumentation scope.
pub const SCOPE: &str = "callback-ingress";

/// `messaging.system` of channels in the memory store.
pub const MEMORY_CHANNEL_SYSTEM: &str = "callback_ingress";

/// The id of a request.
pub const REQUEST_ID: &str = "request.id";
/// The id of a conversation.
pub const CONVERSATION_ID: &str = "conversation.id";
/// The reference of a conversation: the first 16 bytes of its id's SHA-256.
pub const CONVERSATION_REFERENCE: &str = "conversation.reference";
/// The id of a work item.
pub const WORK_ITEM_ID: &str = "work_item.id";
/// The sequence of a work item.
pub const WORK_ITEM_SEQUENCE: &str = "work_item.sequence";
/// The kind of a work item.
pub const WORK_ITEM_KIND: &str = "work_item.kind";
/// The code of a refusal.
pub const CODE: &str = "callback.code";
/// The outcome of a work item.
pub const OUTCOME: &str = "callback.outcome";
/// Whether an accepted result was delivered or held.
pub const DELIVERY: &str = "callback.delivery";
/// Whether a callback was repeated.
pub const REPLAYED: &str = "callback.replayed";
/// Hold time of an envelope in milliseconds.
pub const HELD_MS: &str = "callback.held_ms";
/// The sequence for which an envelope was held.
pub const HELD_BEHIND: &str = "callback.held_behind";
/// Number of envelopes that an operation released.
pub const RELEASED: &str = "callback.released";
/// Number of held items that the end of a conversation dropped.
pub const DROPPED_HELD: &str = "conversation.dropped_held";
/// Number of awaiting items that the end of a conversation dropped.
pub const DROPPED_AWAITING: &str = "conversation.dropped_awaiting";
/// The state of dropped items.
pub const STATE: &str = "work_item.state";
/// Time from a deadline to its sweep in milliseconds.
pub const LATE_MS: &str = "work_item.late_ms";
/// The fingerprint of the token in a callback.
pub const TOKEN_FINGERPRINT: &str = "callback.token_fingerprint";
/// The type of a span link: [`ISSUED_IN`] or [`RELEASED_IN`].
pub const LINK: &str = "callback.link";
/// Duration of a request in microseconds, in its log line.
pub const DURATION_US: &str = "duration_us";
/// A link to the request that issued the work item.
pub const ISSUED_IN: &str = "issued_in";
/// A link to the operation that released the envelope.
pub const RELEASED_IN: &str = "released_in";
/// A signal of OpenTelemetry, or `stderr`.
pub const SIGNAL: &str = "callback_ingress.signal";
/// The deployment environment, set by the operator. The conventions have renamed it to `deployment.environment.name`,
/// which SigNoz's own pages do not filter by.
pub const DEPLOYMENT_ENVIRONMENT: &str = "deployment.environment";

pub use attribute::{
    CLIENT_ADDRESS, DB_NAMESPACE, DB_OPERATION_NAME, DB_RESPONSE_STATUS_CODE, DB_STORED_PROCEDURE_NAME,
    DB_SYSTEM_NAME, ERROR_TYPE, HTTP_REQUEST_BODY_SIZE, HTTP_REQUEST_METHOD, HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE, MESSAGING_DESTINATION_NAME, MESSAGING_DESTINATION_TEMPLATE,
    MESSAGING_MESSAGE_CONVERSATION_ID, MESSAGING_MESSAGE_ID, MESSAGING_OPERATION_NAME,
    MESSAGING_OPERATION_TYPE, MESSAGING_SYSTEM, SERVER_ADDRESS, SERVER_PORT, SERVICE_INSTANCE_ID,
    SERVICE_NAME, SERVICE_VERSION, URL_PATH, URL_SCHEME,
};

/// Attributes of spans and fields of log lines, with their meanings.
pub const ATTRIBUTES: &[(&str, &str)] = &[
    (REQUEST_ID, "`requestId` of the response"),
    (CONVERSATION_ID, "the platform's id of the conversation"),
    (
        CONVERSATION_REFERENCE,
        "the first 32 hex digits of the SHA-256 of that id, which is what a token contains",
    ),
    (WORK_ITEM_ID, "the work item's id"),
    (WORK_ITEM_SEQUENCE, "its position in the order of issue, from 1"),
    (WORK_ITEM_KIND, "`llm` or `tool`"),
    (LATE_MS, "time from the deadline to the sweep that timed the item out"),
    (CODE, "the code of a refusal; missing on success, in metrics empty"),
    (OUTCOME, "`succeeded`, `failed`, `timed_out` or `cancelled`"),
    (DELIVERY, "`delivered`, or `held` until an earlier work item has an outcome"),
    (REPLAYED, "whether this was a repeated callback"),
    (HELD_BEHIND, "the sequence for which an envelope was held"),
    (HELD_MS, "time from the acceptance of the result to its release"),
    (RELEASED, "number of envelopes that the operation released, at most 256"),
    (DROPPED_HELD, "number of held items that the end of the conversation dropped"),
    (DROPPED_AWAITING, "number of awaiting items that the end of the conversation dropped"),
    (STATE, "state of dropped items: `held` or `awaiting`"),
    (TOKEN_FINGERPRINT, "the first 8 hex digits of the token's SHA-256"),
    (
        LINK,
        "type of a span link: `issued_in` to the issuing request, `released_in` to the releasing operation",
    ),
    (CLIENT_ADDRESS, "the client's address, only on requests that were refused with `RATE_LIMITED`"),
    (HTTP_REQUEST_METHOD, "the method; `_OTHER` if it is not a standard one"),
    (HTTP_ROUTE, "the route's template"),
    (URL_PATH, "the route's template as well, because a path can contain a token"),
    (URL_SCHEME, "`http`, or `https` if the listener serves TLS"),
    (HTTP_REQUEST_BODY_SIZE, "bytes of the body"),
    (HTTP_RESPONSE_STATUS_CODE, "the status; 499 when the client closed the connection before the response"),
    (ERROR_TYPE, "failures of the service only: the code of a 5xx response, or the kind of a store failure"),
    (DB_SYSTEM_NAME, "`redis`"),
    (DB_NAMESPACE, "number of the Redis database"),
    (DB_OPERATION_NAME, "`EVALSHA` or another command"),
    (DB_STORED_PROCEDURE_NAME, "the script"),
    (DB_RESPONSE_STATUS_CODE, "the first word of Redis' error reply"),
    (
        SERVER_ADDRESS,
        "host of Redis; for a cluster that of the first configured node, with Sentinel the service's name",
    ),
    (SERVER_PORT, "port of Redis; missing with Sentinel"),
    (MESSAGING_SYSTEM, "`redis`, or `callback_ingress` on the embedded store"),
    (MESSAGING_OPERATION_NAME, "`publish`"),
    (MESSAGING_OPERATION_TYPE, "`send`"),
    (MESSAGING_DESTINATION_NAME, "the channel: its key in Redis"),
    (MESSAGING_DESTINATION_TEMPLATE, "`channel:{conversation}`"),
    (MESSAGING_MESSAGE_ID, "the envelope's id on the channel"),
    (MESSAGING_MESSAGE_CONVERSATION_ID, "the conversation's id"),
    (SIGNAL, "`traces`, `metrics`, `logs`, or `stderr`"),
];

/// Resource attributes with their meanings, except for those of the SDK itself.
pub const RESOURCE: &[(&str, &str)] = &[
    (SERVICE_NAME, "`OTEL_SERVICE_NAME`, or `callback-ingress`"),
    (SERVICE_VERSION, "the version; also an attribute of `callback_ingress.build`"),
    (SERVICE_INSTANCE_ID, "random for each run, unless set in `OTEL_RESOURCE_ATTRIBUTES`"),
    (DEPLOYMENT_ENVIRONMENT, "unset, unless set in `OTEL_RESOURCE_ATTRIBUTES`; SigNoz uses this name"),
];

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

/// Duration of requests.
pub const REQUEST_DURATION: Metric = Metric {
    name: metric::HTTP_SERVER_REQUEST_DURATION,
    unit: "s",
    instrument: "histogram",
    meaning: "time from a request's head to the head of its response",
    attributes: &[
        HTTP_REQUEST_METHOD,
        HTTP_ROUTE,
        URL_SCHEME,
        HTTP_RESPONSE_STATUS_CODE,
        ERROR_TYPE,
        CODE,
        OUTCOME,
    ],
};
/// Size of request bodies.
pub const REQUEST_BODY_SIZE: Metric = Metric {
    name: metric::HTTP_SERVER_REQUEST_BODY_SIZE,
    unit: "By",
    instrument: "histogram",
    meaning: "size of request bodies that were read to their end",
    attributes: &[HTTP_REQUEST_METHOD, HTTP_ROUTE, URL_SCHEME, HTTP_RESPONSE_STATUS_CODE, ERROR_TYPE],
};
/// Requests in flight.
pub const ACTIVE_REQUESTS: Metric = Metric {
    name: metric::HTTP_SERVER_ACTIVE_REQUESTS,
    unit: "{request}",
    instrument: "up-down counter",
    meaning: "requests in flight",
    attributes: &[HTTP_REQUEST_METHOD, URL_SCHEME],
};
/// Time that a provider waits for the service.
pub const ACCEPT_DURATION: Metric = Metric {
    name: "callback_ingress.accept.duration",
    unit: "s",
    instrument: "histogram",
    meaning: "time from a callback's last byte to its acceptance or refusal",
    attributes: &[CODE, OUTCOME],
};
/// Time that a provider takes.
pub const TURNAROUND: Metric = Metric {
    name: "callback_ingress.result.turnaround",
    unit: "s",
    instrument: "histogram",
    meaning: "time from issue to acceptance, for each accepted result",
    attributes: &[WORK_ITEM_KIND, OUTCOME],
};
/// Time that a result waits for earlier items.
pub const HOLD_TIME: Metric = Metric {
    name: "callback_ingress.result.hold_time",
    unit: "s",
    instrument: "histogram",
    meaning: "time from settlement to release",
    attributes: &[WORK_ITEM_KIND, OUTCOME],
};
/// Time from issue to release.
pub const END_TO_END: Metric = Metric {
    name: "callback_ingress.result.end_to_end",
    unit: "s",
    instrument: "histogram",
    meaning: "time from issue to release",
    attributes: &[WORK_ITEM_KIND, OUTCOME],
};
/// Issued work items.
pub const ISSUED: Metric = Metric {
    name: "callback_ingress.work_item.issued",
    unit: "{work_item}",
    instrument: "counter",
    meaning: "issued work items",
    attributes: &[WORK_ITEM_KIND],
};
/// Released envelopes.
pub const WORK_ITEM_RELEASED: Metric = Metric {
    name: "callback_ingress.work_item.released",
    unit: "{work_item}",
    instrument: "counter",
    meaning: "released envelopes; of one operation at most 256 are counted",
    attributes: &[WORK_ITEM_KIND, OUTCOME],
};
/// Dropped work items.
pub const DROPPED: Metric = Metric {
    name: "callback_ingress.work_item.dropped",
    unit: "{work_item}",
    instrument: "counter",
    meaning: "work items that the end of their conversation dropped",
    attributes: &[STATE],
};
/// Awaiting work items.
pub const AWAITING: Metric = Metric {
    name: "callback_ingress.work_item.awaiting",
    unit: "{work_item}",
    instrument: "gauge",
    meaning: "in the whole store, work items without an outcome",
    attributes: &[],
};
/// Held results.
pub const HELD: Metric = Metric {
    name: "callback_ingress.result.held",
    unit: "{result}",
    instrument: "gauge",
    meaning: "in the whole store, results held until an earlier work item has an outcome",
    attributes: &[],
};
/// Bytes of held results.
pub const HELD_BYTES: Metric = Metric {
    name: "callback_ingress.result.held.size",
    unit: "By",
    instrument: "gauge",
    meaning: "in the whole store, bytes of held results",
    attributes: &[],
};
/// Lateness of the sweeper.
pub const LATENESS: Metric = Metric {
    name: "callback_ingress.sweeper.lateness",
    unit: "s",
    instrument: "histogram",
    meaning: "time from deadline to sweep, for each work item that the sweeper timed out",
    attributes: &[WORK_ITEM_KIND],
};
/// Duration of calls of Redis.
pub const STORE_DURATION: Metric = Metric {
    name: metric::DB_CLIENT_OPERATION_DURATION,
    unit: "s",
    instrument: "histogram",
    meaning: "duration of calls of Redis, retries included",
    attributes: &[
        DB_SYSTEM_NAME,
        DB_OPERATION_NAME,
        DB_STORED_PROCEDURE_NAME,
        DB_NAMESPACE,
        SERVER_ADDRESS,
        SERVER_PORT,
        ERROR_TYPE,
        DB_RESPONSE_STATUS_CODE,
    ],
};
/// Connections made to Redis.
pub const CONNECTIONS: Metric = Metric {
    name: "callback_ingress.store.connections",
    unit: "{connection}",
    instrument: "counter",
    meaning: "connections made to Redis, reconnections included",
    attributes: &[],
};
/// Reachability of the store.
pub const REACHABLE: Metric = Metric {
    name: "callback_ingress.store.reachable",
    unit: "",
    instrument: "gauge",
    meaning: "1 if the whole store responded to the last check, otherwise 0",
    attributes: &[],
};
/// Requests refused because of load or limits.
pub const SHED: Metric = Metric {
    name: "callback_ingress.request.shed",
    unit: "{request}",
    instrument: "counter",
    meaning: "requests refused with `OVERLOADED`, `DRAINING`, or the code of a limit",
    attributes: &[CODE],
};
/// Open event streams.
pub const EVENT_STREAMS: Metric = Metric {
    name: "callback_ingress.event_stream.open",
    unit: "{stream}",
    instrument: "gauge",
    meaning: "open event streams",
    attributes: &[],
};
/// Panics.
pub const PANICS: Metric = Metric {
    name: "callback_ingress.panic",
    unit: "{panic}",
    instrument: "counter",
    meaning: "panics, each of which is a bug",
    attributes: &[],
};
/// Lost telemetry.
pub const LOST: Metric = Metric {
    name: "callback_ingress.telemetry.lost",
    unit: "{item}",
    instrument: "counter",
    meaning: "spans, log records and metric exports that were not exported, and log lines that could not be written",
    attributes: &[SIGNAL],
};
/// The running version.
pub const BUILD: Metric = Metric {
    name: "callback_ingress.build",
    unit: "",
    instrument: "gauge",
    meaning: "always 1; the version is an attribute",
    attributes: &[SERVICE_VERSION],
};

/// All metrics of this crate.
pub const METRICS: &[Metric] = &[
    REQUEST_DURATION,
    REQUEST_BODY_SIZE,
    ACTIVE_REQUESTS,
    ACCEPT_DURATION,
    TURNAROUND,
    HOLD_TIME,
    END_TO_END,
    ISSUED,
    WORK_ITEM_RELEASED,
    DROPPED,
    AWAITING,
    HELD,
    HELD_BYTES,
    LATENESS,
    STORE_DURATION,
    CONNECTIONS,
    REACHABLE,
    SHED,
    EVENT_STREAMS,
    PANICS,
    LOST,
    BUILD,
];
