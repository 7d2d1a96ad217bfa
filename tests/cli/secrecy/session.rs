//! Requests of providers and of the platform.

use serde_json::{Value, json};

use super::tokens::texts;
use super::wire::{Answer, Wire, request};
use super::{places, tokens::Known};
use crate::service::eventually;

/// Item ids and tokens of issued work items.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) id: String,
    pub(crate) token: String,
}

/// A running service with its client and secrets.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) wire: Wire,
    pub(crate) service_key: String,
    /// A new secret text.
    pub(crate) canary: String,
    /// A new result: JSON with a secret text.
    pub(crate) result: String,
    conversations: usize,
}

const HEARTBEAT: &str = "POST /api/v1/webhooks/callbacks/heartbeat\nx-callback-token: {T}\n\n";
const CALLBACK: &str = "POST /api/v1/webhooks/callbacks\nx-callback-token: {T}\n\n{R}";

impl Session {
    pub(crate) fn new(wire: Wire, service_key: &str) -> Self {
        let canary = wire.known.result();
        let result = json!({ "canary": canary }).to_string();
        Self { wire, service_key: service_key.to_owned(), canary, result, conversations: 0 }
    }

    pub(crate) fn known(&self) -> &Known {
        &self.wire.known
    }

    /// A request to the platform listener. The path is below `/platform/v1/conversations/`.
    pub(crate) fn platform(&mut self, method: &str, path: &str, body: &str) -> Answer {
        let template =
            format!("{method} /platform/v1/conversations/{path}\nauthorization: Bearer {{K}}\n\n{{B}}");
        let bytes = request(&template, &[("{K}", self.service_key.as_bytes()), ("{B}", body.as_bytes())]);
        let address = self.wire.platform.clone();
        self.wire.say(&format!("{method} {path}"), &address, &bytes)
    }

    /// A request to the public listener.
    pub(crate) fn public(&mut self, template: &str, token: &str) -> Answer {
        let bytes = request(template, &[("{T}", token.as_bytes()), ("{R}", self.result.as_bytes())]);
        let address = self.wire.public.clone();
        self.wire.say(template, &address, &bytes)
    }

    /// Sends a new result with this token.
    pub(crate) fn callback(&mut self, token: &str) -> Answer {
        self.public(CALLBACK, token)
    }

    /// Sends another result with this token.
    pub(crate) fn another(&mut self, token: &str) -> Answer {
        self.public(&CALLBACK.replace("{R}", "[{R}]"), token)
    }

    /// Sends a heartbeat whose message and data are secret.
    pub(crate) fn heartbeat(&mut self, token: &str) -> Answer {
        let progress = json!({"message": self.canary, "data": {"canary": self.canary}});
        self.public(&format!("{HEARTBEAT}{progress}"), token)
    }

    /// Opens a new conversation.
    pub(crate) fn open(&mut self) -> String {
        self.conversations += 1;
        let conversation = format!("call-{}", self.conversations);
        assert_eq!(self.platform("PUT", &conversation, "").status, 201);
        conversation
    }

    /// Issues the next work item of a conversation.
    pub(crate) fn issue(&mut self, conversation: &str, asked: &Value) -> Item {
        let issued = self.platform("POST", &format!("{conversation}/work-items"), &asked.to_string());
        assert_eq!(issued.status, 201, "{issued:?}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Item { id: text(&issued.json["workItemId"]), token: text(&issued.json["callback"]["token"]) }
    }

    /// Issues a work item in a new conversation.
    pub(crate) fn tool(&mut self) -> (String, Item) {
        let conversation = self.open();
        let item = self.issue(&conversation, &json!({"kind": "tool"}));
        (conversation, item)
    }

    /// Waits until a work item is in this state.
    pub(crate) fn wait_for(&mut self, conversation: &str, item: &Item, state: &str) {
        let path = format!("{conversation}/work-items/{}", item.id);
        eventually(state, || self.platform("GET", &path, "").json["state"] == state);
    }

    /// Sends tokens and near-tokens in every place of a request.
    pub(crate) fn every_text_in_every_place(&mut self) {
        let (public, platform) = (self.wire.public.clone(), self.wire.platform.clone());
        for (address, templates) in [(public, places::PUBLIC), (platform, places::PLATFORM)] {
            for template in templates {
                self.every_text_in(template, &address);
            }
        }
    }

    fn every_text_in(&mut self, template: &str, address: &str) {
        let (conversation, item) = self.tool();
        for text in texts(&item.token) {
            let unmarked = (template.contains("{M}") && !is_marked(&text))
                || (template.contains("{L}") && !text.windows(4).any(|four| four == b"cbt_"));
            if unmarked {
                continue;
            }
            let bytes = request(
                template,
                &[
                    ("{T}", &text),
                    ("{M}", &text),
                    ("{L}", &text),
                    ("{R}", self.result.as_bytes()),
                    ("{C}", conversation.as_bytes()),
                    ("{I}", item.id.as_bytes()),
                    ("{K}", self.service_key.as_bytes()),
                ],
            );
            self.wire.say(template, address, &bytes);
        }
    }
}

/// Whether it has a token's prefix after decoding.
fn is_marked(text: &[u8]) -> bool {
    let text = text.to_ascii_lowercase();
    let has = |mark: &[u8]| text.windows(mark.len()).any(|window| window == mark);
    has(b"cbt_") || has(b"%63bt_") || has(b"%63%62%74%5f")
}
