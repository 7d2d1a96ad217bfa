//! Provokes every refusal, with secrets in the request.

use serde_json::json;

use super::session::{Item, Session};
use super::tokens::{changed, signed};
use super::wire::{Answer, request};

/// Small limits, so that the tests reach them.
pub(crate) const LIMITS: [(&str, &str); 11] = [
    ("CALLBACK_INGRESS__HTTP__MAX_BODY_BYTES", "4096"),
    ("CALLBACK_INGRESS__HTTP__HEAD_TIMEOUT_MS", "1000"),
    ("CALLBACK_INGRESS__HTTP__BODY_TIMEOUT_MS", "500"),
    ("CALLBACK_INGRESS__HTTP__MAX_EVENT_STREAMS", "2"),
    ("CALLBACK_INGRESS__HTTP__DRAIN_GRACE_MS", "1500"),
    // Each request has its own client address: see `request`.
    ("CALLBACK_INGRESS__HTTP__TRUSTED_PROXIES", r#"["127.0.0.1"]"#),
    ("CALLBACK_INGRESS__RATE_LIMIT__FAILED_MAX", "3"),
    ("CALLBACK_INGRESS__GATE__MAX_HELD_ITEMS", "2"),
    ("CALLBACK_INGRESS__GATE__MAX_AWAITING_ITEMS", "7"),
    ("CALLBACK_INGRESS__GATE__MAX_CHANNEL_LENGTH", "8"),
    ("CALLBACK_INGRESS__STORE__RESPONSE_TIMEOUT_MS", "10000"),
];

const ISSUE: &str =
    "POST /platform/v1/conversations/{C}/work-items\nauthorization: Bearer {K}\nidempotency-key: {T}\n\n";

#[track_caller]
fn refused(answer: &Answer, code: &str) {
    assert_eq!(answer.code(), code, "{answer:?}");
}

impl Session {
    /// Invalid callbacks.
    pub(crate) fn refuse_providers(&mut self, signing_key: &str) {
        let (conversation, item) = self.tool();
        let token = item.token.as_str();
        assert_eq!(self.heartbeat(token).status, 200);
        refused(&self.heartbeat(&changed(token, 90)), "CALLBACK_TOKEN_INVALID");
        refused(&self.public("POST /api/v1/webhooks/callbacks\n\n{R}", token), "CALLBACK_TOKEN_MISSING");
        refused(&self.callback(&changed(token, 90)), "CALLBACK_TOKEN_INVALID");
        let expired = signed(signing_key, &conversation, 1);
        self.known().token("a work item of long ago", &expired);
        refused(&self.callback(&expired), "CALLBACK_TOKEN_EXPIRED");
        let unknown = signed(signing_key, &conversation, 4_000_000_000_000);
        self.known().token("a work item that is lost", &unknown);
        refused(&self.callback(&unknown), "WORK_ITEM_UNKNOWN");
        let nowhere = signed(signing_key, "never-opened", 4_000_000_000_000);
        self.known().token("a conversation that is lost", &nowhere);
        refused(&self.callback(&nowhere), "CONVERSATION_ENDED");
        let twice = format!("POST /api/v1/webhooks/callbacks/{expired}\nx-callback-token: {{T}}\n\n{{R}}");
        refused(&self.public(&twice, token), "TOKEN_CARRIERS_DISAGREE");
        for (template, code) in [
            ("POST /api/v1/webhooks/callbacks/{T}\n\n{R}{", "BODY_MALFORMED"),
            ("POST /api/v1/webhooks/callbacks/{T}\n\n", "BODY_MALFORMED"),
            ("GET /api/v1/webhooks/callbacks/{T}\n\n{R}", "METHOD_NOT_ALLOWED"),
            ("POST /api/v1/webhooks/callback/{T}\n\n{R}", "NOT_FOUND"),
            (
                "POST /api/v1/webhooks/callbacks/{T}\ncontent-type: text/plain\n\n{R}",
                "CONTENT_TYPE_UNSUPPORTED",
            ),
            ("POST /api/v1/webhooks/callbacks/{T}\ncontent-length: 900\n\n{R}", "REQUEST_TIMEOUT"),
            ("POST /api/v1/webhooks/callbacks/{T}\ncontent-length: 99999999\n\n{R}", "BODY_TOO_LARGE"),
        ] {
            refused(&self.public(template, token), code);
        }
        let guess = format!(
            "POST /api/v1/webhooks/callbacks/{}\nx-forwarded-for: 192.0.2.1\n\n{{R}}",
            changed(token, 90)
        );
        for code in [["CALLBACK_TOKEN_INVALID"; 3].as_slice(), &["RATE_LIMITED"; 2]].concat() {
            refused(&self.public(&guess, token), code);
        }
        let llm = self.issue(&conversation, &json!({"kind": "llm"}));
        refused(&self.callback(&llm.token), "RESULT_SHAPE_INVALID");

        // Accepted, repeated, and with another body; also with a failure.
        for token in [token, token] {
            assert!(self.callback(token).status <= 202);
        }
        refused(&self.another(token), "CALLBACK_TOKEN_USED");
        let failed = json!({"error": {"code": "FAILED", "message": self.canary}});
        let failure = format!("POST /api/v1/webhooks/callbacks\nx-callback-token: {{T}}\n\n{failed}");
        assert_eq!(self.public(&failure, &llm.token).status, 202);
    }

    /// Malformed and incomplete HTTP.
    pub(crate) fn say_nonsense(&mut self) {
        let (_, Item { token, .. }) = self.tool();
        let (key, result) = (self.service_key.clone(), self.result.clone());
        let head = format!("POST /api/v1/webhooks/callbacks/{token} HTTP/1.1\r\nhost: x\r\n");
        let json = "content-type: application/json\r\n";
        let nonsense = [
            format!("\u{16}\u{3}\u{1}{token}"),
            format!("{token}\r\n\r\n"),
            format!("GET /{token}\r\n\r\n"),
            format!("GET /{token} HTTP/{token}\r\n\r\n"),
            format!("GET /{token} HTTP/2.0\r\n\r\n"),
            format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{token}"),
            format!("AUTH {token}\r\n{{\"callbackToken\":\"{token}\"}}"),
            format!("POST /api/v1/webhooks/callbacks/{token}"),
            format!("POST /api/v1/webhooks/callbacks HTTP/1.1\r\nx-callback-token: {token}"),
            format!("PUT /platform/v1/conversations/x HTTP/1.1\r\nauthorization: Bearer {key}"),
            format!("{head}x-callback-token {token}\r\n\r\n"),
            format!("{head}x-large: {}\r\n\r\n", token.repeat(1300)),
            format!("{head}{json}content-length: 999\r\n\r\n{result}"),
            format!("{head}{json}content-length: 1\r\n\r\n{result}"),
            format!("{head}{json}content-length: 9\r\ncontent-length: 99\r\n\r\n{result}"),
            format!("{head}{json}transfer-encoding: chunked\r\n\r\n{token}\r\n{result}\r\n0\r\n\r\n"),
            format!("{head}{json}transfer-encoding: chunked\r\n\r\n99\r\n{result}"),
            format!(
                "{head}{json}transfer-encoding: chunked\r\n\r\n1;{token}={token}\r\n1\r\n0\r\n{token}: 1\r\n\r\n"
            ),
            format!("{head}{json}expect: 100-continue\r\ncontent-length: 999\r\n\r\n{result}"),
        ];
        for address in [self.wire.public.clone(), self.wire.platform.clone()] {
            for (nth, bytes) in nonsense.iter().enumerate() {
                self.wire.cut_off(&format!("the nonsense number {nth}"), &address, bytes.as_bytes());
            }
        }
    }

    /// Timeouts and limits.
    pub(crate) fn refuse_what_is_late_or_too_much(&mut self) {
        let conversation = self.open();
        let late = self.issue(&conversation, &json!({"kind": "tool", "timeoutMs": 1}));
        self.wait_for(&conversation, &late, "released");
        refused(&self.callback(&late.token), "WORK_ITEM_TIMED_OUT");
        refused(&self.heartbeat(&late.token), "WORK_ITEM_TIMED_OUT");
        let withdrawn = self.issue(&conversation, &json!({"kind": "tool"}));
        let path = format!("{conversation}/work-items/{}", withdrawn.id);
        assert_eq!(self.platform("DELETE", &path, "").status, 200);
        refused(&self.callback(&withdrawn.token), "WORK_ITEM_CANCELLED");
        refused(&self.heartbeat(&withdrawn.token), "WORK_ITEM_CANCELLED");
        refused(&self.platform("DELETE", &path, ""), "WORK_ITEM_SETTLED");

        let items: Vec<_> = (0..6).map(|_| self.issue(&conversation, &json!({"kind": "tool"}))).collect();
        let issue = format!("{conversation}/work-items");
        refused(&self.platform("POST", &issue, r#"{"kind":"tool"}"#), "CHANNEL_LIMIT");
        for item in &items[1..3] {
            assert_eq!(self.callback(&item.token).status, 202);
        }
        refused(&self.callback(&items[3].token), "HELD_LIMIT");
        assert_eq!(self.platform("GET", &conversation, "").status, 200);
        // Releases the results in order; ending drops the rest.
        assert_eq!(self.callback(&items[0].token).status, 202);
        assert_eq!(self.callback(&items[5].token).status, 202);
        assert_eq!(self.platform("DELETE", &conversation, "").status, 200);
        refused(&self.callback(&items[4].token), "CONVERSATION_ENDED");
        refused(&self.heartbeat(&items[4].token), "CONVERSATION_ENDED");
        refused(&self.platform("PUT", &conversation, ""), "CONVERSATION_ENDED");
        // The whole channel; the stream ends with the conversation.
        assert_eq!(self.platform("GET", &format!("{conversation}/events?from=0"), "").status, 200);

        let other = self.open();
        for _ in 0..7 {
            self.issue(&other, &json!({"kind": "tool"}));
        }
        refused(
            &self.platform("POST", &format!("{other}/work-items"), r#"{"kind":"tool"}"#),
            "AWAITING_LIMIT",
        );
    }

    /// Invalid requests to the platform listener.
    pub(crate) fn refuse_the_platform(&mut self, token: &str) {
        let conversation = self.open();
        let address = self.wire.platform.clone();
        let mut say = |template: &str| {
            let fillings = [
                ("{K}", self.service_key.as_bytes()),
                ("{C}", conversation.as_bytes()),
                ("{T}", token.as_bytes()),
            ];
            self.wire.say(template, &address, &request(template, &fillings))
        };
        refused(&say("PUT /platform/v1/conversations/{C}\nx-key: {K}\n\n"), "SERVICE_KEY_MISSING");
        refused(
            &say("PUT /platform/v1/conversations/{C}\nauthorization: Bearer {K}x\n\n"),
            "SERVICE_KEY_INVALID",
        );
        assert_eq!(say(&format!("{ISSUE}{{\"kind\":\"tool\"}}")).status, 201);
        assert_eq!(say(&format!("{ISSUE}{{\"kind\":\"tool\"}}")).status, 201);
        refused(&say(&format!("{ISSUE}{{\"kind\":\"llm\"}}")), "IDEMPOTENCY_KEY_REUSED");
        refused(&say(&format!("{ISSUE}{{\"kind\":\"{{T}}\"}}")), "REQUEST_INVALID");
        let unknown = "0190163d-8694-739b-aea5-966c26f8ad91";
        let item = format!("{conversation}/work-items/{unknown}");
        refused(&self.platform("GET", &item, ""), "WORK_ITEM_NOT_FOUND");
        refused(&self.platform("GET", "never-opened", ""), "CONVERSATION_NOT_FOUND");
    }
}
