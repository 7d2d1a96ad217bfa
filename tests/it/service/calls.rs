//! What providers and the platform say to the service.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use callback_ingress::domain::time::Timestamp;
use serde_json::{Value, json};

use super::{Call, EventReader, Reply, SERVICE_KEY, Service};

/// Where providers post.
pub(crate) const CALLBACKS: &str = "/api/v1/webhooks/callbacks";

/// An issued work item.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) conversation: String,
    pub(crate) id: String,
    pub(crate) sequence: u64,
    pub(crate) token: String,
    /// All that the platform was told.
    pub(crate) issued: Value,
}

impl Item {
    /// Its place under the platform's paths.
    pub(crate) fn path(&self) -> String {
        format!("/conversations/{}/work-items/{}", self.conversation, self.id)
    }
}

impl Service {
    /// A request of a provider.
    pub(crate) fn provider(&self, method: &str, path: &str) -> Call<'_> {
        Call::new(&self.client, method, format!("http://{}{path}", self.public))
    }

    /// A callback as most providers send it, its token in the header.
    pub(crate) fn callback(&self, token: &str, body: impl Into<Bytes>) -> Call<'_> {
        self.provider("POST", CALLBACKS).header("x-callback-token", token).json(body)
    }

    /// A request of the platform, with its key. The path goes on from `/platform/v1`.
    pub(crate) fn platform(&self, method: &str, path: &str) -> Call<'_> {
        self.stranger(method, path).header("authorization", format!("Bearer {SERVICE_KEY}"))
    }

    /// A request on the platform's listener without a key.
    pub(crate) fn stranger(&self, method: &str, path: &str) -> Call<'_> {
        Call::new(&self.client, method, format!("http://{}/platform/v1{path}", self.platform))
    }

    /// The health that the platform's listener tells.
    pub(crate) fn health(&self) -> Call<'_> {
        Call::new(&self.client, "GET", format!("http://{}/health", self.platform))
    }

    /// Opens a conversation of a name that nobody else has.
    pub(crate) async fn open(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let conversation = format!("call-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let reply = self.platform("PUT", &format!("/conversations/{conversation}")).send().await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        conversation
    }

    /// Asks for a work item.
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

    /// A tool's work item in a conversation of its own.
    pub(crate) async fn fresh_tool(&self) -> Item {
        self.tool(&self.open().await).await
    }

    /// What the platform is shown under a path.
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

    /// Begins to read a channel, with a query or none.
    pub(crate) async fn events(&self, conversation: &str, query: &str) -> EventReader {
        EventReader::of(self.platform("GET", &format!("/conversations/{conversation}/events{query}"))).await
    }

    /// Goes on reading a channel.
    pub(crate) async fn events_after(&self, conversation: &str, id: &str) -> EventReader {
        let call = self.platform("GET", &format!("/conversations/{conversation}/events"));
        EventReader::of(call.header("last-event-id", id)).await
    }

    /// The first envelopes on a channel, as they are written.
    pub(crate) async fn channel(&self, conversation: &str, count: usize) -> Vec<String> {
        let mut reader = self.events(conversation, "?from=0").await;
        let events = reader.take(count).await;
        events.into_iter().map(|event| event.data).collect()
    }
}

/// The item that a reply of the platform's listener tells of.
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
