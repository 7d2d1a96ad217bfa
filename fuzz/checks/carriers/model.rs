//! The reference model: the response to a request, by the documented order of checks.

use axum::http::{Method, header};
use bytes::Bytes;
use callback_ingress::domain::json::Scan;
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
    Taken(Taken),
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
    judged(written, stage)
        .map_or_else(Verdict::Refused, |taken| taken.map_or(Verdict::Healthy, Verdict::Taken))
}

fn judged(written: &Written, stage: &Stage) -> Result<Option<Taken>, Code> {
    let allows = |carrier| stage.allows(carrier);
    let path = written.uri.path();
    let in_path = path.strip_prefix(CALLBACKS).and_then(|rest| rest.strip_prefix('/'));
    let in_path = in_path.filter(|rest| allows('p') && !rest.is_empty() && !rest.contains('/'));
    if matches!(path, "/health" | "/health/live") {
        let asked = matches!(written.method, Method::GET | Method::HEAD);
        return if asked { Ok(None) } else { Err(Code::MethodNotAllowed) };
    }
    if path != CALLBACKS && in_path.is_none() {
        return Err(Code::NotFound);
    }
    if written.method != Method::POST {
        return Err(Code::MethodNotAllowed);
    }
    let length = written.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let announced = length.and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    if announced > MOST_BYTES as u64 || written.body.len() > MOST_BYTES {
        return Err(Code::BodyTooLarge);
    }
    media_type::check_json(&written.headers).map_err(|refusal| refusal.code)?;
    let body = written.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&written.body);
    let scan = Scan::new(body, [NAME]).ok();
    let token = token(written, stage, in_path, scan.as_ref())?;
    let item = match token.as_str() {
        token if token == stage.tokens.tool => &stage.tool,
        token if token == stage.tokens.llm => &stage.llm,
        token if token == stage.tokens.expired => return Err(Code::CallbackTokenExpired),
        _ => return Err(Code::CallbackTokenInvalid),
    };
    let scan = scan.ok_or(Code::BodyMalformed)?;
    let body = if allows('b') { scan.without(NAME).into_owned().into_bytes() } else { body.to_vec() };
    let result = CallbackResult::of(item.kind, &Bytes::from(body)).map_err(|refused| match refused {
        ResultRefused::Malformed(_) => Code::BodyMalformed,
        ResultRefused::NotAnLlmResult | ResultRefused::NotAFailure(_) => Code::ResultShapeInvalid,
    })?;
    Ok(Some(Taken { item: item.clone(), result }))
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
