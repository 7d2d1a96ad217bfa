//! The reference model: the response to a request, by the documented order of checks.

use axum::http::{Method, header};
use bytes::Bytes;
use callback_ingress::domain::json::{Malformed, Scan, Shape, decode_string};
use callback_ingress::domain::progress::Progress;
use callback_ingress::domain::result::{CallbackResult, Payload, ResultRefused};
use callback_ingress::domain::work_item::WorkItem;
use callback_ingress::http::code::Code;
use callback_ingress::http::media_type;
use serde_json::Value;

use super::stage::{MOST_BYTES, Stage};
use super::written::Written;

pub(crate) const CALLBACKS: &str = "/api/v1/webhooks/callbacks";
const NAME: &str = "callbackToken";

/// The expected response to a request.
pub(crate) enum Verdict {
    /// A probe.
    Healthy,
    Refused(Code),
    /// A heartbeat.
    Alive,
    Taken(Box<Taken>),
}

pub(crate) struct Taken {
    pub(crate) item: WorkItem,
    pub(crate) result: CallbackResult,
}

impl Taken {
    /// The expected fields of the receipt.
    pub(crate) fn receipt(&self) -> Vec<(&'static str, Value)> {
        let first = self.item.sequence.get() == 1;
        let outcome = match self.result.payload {
            Payload::Succeeded(_) => "succeeded",
            Payload::Failed(_) => "failed",
        };
        vec![
            ("status", if first { "delivered" } else { "held" }.into()),
            ("waitingFor", if first { Value::Null } else { 1.into() }),
            ("workItemId", self.item.id.to_string().into()),
            ("sequence", self.item.sequence.get().into()),
            ("outcome", outcome.into()),
            ("replayed", false.into()),
        ]
    }
}

/// Applies the checks in order: path, method, size, type, token, JSON, shape.
pub(crate) fn verdict(written: &Written, stage: &Stage) -> Verdict {
    judged(written, stage).unwrap_or_else(Verdict::Refused)
}

fn judged(written: &Written, stage: &Stage) -> Result<Verdict, Code> {
    let allows = |carrier| stage.allows(carrier);
    let path = written.uri.path();
    if matches!(path, "/health" | "/health/live") {
        let asked = matches!(written.method, Method::GET | Method::HEAD);
        return if asked { Ok(Verdict::Healthy) } else { Err(Code::MethodNotAllowed) };
    }
    let rest = path.strip_prefix(CALLBACKS).ok_or(Code::NotFound)?;
    let of_heartbeat = rest.strip_suffix("/heartbeat");
    let rest = of_heartbeat.unwrap_or(rest);
    let in_path = rest.strip_prefix('/');
    let in_path = in_path.filter(|rest| allows('p') && !rest.is_empty() && !rest.contains('/'));
    if !rest.is_empty() && in_path.is_none() {
        return Err(Code::NotFound);
    }
    let (most, or_empty) =
        if of_heartbeat.is_some() { (MOST_BYTES.min(32 * 1024), true) } else { (MOST_BYTES, false) };
    if written.method != Method::POST {
        return Err(Code::MethodNotAllowed);
    }
    let length = written.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let announced = length.and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    if announced > most as u64 || written.body.len() > most {
        return Err(Code::BodyTooLarge);
    }
    let body = written.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&written.body);
    if !(or_empty && body.is_empty()) {
        media_type::check_json(&written.headers).map_err(|refusal| refusal.code)?;
    }
    let scan = Scan::new(body, [NAME]).ok();
    let token = token(written, stage, in_path, scan.as_ref())?;
    let item = match token.as_str() {
        token if token == stage.tokens.tool => &stage.tool,
        token if token == stage.tokens.llm => &stage.llm,
        token if token == stage.tokens.expired => return Err(Code::CallbackTokenExpired),
        _ => return Err(Code::CallbackTokenInvalid),
    };
    if of_heartbeat.is_some() {
        return check_progress(body, allows('b')).map(|()| Verdict::Alive);
    }
    let scan = scan.ok_or(Code::BodyMalformed)?;
    let body = if allows('b') { scan.without(NAME).into_owned().into_bytes() } else { body.to_vec() };
    let result = CallbackResult::of(item.kind, &Bytes::from(body)).map_err(|refused| match refused {
        ResultRefused::Malformed(_) => Code::BodyMalformed,
        ResultRefused::NotAnLlmResult | ResultRefused::NotAFailure(_) => Code::ResultShapeInvalid,
    })?;
    Ok(Verdict::Taken(Box::new(Taken { item: item.clone(), result })))
}

/// A heartbeat's body is empty, or an object of a message and data.
fn check_progress(body: &[u8], may_have_token: bool) -> Result<(), Code> {
    let scan = match Scan::new(body, ["message", "data", NAME]) {
        Err(Malformed::Empty) => return Ok(()),
        scan => scan.map_err(|_| Code::BodyMalformed)?,
    };
    if scan.problem().is_some() {
        return Err(Code::BodyMalformed);
    }
    let known: &[&str] = if may_have_token { &["message", "data", NAME] } else { &["message", "data"] };
    let repeats = ["message", "data"].iter().any(|name| scan.values(name).count() > 1);
    if scan.shape() != Shape::Object || scan.count_others(known) > 0 || repeats {
        return Err(Code::RequestInvalid);
    }
    let value = |name| scan.values(name).next().filter(|value| *value != "null");
    let message = value("message").map(|text| decode_string(text).ok_or(Code::RequestInvalid)).transpose()?;
    Progress::new(message.as_deref(), value("data")).map(drop).map_err(|_| Code::RequestInvalid)
}

/// All tokens in a request must be equal.
fn token(
    written: &Written,
    stage: &Stage,
    in_path: Option<&str>,
    scan: Option<&Scan<'_>>,
) -> Result<String, Code> {
    let mut presented: Vec<Option<String>> = Vec::new();
    if stage.allows('h') {
        let values = written.headers.get_all("X-Callback-Token");
        presented.extend(values.iter().map(|value| value.to_str().ok().map(str::to_owned)));
    }
    if stage.allows('q') {
        let query = form_urlencoded::parse(written.uri.query().unwrap_or_default().as_bytes());
        presented.extend(query.filter(|(name, _)| name == NAME).map(|(_, value)| Some(value.into_owned())));
    }
    presented.extend(in_path.map(|token| Some(token.to_owned())));
    if let Some(scan) = scan.filter(|_| stage.allows('b')) {
        let values = scan.values(NAME).filter(|value| *value != "null");
        presented.extend(values.map(|value| serde_json::from_str(value).ok()));
    }
    presented.retain(|token| token.as_deref() != Some(""));
    match presented.split_first() {
        None => Err(Code::CallbackTokenMissing),
        Some((first, others)) if others.iter().any(|other| other != first) => {
            Err(Code::TokenCarriersDisagree)
        }
        Some((first, _)) => first.clone().ok_or(Code::CallbackTokenInvalid),
    }
}
