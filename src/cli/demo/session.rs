//! The requests of the demo's platform and providers.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::event_reader::{DemoEvent, EventReader};
use super::screen;
use crate::app::App;
use crate::cli::client::{self, ClientError, ClientResponse, root_cause};
use crate::cli::client_tls::trusting;
use crate::clock::Entropy;
use crate::config::Config;

/// Time limit for a response and for the next event.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A request failed or had an unexpected response.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct DemoError(pub(super) String);

impl From<reqwest::Error> for DemoError {
    fn from(error: reqwest::Error) -> Self {
        Self(root_cause(&error))
    }
}

impl From<ClientError> for DemoError {
    fn from(error: ClientError) -> Self {
        Self(error.to_string())
    }
}

/// A work item with the `callback` object of its response.
#[derive(Clone)]
pub(super) struct IssuedItem {
    id: String,
    callback: Value,
}

impl IssuedItem {
    /// The same item with an invalid token.
    pub(super) fn forged(&self) -> Self {
        let token = self.callback["token"].as_str().unwrap_or_default();
        let last = if token.ends_with('A') { "B" } else { "A" };
        let mut forged = self.clone();
        let kept = token.len().saturating_sub(1);
        forged.callback["token"] = json!(format!("{}{last}", &token[..kept]));
        forged
    }
}

/// Sends the requests of one conversation, and shows them with their responses.
pub(super) struct Session {
    client: reqwest::Client,
    platform: SocketAddr,
    key: SecretString,
    conversation: String,
    events: Option<EventReader>,
    envelopes: Vec<Value>,
    /// Whether a callback was shown with its URL and header, which is done once.
    has_shown_url: Cell<bool>,
}

impl Session {
    pub(super) fn new(app: &App, config: &Config) -> Result<Self, DemoError> {
        let configured = config.platform.service_keys.keys().first();
        let key = configured.or(app.generated_service_key()).cloned();
        Ok(Self {
            // The timeout applies to each read, not to the whole response, because the event stream stays open.
            client: client::builder(trusting(None)?).no_proxy().read_timeout(TIMEOUT).build()?,
            platform: app.platform_addr(),
            key: key.ok_or_else(|| DemoError("no service key".into()))?,
            // Unique, so that the demo can run repeatedly on the same Redis.
            conversation: format!("demo-{}", Entropy.attempt_id()),
            events: None,
            envelopes: Vec::new(),
            has_shown_url: Cell::new(false),
        })
    }

    fn url(&self, rest: &str) -> String {
        format!("http://{}/platform/v1/conversations/{}{rest}", self.platform, self.conversation)
    }

    /// A request of the platform.
    fn platform_request(&self, method: Method, rest: &str) -> reqwest::RequestBuilder {
        self.client.request(method, self.url(rest)).bearer_auth(self.key.expose_secret())
    }

    /// Sends a request of the platform.
    async fn call_platform(
        &self,
        method: Method,
        rest: &str,
        body: Option<String>,
    ) -> Result<ClientResponse, DemoError> {
        let what = match rest {
            "" => format!("{method} …/conversations/{}", self.conversation),
            rest => format!("{method} …{rest}"),
        };
        screen::request(&what, body.as_deref().unwrap_or_default());
        let mut request = self.platform_request(method, rest);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        Ok(client::call(request).await?)
    }

    pub(super) async fn open(&mut self) -> Result<(), DemoError> {
        let response = self.call_platform(Method::PUT, "", Some("{}".into())).await?;
        expect_status(&response, 201, response.json()["state"].as_str().unwrap_or_default())?;
        let response = self.platform_request(Method::GET, "/events?from=0").send().await?;
        if response.status() != StatusCode::OK {
            return Err(DemoError(format!("the event stream responded with {}", response.status())));
        }
        self.events = Some(EventReader::new(response, TIMEOUT));
        Ok(())
    }

    pub(super) async fn issue(&self, sequence: u64, body: Value) -> Result<IssuedItem, DemoError> {
        let response = self.call_platform(Method::POST, "/work-items", Some(body.to_string())).await?;
        let issued = response.json();
        let carrier = issued["callback"]["carrier"].as_str().unwrap_or_default();
        let shown = format!("sequence {}, token in the {carrier}", issued["sequence"]);
        expect_status(&response, 201, &shown)?;
        expect(&issued, "sequence", sequence)?;
        let id = issued["workItemId"].as_str().unwrap_or_default().to_owned();
        Ok(IssuedItem { id, callback: issued["callback"].clone() })
    }

    /// Sends a callback with the token in the item's carrier.
    async fn send_callback(&self, item: &IssuedItem, body: &str) -> Result<ClientResponse, DemoError> {
        let text = |name: &str| item.callback[name].as_str().unwrap_or_default();
        let (token, carrier, name) = (text("token"), text("carrier"), text("name"));
        let url = text("url");
        let mut body = body.to_owned();
        let mut request = self.client.post(url).header(CONTENT_TYPE, "application/json");
        match carrier {
            "header" => request = request.header(name, token),
            "body" => body = body.replacen('{', &format!(r#"{{"{name}": "{token}", "#), 1),
            _ => {}
        }
        let shown = body.replace(token, "cbt_…");
        let is_first = !self.has_shown_url.replace(true);
        if is_first && carrier == "header" {
            screen::request(&format!("POST {url}"), "");
            screen::header(&format!("{name}: cbt_…"));
            screen::header(&shown);
        } else {
            screen::request(&format!("POST a callback, token in the {carrier}:"), &shown);
        }
        Ok(client::call(request.body(body)).await?)
    }

    /// Sends a callback that must be accepted. Returns its receipt.
    pub(super) async fn expect_accepted(
        &self,
        item: &IssuedItem,
        body: &str,
        status: u16,
    ) -> Result<Value, DemoError> {
        let response = self.send_callback(item, body).await?;
        let receipt = response.json();
        let mut shown = format!("{} {}", receipt["status"], receipt["outcome"]).replace('"', "");
        if !receipt["waitingFor"].is_null() {
            shown = format!("{shown}, waiting for {}", receipt["waitingFor"]);
        }
        if receipt["replayed"] == json!(true) {
            shown = format!("{shown}, replayed");
        }
        expect_status(&response, status, &shown)?;
        Ok(receipt)
    }

    /// Sends a callback that must be refused.
    pub(super) async fn expect_refused(
        &self,
        item: &IssuedItem,
        body: &str,
        status: u16,
        code: &str,
    ) -> Result<(), DemoError> {
        let response = self.send_callback(item, body).await?;
        let error = &response.json()["error"];
        let shown = format!("{}: {}", error["code"], error["message"]).replace('"', "");
        expect_status(&response, status, &shown)?;
        expect(error, "code", code)
    }

    pub(super) async fn cancel(&self, item: &IssuedItem) -> Result<(), DemoError> {
        let response = self.call_platform(Method::DELETE, &format!("/work-items/{}", item.id), None).await?;
        expect_status(&response, 200, response.json()["outcome"].as_str().unwrap_or_default())
    }

    pub(super) async fn end(&self) -> Result<(), DemoError> {
        let response = self.call_platform(Method::DELETE, "", None).await?;
        expect_status(&response, 200, response.json()["state"].as_str().unwrap_or_default())
    }

    async fn next_event(&mut self) -> Result<DemoEvent, DemoError> {
        let events = self.events.as_mut().ok_or_else(|| DemoError("the conversation is not open".into()))?;
        Ok(events.next().await?)
    }

    /// Waits for these envelopes.
    pub(super) async fn expect_envelopes(&mut self, expected: &[(u64, &str)]) -> Result<(), DemoError> {
        for (sequence, outcome) in expected {
            let DemoEvent::Envelope(envelope) = self.next_event().await? else {
                return Err(DemoError("the event stream ended early".into()));
            };
            screen::envelope(&envelope);
            expect(&envelope, "sequence", *sequence)?;
            expect(&envelope, "outcome", *outcome)?;
            self.envelopes.push(envelope);
        }
        Ok(())
    }

    /// Waits for the end of the stream. Returns all envelopes.
    pub(super) async fn expect_end(&mut self) -> Result<Vec<Value>, DemoError> {
        match self.next_event().await? {
            DemoEvent::End => Ok(std::mem::take(&mut self.envelopes)),
            DemoEvent::Envelope(envelope) => Err(DemoError(format!("unexpected envelope: {envelope}"))),
        }
    }
}

fn expect_status(response: &ClientResponse, status: u16, shown: &str) -> Result<(), DemoError> {
    screen::response(response.status.as_u16(), shown);
    if response.status == status {
        Ok(())
    } else {
        let body = String::from_utf8_lossy(&response.body);
        Err(DemoError(format!("expected status {status}, got {}: {body}", response.status)))
    }
}

pub(super) fn expect(
    value: &Value,
    field: &str,
    expected: impl Into<Value> + fmt::Debug,
) -> Result<(), DemoError> {
    let expected = expected.into();
    if value[field] == expected {
        Ok(())
    } else {
        Err(DemoError(format!("expected {field} to be {expected}, got {}", value[field])))
    }
}
