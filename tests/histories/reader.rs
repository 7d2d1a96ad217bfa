//! Readers of a channel: resumed event streams, and the Redis stream.

use std::time::Duration;

use callback_ingress::clock::Entropy;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use crate::client::{Call, Client};
use crate::record::{Reply, Session, StreamEntry, Time};

/// Pause before a reader reconnects.
const PAUSE: Duration = Duration::from_millis(40);
/// Timeout for the head of a stream.
const OPENED_WITHIN: Duration = Duration::from_millis(1_500);

/// Reads a conversation's event stream from its start or after an event, given by sequence and id, until the time is
/// over, the stream ends, or the event `last` is received. A final reply other than a stream is recorded.
pub(crate) async fn read(
    client: &Client,
    conversation: &str,
    after: Option<(u64, &str)>,
    last: Option<u64>,
    until: Instant,
) -> Option<Session> {
    let call = Call::platform("GET", &format!("{conversation}/events"));
    let call = match after {
        None => Call { path: format!("{}?from=0", call.path), ..call },
        Some((_, id)) => call.header("last-event-id", id),
    };
    let after = after.map_or(0, |(sequence, _)| sequence);
    let request_id = Entropy.request_id().to_string();
    let (replica, answer) = client.send(&call, &request_id);
    let opened = timeout_at(until.min(Instant::now() + OPENED_WITHIN), answer).await.ok()??;
    let mut session = Session {
        replica,
        after,
        events: Vec::new(),
        progress: Vec::new(),
        ended: false,
        refused: None,
        over: 0,
    };
    if opened.status() != 200 {
        let status = opened.status().as_u16();
        let body = opened.into_body().collect().await.ok()?.to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let refused = Reply { status, request_id, idempotent_replay: false, body };
        session.refused = Some(refused).filter(|reply| !reply.may_be_repeated());
        session.over = client.stopwatch.now();
        return session.refused.is_some().then_some(session);
    }
    let mut body = opened.into_body();
    let mut read = Vec::new();
    while session.events.len() as u64 + after < last.unwrap_or(u64::MAX) && !session.ended {
        let Ok(Some(piece)) = timeout_at(until, next_piece(&mut body)).await else { break };
        read.extend_from_slice(&piece);
        take_events(&mut read, client, &mut session);
    }
    session.over = client.stopwatch.now();
    Some(session)
}

async fn next_piece(body: &mut Incoming) -> Option<bytes::Bytes> {
    body.frame().await?.ok()?.into_data().ok()
}

/// Removes the complete events from the buffer.
fn take_events(read: &mut Vec<u8>, client: &Client, session: &mut Session) {
    while let Some(end) = read.windows(2).position(|pair| pair == b"\n\n") {
        let block: Vec<u8> = read.drain(..end + 2).collect();
        let block = String::from_utf8_lossy(&block);
        let value = |name: &str| {
            let lines = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            lines.collect::<Vec<_>>().join("\n")
        };
        if value("event") == "end" {
            session.ended = true;
        } else if value("event") == "progress" {
            session.progress.push((client.stopwatch.now(), value("data")));
        } else if !value("data").is_empty() {
            session.events.push((client.stopwatch.now(), value("id"), value("data")));
        }
    }
}

/// Follows a channel as the platform does: resumes after the last event, until `until`. Connections close after these
/// times in milliseconds.
pub(crate) async fn follow(
    client: &Client,
    conversation: &str,
    cuts: &[u64],
    until: Instant,
) -> Vec<Session> {
    let mut sessions: Vec<Session> = Vec::new();
    let mut cuts = cuts.iter().map(|millis| Duration::from_millis(*millis));
    let (mut read_on, mut last_id) = (0, String::new());
    while Instant::now() < until {
        let cut = cuts.next().map_or(until, |cut| (Instant::now() + cut).min(until));
        let after = (read_on > 0).then_some((read_on, last_id.as_str()));
        if let Some(session) = read(client, conversation, after, None, cut).await {
            read_on += session.events.len() as u64;
            if let Some((_, id, _)) = session.events.last() {
                last_id.clone_from(id);
            }
            let over = session.ended || session.refused.is_some();
            sessions.push(session);
            if over {
                return sessions;
            }
        }
        sleep(PAUSE).await;
    }
    sessions
}

/// Follows a Redis stream as the platform does: reconnects after failures and resumes after the last entry, until `until`.
pub(crate) async fn follow_stream(client: &Client, key: &str, until: Instant) -> Vec<(Time, StreamEntry)> {
    let mut seen: Vec<(Time, StreamEntry)> = Vec::new();
    let follow = async {
        loop {
            for url in client.deployment.stream_urls() {
                // A server that is down or does not have the stream is replaced by the next one, if any; otherwise the reader
                // waits as for new entries.
                let server = redis::Client::open(url).unwrap();
                if let Ok(mut connection) = server.get_multiplexed_async_connection().await {
                    loop {
                        let last =
                            seen.last().map_or_else(|| "-".to_owned(), |(_, (id, _))| format!("({id}"));
                        let more = redis::cmd("XRANGE").arg(key).arg(last).arg("+").to_owned();
                        let more = more.query_async::<Vec<StreamEntry>>(&mut connection).await;
                        let Ok(more) = more else { break };
                        let now = client.stopwatch.now();
                        seen.extend(more.into_iter().map(|entry| (now, entry)));
                        sleep(PAUSE).await;
                    }
                }
                sleep(PAUSE).await;
            }
        }
    };
    // The Redis stream does not end by itself.
    let _: Result<(), _> = timeout_at(until, follow).await;
    seen
}

/// All of a Redis stream.
pub(crate) fn redis_stream(
    connection: &mut redis::Connection,
    key: &str,
) -> redis::RedisResult<Vec<StreamEntry>> {
    redis::cmd("XRANGE").arg(key).arg("-").arg("+").query(connection)
}
