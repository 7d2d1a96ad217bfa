//! Every name that leaves in a span, a metric or a log line, and nothing spelled elsewhere.
//!
//! Names that OpenTelemetry's semantic conventions have are theirs (version 1.42); the rest
//! is ours, under `callback_ingress`, `callback`, `conversation`, `request` and `work_item`. The tables of
//! `config/signoz/README.md` are compared with [`RESOURCE`], [`ATTRIBUTES`] and [`METRICS`].

use opentelemetry_semantic_conventions::{attribute, metric};

/// The service's name, unless `OTEL_SERVICE_NAME` has another.
pub const SERVICE: &str = "callback-ingress";
/// The instrumentation scope of all that is ours.
pub const SCOPE: &str = "callback-ingress";

/// What names of ours, and systems of ours, begin with.
pub const SERVICE_NAMESPACE: &str = "callback_ingress";

/// A request's id.
pub const REQUEST_ID: &str = "request.id";
/// A conversation's id.
pub const CONVERSATION_ID: &str = "conversation.id";
/// A conversation's reference: the start of its id's SHA-256.
pub const CONVERSATION_REFERENCE: &str = "conversation.reference";
/// A work item's id.
pub const WORK_ITEM_ID: &str = "work_item.id";
/// A work item's place.
pub const WORK_ITEM_SEQUENCE: &str = "work_item.sequence";
/// A work item's kind.
pub const WORK_ITEM_KIND: &str = "work_item.kind";
/// A refusal's code.
pub const CODE: &str = "callback.code";
/// How a work item was settled.
pub const OUTCOME: &str = "callback.outcome";
/// Whether a result went to the channel at once.
pub const DELIVERY: &str = "callback.delivery";
/// Whether a callback was a repetition.
pub const REPLAYED: &str = "callback.replayed";
/// How long an envelope was held.
pub const HELD_MS: &str = "callback.held_ms";
/// Which sequence held it up.
pub const HELD_BEHIND: &str = "callback.held_behind";
/// How many envelopes a step put on the channel.
pub const RELEASED: &str = "callback.released";
/// How late a timeout was seen to.
pub const LATE_MS: &str = "work_item.late_ms";
/// Of the token that was presented.
pub const TOKEN_FINGERPRINT: &str = "callback.token_fingerprint";
/// How an envelope's trace is linked to another.
pub const LINK: &str = "callback.link";
/// How long a request took, in its log line.
pub const DURATION_US: &str = "duration_us";
/// A link to the trace that a work item was issued in.
pub const ISSUED_IN: &str = "issued_in";
/// A link to the step that put an envelope on the channel.
pub const RELEASED_IN: &str = "released_in";
/// Which of OpenTelemetry's signals.
pub const SIGNAL: &str = "callback_ingress.signal";
/// Where the service is deployed: set by who deploys it. The conventions have another name by now, which SigNoz's own
/// pages do not filter by.
pub const DEPLOYMENT_ENVIRONMENT: &str = "deployment.environment";

pub use attribute::{
    CLIENT_ADDRESS, DB_NAMESPACE, DB_OPERATION_NAME, DB_RESPONSE_STATUS_CODE, DB_STORED_PROCEDURE_NAME,
    DB_SYSTEM_NAME, ERROR_TYPE, HTTP_REQUEST_BODY_SIZE, HTTP_REQUEST_METHOD, HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE, MESSAGING_DESTINATION_NAME, MESSAGING_DESTINATION_TEMPLATE,
    MESSAGING_MESSAGE_CONVERSATION_ID, MESSAGING_MESSAGE_ID, MESSAGING_OPERATION_NAME,
    MESSAGING_OPERATION_TYPE, MESSAGING_SYSTEM, SERVER_ADDRESS, SERVER_PORT, SERVICE_INSTANCE_ID,
    SERVICE_NAME, SERVICE_VERSION, URL_PATH, URL_SCHEME,
};

/// What a name of a span's attribute or of a log line's field stands for.
pub const ATTRIBUTES: &[(&str, &str)] = &[
    (REQUEST_ID, "`requestId` of the reply"),
    (CONVERSATION_ID, "the platform's id of the conversation"),
    (
        CONVERSATION_REFERENCE,
        "the first 32 hex digits of the SHA-256 of that id: all that a token tells of it",
    ),
    (WORK_ITEM_ID, "the work item's id"),
    (WORK_ITEM_SEQUENCE, "its place in the conversation's order"),
    (WORK_ITEM_KIND, "`llm` or `tool`"),
    (LATE_MS, "timeouts: how long after the deadline it was seen to"),
    (CODE, "a refusal's code; a receipt has none, or an empty one in metrics"),
    (OUTCOME, "`succeeded`, `failed`, `timed_out` or `cancelled`"),
    (DELIVERY, "`delivered`, or `held` behind an earlier work item"),
    (REPLAYED, "whether the same callback had come before"),
    (HELD_BEHIND, "the sequence that the gate waited for"),
    (HELD_MS, "how long the envelope was held"),
    (RELEASED, "how many envelopes the step put on the channel"),
    (TOKEN_FINGERPRINT, "the first 8 hex digits of the token's SHA-256"),
    (
        LINK,
        "on a link: `issued_in`, to where the work was issued; `released_in`, to what released a held result",
    ),
    (CLIENT_ADDRESS, "who asked, of a request that was refused with `RATE_LIMITED`"),
    (HTTP_REQUEST_METHOD, "the method; `_OTHER` if it is none of HTTP's own"),
    (HTTP_ROUTE, "the route's template"),
    (URL_PATH, "the template once more: a path may hold a token"),
    (URL_SCHEME, "`http`, or `https` where the listener speaks TLS"),
    (HTTP_REQUEST_BODY_SIZE, "bytes of the body"),
    (HTTP_RESPONSE_STATUS_CODE, "the status"),
    (ERROR_TYPE, "what failed, only if it is ours: a code with a status of 5xx, or a kind of store failure"),
    (DB_SYSTEM_NAME, "`redis`"),
    (DB_NAMESPACE, "number of the Redis database"),
    (DB_OPERATION_NAME, "`EVALSHA`, or another command"),
    (DB_STORED_PROCEDURE_NAME, "the script"),
    (DB_RESPONSE_STATUS_CODE, "the first word of Redis' error"),
    (
        SERVER_ADDRESS,
        "host of Redis: of a cluster, of the first node that is configured; the service, with Sentinel",
    ),
    (SERVER_PORT, "port of Redis; none with Sentinel"),
    (MESSAGING_SYSTEM, "`redis`, or `callback_ingress` on the embedded store"),
    (MESSAGING_OPERATION_NAME, "`publish`"),
    (MESSAGING_OPERATION_TYPE, "`send`"),
    (MESSAGING_DESTINATION_NAME, "the channel: its key in Redis"),
    (MESSAGING_DESTINATION_TEMPLATE, "`channel:{conversation}`"),
    (MESSAGING_MESSAGE_ID, "the envelope's id on the channel"),
    (MESSAGING_MESSAGE_CONVERSATION_ID, "the conversation's id once more"),
    (SIGNAL, "`traces`, `metrics`, `logs`, or `stderr`"),
];

/// What tells who exports, beside what the SDK tells of itself.
pub const RESOURCE: &[(&str, &str)] = &[
    (SERVICE_NAME, "`OTEL_SERVICE_NAME`, or `callback-ingress`"),
    (SERVICE_VERSION, "the version; of `callback_ingress.build` an attribute, too"),
    (SERVICE_INSTANCE_ID, "one for each run, or as `OTEL_RESOURCE_ATTRIBUTES` says"),
    (DEPLOYMENT_ENVIRONMENT, "as `OTEL_RESOURCE_ATTRIBUTES` says, in SigNoz's spelling"),
];

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name. For Prometheus, dots are underscores, and the unit and `total` are appended.
    pub name: &'static str,
    /// Its unit, as UCUM has it.
    pub unit: &'static str,
    /// Its kind of instrument.
    pub instrument: &'static str,
    /// What it measures.
    pub meaning: &'static str,
    /// Its attributes.
    pub attributes: &'static [&'static str],
}

/// Requests, by status and code.
pub const REQUEST_DURATION: Metric = Metric {
    name: metric::HTTP_SERVER_REQUEST_DURATION,
    unit: "s",
    instrument: "histogram",
    meaning: "from a request's head to its reply's",
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
/// Sizes of bodies that were read.
pub const REQUEST_BODY_SIZE: Metric = Metric {
    name: metric::HTTP_SERVER_REQUEST_BODY_SIZE,
    unit: "By",
    instrument: "histogram",
    meaning: "bodies that were read to their end",
    attributes: &[HTTP_REQUEST_METHOD, HTTP_ROUTE, URL_SCHEME, HTTP_RESPONSE_STATUS_CODE, ERROR_TYPE],
};
/// Requests under way.
pub const ACTIVE_REQUESTS: Metric = Metric {
    name: metric::HTTP_SERVER_ACTIVE_REQUESTS,
    unit: "{request}",
    instrument: "up-down counter",
    meaning: "requests under way",
    attributes: &[HTTP_REQUEST_METHOD, URL_SCHEME],
};
/// What a provider waits for us.
pub const ACCEPT_DURATION: Metric = Metric {
    name: "callback_ingress.accept.duration",
    unit: "s",
    instrument: "histogram",
    meaning: "from a callback's last byte to the decision on it",
    attributes: &[CODE, OUTCOME],
};
/// How long providers take.
pub const TURNAROUND: Metric = Metric {
    name: "callback_ingress.result.turnaround",
    unit: "s",
    instrument: "histogram",
    meaning: "issued to received, of each result that was taken",
    attributes: &[WORK_ITEM_KIND, OUTCOME],
};
/// How long the gate takes.
pub const HOLD_TIME: Metric = Metric {
    name: "callback_ingress.result.hold_time",
    unit: "s",
    instrument: "histogram",
    meaning: "received to released",
    attributes: &[WORK_ITEM_KIND, OUTCOME],
};
/// How long all of it takes.
pub const END_TO_END: Metric = Metric {
    name: "callback_ingress.result.end_to_end",
    unit: "s",
    instrument: "histogram",
    meaning: "issued to released",
    attributes: &[WORK_ITEM_KIND, OUTCOME],
};
/// Work items issued.
pub const ISSUED: Metric = Metric {
    name: "callback_ingress.work_item.issued",
    unit: "{work_item}",
    instrument: "counter",
    meaning: "work items issued",
    attributes: &[WORK_ITEM_KIND],
};
/// Envelopes put on channels.
pub const WORK_ITEM_RELEASED: Metric = Metric {
    name: "callback_ingress.work_item.released",
    unit: "{work_item}",
    instrument: "counter",
    meaning: "envelopes put on channels; `timed_out` is an outcome",
    attributes: &[WORK_ITEM_KIND, OUTCOME],
};
/// Work items that wait for their callback.
pub const AWAITING: Metric = Metric {
    name: "callback_ingress.work_item.awaiting",
    unit: "{work_item}",
    instrument: "gauge",
    meaning: "in the whole store, awaiting their callback",
    attributes: &[],
};
/// Results behind an earlier item.
pub const HELD: Metric = Metric {
    name: "callback_ingress.result.held",
    unit: "{result}",
    instrument: "gauge",
    meaning: "in the whole store, settled behind an earlier work item that is not",
    attributes: &[],
};
/// Their bytes.
pub const HELD_BYTES: Metric = Metric {
    name: "callback_ingress.result.held.size",
    unit: "By",
    instrument: "gauge",
    meaning: "in the whole store, bytes of what is held",
    attributes: &[],
};
/// How late timeouts are.
pub const LATENESS: Metric = Metric {
    name: "callback_ingress.sweeper.lateness",
    unit: "s",
    instrument: "histogram",
    meaning: "deadline to timeout, of each work item that the sweeper timed out",
    attributes: &[WORK_ITEM_KIND],
};
/// Calls of the store.
pub const STORE_DURATION: Metric = Metric {
    name: metric::DB_CLIENT_OPERATION_DURATION,
    unit: "s",
    instrument: "histogram",
    meaning: "calls of Redis, retries included",
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
/// Connections made.
pub const CONNECTIONS: Metric = Metric {
    name: "callback_ingress.store.connections",
    unit: "{connection}",
    instrument: "counter",
    meaning: "connections made to Redis, the first ones and every reconnection",
    attributes: &[],
};
/// Whether the store is there.
pub const REACHABLE: Metric = Metric {
    name: "callback_ingress.store.reachable",
    unit: "",
    instrument: "gauge",
    meaning: "1 when the store, all of it, answered the last time, else 0",
    attributes: &[],
};
/// Requests there was no room for.
pub const SHED: Metric = Metric {
    name: "callback_ingress.request.shed",
    unit: "{request}",
    instrument: "counter",
    meaning: "refused for want of room: `OVERLOADED`, `DRAINING`, and the limits",
    attributes: &[CODE],
};
/// Event streams.
pub const EVENT_STREAMS: Metric = Metric {
    name: "callback_ingress.event_stream.open",
    unit: "{stream}",
    instrument: "gauge",
    meaning: "event streams open",
    attributes: &[],
};
/// Panics.
pub const PANICS: Metric = Metric {
    name: "callback_ingress.panic",
    unit: "{panic}",
    instrument: "counter",
    meaning: "bugs: panics that were caught",
    attributes: &[],
};
/// What was not exported.
pub const LOST: Metric = Metric {
    name: "callback_ingress.telemetry.lost",
    unit: "{item}",
    instrument: "counter",
    meaning: "spans, log records and exports of metrics that a collector did not take, and log lines nobody read",
    attributes: &[SIGNAL],
};
/// The build.
pub const BUILD: Metric = Metric {
    name: "callback_ingress.build",
    unit: "",
    instrument: "gauge",
    meaning: "always 1; its attribute tells the version",
    attributes: &[SERVICE_VERSION],
};

/// Every metric of ours.
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
