//! The steps of the probe.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use axum::http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::explain::{self, Sent};
use super::http_client::{HttpClient, ProbeResponse, Side, call, send, shown};
use super::report::{Report, StepFailure, StepTime};
use crate::cli::event_stream::{EventStream, StreamEvent};
use crate::clock::Entropy;
use crate::config::Carrier;
use crate::domain::gate::Limits;
use crate::http::code::Code;
use crate::platform::PLATFORM_PATH;
use crate::public::CALLBACKS_PATH;

/// How much longer than the probe's time limit the conversation stays open if the probe cannot end it.
const IDLE_AFTER: Duration = Duration::from_secs(60);
const CARRIERS: [Carrier; 4] = [Carrier::Header, Carrier::Query, Carrier::Body, Carrier::Path];

/// How the probe reaches the two listeners.
#[derive(Debug)]
pub(super) struct Endpoints {
    pub(super) platform: HttpClient,
    pub(super) platform_url: String,
    pub(super) authorization: HeaderValue,
    pub(super) public: HttpClient,
    /// The base URL for callbacks. `None`: use the URL in the `callback` object.
    pub(super) public_url: Option<String>,
}

/// What is known about the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProbeState {
    Unopened,
    /// The request to open it was sent, but no response has arrived.
    MayBeOpen,
    Open,
    Ended,
}

/// A work item and how its callback is sent.
struct ProbeItem {
    sequence: Value,
    work_item: Value,
    token: String,
    carrier: Carrier,
    name: String,
    url: String,
    headers: Map<String, Value>,
}

/// A run of the probe: all steps, in one conversation.
pub(super) struct RoundTrip<'a> {
    endpoints: Endpoints,
    report: &'a Report,
    bytes: usize,
    idle_ttl: Duration,
    name: String,
    conversation: Cell<ProbeState>,
    carriers: RefCell<Vec<&'static str>>,
    tokens: RefCell<Vec<String>>,
}

impl<'a> RoundTrip<'a> {
    pub(super) fn new(endpoints: Endpoints, report: &'a Report, bytes: usize, limit: Duration) -> Self {
        Self {
            endpoints,
            report,
            bytes,
            idle_ttl: limit.saturating_add(IDLE_AFTER).min(Duration::from_millis(Limits::MAX_IDLE_TTL_MS)),
            name: format!("probe-{}", Entropy.attempt_id()),
            conversation: Cell::new(ProbeState::Unopened),
            carriers: RefCell::default(),
            tokens: RefCell::default(),
        }
    }

    pub(super) fn conversation(&self) -> &str {
        &self.name
    }

    /// The enabled carriers that have been tried.
    pub(super) fn carriers(&self) -> Vec<&'static str> {
        self.carriers.borrow().clone()
    }

    /// Removes secrets that a response may have repeated.
    pub(super) fn without_secrets(&self, text: &str) -> String {
        let key = self.endpoints.authorization.to_str().unwrap_or_default().trim_start_matches("Bearer ");
        let tokens = self.tokens.borrow();
        let secrets = tokens.iter().map(|token| (token.as_str(), "cbt_…")).chain([(key, "<service key>")]);
        secrets.fold(text.to_owned(), |text, (secret, shown)| text.replace(secret, shown))
    }

    /// Runs all steps.
    pub(super) async fn run(&self) -> Result<(), StepFailure> {
        self.open().await?;
        let mut events = self.follow().await?;
        for carrier in CARRIERS {
            let Some(issued) = self.issue(carrier).await? else { continue };
            self.carriers.borrow_mut().push(carrier.as_str());
            self.call_back(&issued, &mut events).await?;
        }
        self.end().await?;
        let began = self.report.begin("end of the events");
        if !next(&mut events).await?.is_end() {
            return Err(StepFailure::new("received an event that belongs to no callback of the probe"));
        }
        self.done(began)
    }

    /// The failure of the current step at the time limit.
    pub(super) fn timed_out(&self, limit: Duration) -> StepFailure {
        let limit = humantime::format_duration(limit);
        StepFailure::new(if self.report.current_step() == EVENT {
            format!(
                "the callback was accepted, but its event did not arrive within the time limit of {limit}"
            )
        } else {
            format!("no response within the time limit of {limit}")
        })
    }

    /// Ends the conversation after a failed step. Returns a message if that fails and the conversation is known to be
    /// open.
    pub(super) async fn clean_up(&self) -> Option<String> {
        if matches!(self.conversation.get(), ProbeState::Unopened | ProbeState::Ended) {
            return None;
        }
        match call(Side::Platform, self.platform(Method::DELETE, "?reason=probe")).await {
            Ok(response) if response.status.is_success() || response.status == StatusCode::NOT_FOUND => None,
            Ok(response) => self.left_behind(&explain::platform(&response).reason),
            Err(failure) => self.left_behind(&failure.reason),
        }
    }

    /// The message for a conversation that was opened and could not be ended.
    pub(super) fn left_behind(&self, why: &str) -> Option<String> {
        let after = humantime::format_duration(self.idle_ttl);
        let open = self.conversation.get() == ProbeState::Open;
        let why = self.without_secrets(why);
        open.then(|| {
            format!("could not end the conversation {}, which ends by itself after {after}: {why}", self.name)
        })
    }

    fn done(&self, began: Instant) -> Result<(), StepFailure> {
        Ok(self.report.done(StepTime::Call(began.elapsed()))?)
    }

    /// A request to the conversation at the platform listener.
    fn platform(&self, method: Method, rest: &str) -> reqwest::RequestBuilder {
        let Endpoints { platform, platform_url, authorization, .. } = &self.endpoints;
        let url = format!("{platform_url}{PLATFORM_PATH}/conversations/{}{rest}", self.name);
        platform.request(method, &url).header(header::AUTHORIZATION, authorization)
    }

    async fn open(&self) -> Result<(), StepFailure> {
        let began = self.report.begin("open");
        self.conversation.set(ProbeState::MayBeOpen);
        let idle_ttl_ms = u64::try_from(self.idle_ttl.as_millis()).unwrap_or(u64::MAX);
        let request = with_json(self.platform(Method::PUT, ""), &json!({"idleTtlMs": idle_ttl_ms}));
        let response = call(Side::Platform, request).await?;
        if response.status != StatusCode::CREATED || response.text("conversationId") != self.name {
            self.conversation.set(ProbeState::Unopened);
            return Err(explain::platform(&response));
        }
        self.conversation.set(ProbeState::Open);
        self.done(began)
    }

    async fn follow(&self) -> Result<EventStream, StepFailure> {
        let began = self.report.begin("events");
        let response = send(Side::Platform, self.platform(Method::GET, "/events?from=0")).await?;
        if response.status() != StatusCode::OK {
            return Err(explain::platform(&ProbeResponse::read(Side::Platform, response).await?));
        }
        self.done(began)?;
        // The time limit for all steps applies instead.
        Ok(EventStream::new(response, Duration::MAX))
    }

    /// Issues a work item. `None`: the carrier is disabled.
    async fn issue(&self, carrier: Carrier) -> Result<Option<ProbeItem>, StepFailure> {
        let began = self.report.begin(format!("issue for {}", carrier.as_str()));
        let body = json!({"kind": "tool", "carrier": carrier.as_str(), "name": "probe"});
        let response =
            call(Side::Platform, with_json(self.platform(Method::POST, "/work-items"), &body)).await?;
        let refused = response.own_error().filter(|error| error.code == Code::RequestInvalid);
        if refused.is_some_and(|error| error.message.starts_with("carrier:")) {
            return Ok(None);
        }
        let issued = self.issued(carrier, &response).ok_or_else(|| explain::platform(&response))?;
        self.done(began)?;
        Ok(Some(issued))
    }

    fn issued(&self, carrier: Carrier, response: &ProbeResponse) -> Option<ProbeItem> {
        let callback = &response.json["callback"];
        let text = |name: &str| callback[name].as_str().map(ToOwned::to_owned);
        let token = text("token").filter(|_| response.status == StatusCode::CREATED)?;
        self.tokens.borrow_mut().push(token.clone());
        let mut url = text("url")?;
        if let Some(base) = &self.endpoints.public_url {
            let path = url.rfind(CALLBACKS_PATH)?;
            url = format!("{base}{}", &url[path..]);
        }
        Some(ProbeItem {
            sequence: response.json["sequence"].clone(),
            work_item: response.json["workItemId"].clone(),
            token,
            carrier,
            name: text("name")?,
            url,
            headers: callback["headers"].as_object()?.clone(),
        })
    }

    /// Posts a result and waits for its event at the same time, because either can arrive first.
    async fn call_back(&self, issued: &ProbeItem, events: &mut EventStream) -> Result<(), StepFailure> {
        let began = self.report.begin(format!("callback by {}", issued.carrier.as_str()));
        let result = self.result(issued.carrier);
        let callback = async {
            self.post(issued, &result).await?;
            let responded = Instant::now();
            self.report.done(StepTime::Call(responded - began))?;
            self.report.begin(EVENT);
            Ok::<_, StepFailure>(responded)
        };
        let event = async {
            let event = next(events).await?;
            Ok((event, Instant::now()))
        };
        let (responded, (event, seen)) = tokio::try_join!(callback, event)?;
        if !event.is_envelope() {
            return Err(StepFailure::new("the conversation ended before the event of the callback"));
        }
        let envelope: Value = serde_json::from_str(&event.data).unwrap_or_default();
        let expected = [
            ("sequence", &issued.sequence),
            ("workItemId", &issued.work_item),
            ("outcome", &json!("succeeded")),
            ("result", &result),
        ];
        if let Some((field, _)) = expected.into_iter().find(|(field, value)| envelope[*field] != **value) {
            return Err(StepFailure::new(format!("the {field} of the event is not that of the callback")));
        }
        Ok(self.report.done(StepTime::between(responded, seen))?)
    }

    /// A result of the requested size.
    fn result(&self, carrier: Carrier) -> Value {
        let mut result = json!({"probe": self.name, "carrier": carrier.as_str(), "filler": ""});
        let missing = self.bytes.saturating_sub(result.to_string().len());
        result["filler"] = ".".repeat(missing).into();
        result
    }

    async fn post(&self, issued: &ProbeItem, result: &Value) -> Result<(), StepFailure> {
        let mut body = result.clone();
        if issued.carrier == Carrier::Body {
            body[&issued.name] = issued.token.clone().into();
        }
        let body = body.to_string();
        let sent = Sent { carrier: issued.carrier, name: &issued.name, bytes: body.len() };
        let mut request = self.endpoints.public.request(Method::POST, &issued.url).body(body);
        for (name, value) in &issued.headers {
            request = request.header(name, value.as_str().unwrap_or_default());
        }
        let response = call(Side::Public, request).await?;
        if response.status != StatusCode::ACCEPTED || response.json["workItemId"] != issued.work_item {
            return Err(explain::callback(&response, sent));
        }
        match response.text("status") {
            "delivered" => Ok(()),
            status => Err(StepFailure::new(format!(
                "expected the receipt's status to be delivered, got {}",
                shown(status)
            ))),
        }
    }

    async fn end(&self) -> Result<(), StepFailure> {
        let began = self.report.begin("end");
        let response = call(Side::Platform, self.platform(Method::DELETE, "?reason=probe")).await?;
        if response.text("state") != "ended" {
            return Err(explain::platform(&response));
        }
        self.conversation.set(ProbeState::Ended);
        self.done(began)
    }
}

/// Name of the step that waits for the event of a callback.
const EVENT: &str = "event";

fn with_json(request: reqwest::RequestBuilder, body: &Value) -> reqwest::RequestBuilder {
    request.header(header::CONTENT_TYPE, "application/json").body(body.to_string())
}

/// Waits for the next envelope or the `end` event.
async fn next(events: &mut EventStream) -> Result<StreamEvent, StepFailure> {
    loop {
        let next = events.next().await;
        let next = next.and_then(|event| event.ok_or_else(|| "it was closed".into()));
        let event = next.map_err(|error| {
            StepFailure::new(format!("the event stream failed: {}", shown(&error.to_string())))
        })?;
        if event.is_envelope() || event.is_end() {
            return Ok(event);
        }
    }
}
