//! The primary that sentinels report, before and after a failover.

use std::time::Duration;

use callback_ingress::clock::ManualClock;
use callback_ingress::domain::work_item::WorkItem;
use callback_ingress::store::redis::Replicas;
use callback_ingress::store::{Store, StoreError};
use test_support::fake_redis;
use test_support::proxy::Proxy;
use test_support::redis_sentinels::RedisSentinels;
use test_support::redis_server::RedisServer;
use tokio::task::block_in_place;
use tokio::time::{Instant, timeout};

use super::admission::{refusal, verify};
use super::faults::deliver;
use crate::service::until;
use crate::stage::{Backend, ROOMY, START, Stage, settings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primary_killed_under_load_loses_nothing() {
    let mut service = block_in_place(|| RedisSentinels::start(2, 3, 1_000));
    let mut settings = settings(service.url(0), ROOMY);
    settings.replicas = Some(Replicas { count: 1, timeout: Duration::from_secs(5) });
    let stage = Stage::in_redis(settings, ManualClock::at(START)).await;
    let conversation = stage.conversation().await;
    let items: [WorkItem; 200] = conversation.issue_many(60_000).await;
    let mut wake = stage.store.watch(conversation.reference());
    let before = service.master();
    let killed = async {
        until("results are released", async || {
            stage
                .store
                .read(conversation.reference(), None, 1_000)
                .await
                .is_ok_and(|page| page.unwrap().released >= 20)
        })
        .await;
        block_in_place(|| {
            service.server(before).kill();
            service.wait_for_another_master(before);
        });
        let since = Instant::now();
        until("the new master is used", async || stage.store.due(&[0], 1).await.is_ok()).await;
        since.elapsed()
    };
    let load = async {
        for item in &items {
            deliver(&conversation, item, &item.sequence.to_string()).await;
        }
    };
    let ((), recovery) = tokio::join!(load, killed);
    assert!(recovery < Duration::from_secs(2), "{recovery:?}");
    until("the store reads", async || stage.store.inspect(conversation.reference()).await.is_ok()).await;
    let expected: Vec<_> = (1..=200).map(|number| Some(number.to_string().into())).collect();
    assert_eq!(conversation.results().await, expected);
    // The listener uses the new primary as well.
    timeout(Duration::from_secs(30), wake.changed()).await.unwrap();
    let item = conversation.issue(60_000).await;
    deliver(&conversation, &item, "201").await;
    timeout(Duration::from_secs(30), async {
        while conversation.read(0, 1_000).await.unwrap().released < 201 {
            wake.changed().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demoted_primary_is_replaced() {
    let service = block_in_place(|| RedisSentinels::start(1, 1, 60_000));
    let mut settings = settings(service.url(3), ROOMY);
    // The replica is promoted without the data that it has not received.
    settings.replicas = Some(Replicas { count: 1, timeout: Duration::from_secs(10) });
    let stage = Stage::in_redis(settings, ManualClock::at(START)).await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(60_000).await;
    deliver(&conversation, &first, "1").await;
    block_in_place(|| service.fail_over());
    deliver(&conversation, &second, "2").await;
    until("the store reads", async || stage.store.inspect(conversation.reference()).await.is_ok()).await;
    assert_eq!(conversation.results().await, ["1", "2"].map(|body| Some(body.into())));
}

/// A fake sentinel that reports this server with an old epoch; returns its port.
fn sentinel_that_names(server: u16) -> u16 {
    fake_redis::serve(move |question| match (question[0].as_str(), question.get(1).map(String::as_str)) {
        ("HELLO", _) => "%1\r\n$5\r\nproto\r\n:3\r\n".to_owned(),
        ("SENTINEL", Some("MASTER")) => "%1\r\n$12\r\nconfig-epoch\r\n$1\r\n0\r\n".to_owned(),
        ("SENTINEL", _) => {
            let port = server.to_string();
            format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len())
        }
        _ => "+OK\r\n".to_owned(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn former_primary_is_not_used() {
    let service = block_in_place(RedisSentinels::shared);
    let replaced = RedisServer::start();
    let late = sentinel_that_names(replaced.port());
    let sentinel = Proxy::to(service.sentinel_port());
    // The outdated sentinel is asked first.
    sentinel.delay(1);
    let database = Backend::unused_database();
    let url = format!("redis+sentinel://127.0.0.1:{late},127.0.0.1:{}/calls/{database}", sentinel.port());
    let stage = Stage::in_redis(settings(url, ROOMY), ManualClock::at(START)).await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    conversation.accept(&item, "1").await.unwrap();
    let there: u64 = redis::cmd("DBSIZE").query(&mut replaced.connection(database)).unwrap();
    assert_eq!(there, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn former_primary_is_not_read_while_only_an_outdated_sentinel_responds() {
    let service = block_in_place(|| RedisSentinels::start(1, 1, 60_000));
    block_in_place(|| service.fail_over());
    let replaced = RedisServer::start();
    let late = sentinel_that_names(replaced.port());
    let sentinel = Proxy::to(service.sentinel_port());
    let url = format!("redis+sentinel://127.0.0.1:{},127.0.0.1:{late}/calls/3", sentinel.port());
    let stage = Stage::in_redis(settings(url, ROOMY), ManualClock::at(START)).await;
    let conversation = stage.conversation().await;
    // The connection for commands is made; that for reads is not.
    sentinel.swallow(true);
    let read = stage.store.inspect(conversation.reference()).await;
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    sentinel.swallow(false);
    until("the store reads", async || {
        matches!(stage.store.inspect(conversation.reference()).await, Ok(Ok(_)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outdated_sentinel_is_ignored() {
    let service = block_in_place(RedisSentinels::shared);
    let replica = service.replica_port();
    // The sentinel that names a replica is asked first.
    let late = sentinel_that_names(replica);
    let database = Backend::unused_database();
    let url = service.url(database).replace("://", &format!("://127.0.0.1:{late},"));
    let stage = Stage::in_redis(settings(url, ROOMY), ManualClock::at(START)).await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    conversation.accept(&item, "1").await.unwrap();
    // The reported server is not a primary, so no server is used.
    let only_late = format!("redis+sentinel://127.0.0.1:{late}/calls/{database}");
    let error = verify(&settings(only_late, ROOMY)).await.unwrap_err();
    assert!(format!("{error:?}").contains("not the primary"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_service_is_retried_and_sentinel_url_is_refused() {
    let service = block_in_place(RedisSentinels::shared);
    let unknown = service.url(0).replace("/calls/", "/another/");
    let error = verify(&settings(unknown, ROOMY)).await.unwrap_err();
    assert!(format!("{error:?}").contains("does not monitor this service"), "{error:?}");
    let (_, sentinel) = service.url(0).split_once("://").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let sentinel = sentinel.split('/').next().unwrap().to_owned();
    let why = refusal(verify(&settings(format!("redis://{sentinel}"), ROOMY)).await);
    assert!(why.contains("is a sentinel: use redis+sentinel://"), "{why}");
}
