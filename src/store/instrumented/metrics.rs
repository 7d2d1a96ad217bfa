//! The metrics of work items and of calls to Redis.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;

use super::tool_labels::ToolLabels;
use crate::domain::gate::{Ended, Receipt, Released, TimedOut};
use crate::domain::time::Timestamp;
use crate::domain::work_item::{Kind, Outcome, TimeoutCause};
use crate::telemetry::{KeyedHistogram, Metrics, REQUEST_SECONDS, names};

/// Histogram boundaries in seconds for work items, up to the maximum deadline of a day.
const WORK_ITEM_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0,
    3600.0, 86400.0,
];

#[derive(Debug)]
pub(super) struct StoreMetrics {
    issued: Counter<u64>,
    released: Counter<u64>,
    dropped: Counter<u64>,
    /// Also keyed by the tool's name.
    turnaround: KeyedHistogram<(Kind, Outcome)>,
    hold_time: KeyedHistogram<(Kind, Outcome)>,
    end_to_end: KeyedHistogram<(Kind, Outcome)>,
    lateness: KeyedHistogram<(Kind, TimeoutCause)>,
    /// Keyed by command and script.
    call_duration: KeyedHistogram<(&'static str, &'static str)>,
    tools: ToolLabels,
}

fn kind_attribute(kind: Kind) -> KeyValue {
    KeyValue::new(names::WORK_ITEM_KIND, kind.as_str())
}

/// `tool`: the value for the tool's name; empty if there is no name.
fn attributes((kind, outcome): (Kind, Outcome), tool: &str) -> Vec<KeyValue> {
    let mut attributes = vec![kind_attribute(kind), KeyValue::new(names::OUTCOME, outcome.as_str())];
    attributes.extend((!tool.is_empty()).then(|| KeyValue::new(names::TOOL_NAME, tool.to_owned())));
    attributes
}

fn seconds(milliseconds: u64) -> f64 {
    Duration::from_millis(milliseconds).as_secs_f64()
}

impl StoreMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let all = Self {
            issued: metrics.counter(names::ISSUED),
            released: metrics.counter(names::WORK_ITEM_RELEASED),
            dropped: metrics.counter(names::DROPPED),
            turnaround: metrics.histogram(names::TURNAROUND, WORK_ITEM_SECONDS),
            hold_time: metrics.histogram(names::HOLD_TIME, WORK_ITEM_SECONDS),
            end_to_end: metrics.histogram(names::END_TO_END, WORK_ITEM_SECONDS),
            lateness: metrics.histogram(names::LATENESS, REQUEST_SECONDS),
            call_duration: metrics.histogram(names::STORE_DURATION, REQUEST_SECONDS),
            tools: ToolLabels::default(),
        };
        all.add_dropped(0, 0);
        for kind in Kind::ALL {
            all.issued.add(0, &[kind_attribute(kind)]);
            for outcome in Outcome::ALL {
                all.released.add(0, &attributes((kind, outcome), ""));
            }
        }
        all
    }

    pub(super) fn issued(&self, kind: Kind) {
        self.issued.add(1, &[kind_attribute(kind)]);
    }

    /// Records the time from the issue of the work item to the acceptance of its result.
    pub(super) fn accepted(&self, receipt: &Receipt) {
        let (item, key) = (&receipt.item, (receipt.item.kind, receipt.outcome));
        let turnaround = seconds(item.issued_at.millis_until(receipt.received_at));
        let tool = self.tools.label(item.name.as_ref());
        self.turnaround.record(tool, key, turnaround, || attributes(key, tool));
    }

    pub(super) fn ended(&self, ended: &Ended) {
        self.add_dropped(ended.dropped_held, ended.dropped_awaiting);
    }

    fn add_dropped(&self, held: u64, awaiting: u64) {
        self.dropped.add(held, &[KeyValue::new(names::STATE, "held")]);
        self.dropped.add(awaiting, &[KeyValue::new(names::STATE, "awaiting")]);
    }

    pub(super) fn released(&self, envelope: &Released) {
        let since = |start: Timestamp| seconds(start.millis_until(envelope.released_at));
        let key = (envelope.kind, envelope.outcome);
        self.released.add(1, &attributes(key, self.tools.label(envelope.name.as_ref())));
        self.hold_time.record("", key, since(envelope.received_at), || attributes(key, ""));
        self.end_to_end.record("", key, since(envelope.issued_at), || attributes(key, ""));
    }

    pub(super) fn timed_out(&self, timed_out: &TimedOut) {
        let key @ (kind, cause) = (timed_out.kind, timed_out.cause);
        let attributes = || vec![kind_attribute(kind), KeyValue::new(names::TIMEOUT_CAUSE, cause.as_str())];
        self.lateness.record("", key, seconds(timed_out.late_ms), attributes);
    }

    /// Records a call to Redis. `operation`: its command and script. The attributes of a failed call depend on the
    /// error, so they have no key.
    pub(super) fn call(
        &self,
        duration: Duration,
        operation: (&'static str, &'static str),
        failed: bool,
        attributes: impl FnOnce() -> Vec<KeyValue>,
    ) {
        if failed {
            self.call_duration.unbound().record(duration.as_secs_f64(), &attributes());
        } else {
            self.call_duration.record("", operation, duration.as_secs_f64(), attributes);
        }
    }
}
