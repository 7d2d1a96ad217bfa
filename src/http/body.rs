//! Reading a request's body within its limits of size and time.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout};

use super::code::Code;
use super::refusal::Refusal;
use super::room::{Room, Share};

/// How large a body may be, and how long it may take.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Most bytes.
    pub max_bytes: usize,
    /// Longest time from the head to the last byte.
    pub timeout: Duration,
    /// How often a body is in memory until it is answered: each copy counts.
    pub copies: usize,
}

/// How much of a refused body is still taken in, and how long, so that a client that first sends and then listens
/// hears why it was refused.
const LINGER_BYTES: usize = 16 * 1024 * 1024;
const LINGER: Duration = Duration::from_secs(5);
/// Most memory that is set aside on a client's word alone.
const FIRST_CAPACITY: usize = 4 * 1024;

/// A body that is read, and the room that it takes up.
#[derive(Debug)]
pub struct Whole {
    /// The body.
    pub bytes: Bytes,
    share: Share,
}

impl Whole {
    /// The body, and what counts it as long as it is not dropped.
    pub fn into_parts(self) -> (Bytes, impl Send + 'static) {
        (self.bytes, self.share)
    }
}

/// Reads a body into this room, counting, whatever its head says about its length.
pub async fn read(
    headers: &HeaderMap,
    body: Body,
    limits: BodyLimits,
    room: &Room,
) -> Result<Whole, Refusal> {
    let too_large =
        || Refusal::new(Code::BodyTooLarge, format!("the body is larger than {} bytes", limits.max_bytes));
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limits.max_bytes as u64) {
        discard(headers, body);
        return Err(too_large());
    }
    let Some(mut share) = room.enter(Instant::now()) else {
        discard(headers, body);
        return Err(Refusal::new(Code::Overloaded, NO_ROOM));
    };
    let gives_way = share.gives_way();
    let collected = tokio::select! {
        collected = timeout(limits.timeout, collect(body, announced, limits, &mut share)) => collected,
        () = gives_way.notified() => Ok(Err(Interrupted::GaveWay)),
    };
    match collected {
        Ok(Ok(bytes)) => {
            share.arrived();
            Ok(Whole { bytes, share })
        }
        Ok(Err(Interrupted::TooLarge(rest))) => {
            tokio::spawn(linger(rest));
            Err(too_large())
        }
        Ok(Err(Interrupted::NoRoom(rest))) => {
            tokio::spawn(linger(rest));
            Err(Refusal::new(Code::Overloaded, NO_ROOM))
        }
        Ok(Err(Interrupted::GaveWay)) => {
            let message = "the body was so slow that it had to give way to others; nothing was changed";
            Err(closing(Refusal::new(Code::Overloaded, message)))
        }
        Ok(Err(Interrupted::CutOff)) => {
            Err(Refusal::new(Code::BodyMalformed, "the body ended before it was whole"))
        }
        Err(_) => {
            let message = format!("the body took longer than {} ms", limits.timeout.as_millis());
            Err(closing(Refusal::new(Code::RequestTimeout, message)))
        }
    }
}

const NO_ROOM: &str = "too many bodies are being read; nothing was changed";

fn closing(refusal: Refusal) -> Refusal {
    refusal.with_header(header::CONNECTION, HeaderValue::from_static("close"))
}

enum Interrupted {
    TooLarge(Body),
    NoRoom(Body),
    GaveWay,
    CutOff,
}

async fn collect(
    mut body: Body,
    announced: Option<u64>,
    limits: BodyLimits,
    share: &mut Share,
) -> Result<Bytes, Interrupted> {
    let announced = announced.and_then(|length| usize::try_from(length).ok());
    let mut collected = Vec::with_capacity(announced.unwrap_or_default().min(FIRST_CAPACITY));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Interrupted::CutOff)?.into_data() else { continue };
        let length = collected.len() + data.len();
        if length > limits.max_bytes {
            return Err(Interrupted::TooLarge(body));
        }
        if length > collected.capacity() {
            let capacity = length.max(2 * collected.capacity()).min(announced.unwrap_or(limits.max_bytes));
            collected.reserve_exact(capacity.max(length) - collected.len());
        }
        if !share.grow(limits.copies.saturating_mul(collected.capacity()), Instant::now()) {
            return Err(Interrupted::NoRoom(body));
        }
        collected.extend_from_slice(&data);
    }
    Ok(collected.into())
}

/// Takes in and throws away what nobody is going to read.
pub fn discard(headers: &HeaderMap, body: Body) {
    // A client that waits for 100 Continue has sent nothing yet.
    if !headers.contains_key(header::EXPECT) {
        tokio::spawn(linger(body));
    }
}

async fn linger(mut body: Body) {
    let mut taken = 0;
    let drain = async {
        while let Some(Ok(frame)) = body.frame().await {
            taken += frame.data_ref().map_or(0, Bytes::len);
            if taken > LINGER_BYTES {
                return;
            }
        }
    };
    // Whichever limit is reached first, there is nothing more to do.
    let _ = timeout(LINGER, drain).await;
}

/// Whether the body is announced as JSON in UTF-8, and not encoded.
pub fn check_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let unsupported = |message: &'static str| Err(Refusal::new(Code::ContentTypeUnsupported, message));
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(content_type), None) = (types.next(), types.next()) else {
        return unsupported("exactly one Content-Type is needed: application/json or application/*+json");
    };
    if !content_type.to_str().is_ok_and(is_json) {
        return unsupported("the Content-Type must be application/json or application/*+json, in UTF-8");
    }
    let encoded = headers.get_all(header::CONTENT_ENCODING).iter().any(|value| value != "identity");
    if encoded {
        return unsupported("the body must not be compressed (Content-Encoding)");
    }
    Ok(())
}

fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
    let json = match essence.strip_prefix("application/") {
        Some("json") => true,
        Some(subtype) => subtype.strip_suffix("+json").is_some_and(|name| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b',' | b'"'))
        }),
        None => false,
    };
    let utf8 = parts.filter_map(|parameter| parameter.split_once('=')).all(|(name, value)| {
        !name.trim().eq_ignore_ascii_case("charset")
            || value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    json && utf8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_known_by_its_type() {
        for good in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/problem+json",
            "application/json;charset=\"utf-8\"; v=1",
        ] {
            assert!(is_json(good), "{good}");
        }
        for bad in [
            "",
            "text/json",
            "application/jsonp",
            "application/+json",
            "application/json; charset=latin1",
            "application/x-www-form-urlencoded",
            "application/a/b+json",
        ] {
            assert!(!is_json(bad), "{bad}");
        }
    }
}
