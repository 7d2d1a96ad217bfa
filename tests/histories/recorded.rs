//! A recorded history without violations: a live and an ended conversation, and one in which a turn is cancelled, with
//! every kind of reply that `tampering` changes.

use serde_json::{Value, json};

use callback_ingress::domain::time::Timestamp;

use crate::record::{
    Action, Asked, Attempt, Conversation, History, Operation, Post, Reply, Says, Session, StreamEntry, Time,
    Truth,
};

/// Time of both openings, in milliseconds.
const OPENED_AT: u64 = 1_800_000_000_000;
/// Name of every item's tool.
const NAME: &str = "weather";
/// End of the last reader, in milliseconds after the opening.
const OVER: u64 = 1_000;

/// A time in milliseconds after the opening.
const fn micros(after: u64) -> Time {
    (OPENED_AT + after) * 1_000
}

fn text(after: u64) -> String {
    Timestamp::from_millis(OPENED_AT + after).to_string()
}

/// There are two turns, which alternate.
fn turn(sequence: u64) -> String {
    format!("t{}", sequence % 2)
}

fn tool_call(sequence: u64) -> String {
    format!("c{sequence}")
}

fn work_item(sequence: u64) -> String {
    format!("01a21f28-0000-7000-8000-0000000{sequence:05}")
}

fn result(sequence: u64) -> String {
    format!("{{\"of\" : {sequence},\n \"value\":1.50}}")
}

/// A builder for a conversation.
struct Recording {
    id: &'static str,
    operations: Vec<Operation>,
    /// The envelopes with their times.
    released: Vec<(u64, String, &'static str)>,
}

impl Recording {
    /// An open conversation.
    fn begin(id: &'static str) -> Self {
        let mut recording = Self { id, operations: Vec::new(), released: Vec::new() };
        recording.perform(0, Action::Open, 201, json!({"conversationId": id, "state": "live"}));
        recording
    }

    /// Adds a request that is answered after two milliseconds; returns its id.
    fn perform(&mut self, at: u64, action: Action, status: u16, body: Value) -> String {
        let request_id = format!("{}-request-{:02}", self.id, self.operations.len());
        let reply = Reply { status, request_id: request_id.clone(), idempotent_replay: false, body };
        let attempt = Attempt {
            replica: 0,
            request_id: request_id.clone(),
            invoked: micros(at),
            returned: micros(at + 2),
            reply: Some(reply),
        };
        self.operations.push(Operation { action, attempts: vec![attempt] });
        request_id
    }

    fn refused(&mut self, at: u64, action: Action, status: u16, code: &str) {
        self.perform(at, action, status, json!({"error": {"code": code}}));
    }

    fn issue(&mut self, at: u64, sequence: u64, timeout_ms: u64) {
        let asked = Asked {
            tool_call: tool_call(sequence),
            turn: turn(sequence),
            name: Some(NAME),
            kind: "tool",
            timeout_ms,
            heartbeat_timeout_ms: None,
        };
        let issued = json!({
            "workItemId": work_item(sequence), "conversationId": self.id, "sequence": sequence, "turnId": asked.turn,
            "toolCallId": asked.tool_call, "name": asked.name,
            "kind": asked.kind, "issuedAt": text(at + 1), "deadline": text(at + 1 + timeout_ms),
            "callback": {"token": format!("cbt_{sequence}")},
        });
        self.perform(at, Action::Issue { asked, key: None }, 201, issued);
    }

    /// Adds an accepted callback; returns its request id.
    fn take(&mut self, at: u64, sequence: u64, waiting_for: Option<u64>) -> String {
        self.perform(at, post(sequence), 202, self.receipt(at, sequence, waiting_for, false))
    }

    /// The receipt of a result that was accepted at this time.
    fn receipt(&self, at: u64, sequence: u64, waiting_for: Option<u64>, replayed: bool) -> Value {
        let mut receipt = json!({
            "status": if waiting_for.is_some() { "held" } else { "delivered" }, "workItemId": work_item(sequence),
            "conversationId": self.id, "sequence": sequence, "outcome": "succeeded", "receivedAt": text(at + 1),
            "replayed": replayed,
        });
        if let Some(waiting_for) = waiting_for {
            receipt["waitingFor"] = json!(waiting_for);
        }
        receipt
    }

    /// Adds the next envelope: outcome, further members, and the times of issue, receipt and release.
    fn release(&mut self, outcome: &'static str, besides: &str, [issued, received, released]: [u64; 3]) {
        let sequence = self.released.len() as u64 + 1;
        let ids = format!(
            r#""conversationId":"{}","workItemId":"{}","turnId":"{}","toolCallId":"{}","name":"{NAME}","kind":"tool""#,
            self.id,
            work_item(sequence),
            turn(sequence),
            tool_call(sequence)
        );
        let times = format!(
            r#""issuedAt":"{}","receivedAt":"{}","releasedAt":"{}""#,
            text(issued),
            text(received),
            text(released)
        );
        let envelope = format!(r#"{{"sequence":{sequence},{ids},"outcome":"{outcome}"{besides},{times}}}"#);
        self.released.push((released, envelope, outcome));
    }

    /// Builds the conversation, with these members in its final view.
    fn finish(self, state: &str, view: Value) -> Conversation {
        let ended = state == "ended";
        let mut shown = json!({
            "conversationId": self.id, "state": state, "openedAt": text(0), "awaiting": [], "held": [],
        });
        if let (Value::Object(all), Value::Object(own)) = (&mut shown, view) {
            all.extend(own);
        }
        let event_id = |place: usize| format!("{OPENED_AT}-{}", place + 1);
        let field = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_owned());
        let mut entries: Vec<(Time, StreamEntry)> = Vec::new();
        let mut events = Vec::new();
        for (place, (released, envelope, outcome)) in self.released.iter().enumerate() {
            let sequence = (place + 1).to_string();
            let fields =
                vec![field("envelope", envelope), field("sequence", &sequence), field("outcome", outcome)];
            entries.push((micros(released + 1), (event_id(place), fields)));
            events.push((micros(released + 1), event_id(place), envelope.clone()));
        }
        if ended {
            let end = format!(r#"{{"conversationId":"{}","state":"ended"}}"#, self.id);
            entries.push((micros(OVER), (event_id(events.len()), vec![field("end", &end)])));
        }
        let truth = Truth {
            view: Some(shown),
            events: events.iter().map(|(_, id, data)| (id.clone(), data.clone())).collect(),
            stream: Some(entries.iter().map(|(_, entry)| entry.clone()).collect()),
        };
        let progress = Vec::new();
        let session =
            Session { replica: 0, after: 0, events, progress, ended, refused: None, over: micros(OVER) };
        Conversation {
            id: self.id.to_owned(),
            operations: self.operations,
            sessions: vec![session],
            stream_seen: entries,
            truth,
        }
    }
}

fn post(sequence: u64) -> Action {
    Action::Post(Post {
        work_item: work_item(sequence),
        result: result(sequence).into(),
        says: Says::Succeeded,
    })
}

fn result_of(sequence: u64, request_id: &str) -> String {
    // The order of members has no meaning.
    format!(r#","result":{},"requestId":"{request_id}""#, result(sequence))
}

/// Four items: a result, a held result behind it, a timeout and a cancellation.
fn living() -> Conversation {
    let mut it = Recording::begin("living");
    it.issue(10, 1, 900);
    it.issue(20, 2, 900);
    it.issue(30, 3, 40);
    it.issue(40, 4, 900);
    let alive = json!({"state": "awaiting", "deadline": text(41 + 900), "cancelRequested": false});
    it.perform(43, Action::Beat { work_item: work_item(4) }, 200, alive);
    let held = it.take(45, 2, Some(1));
    let first = it.take(50, 1, None);
    it.perform(54, post(1), 200, it.receipt(50, 1, None, true));
    it.refused(56, Action::Forged { how: "short" }, 401, "CALLBACK_TOKEN_INVALID");
    it.refused(58, Action::CancelForeign, 404, "WORK_ITEM_NOT_FOUND");
    it.refused(80, post(3), 409, "WORK_ITEM_TIMED_OUT");
    let cancelled = json!({"workItemId": work_item(4), "state": "released", "outcome": "cancelled"});
    let cancel = it.perform(90, Action::Cancel { work_item: work_item(4) }, 200, cancelled);
    it.refused(94, post(4), 409, "WORK_ITEM_CANCELLED");
    it.refused(97, Action::Beat { work_item: work_item(4) }, 409, "WORK_ITEM_CANCELLED");
    let shown = json!({"workItemId": work_item(1), "state": "released", "outcome": "succeeded"});
    it.perform(100, Action::Show { work_item: work_item(1) }, 200, shown);
    it.perform(104, Action::Inspect, 200, json!({"state": "live", "awaiting": [], "held": []}));
    it.release("succeeded", &result_of(1, &first), [11, 51, 51]);
    it.release("succeeded", &result_of(2, &held), [21, 46, 51]);
    it.release("timed_out", "", [31, 71, 73]);
    it.release("cancelled", &format!(r#","requestId":"{cancel}""#), [41, 91, 91]);
    it.finish("live", json!({"nextSequence": 5, "waitingFor": 5}))
}

/// Three items: a result, one awaiting at the end, and a held one.
fn ended() -> Conversation {
    let mut it = Recording::begin("ended");
    it.issue(10, 1, 900);
    it.issue(20, 2, 900);
    it.issue(30, 3, 900);
    let first = it.take(40, 1, None);
    it.take(45, 3, Some(2));
    let end = json!({"state": "ended", "endedAt": text(61), "droppedHeld": 1, "droppedAwaiting": 1});
    it.perform(60, Action::End, 200, end);
    it.refused(70, post(2), 409, "CONVERSATION_ENDED");
    it.release("succeeded", &result_of(1, &first), [11, 41, 41]);
    let view = json!({
        "nextSequence": 4, "waitingFor": 4, "endedAt": text(61), "droppedHeld": 1, "droppedAwaiting": 1,
    });
    it.finish("ended", view)
}

/// Three items, the first and the last of a turn that is cancelled.
fn interrupted() -> Conversation {
    let mut it = Recording::begin("interrupted");
    it.issue(10, 1, 900);
    it.issue(20, 2, 900);
    it.issue(30, 3, 900);
    let told = |sequence: u64, state: &str| json!({"workItemId": work_item(sequence), "turnId": turn(sequence), "state": state, "outcome": "cancelled"});
    let cancelled = json!({
        "conversationId": it.id, "turnId": turn(1), "cancelled": 2,
        "workItems": [told(1, "released"), told(3, "held")],
    });
    let cancel = it.perform(50, Action::CancelTurn { turn: turn(1) }, 200, cancelled);
    let second = it.take(60, 2, None);
    it.refused(70, post(3), 409, "WORK_ITEM_CANCELLED");
    let cancelled = format!(r#","requestId":"{cancel}""#);
    it.release("cancelled", &cancelled, [11, 51, 51]);
    it.release("succeeded", &result_of(2, &second), [21, 61, 61]);
    it.release("cancelled", &cancelled, [31, 51, 61]);
    it.finish("live", json!({"nextSequence": 4, "waitingFor": 4}))
}

/// The recorded history.
pub(crate) fn history() -> History {
    History { conversations: vec![living(), ended(), interrupted()], outages: Vec::new() }
}
