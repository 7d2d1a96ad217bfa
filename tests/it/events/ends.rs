//! The end of event streams.

use test_support::redis_server::RedisServer;
use tokio::time::{Duration, Instant};

use crate::service::{Event, Kind, Service, on_every_deployment, until};

on_every_deployment!(end_is_the_last_event, ended_conversation_can_be_read_again,);

fn end(conversation: &str) -> Event {
    Event {
        id: String::new(),
        name: "end".to_owned(),
        data: format!("{{\"conversationId\":\"{conversation}\",\"state\":\"ended\"}}"),
    }
}

async fn end_is_the_last_event(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let mut readers = Vec::new();
    for _ in 0..4 {
        readers.push(deployment.any().events(&conversation, "").await);
    }
    let (first, second) =
        (deployment.any().tool(&conversation).await, deployment.any().tool(&conversation).await);
    deployment.any().callback(&second.token, "2").send().await;
    deployment.any().callback(&first.token, "1").send().await;
    let since = Instant::now();
    deployment.any().end(&conversation).await;
    for mut reader in readers {
        let events = reader.rest().await;
        assert_eq!(events[..2].iter().map(Event::sequence).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(events[2..], [end(&conversation)]);
    }
    let took = since.elapsed();
    assert!(took < Duration::from_secs(3), "a reader was not woken by the end, but looked again: {took:?}");
}

async fn ended_conversation_can_be_read_again(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let (first, _) = (deployment.any().tool(&conversation).await, deployment.any().tool(&conversation).await);
    deployment.any().callback(&first.token, "1").send().await;
    deployment.any().end(&conversation).await;
    let mut id = String::new();
    for _ in 0..2 {
        let events = deployment.any().events(&conversation, "?from=0").await.rest().await;
        assert_eq!(events.len(), 2);
        assert_eq!(events[1], end(&conversation));
        id.clone_from(&events[0].id);
    }
    let events = deployment.any().events(&conversation, "").await.rest().await;
    assert_eq!(events, [end(&conversation)], "nothing comes any more");
    let events = deployment.any().events_after(&conversation, &id).await.rest().await;
    assert_eq!(events, [end(&conversation)]);
}

#[tokio::test]
async fn idle_conversation_ends_its_streams() {
    let service = Service::on_memory().await;
    let path = "/conversations/idle";
    assert_eq!(service.platform("PUT", path).json("{\"idleTtlMs\":50}").send().await.status, 201);
    let events = service.events("idle", "").await.rest().await;
    assert_eq!(events, [end("idle")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drained_stream_resumes_on_another_instance() {
    let redis = RedisServer::start();
    let (leaving, staying) = (Service::on(&redis).await, Service::on(&redis).await);
    let conversation = leaving.open().await;
    let mut reader = leaving.events(&conversation, "?from=0").await;
    for number in 1..=3 {
        let item = staying.tool(&conversation).await;
        staying.callback(&item.token, number.to_string()).send().await;
    }
    let read = reader.take(3).await;
    leaving.drain();
    assert_eq!(reader.rest().await, [], "the conversation has not ended");
    let mut reader = staying.events_after(&conversation, &read[2].id).await;
    let item = staying.tool(&conversation).await;
    staying.callback(&item.token, "4").send().await;
    staying.end(&conversation).await;
    let rest = reader.rest().await;
    assert_eq!(rest.len(), 2);
    assert_eq!((rest[0].sequence(), &rest[1]), (4, &end(&conversation)));
    leaving.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_survives_a_store_outage() {
    let mut redis = RedisServer::durable();
    let service = Service::on(&redis).await;
    let conversation = service.open().await;
    let mut reader = service.events(&conversation, "").await;
    let (first, second) = (service.tool(&conversation).await, service.tool(&conversation).await);
    service.callback(&first.token, "1").send().await;
    assert_eq!(reader.next().await.unwrap().sequence(), 1);
    redis.kill();
    redis.restart();
    until("it is taken", async || service.callback(&second.token, "2").send().await.status.is_success())
        .await;
    let since = Instant::now();
    assert_eq!(reader.next().await.unwrap().sequence(), 2);
    let took = since.elapsed();
    assert!(took < Duration::from_secs(4), "whoever watches is woken when the store is back: {took:?}");
    service.end(&conversation).await;
    assert_eq!(reader.rest().await, [end(&conversation)]);
}
