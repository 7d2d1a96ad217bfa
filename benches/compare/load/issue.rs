//! Issues work items: over HTTP on the service's platform listener, or in the format of the hand-written peers.

use std::net::SocketAddr;

use serde::Deserialize;

use super::http;
use super::run::{Bodies, Request, closed_keeping};
use crate::peer::{item_key, sign};
use crate::plan::{Order, Plan, Step};
use crate::protocol::{Issuer, Tally, Target};

/// Timeout of opening and issuing.
const SECONDS: f64 = 120.0;
/// Number of commands per pipeline to Redis.
const PIPELINE: usize = 1000;
/// Position from the end of the token of the character that is changed. It is in the signature.
const FORGED_AT: usize = 10;

/// The requests that post the results of a plan's work items.
pub(crate) struct Items {
    pub(super) conversations: Vec<String>,
    plan: Plan,
    connections: usize,
    /// Indexed by conversation and sequence.
    callbacks: Vec<Callback>,
}

/// How an item's result is posted.
#[derive(Clone, Default)]
struct Callback {
    token: String,
    head: Vec<u8>,
}

#[derive(Deserialize)]
struct Issued<'a> {
    sequence: usize,
    #[serde(borrow)]
    callback: IssuedCallback<'a>,
}

#[derive(Deserialize)]
struct IssuedCallback<'a> {
    url: &'a str,
    method: &'a str,
    headers: std::collections::BTreeMap<&'a str, &'a str>,
    token: &'a str,
}

impl Items {
    /// Opens the plan's conversations.
    pub(super) fn open(target: &Target, plan: Plan, connections: usize) -> (Self, Tally) {
        let conversations: Vec<_> =
            (0..plan.conversations).map(|number| format!("conversation-{number}")).collect();
        let tally = match &target.issuer {
            Issuer::Peer { .. } => Tally::default(),
            Issuer::Service { platform, key } => {
                let requests = conversations.iter().map(|name| Request {
                    head: http::request("PUT", &path(name), &authorization(key), "{}"),
                    expected: 201,
                });
                ask(*platform, &requests.collect::<Vec<_>>(), connections).0
            }
        };
        (Self { conversations, plan, connections, callbacks: Vec::new() }, tally)
    }

    /// Issues all items. The conversations take turns.
    pub(super) fn issue(&mut self, target: &Target) -> Tally {
        self.callbacks = vec![Callback::default(); self.plan.conversations * self.plan.items];
        match &target.issuer {
            Issuer::Peer { redis, secret } => {
                self.issue_as_peer(*redis, secret);
                Tally::default()
            }
            Issuer::Service { platform, key } => self.issue_by_http(*platform, key),
        }
    }

    fn issue_as_peer(&mut self, redis: Option<u16>, secret: &str) {
        for (conversation, name) in self.conversations.iter().enumerate() {
            for item in 0..self.plan.items {
                let token = sign(secret, name, item as u64 + 1);
                let head = http::callback(&token, self.plan.bytes);
                self.callbacks[conversation * self.plan.items + item] = Callback { token, head };
            }
        }
        let Some(port) = redis else { return };
        let mut redis = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        for steps in self.plan.issued().chunks(PIPELINE) {
            let mut pipeline = redis::pipe();
            for step in steps {
                let (name, sequence) = (&self.conversations[step.conversation], step.item as u64 + 1);
                let item = format!(r#"{{"conversationId":"{name}","sequence":{sequence},"kind":"tool"}}"#);
                pipeline.set_ex(item_key(name, sequence), item, 900).ignore();
            }
            pipeline.query::<()>(&mut redis).unwrap();
        }
    }

    fn issue_by_http(&mut self, platform: SocketAddr, key: &str) -> Tally {
        let steps = self.plan.issued();
        let requests = steps.iter().map(|step| {
            let path = format!("{}/work-items", path(&self.conversations[step.conversation]));
            let body = r#"{"kind":"tool","timeoutMs":900000}"#;
            Request { head: http::request("POST", &path, &authorization(key), body), expected: 201 }
        });
        let (tally, replies) = ask(platform, &requests.collect::<Vec<_>>(), self.connections);
        for (number, body) in replies {
            let issued: Issued<'_> = serde_json::from_slice(&body).unwrap();
            let IssuedCallback { url, method, headers, token } = issued.callback;
            let path = url.splitn(4, '/').nth(3).unwrap_or_default();
            let mut lines = String::new();
            for (name, value) in headers {
                lines.extend([name, ": ", value, "\r\n"]);
            }
            let head = http::head(method, &format!("/{path}"), &lines, self.plan.bytes);
            let at = steps[number].conversation * self.plan.items + issued.sequence - 1;
            self.callbacks[at] = Callback { token: token.to_owned(), head };
        }
        tally
    }

    /// The posts of the plan.
    pub(super) fn requests(&self) -> Vec<Request> {
        let request = |step: Step| {
            let callback = &self.callbacks[step.conversation * self.plan.items + step.item];
            let head = match self.plan.order {
                Order::Forged => forged(callback),
                Order::AsIssued | Order::Reversed | Order::Repeated => callback.head.clone(),
            };
            Request { head, expected: self.plan.status(step) }
        };
        self.plan.steps().into_iter().map(request).collect()
    }
}

/// The head with one character of the token changed.
fn forged(callback: &Callback) -> Vec<u8> {
    let mut token = callback.token.clone().into_bytes();
    let at = token.len() - FORGED_AT;
    token[at] = if token[at] == b'A' { b'B' } else { b'A' };
    let head = String::from_utf8_lossy(&callback.head);
    head.replace(&callback.token, &String::from_utf8_lossy(&token)).into_bytes()
}

fn path(conversation: &str) -> String {
    format!("/platform/v1/conversations/{conversation}")
}

pub(super) fn authorization(key: &str) -> String {
    format!("authorization: Bearer {key}\r\n")
}

/// Sends requests that include their body. All of them must succeed. Returns the bodies of the replies.
fn ask(address: SocketAddr, requests: &[Request], connections: usize) -> (Tally, Bodies) {
    let (tally, bodies) = closed_keeping(address, requests, connections, SECONDS);
    assert_eq!(tally.unexpected, 0, "issuing: {:?}", tally.statuses);
    assert_eq!(tally.requests, requests.len() as u64, "issuing took more than {SECONDS} s");
    (tally, bodies)
}
