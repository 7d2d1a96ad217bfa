//! Guarantee 12 in Redis: event streams share a bounded number of connections.

use std::sync::atomic::Ordering;
use std::time::Duration;

use callback_ingress::clock::ManualClock;
use callback_ingress::store::{Backend, ChannelListener, Store, StoreError};
use test_support::proxy::Proxy;
use test_support::redis_commands::ask;
use test_support::redis_server::RedisServer;
use tokio::time::{Instant, timeout};

use super::stage_in;
use crate::service::until;
use crate::stage::{ROOMY, START, Stage, settings};

fn clients(connection: &mut redis::Connection) -> usize {
    let list: String = redis::cmd("CLIENT").arg("LIST").query(connection).unwrap();
    // Without the test's own connection.
    list.lines().count() - 1
}

fn watched(connection: &mut redis::Connection) -> usize {
    let channels: Vec<String> = redis::cmd("PUBSUB").arg("CHANNELS").query(connection).unwrap();
    channels.len()
}

#[tokio::test]
async fn listeners_share_one_connection() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let mut connection = server.connection(0);
    let conversation = stage.conversation().await;
    conversation.inspect().await.unwrap();
    assert_eq!(clients(&mut connection), 2, "one that writes, one that reads");
    let wakes: Vec<ChannelListener> =
        (0..1_000).map(|_| stage.store.watch(stage.unopened().reference())).collect();
    until("all are subscribed to", async || watched(&mut connection) == 1_000).await;
    let readers = (0..1_000).map(|_| conversation.read(0, 10));
    futures_util::future::join_all(readers).await;
    assert_eq!(clients(&mut connection), 4, "one for pages, and one that listens");
    drop(wakes);
    until("nothing is subscribed to", async || watched(&mut connection) == 0).await;
    let again = stage.store.watch(conversation.reference());
    until("it is subscribed to", async || watched(&mut connection) == 1).await;
    drop(again);
    assert_eq!(clients(&mut connection), 4);
}

/// Calls of a command since the last reset of the statistics.
pub(crate) fn calls(connection: &mut redis::Connection, command: &str) -> usize {
    let statistics: String = redis::cmd("INFO").arg("commandstats").query(connection).unwrap();
    let line = statistics.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn channels_are_subscribed_in_batches() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let mut connection = server.connection(0);
    let mut wake = stage.store.watch(stage.unopened().reference());
    wake.changed().await;
    redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut connection).unwrap();
    let wakes: Vec<ChannelListener> =
        (0..2_499).map(|_| stage.store.watch(stage.unopened().reference())).collect();
    until("all are subscribed to", async || watched(&mut connection) == 2_500).await;
    assert!(calls(&mut connection, "subscribe") <= 3, "{}", calls(&mut connection, "subscribe"));
    redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut connection).unwrap();
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").exec(&mut connection).unwrap();
    until("all are subscribed to again", async || watched(&mut connection) == 2_500).await;
    assert_eq!(calls(&mut connection, "subscribe"), 3, "a thousand channels with each");
    // No notification is lost while channels are subscribed and unsubscribed.
    drop(wakes);
    let conversation = stage.conversation().await;
    let mut again = stage.store.watch(conversation.reference());
    until("two are subscribed to", async || watched(&mut connection) == 2).await;
    assert!(calls(&mut connection, "unsubscribe") <= 3, "{}", calls(&mut connection, "unsubscribe"));
    again.changed().await;
    conversation.issue(1_000).await;
    conversation.end().await.unwrap();
    again.changed().await;
    drop((wake, again));
    until("nothing is subscribed to", async || watched(&mut connection) == 0).await;
}

#[tokio::test]
async fn dropped_store_closes_its_connections() {
    let server = RedisServer::start();
    let mut connection = server.connection(0);
    let stage = stage_in(&server).await;
    let conversation = stage.conversation().await;
    conversation.read(0, 1).await.unwrap();
    let mut wake = stage.store.watch(conversation.reference());
    wake.changed().await;
    assert_eq!(clients(&mut connection), 3);
    drop(wake);
    drop(stage);
    until("all connections are closed", async || clients(&mut connection) == 0).await;
}

#[tokio::test]
async fn cancelled_request_does_not_cancel_connecting() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port());
    let url = format!("redis://127.0.0.1:{}/0", proxy.port());
    let stage = Stage::in_redis(settings(url, ROOMY), ManualClock::at(START)).await;
    let Backend::Redis(store) = stage.store.backend() else { unreachable!() };
    let made = store.connections();
    let before = made.load(Ordering::Relaxed);
    let conversation = stage.unopened();
    proxy.delay(100);
    // Reads use a separate connection, which has not been needed so far.
    for _ in 0..3 {
        let impatient = timeout(Duration::from_millis(20), conversation.inspect()).await;
        assert!(impatient.is_err());
    }
    until("the connection is made", async || made.load(Ordering::Relaxed) > before).await;
    proxy.delay(0);
    assert!(conversation.inspect().await.is_err(), "there is no such conversation");
    assert_eq!(made.load(Ordering::Relaxed), before + 1);
}

#[tokio::test]
async fn read_only_server_limits_reconnections() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let conversation = stage.conversation().await;
    let Backend::Redis(store) = stage.store.backend() else { unreachable!() };
    let made = store.connections();
    let before = made.load(Ordering::Relaxed);
    ask::<()>(&server, &["REPLICAOF", "127.0.0.1", "1"]);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(1) {
        let answer = stage.store.open(conversation.opening()).await;
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    }
    let rounds = since.elapsed().as_millis() / 250 + 1;
    let made = u128::from(made.load(Ordering::Relaxed) - before);
    assert!((1..=rounds).contains(&made), "{made} connections in {rounds} quarters of a second");
    ask::<()>(&server, &["REPLICAOF", "NO", "ONE"]);
    stage.store.open(conversation.opening()).await.unwrap().unwrap();
}

#[tokio::test]
async fn listener_is_notified_after_reconnection() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let mut connection = server.connection(0);
    let conversation = stage.conversation().await;
    let mut wake = stage.store.watch(conversation.reference());
    wake.changed().await;
    for number in 1..=3 {
        redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").exec(&mut connection).unwrap();
        let item = conversation.issue(1_000).await;
        conversation.accept(&item, "1").await.unwrap();
        until("the change is heard of", async || {
            if conversation.read(0, 10).await.unwrap().released == number {
                return true;
            }
            wake.changed().await;
            false
        })
        .await;
        until("it is subscribed to again", async || watched(&mut connection) == 1).await;
    }
}
