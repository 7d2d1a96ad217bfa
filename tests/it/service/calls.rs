//! Requests of providers and of the platform.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use callback_ingress::domain::time::Timestamp;
use serde_json::{Value, json};

use super::{Call, EventReader, Reply, SERVICE_KEY, Service};

/// The path of callbacks.
pub(crate) const CALLBACKS: &str = "/api/v1/webhooks/callbacks";

/// An issued work item.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) conversation: String,
    pub(crate) id: String,
    pub(crate) sequence: u64,
    pub(crate) token: String,
    /// The whole reply.
    pub(crate) issued: Value,
}

impl Item {
    /// Its path on the platform listener.
    pub(crate) fn path(&self) -> String {
        format!("/conversations/{}/work-items/{}", self.conversation, self.id)
    }
}

impl Service {
    /// A request of a provider.
    pub(crate) fn provider(&self, method: &str, path: &str) -> Call<'_> {
        Call::new(&self.client, method, format!("http://{}{path}", self.public))
    }

    /// A callback with its token in the header.
    pub(crate) fn callback(&self, token: &str, body: impl Into<Bytes>) -> Call<'_> {
        self.provider("POST", CALLBACKS).header("x-callback-token", token).json(body)
    }

    /// A request to the platform listener with the service key. The path is below `/platform/v1`.
    pub(crate) fn platform(&self, method: &str, path: &str) -> Call<'_> {
        self.stranger(method, path).header("authorization", format!("Bearer {SERVICE_KEY}"))
    }

    /// A request to the platform listener without a key.
    pub(crate) fn stranger(&self, method: &str, path: &str) -> Call<'_> {
        Call::new(&self.client, method, format!("http://{}/platform/v1{path}", self.platform))
    }

    /// `/health` of the platform listener.
    pub(crate) fn health(&self) -> Call<'_> {
        Call::new(&self.client, "GET", format!("http://{}/health", self.platform))
    }

    /// The metrics in Prometheus' text format.
    pub(crate) async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.platform);
        Call::new(&self.client, "GET", url).send().await.text().into()
    }

    /// Opens a conversation with a unique id.
    pub(crate) async fn open(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let conversation = format!("call-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let reply = self.platform("PUT", &format!("/conversations/{conversation}")).send().await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        conversation
    }

    /// A request that issues a work item.
    pub(crate) fn issuing(&self, conversation: &str, asked: &Value) -> Call<'_> {
        self.platform("POST", &format!("/conversations/{conversation}/work-items")).json(asked.to_string())
    }

    /// Issues a work item.
    pub(crate) async fn issue(&self, conversation: &str, asked: &Value) -> Item {
        let reply = self.issuing(conversation, asked).send().await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        issued(&reply)
    }

    /// Issues a tool's work item.
    pub(crate) async fn tool(&self, conversation: &str) -> Item {
        self.issue(conversation, &json!({"kind": "tool"})).await
    }

    /// Issues a tool's work item in a new conversation.
    pub(crate) async fn fresh_tool(&self) -> Item {
        self.tool(&self.open().await).await
    }

    /// The JSON reply to a GET request.
    pub(crate) async fn shown(&self, path: &str) -> Value {
        let reply = self.platform("GET", path).send().await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    /// The state of an item.
    pub(crate) async fn state(&self, item: &Item) -> String {
        self.shown(&item.path()).await["state"].as_str().unwrap().to_owned()
    }

    /// Ends a conversation.
    pub(crate) async fn end(&self, conversation: &str) -> Value {
        let reply = self.platform("DELETE", &format!("/conversations/{conversation}")).send().await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    /// Opens an event stream, with a query string or an empty one.
    pub(crate) async fn events(&self, conversation: &str, query: &str) -> EventReader {
        EventReader::of(self.platform("GET", &format!("/conversations/{conversation}/events{query}"))).await
    }

    /// Opens an event stream after this event.
    pub(crate) async fn events_after(&self, conversation: &str, id: &str) -> EventReader {
        let call = self.platform("GET", &format!("/conversations/{conversation}/events"));
        EventReader::of(call.header("last-event-id", id)).await
    }

    /// The first envelopes of a channel, as JSON.
    pub(crate) async fn channel(&self, conversation: &str, count: usize) -> Vec<String> {
        let mut reader = self.events(conversation, "?from=0").await;
        let events = reader.take(count).await;
        events.into_iter().map(|event| event.data).collect()
    }
}

/// The item in a reply of the platform listener.
pub(crate) fn issued(reply: &Reply) -> Item {
    let issued = reply.json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Item {
        conversation: text(&issued["conversationId"]),
        id: text(&issued["workItemId"]),
        sequence: issued["sequence"].as_u64().unwrap(),
        token: text(&issued["callback"]["token"]),
        issued,
    }
}

/// A time in a reply or an envelope, in milliseconds.
pub(crate) fn millis(time: &Value) -> u64 {
    time.as_str().unwrap().parse::<Timestamp>().unwrap().as_millis()
}
