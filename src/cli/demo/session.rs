//! The demo's two parties: the platform, and its providers.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::screen;
use super::watcher::{Heard, Watcher};
use crate::app::App;
use crate::cli::client::{Call, Client, ClientError, Reply};
use crate::clock::Entropy;
use crate::config::Config;

/// Longest time for any one answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Something came out otherwise than it should.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Wrong(pub(super) String);

impl From<ClientError> for Wrong {
    fn from(error: ClientError) -> Self {
        Self(error.to_string())
    }
}

/// A work item, as its provider was told of it.
#[derive(Clone)]
pub(super) struct Item {
    id: String,
    callback: Value,
}

impl Item {
    /// The same with a token that nobody signed.
    pub(super) fn forged(&self) -> Self {
        let token = self.callback["token"].as_str().unwrap_or_default();
        let last = if token.ends_with('A') { "B" } else { "A" };
        let mut forged = self.clone();
        let kept = token.len().saturating_sub(1);
        forged.callback["token"] = json!(format!("{}{last}", &token[..kept]));
        forged
    }
}

/// Speaks for the platform and for the providers, and shows what is said.
pub(super) struct Session {
    client: Client,
    platform: SocketAddr,
    key: SecretString,
    conversation: String,
    watcher: Option<Watcher>,
    envelopes: Vec<Value>,
}

impl Session {
    pub(super) fn new(app: &App, config: &Config) -> Result<Self, Wrong> {
        let configured = config.platform.service_keys.keys().first();
        let key = configured.or(app.generated_service_key()).cloned();
        Ok(Self {
            client: Client::new(LIMIT),
            platform: app.platform_addr(),
            key: key.ok_or_else(|| Wrong("there is no service key".into()))?,
            // Another one each time, so that a store that lasts has not seen it.
            conversation: format!("demo-{}", Entropy.attempt_id()),
            watcher: None,
            envelopes: Vec::new(),
        })
    }

    fn url(&self, rest: &str) -> String {
        format!("http://{}/platform/v1/conversations/{}{rest}", self.platform, self.conversation)
    }

    fn authorization(&self) -> Result<(HeaderName, HeaderValue), Wrong> {
        let value = HeaderValue::try_from(format!("Bearer {}", self.key.expose_secret()));
        Ok((header::AUTHORIZATION, value.map_err(|_| Wrong("the service key fits no header".into()))?))
    }

    /// One call of the platform, shown.
    async fn platform(&self, method: Method, rest: &str, body: Option<String>) -> Result<Reply, Wrong> {
        let url = self.url(rest);
        let what = format!("{method} …/conversations/{}{rest}", self.conversation);
        screen::sent(&what, body.as_deref().unwrap_or_default());
        let call = Call { method, url: &url, headers: vec![self.authorization()?], body };
        Ok(self.client.call(call).await?)
    }

    pub(super) async fn open(&mut self) -> Result<(), Wrong> {
        let reply = self.platform(Method::PUT, "", Some("{}".into())).await?;
        answered(&reply, 201, reply.json()["state"].as_str().unwrap_or_default())?;
        let url = self.url("/events?from=0");
        let call = Call { method: Method::GET, url: &url, headers: vec![self.authorization()?], body: None };
        let response = self.client.send(call).await?;
        if response.status() != StatusCode::OK {
            return Err(Wrong(format!("the event stream was answered with {}", response.status())));
        }
        self.watcher = Some(Watcher::new(response.into_body(), LIMIT));
        Ok(())
    }

    pub(super) async fn issue(&self, sequence: u64, body: Value) -> Result<Item, Wrong> {
        let reply = self.platform(Method::POST, "/work-items", Some(body.to_string())).await?;
        let issued = reply.json();
        let carrier = issued["callback"]["carrier"].as_str().unwrap_or_default();
        let shown = format!("sequence {}, a token for the {carrier}", issued["sequence"]);
        answered(&reply, 201, &shown)?;
        expect(&issued, "sequence", sequence)?;
        let id = issued["workItemId"].as_str().unwrap_or_default().to_owned();
        Ok(Item { id, callback: issued["callback"].clone() })
    }

    /// A provider posts a body, with the token where it was told to put it.
    async fn callback(&self, item: &Item, body: &str) -> Result<Reply, Wrong> {
        let text = |name: &str| item.callback[name].as_str().unwrap_or_default();
        let (token, carrier, name) = (text("token"), text("carrier"), text("name"));
        let url = text("url");
        let mut body = body.to_owned();
        let mut headers = Vec::new();
        match carrier {
            "header" => {
                let name = HeaderName::try_from(name).map_err(|error| Wrong(error.to_string()))?;
                let value = HeaderValue::try_from(token).map_err(|error| Wrong(error.to_string()))?;
                headers.push((name, value));
            }
            "body" => body = body.replacen('{', &format!(r#"{{"{name}": "{token}", "#), 1),
            _ => {}
        }
        let shown = body.replace(token, "cbt_…");
        screen::sent(&format!("POST a callback, token in the {carrier}:"), &shown);
        Ok(self.client.call(Call { method: Method::POST, url, headers, body: Some(body) }).await?)
    }

    /// A callback that is taken; its receipt.
    pub(super) async fn post(&self, item: &Item, body: &str, status: u16) -> Result<Value, Wrong> {
        let reply = self.callback(item, body).await?;
        let receipt = reply.json();
        let mut shown = format!("{} {}", receipt["status"], receipt["outcome"]).replace('"', "");
        if !receipt["waitingFor"].is_null() {
            shown = format!("{shown}, waiting for {}", receipt["waitingFor"]);
        }
        if receipt["replayed"] == json!(true) {
            shown = format!("{shown}, replayed");
        }
        answered(&reply, status, &shown)?;
        Ok(receipt)
    }

    /// A callback that is refused.
    pub(super) async fn refused(
        &self,
        item: &Item,
        body: &str,
        status: u16,
        code: &str,
    ) -> Result<(), Wrong> {
        let reply = self.callback(item, body).await?;
        let error = &reply.json()["error"];
        let shown = format!("{}: {}", error["code"], error["message"]).replace('"', "");
        answered(&reply, status, &shown)?;
        expect(error, "code", code)
    }

    pub(super) async fn cancel(&self, item: &Item) -> Result<(), Wrong> {
        let reply = self.platform(Method::DELETE, &format!("/work-items/{}", item.id), None).await?;
        answered(&reply, 200, reply.json()["outcome"].as_str().unwrap_or_default())
    }

    pub(super) async fn end(&self) -> Result<(), Wrong> {
        let reply = self.platform(Method::DELETE, "", None).await?;
        answered(&reply, 200, reply.json()["state"].as_str().unwrap_or_default())
    }

    async fn hear(&mut self) -> Result<Heard, Wrong> {
        let watcher = self.watcher.as_mut().ok_or_else(|| Wrong("nobody follows the channel".into()))?;
        Ok(watcher.next().await?)
    }

    /// Waits for envelopes, and checks that they are these.
    pub(super) async fn channel(&mut self, expected: &[(u64, &str)]) -> Result<(), Wrong> {
        for (sequence, outcome) in expected {
            let Heard::Envelope(envelope) = self.hear().await? else {
                return Err(Wrong("the channel ended early".into()));
            };
            screen::released(&envelope);
            expect(&envelope, "sequence", *sequence)?;
            expect(&envelope, "outcome", *outcome)?;
            self.envelopes.push(envelope);
        }
        Ok(())
    }

    /// Waits for the stream's end, and gives all that was heard.
    pub(super) async fn ended(&mut self) -> Result<Vec<Value>, Wrong> {
        match self.hear().await? {
            Heard::End => Ok(std::mem::take(&mut self.envelopes)),
            Heard::Envelope(envelope) => Err(Wrong(format!("one envelope too many: {envelope}"))),
        }
    }
}

fn answered(reply: &Reply, status: u16, shown: &str) -> Result<(), Wrong> {
    screen::answered(reply.status.as_u16(), shown);
    if reply.status == status {
        Ok(())
    } else {
        let came = String::from_utf8_lossy(&reply.body);
        Err(Wrong(format!("{status} was expected, {} came: {came}", reply.status)))
    }
}

pub(super) fn expect(
    value: &Value,
    field: &str,
    expected: impl Into<Value> + fmt::Debug,
) -> Result<(), Wrong> {
    let expected = expected.into();
    if value[field] == expected {
        Ok(())
    } else {
        Err(Wrong(format!("{field} should be {expected} and is {}", value[field])))
    }
}
