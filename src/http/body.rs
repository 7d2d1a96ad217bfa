//! Reads a request's body within its limits of size, time and memory.

mod budget;

use std::error::Error;
use std::io;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, HeaderValue, header};
use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout, timeout_at};

pub use self::budget::{BodyBudget, Reservation};
use super::code::Code;
use super::refusal::Refusal;

/// Limits of a body.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Maximum size in bytes.
    pub max_bytes: usize,
    /// Time limit for reading the whole body.
    pub timeout: Duration,
    /// Number of copies of the body that the handler keeps in memory. Each copy counts in the budget.
    pub copies: usize,
}

/// Minimum average rate in bytes per second, required after [`MIN_RATE_GRACE`]. Both values are Kestrel's defaults.
/// They keep slow clients from using up the budget.
const MIN_RATE: u64 = 240;
const MIN_RATE_GRACE: Duration = Duration::from_secs(5);
/// Limits for reading and discarding a refused body. A client that reads the response only after it has sent the whole
/// body would otherwise not get the refusal.
const DISCARDED_BYTES: usize = 16 * 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum memory that is allocated before the first byte, whatever length the client announced.
const INITIAL_CAPACITY: usize = 4 * 1024;
/// Minimum reservation of a body, so that the budget also bounds the number of bodies.
const MIN_RESERVATION: usize = 4 * 1024;

/// Reads a body. Its memory counts in the budget until the reservation is dropped. The size limit applies both to the
/// announced Content-Length and to the bytes received.
pub async fn read(
    headers: &HeaderMap,
    mut body: Body,
    limits: BodyLimits,
    budget: &BodyBudget,
) -> Result<(Bytes, Reservation), Refusal> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > limits.max_bytes as u64) {
        discard(headers, body);
        return Err(too_large(limits));
    }
    let Some(mut reservation) = budget.reserve(MIN_RESERVATION) else {
        discard(headers, body);
        return Err(no_memory());
    };
    let announced = announced.and_then(|length| usize::try_from(length).ok());
    let mut bytes = Vec::with_capacity(announced.unwrap_or_default().min(INITIAL_CAPACITY));
    let started = Instant::now();
    while !body.is_end_stream() {
        let at_min_rate = MIN_RATE_GRACE + Duration::from_secs(bytes.len() as u64 / MIN_RATE);
        let Ok(frame) = timeout_at(started + limits.timeout.min(at_min_rate), body.frame()).await else {
            let message = format!("the body took too long: {} ms", started.elapsed().as_millis());
            let close = HeaderValue::from_static("close");
            return Err(Refusal::new(Code::RequestTimeout, message).with_header(header::CONNECTION, close));
        };
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(|error| malformed(&error))?.into_data() else { continue };
        let length = bytes.len() + data.len();
        if length > limits.max_bytes {
            tokio::spawn(discard_rest(body));
            return Err(too_large(limits));
        }
        if length > bytes.capacity() {
            let doubled = (2 * bytes.capacity()).min(announced.unwrap_or(limits.max_bytes));
            bytes.reserve_exact(length.max(doubled) - bytes.len());
        }
        if !reservation.grow_to(limits.copies.saturating_mul(bytes.capacity())) {
            tokio::spawn(discard_rest(body));
            return Err(no_memory());
        }
        bytes.extend_from_slice(&data);
    }
    Ok((without_byte_order_mark(bytes.into()), reservation))
}

/// Drops a byte order mark, as RFC 8259, section 8.1, allows: .NET's default encoders write one.
fn without_byte_order_mark(mut body: Bytes) -> Bytes {
    if body.starts_with(b"\xef\xbb\xbf") {
        body.advance(3);
    }
    body
}

fn too_large(limits: BodyLimits) -> Refusal {
    Refusal::new(Code::BodyTooLarge, format!("the body is larger than {} bytes", limits.max_bytes))
}

fn no_memory() -> Refusal {
    Refusal::new(Code::Overloaded, "the memory budget for request bodies is used up; nothing was changed")
}

/// The refusal of a body that cannot be read to its end: the chunked coding violates RFC 9112, or the client
/// disconnected.
fn malformed(error: &axum::Error) -> Refusal {
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
        }) {
            return Refusal::new(
                Code::RequestMalformed,
                "the chunked transfer coding of the body is invalid",
            );
        }
        source = error.source();
    }
    Refusal::new(Code::BodyMalformed, "the body is shorter than announced")
}

/// Reads and discards a refused body in the background.
pub fn discard(headers: &HeaderMap, body: Body) {
    // A client that waits for 100 Continue has sent nothing yet.
    if !headers.contains_key(header::EXPECT) {
        tokio::spawn(discard_rest(body));
    }
}

async fn discard_rest(mut body: Body) {
    let mut discarded = 0;
    let discard = async {
        while let Some(Ok(frame)) = body.frame().await {
            discarded += frame.data_ref().map_or(0, Bytes::len);
            if discarded > DISCARDED_BYTES {
                return;
            }
        }
    };
    // Reaching the time limit is not an error.
    let _ = timeout(DISCARD_TIMEOUT, discard).await;
}
