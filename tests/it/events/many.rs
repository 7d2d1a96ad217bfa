//! Many readers and slow readers.

use futures_util::future::{join, join_all};
use test_support::redis_server::RedisServer;
use tokio::time::{Duration, Instant};

use crate::service::{Event, EventReader, Kind, Raw, SERVICE_KEY, Service, on_every_deployment};

const READERS: usize = 500;

on_every_deployment!(
    all_readers_of_a_conversation_see_every_event,
    many_conversations_can_be_streamed_at_once,
    unread_stream_delays_no_other,
);

async fn all_readers_of_a_conversation_see_every_event(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let mut readers: Vec<EventReader> =
        join_all((0..READERS).map(|_| deployment.any().events(&conversation, ""))).await;
    for _ in 0..3 {
        let item = deployment.any().tool(&conversation).await;
        deployment.any().callback(&item.token, item.sequence.to_string()).send().await;
    }
    deployment.any().end(&conversation).await;
    let since = Instant::now();
    for read in join_all(readers.iter_mut().map(EventReader::rest)).await {
        assert_eq!((read.len(), &*read[3].name), (4, "end"));
        assert_eq!(read[..3].iter().map(Event::sequence).collect::<Vec<_>>(), [1, 2, 3]);
    }
    assert!(since.elapsed() < Duration::from_secs(4), "they were woken: {:?}", since.elapsed());
}

async fn many_conversations_can_be_streamed_at_once(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let read = join_all((0..READERS).map(|_| async {
        let conversation = deployment.any().open().await;
        let mut reader = deployment.any().events(&conversation, "").await;
        let item = deployment.any().tool(&conversation).await;
        deployment.any().callback(&item.token, format!("\"{conversation}\"")).send().await;
        let envelope = reader.next().await.unwrap().envelope();
        assert_eq!(envelope["result"], conversation);
        reader
    }))
    .await;
    if let Some(redis) = &deployment.redis {
        let clients: String = ::redis::cmd("CLIENT").arg("LIST").query(&mut redis.connection(0)).unwrap();
        let connections = clients.lines().count();
        assert!(connections <= 2 * 4 + 1, "{READERS} streams are open over {connections} connections");
    }
    drop(read);
}

async fn unread_stream_delays_no_other(kind: Kind) {
    const RESULTS: usize = 30;
    let deployment = kind.deploy(&[]).await;
    let service = deployment.any();
    let conversation = service.open().await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut raw = Raw::connect(service.platform).await;
        raw.send(format!(
            "GET /platform/v1/conversations/{conversation}/events?from=0 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SERVICE_KEY}\r\n\r\n"
        ))
        .await;
        slow.push(raw);
    }
    let mut reader = service.events(&conversation, "?from=0").await;
    let large = format!("\"{}\"", "x".repeat(512 * 1024));
    for _ in 0..RESULTS {
        let item = service.tool(&conversation).await;
        assert_eq!(service.callback(&item.token, large.clone()).send().await.status, 202);
        let since = Instant::now();
        assert_eq!(reader.next().await.unwrap().sequence(), item.sequence);
        assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    }
    // The slow reader has missed nothing.
    let mut late = slow.pop().unwrap();
    service.end(&conversation).await;
    drop(slow);
    let text = String::from_utf8(late.until("event: end\n").await).unwrap();
    let ids = text.lines().filter_map(|line| line.strip_prefix("id: ")?.split_once('-'));
    assert_eq!(
        ids.map(|(_, number)| number.parse::<usize>().unwrap()).collect::<Vec<_>>(),
        (1..=RESULTS).collect::<Vec<_>>()
    );
}

/// A short form of `cargo bench --bench overload -- readers redis://…`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarting_readers_do_not_overload_redis() {
    const RESULTS: usize = 4;
    let redis = RedisServer::start();
    let service = Service::on(&redis).await;
    let conversation = service.open().await;
    let large = format!("\"{}\"", "x".repeat(1024 * 1024 - 2));
    for _ in 0..RESULTS {
        let item = service.tool(&conversation).await;
        assert_eq!(service.callback(&item.token, large.clone()).send().await.status, 202);
    }
    service.end(&conversation).await;
    let beside = service.open().await;
    let mut readers = join_all((0..32).map(|_| service.events(&conversation, "?from=0"))).await;
    let reading = join_all(readers.iter_mut().map(EventReader::rest));
    let posting = async {
        let (mut connection, mut most) = (redis.connection(0), 0);
        for _ in 0..50 {
            let item = service.tool(&beside).await;
            assert_eq!(service.callback(&item.token, "1").send().await.status, 202);
            let clients: String = ::redis::cmd("CLIENT").arg("LIST").query(&mut connection).unwrap();
            let held = clients.split(' ').filter_map(|field| field.strip_prefix("omem="));
            most = held.map(|bytes| bytes.parse::<u64>().unwrap()).sum::<u64>().max(most);
        }
        most
    };
    let (read, most) = join(reading, posting).await;
    for events in read {
        assert_eq!(events.len(), RESULTS + 1);
    }
    assert!(most < 16 << 20, "Redis has held {most} bytes");
}

/// Number of reads of pages and of channel ends that a service has sent to Redis.
async fn reads(service: &Service) -> u64 {
    let metrics = service.metrics().await;
    let mut counts = metrics.lines().filter(|line| {
        line.starts_with("db_client_operation_duration_seconds_count") && line.contains("=\"read\"")
    });
    counts.next().map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_share_one_read_of_a_change() {
    const CHANGES: u64 = 20;
    let redis = RedisServer::start();
    let service = Service::on(&redis).await;
    let conversation = service.open().await;
    let mut reader = service.events(&conversation, "").await;
    let before = reads(&service).await;
    assert!(before > 0);
    for _ in 0..CHANGES {
        let item = service.tool(&conversation).await;
        service.callback(&item.token, "1").send().await;
        assert_eq!(reader.next().await.unwrap().sequence(), item.sequence);
    }
    // A few more, because a stream reads once after subscribing and polls now and then.
    let more = reads(&service).await - before;
    assert!((CHANGES..CHANGES + 5).contains(&more), "{more} reads of {CHANGES} changes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_stream_does_not_block_the_drain() {
    let redis = RedisServer::start();
    let service = Service::start(&[("store.url", &redis.url(0)), ("http.drain_timeout_ms", "500")]).await;
    let conversation = service.open().await;
    let mut raw = Raw::connect(service.platform).await;
    raw.send(format!(
        "GET /platform/v1/conversations/{conversation}/events?from=0 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SERVICE_KEY}\r\n\r\n"
    ))
    .await;
    let large = format!("\"{}\"", "x".repeat(1024 * 1024 - 2));
    for _ in 0..12 {
        let item = service.tool(&conversation).await;
        assert_eq!(service.callback(&item.token, large.clone()).send().await.status, 202);
    }
    let since = Instant::now();
    service.drain();
    service.ended().await;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
}
