//! Runs a plan's clients on a deployment and reads the final state.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{join, join_all};
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};

use crate::bodies;
use crate::client::{Call, Client};
use crate::plan::{ConversationPlan, Forgery, ItemPlan, Plan, PostKind, PostPlan, SPAN_MS};
use crate::reader;
use crate::record::{Action, Asked, Conversation, Operation, Post, Session, Truth};
use crate::servers::Servers;

/// How long the readers continue after the last planned start.
const READ_ON: Duration = Duration::from_secs(1);
/// The same where a failover takes longer.
const READ_ON_ELSEWHERE: Duration = Duration::from_secs(4);
/// Longest wait until all items are settled.
const REST_WITHIN: Duration = Duration::from_secs(10);
/// Number of repeated reads of a channel whose end is missing.
const READINGS: usize = 4;

/// An issued work item: the conversation's number, the id and the token.
type Given = Arc<Mutex<Vec<(usize, String, String)>>>;

struct Actor {
    client: Client,
    number: usize,
    id: String,
    begun: Instant,
    given: Given,
    log: Mutex<Vec<Operation>>,
}

/// Runs a plan in conversations whose ids start with `name`. The final state is added later.
pub(crate) async fn drive(client: &Client, name: &str, plan: &Plan) -> Vec<Conversation> {
    let (begun, given) = (Instant::now(), Given::default());
    let driven = plan.conversations.iter().enumerate().map(|(number, plan)| {
        let actor = Actor {
            client: client.clone(),
            number,
            id: format!("{name}.{number}"),
            begun,
            given: Arc::clone(&given),
            log: Mutex::default(),
        };
        actor.drive(plan)
    });
    join_all(driven).await
}

impl Actor {
    async fn drive(self, plan: &ConversationPlan) -> Conversation {
        let read_on = if self.client.deployment.kind.fails_over() { READ_ON_ELSEWHERE } else { READ_ON };
        let until = self.begun + Duration::from_millis(SPAN_MS) + read_on;
        let opened = self.perform(Action::Open, Call::platform("PUT", &self.id)).await;
        let stream = async {
            let (_, reply) = opened.answers().next()?;
            let key = reply.body["channel"]["redisStream"].as_str()?;
            Some(reader::follow_stream(&self.client, key, until).await)
        };
        let items = join_all(plan.items.iter().enumerate().map(|(number, item)| self.item(number, item)));
        let ends = join_all(
            plan.ends.iter().map(|at| self.at(*at, Action::End, Call::platform("DELETE", &self.id))),
        );
        let turn_cancels = join_all(plan.turn_cancels.iter().map(|(at, turn)| {
            let turn = format!("t{turn}");
            let call = Call::platform("DELETE", &format!("{}/work-items?turnId={turn}", self.id));
            self.at(*at, Action::CancelTurn { turn }, call)
        }));
        let ends = join(ends, turn_cancels);
        let inspections = plan.inspections.iter();
        let inspections =
            join_all(inspections.map(|at| self.at(*at, Action::Inspect, Call::platform("GET", &self.id))));
        let readers = join_all(plan.readers.iter().map(|reader| async {
            sleep_until(self.begun + Duration::from_millis(reader.at)).await;
            reader::follow(&self.client, &self.id, &reader.cuts, until).await
        }));
        let (_, (sessions, stream)) = join(join(join(items, ends), inspections), join(readers, stream)).await;
        let sessions: Vec<Session> = sessions.into_iter().flatten().collect();
        let operations = self.log.into_inner().unwrap();
        Conversation {
            id: self.id,
            operations,
            sessions,
            stream_seen: stream.unwrap_or_default(),
            truth: Truth::default(),
        }
    }

    async fn perform(&self, action: Action, call: Call) -> Operation {
        let operation = self.client.perform(action, &call).await;
        self.log.lock().unwrap().push(operation.clone());
        operation
    }

    async fn at(&self, millis: u64, action: Action, call: Call) {
        sleep_until(self.begun + Duration::from_millis(millis)).await;
        self.perform(action, call).await;
    }

    async fn after(&self, millis: u64, action: Action, call: Call) {
        sleep(Duration::from_millis(millis)).await;
        self.perform(action, call).await;
    }

    async fn item(&self, number: usize, plan: &ItemPlan) {
        sleep_until(self.begun + Duration::from_millis(plan.at)).await;
        let asked = Asked {
            tool_call: format!("c{number}"),
            turn: format!("t{}", plan.turn),
            name: plan.name,
            kind: plan.kind,
            timeout_ms: plan.timeout_ms,
            heartbeat_timeout_ms: plan.heartbeat_timeout_ms,
        };
        // The same key in each conversation, because keys are per conversation.
        let key = plan.keyed.then(|| format!("k{number}"));
        let body = asked.body();
        let call = Call::platform("POST", &format!("{}/work-items", self.id));
        let call = key.iter().fold(call, |call, key| call.header("idempotency-key", key));
        let other = call.clone();
        let call = call.json(body.to_string());
        let issue = Action::Issue { asked: asked.clone(), key: key.clone() };
        let first = async {
            let issued = self.perform(issue.clone(), call.clone()).await;
            self.work(&issued, plan, number).await;
        };
        let again = join_all(plan.again.map(|after| self.after(after, issue.clone(), call.clone())));
        let reused = join_all(plan.key_reused.map(|after| {
            let asked = Asked { tool_call: format!("c{number}-other"), ..asked.clone() };
            let body = asked.body();
            self.after(after, Action::Issue { asked, key: key.clone() }, other.json(body.to_string()))
        }));
        join(first, join(again, reused)).await;
    }

    /// The requests about an issued item.
    async fn work(&self, issued: &Operation, plan: &ItemPlan, number: usize) {
        let Some((_, issued)) = issued.answers().find(|(_, reply)| reply.status == 201) else { return };
        let work_item = issued.text("workItemId").to_owned();
        let token = issued.body["callback"]["token"].as_str().unwrap().to_owned();
        self.given.lock().unwrap().push((self.number, work_item.clone(), token.clone()));
        let path = format!("{}/work-items/{work_item}", self.id);
        let posts = plan.posts.iter().map(|post| async {
            sleep(Duration::from_millis(post.after)).await;
            let (action, call) = self.post(&work_item, &token, plan.kind, number, post);
            self.perform(action, call).await;
        });
        let beats = plan.beats.iter().map(|after| {
            let action = Action::Beat { work_item: work_item.clone() };
            self.after(*after, action, bodies::heartbeat(&token))
        });
        let cancels = plan.cancels.iter().map(|after| {
            let action = Action::Cancel { work_item: work_item.clone() };
            self.after(*after, action, Call::platform("DELETE", &path))
        });
        let shows = plan.shown.iter().map(|after| {
            let action = Action::Show { work_item: work_item.clone() };
            self.after(*after, action, Call::platform("GET", &path))
        });
        let stranger = plan.cancelled_by_stranger.iter().map(|after| async {
            sleep(Duration::from_millis(*after)).await;
            if let Some((_, foreign, _)) = self.foreign() {
                let path = format!("{}/work-items/{foreign}", self.id);
                self.perform(Action::CancelForeign, Call::platform("DELETE", &path)).await;
            }
        });
        let provider = join(join_all(posts), join_all(beats));
        join(join(provider, join_all(cancels)), join(join_all(shows), join_all(stranger))).await;
    }

    /// An item of another conversation.
    fn foreign(&self) -> Option<(usize, String, String)> {
        self.given.lock().unwrap().iter().find(|(number, ..)| *number != self.number).cloned()
    }

    fn post(
        &self,
        work_item: &str,
        token: &str,
        kind: &'static str,
        number: usize,
        plan: &PostPlan,
    ) -> (Action, Call) {
        let label = format!("{}/t{number}", self.id);
        match plan.what {
            PostKind::Forged(forgery) => {
                let foreign = self.foreign().map(|(.., token)| token);
                let (how, forged) = forge(token, foreign.as_deref(), forgery);
                let (body, _) = bodies::body(kind, crate::record::Says::Succeeded, &label, 9);
                (Action::Forged { how }, bodies::callback(plan.carrier, &forged, body))
            }
            PostKind::Body(variant, says) => {
                let (body, result) = bodies::body(kind, says, &label, variant);
                let post = Post { work_item: work_item.to_owned(), result: result.into(), says };
                let mut call = bodies::callback(plan.carrier, token, body);
                if says == crate::record::Says::TwoTokens {
                    call = call.header("x-callback-token", "cbt_another");
                }
                (Action::Post(post), call)
            }
        }
    }
}

fn forge(token: &str, foreign: Option<&str>, forgery: Forgery) -> (&'static str, String) {
    match (forgery, foreign) {
        (Forgery::Spliced, Some(foreign)) => ("spliced", format!("{}{}", &token[..70], &foreign[70..])),
        (Forgery::Short, _) => ("short", token[..token.len() - 4].to_owned()),
        (Forgery::Changed(at), _) => ("changed", change(token, at)),
        (Forgery::Spliced, None) => ("changed", change(token, 20)),
    }
}

fn change(token: &str, at: usize) -> String {
    let at = at.min(token.len() - 1);
    let other = if token.as_bytes()[at] == b'A' { 'B' } else { 'A' };
    format!("{}{other}{}", &token[..at], &token[at + 1..])
}

/// Waits until all items of a conversation are settled, and reads its final state.
pub(crate) async fn truth(client: &Client, conversation: &str) -> Truth {
    let deadline = Instant::now() + REST_WITHIN;
    let empty = |view: &Value, list: &str| view[list].as_array().is_some_and(Vec::is_empty);
    let mut truth = Truth::default();
    while Instant::now() < deadline {
        let shown = client.perform(Action::Inspect, &Call::platform("GET", conversation)).await;
        if let Some((_, reply)) = shown.answers().next() {
            if reply.status != 200 {
                return truth;
            }
            let view = reply.body.clone();
            let rests = view["state"] == "ended" || empty(&view, "awaiting") && empty(&view, "held");
            truth.view = Some(view);
            if rests {
                break;
            }
        }
        sleep(Duration::from_millis(30)).await;
    }
    let Some(view) = &truth.view else { return truth };
    let live = view["state"] == "live";
    let unreleased =
        view["awaiting"].as_array().map_or(0, Vec::len) + view["held"].as_array().map_or(0, Vec::len);
    let released = view["nextSequence"].as_u64().unwrap() - 1 - unreleased as u64;
    let mut events: Vec<(String, String)> = Vec::new();
    for _ in 0..READINGS {
        let after = events.last().map(|(id, _)| (events.len() as u64, id.as_str()));
        let wanted = live.then_some(released);
        let until = Instant::now() + Duration::from_secs(2);
        let Some(session) = reader::read(client, conversation, after, wanted, until).await else { continue };
        let refused = session.refused.is_some();
        events.extend(session.events.into_iter().map(|(_, id, data)| (id, data)));
        if refused || session.ended || wanted == Some(events.len() as u64) {
            break;
        }
    }
    truth.events = events;
    if let Some(key) = view["channel"]["redisStream"].as_str().map(str::to_owned) {
        let read = |servers: &mut Servers| reader::redis_stream(&mut servers.with(&key).connection(0), &key);
        let read = client.deployment.servers(read);
        truth.stream = read.map(|read| read.unwrap());
    }
    truth
}
