//! The start of a stream, and resuming after a disconnection.

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use test_support::redis_server::RedisServer;
use tokio::time::{Duration, Instant};

use crate::service::{Event, Kind, Service, on_every_deployment, until};

on_every_deployment!(
    stream_starts_at_the_requested_event,
    resuming_neither_skips_nor_repeats_events,
    live_stream_delivers_each_result_once_in_order,
);

/// A conversation with `count` results on its channel: 1, 2, 3 …
async fn delivered(service: &Service, count: u64) -> String {
    let conversation = service.open().await;
    for _ in 0..count {
        deliver(service, &conversation).await;
    }
    conversation
}

/// Delivers one more result, whose value is its sequence.
async fn deliver(service: &Service, conversation: &str) {
    let item = service.tool(conversation).await;
    let reply = service.callback(&item.token, item.sequence.to_string()).send().await;
    assert_eq!(reply.status, 202);
}

fn sequences(events: &[Event]) -> Vec<u64> {
    for event in events {
        let envelope = event.envelope();
        assert_eq!(envelope["sequence"], event.sequence());
        assert_eq!(envelope["result"], event.sequence());
    }
    events.iter().map(Event::sequence).collect()
}

async fn stream_starts_at_the_requested_event(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = delivered(deployment.any(), 5).await;
    let read = async |query: &str, count| {
        sequences(&deployment.any().events(&conversation, query).await.take(count).await)
    };
    assert_eq!(read("?from=0", 5).await, [1, 2, 3, 4, 5]);
    let first = deployment.any().events(&conversation, "?from=0").await.next().await.unwrap();
    let (opened_at, _) = first.id.split_once('-').unwrap();
    let id = |sequence: u64| format!("{opened_at}-{sequence}");
    assert_eq!(read(&format!("?from={}", id(2)), 3).await, [3, 4, 5]);
    assert_eq!(read("?from=2", 3).await, [3, 4, 5]);
    assert_eq!(
        read("?from=1-4", 5).await,
        [1, 2, 3, 4, 5],
        "of one that was opened before: all of this one is new"
    );
    let after = async |id: &str, count| {
        sequences(&deployment.any().events_after(&conversation, id).await.take(count).await)
    };
    assert_eq!(after(&id(3), 2).await, [4, 5]);
    let path = format!("/conversations/{conversation}/events?from=0");
    let both = deployment.any().platform("GET", &path).header("last-event-id", id(4));
    let mut both = crate::service::EventReader::of(both).await;
    assert_eq!(sequences(&both.take(1).await), [5], "who was here before goes on, whatever the address says");
    let mut at_the_end = deployment.any().events(&conversation, "").await;
    let mut after_the_last = deployment.any().events_after(&conversation, &id(5)).await;
    deliver(deployment.any(), &conversation).await;
    assert_eq!(sequences(&at_the_end.take(1).await), [6], "without a word, what comes from now on");
    assert_eq!(sequences(&after_the_last.take(1).await), [6]);
    for (query, id) in [
        ("?from=x", ""),
        ("?from=", ""),
        ("?from=-1", ""),
        ("?from=1-1-1", ""),
        ("?from=9999999999999-1", ""),
        ("?from=99999999999999999999", ""),
        ("?from=7", ""),
        ("?from=0&from=0", ""),
        ("?form=0", ""),
        ("?from=x", &id(3)),
        ("", "x"),
        ("", "1-"),
        ("", &id(7)),
    ] {
        let path = format!("/conversations/{conversation}/events{query}");
        let call = deployment.any().platform("GET", &path).header("last-event-id", id);
        assert_eq!(call.verdict().await, (400, "REQUEST_INVALID".to_owned()), "{query} {id}");
    }
}

async fn resuming_neither_skips_nor_repeats_events(kind: Kind) {
    const RESULTS: u64 = 40;
    let deployment = kind.deploy(&[]).await;
    let conversation = delivered(deployment.any(), RESULTS).await;
    deployment.any().end(&conversation).await;
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..25 {
        let mut read: Vec<Event> = Vec::new();
        let mut cuts = 0;
        while read.len() < usize::try_from(RESULTS).unwrap() && cuts < 1_000 {
            let reader = match read.last() {
                None => deployment.any().events(&conversation, "?from=0").await,
                Some(last) => deployment.any().events_after(&conversation, &last.id).await,
            };
            // In the middle of an event or a line, or after it.
            let events = reader.cut_after(random.random_range(1..8_000)).await;
            read.extend(events.into_iter().filter(|event| event.name.is_empty()));
            cuts += 1;
        }
        assert_eq!(sequences(&read), (1..=RESULTS).collect::<Vec<_>>(), "after {cuts} cuts");
        assert!(cuts > 1, "{cuts}");
    }
}

async fn live_stream_delivers_each_result_once_in_order(kind: Kind) {
    const RESULTS: u64 = 60;
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let mut items = Vec::new();
    for _ in 0..RESULTS {
        items.push(deployment.any().tool(&conversation).await);
    }
    let posts = async {
        for burst in items.rchunks(7) {
            join_all(burst.iter().map(|item| async {
                let service = deployment.any();
                let reply = service.callback(&item.token, item.sequence.to_string()).send().await;
                assert_eq!(reply.status, 202);
            }))
            .await;
        }
        deployment.any().end(&conversation).await;
    };
    let reader = async {
        let mut random = StdRng::seed_from_u64(11);
        let mut read: Vec<Event> = Vec::new();
        loop {
            let mut reader = match read.last() {
                None => deployment.any().events(&conversation, "?from=0").await,
                Some(last) => deployment.any().events_after(&conversation, &last.id).await,
            };
            for _ in 0..random.random_range(1..9) {
                let event = reader.next().await.expect("an event or the end");
                if event.name == "end" {
                    return read;
                }
                read.push(event);
            }
        }
    };
    let (read, ()) = tokio::join!(reader, posts);
    assert_eq!(sequences(&read), (1..=RESULTS).collect::<Vec<_>>());
}

#[tokio::test]
async fn timeout_reaches_an_open_stream() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    let mut reader = service.events(&conversation, "").await;
    let item = service.issue(&conversation, &json!({"kind": "tool", "timeoutMs": 20})).await;
    let envelope = reader.next().await.unwrap().envelope();
    assert_eq!((&envelope["outcome"], &envelope["workItemId"]), (&json!("timed_out"), &json!(item.id)));
    assert!(envelope.get("result").is_none() && envelope.get("error").is_none());
    assert!(envelope.get("requestId").is_none(), "no request settled it");
}

#[tokio::test]
async fn stream_limit_is_enforced_and_closed_streams_free_it() {
    let service = Service::start(&[("http.max_event_streams", "2")]).await;
    let conversation = service.open().await;
    let (first, second) = (service.events(&conversation, "").await, service.events(&conversation, "").await);
    let third = || service.platform("GET", &format!("/conversations/{conversation}/events"));
    assert_eq!(third().verdict().await, (503, "OVERLOADED".to_owned()));
    drop(first);
    let since = Instant::now();
    until("there is room", async || third().begin().await.status() == 200).await;
    assert!(since.elapsed() < Duration::from_secs(5), "it was noticed only when there was something to send");
    drop(second);
}

#[tokio::test]
async fn resuming_past_lost_events_is_refused() {
    let mut redis = RedisServer::start();
    let service = Service::start(&[("store.url", &redis.url(0))]).await;
    let conversation = delivered(&service, 1).await;
    ::redis::cmd("SAVE").exec(&mut redis.connection(0)).unwrap();
    deliver(&service, &conversation).await;
    let mut reader = service.events(&conversation, "?from=0").await;
    let read = reader.take(2).await;
    assert_eq!(sequences(&read), [1, 2]);
    redis.kill();
    redis.restart();
    assert!(reader.next().await.is_none(), "it is cut off, and not told that the conversation has ended");
    let resumed = service.platform("GET", &format!("/conversations/{conversation}/events"));
    let resumed = resumed.header("last-event-id", &read[1].id).verdict().await;
    assert_eq!(resumed, (400, "REQUEST_INVALID".to_owned()));
}

#[tokio::test]
async fn resuming_in_a_recreated_conversation_starts_over() {
    let redis = RedisServer::start();
    let service = Service::start(&[("store.url", &redis.url(0))]).await;
    let conversation = delivered(&service, 3).await;
    let mut reader = service.events(&conversation, "?from=0").await;
    let read = reader.take(3).await;
    ::redis::cmd("FLUSHALL").exec(&mut redis.connection(0)).unwrap();
    let path = format!("/conversations/{conversation}");
    assert_eq!(service.platform("PUT", &path).json("{}").send().await.status, 201);
    deliver(&service, &conversation).await;
    let rest = reader.rest().await;
    assert!(rest.iter().all(|event| event.name == "end"), "an end, or nothing: {rest:?}");
    let mut resumed = service.events_after(&conversation, &read[2].id).await;
    assert_eq!(sequences(&resumed.take(1).await), [1], "all of it is new");
}
