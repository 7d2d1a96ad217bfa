//! The output of the probe: one line per step, or one JSON document.

use std::cell::RefCell;
use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::cli::outcome::{Failure, print};

/// Width of the column with the names of the steps.
const WIDTH: usize = 20;

/// Why a step failed.
#[derive(Debug, Default)]
pub(super) struct StepFailure {
    pub(super) reason: String,
    pub(super) status: Option<u16>,
    pub(super) code: Option<&'static str>,
    pub(super) request_id: Option<String>,
}

impl StepFailure {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..Self::default() }
    }
}

impl From<Failure> for StepFailure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Usage(error) | Failure::Runtime(error) => Self::new(error.to_string()),
        }
    }
}

/// The time of a step.
#[derive(Clone, Copy, Debug)]
pub(super) enum StepTime {
    /// From the request to the response.
    Call(Duration),
    /// From the callback's response to the arrival of its event.
    After(Duration),
    /// From the arrival of the event to the callback's response, if the event came first.
    Before(Duration),
}

impl StepTime {
    /// The time of an event that arrived at `seen`, relative to the response at `responded`.
    pub(super) fn between(responded: Instant, seen: Instant) -> Self {
        match seen.checked_duration_since(responded) {
            Some(after) => Self::After(after),
            None => Self::Before(responded - seen),
        }
    }

    fn ms(self) -> f64 {
        let ms = |duration: Duration| (duration.as_secs_f64() * 1e4).round() / 10.0;
        match self {
            Self::Call(duration) | Self::After(duration) => ms(duration),
            Self::Before(duration) => -ms(duration),
        }
    }
}

impl fmt::Display for StepTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = match self {
            Self::Call(_) => "",
            Self::After(_) => " after",
            Self::Before(_) => " before",
        };
        write!(f, "{:>7.1} ms{suffix}", self.ms().abs())
    }
}

/// The steps so far.
#[derive(Debug)]
pub(super) struct Report {
    as_json: bool,
    current: RefCell<String>,
    done: RefCell<Vec<Value>>,
}

impl Report {
    pub(super) fn new(as_json: bool) -> Self {
        Self { as_json, current: RefCell::default(), done: RefCell::default() }
    }

    /// Begins a step. Returns the current time.
    pub(super) fn begin(&self, step: impl Into<String>) -> Instant {
        *self.current.borrow_mut() = step.into();
        Instant::now()
    }

    pub(super) fn current_step(&self) -> String {
        self.current.borrow().clone()
    }

    /// Records and prints the success of the current step.
    pub(super) fn done(&self, took: StepTime) -> Result<(), Failure> {
        let step = self.current_step();
        self.done.borrow_mut().push(json!({"step": step, "ms": took.ms()}));
        self.line(&format!("{step:<WIDTH$} {took}"))
    }

    pub(super) fn failed(&self, step: &str) -> Result<(), Failure> {
        self.line(&format!("{step:<WIDTH$}  FAILED"))
    }

    fn line(&self, text: &str) -> Result<(), Failure> {
        if self.as_json { Ok(()) } else { print(&format!("{text}\n")) }
    }

    /// Prints the result. `failure`: the step that failed, and the reason, which must not contain secrets.
    pub(super) fn finish(
        &self,
        conversation: &str,
        carriers: &[&str],
        failure: Option<(String, StepFailure)>,
        took: Duration,
    ) -> Result<(), Failure> {
        let took = StepTime::Call(took);
        let reason = failure.map(|(step, failure)| {
            let StepFailure { reason, status, code, request_id } = failure;
            let mut members = Map::new();
            members.insert("step".into(), step.clone().into());
            members.insert("reason".into(), reason.clone().into());
            let known = [("status", status.map(Value::from)), ("code", code.map(Value::from))];
            let known = known.into_iter().chain([("requestId", request_id.map(Value::from))]);
            members.extend(known.filter_map(|(name, value)| Some((name.to_owned(), value?))));
            (Value::from(members), format!("{step}: {reason}"))
        });
        if self.as_json {
            let mut document = json!({
                "ok": reason.is_none(),
                "conversationId": conversation,
                "carriers": carriers,
                "steps": self.done.take(),
                "totalMs": took.ms(),
            });
            if let Some((failure, _)) = &reason {
                document["failure"] = failure.clone();
            }
            print(&format!("{document:#}\n"))?;
        } else if reason.is_none() {
            self.line(&format!("{:<WIDTH$} {took}", "ok"))?;
        }
        reason.map_or(Ok(()), |(_, text)| Err(Failure::Runtime(text.into())))
    }
}
