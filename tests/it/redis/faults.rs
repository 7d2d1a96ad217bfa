//! Redis is killed, suspended, full, or loses its scripts: acknowledged results stay, and an unknown outcome is reported.

use std::time::Duration;

use callback_ingress::clock::{Entropy, ManualClock};
use callback_ingress::domain::gate::Receipt;
use callback_ingress::domain::work_item::{Outcome, WorkItem};
use callback_ingress::store::{Store, StoreError};
use test_support::proxy::{Cut, Proxy};
use test_support::redis_server::RedisServer;
use tokio::time::{Instant, sleep, timeout};

use super::stage_in;
use crate::conversation::Conversation;
use crate::service::until;
use crate::stage::{ROOMY, START, Stage, settings};

/// Accepts a result, and repeats the same attempt until the store answers.
pub(crate) async fn deliver(conversation: &Conversation<'_>, item: &WorkItem, body: &str) -> Receipt {
    let accept = conversation.bringing(item, body.as_bytes());
    loop {
        match conversation.stage.store.accept(accept.clone()).await {
            Ok(answer) => return answer.unwrap(),
            Err(StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_)) => {
                sleep(Duration::from_millis(5)).await;
            }
            Err(broken @ StoreError::Broken(_)) => panic!("{broken}"),
        }
    }
}

#[tokio::test]
async fn acknowledged_results_survive_a_redis_crash() {
    let mut server = RedisServer::durable();
    let stage = stage_in(&server).await;
    let conversation = stage.conversation().await;
    let [first, second, third] = conversation.issue_many(1_000).await;
    conversation.accept(&first, "1").await.unwrap();
    conversation.accept(&third, "3").await.unwrap();
    let before = conversation.seen(&[&first, &second, &third]).await;
    server.kill();
    let attempt = conversation.bringing(&second, b"2");
    let answer = stage.store.accept(attempt.clone()).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_))), "{answer:?}");
    for _ in 0..3 {
        assert!(matches!(stage.store.accept(attempt.clone()).await, Err(StoreError::Unavailable(_))));
        assert!(matches!(stage.store.ping().await, Err(StoreError::Unavailable(_))));
        assert!(matches!(
            stage.store.inspect(conversation.reference()).await,
            Err(StoreError::Unavailable(_))
        ));
    }
    server.restart();
    until("the store answers", async || stage.store.ping().await.is_ok()).await;
    until("the store reads", async || stage.store.inspect(conversation.reference()).await.is_ok()).await;
    assert_eq!(conversation.seen(&[&first, &second, &third]).await, before);
    assert!(!conversation.accept_with(attempt).await.unwrap().replayed);
    assert_eq!(conversation.results().await, ["1", "2", "3"].map(|body| Some(body.into())));
}

#[tokio::test]
async fn redis_killed_under_load_loses_nothing() {
    let mut server = RedisServer::durable();
    let stage = stage_in(&server).await;
    let conversation = stage.conversation().await;
    let items: [_; 120] = conversation.issue_many(1_000).await;
    let load = async {
        for chunk in items.chunks(4) {
            let deliveries = chunk.iter().map(|item| async {
                let receipt = deliver(&conversation, item, &item.sequence.to_string()).await;
                assert!(!receipt.replayed, "a repeated attempt knows itself");
            });
            futures_util::future::join_all(deliveries).await;
        }
    };
    let kills = async {
        let mut watching = server.connection(0);
        for released in [20, 60] {
            until("results are released", async || {
                let Some(key) = stage.store.channel(conversation.reference()) else {
                    panic!("a channel in Redis is a stream");
                };
                redis::cmd("XLEN").arg(key).query::<u64>(&mut watching).unwrap() >= released
            })
            .await;
            server.kill();
            server.restart();
            watching = server.connection(0);
        }
    };
    tokio::join!(load, kills);
    let expected: Vec<_> = (1..=120).map(|number| Some(number.to_string().into())).collect();
    assert_eq!(conversation.results().await, expected);
}

#[tokio::test]
async fn connections_cut_under_load_lose_nothing() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let conversation = stage.conversation().await;
    let items: [_; 400] = conversation.issue_many(1_000).await;
    let load = async {
        for chunk in items.chunks(10) {
            let deliveries = chunk.iter().map(|item| async {
                let receipt = deliver(&conversation, item, &item.sequence.to_string()).await;
                assert!(!receipt.replayed, "a repeated attempt knows itself");
            });
            futures_util::future::join_all(deliveries).await;
        }
    };
    let cuts = async {
        let mut connection = server.connection(0);
        let mut cut = 0;
        loop {
            let kill = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").to_owned();
            cut += kill.query::<usize>(&mut connection).unwrap();
            sleep(Duration::from_millis(3)).await;
            if cut >= 1_000 {
                return;
            }
        }
    };
    tokio::select! {
        () = load => {}
        () = cuts => panic!("a thousand connections were not enough"),
    }
    until("the store reads", async || stage.store.inspect(conversation.reference()).await.is_ok()).await;
    let expected: Vec<_> = (1..=400).map(|number| Some(number.to_string().into())).collect();
    assert_eq!(conversation.results().await, expected);
}

/// Loads every script that writes, so that the next call executes at once.
async fn teach_scripts(stage: &Stage) {
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    conversation.accept(&first, "1").await.unwrap();
    conversation.cancel(&second).await.unwrap();
    conversation.end().await.unwrap();
}

#[tokio::test]
async fn lost_reply_is_recovered_by_repeating_the_script() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port());
    let url = format!("redis://127.0.0.1:{}/0", proxy.port());
    let stage = Stage::in_redis(settings(url, ROOMY), ManualClock::at(START)).await;
    teach_scripts(&stage).await;
    let conversation = stage.unopened();
    proxy.cut(Cut::Answer, 1);
    assert!(conversation.open(|_| ()).await.unwrap().created);
    proxy.cut(Cut::Answer, 1);
    let issued = conversation.issue_with(conversation.issuing(1_000)).await.unwrap();
    assert!(!issued.repeated);
    proxy.cut(Cut::Answer, 1);
    assert!(!conversation.accept(&issued.item, "1").await.unwrap().replayed);
    let second = conversation.issue(1_000).await;
    proxy.cut(Cut::Answer, 1);
    conversation.cancel(&second).await.unwrap();
    conversation.issue(1_000).await;
    proxy.cut(Cut::Answer, 1);
    assert_eq!(conversation.end().await.unwrap().dropped_awaiting, 1);
    assert_eq!(proxy.cuts_left(), 0);
    let expected = [(1, Outcome::Succeeded), (2, Outcome::Cancelled)];
    assert_eq!(conversation.channel().await, expected, "each of them happened once");
}

#[tokio::test]
async fn twice_lost_reply_has_an_unknown_outcome() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port());
    let url = format!("redis://127.0.0.1:{}/0", proxy.port());
    let stage = Stage::in_redis(settings(url, ROOMY), ManualClock::at(START)).await;
    teach_scripts(&stage).await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    let attempt = conversation.bringing(&item, b"1");
    proxy.cut(Cut::Answer, 2);
    let answer = stage.store.accept(attempt.clone()).await;
    assert!(matches!(answer, Err(StoreError::OutcomeUnknown(_))), "{answer:?}");
    assert_eq!(proxy.cuts_left(), 0, "it was called twice, and no more");
    assert!(!conversation.accept_with(attempt).await.unwrap().replayed, "asking again tells");
    assert_eq!(conversation.channel().await, [(1, Outcome::Succeeded)]);
}

#[tokio::test]
async fn reply_lost_with_the_server_has_an_unknown_outcome() {
    let mut server = RedisServer::durable();
    let stage = stage_in(&server).await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    let attempt = conversation.bringing(&item, b"1");
    // The request is sent to a suspended server, which is then killed.
    server.suspend();
    let mut answer = Box::pin(stage.store.accept(attempt.clone()));
    assert!(timeout(Duration::from_millis(200), &mut answer).await.is_err());
    server.kill();
    let answer = answer.await;
    assert!(matches!(answer, Err(StoreError::OutcomeUnknown(_))), "{answer:?}");
    server.restart();
    until("the store answers", async || stage.store.ping().await.is_ok()).await;
    assert!(!conversation.accept_with(attempt).await.unwrap().replayed);
    until("the store reads", async || stage.store.inspect(conversation.reference()).await.is_ok()).await;
    assert_eq!(conversation.channel().await, [(1, Outcome::Succeeded)]);
}

#[tokio::test]
async fn timed_out_reply_is_unknown_and_a_retry_resolves_it() {
    let server = RedisServer::start();
    let mut impatient = settings(server.url(0), ROOMY);
    impatient.connect_timeout = Duration::from_millis(500);
    impatient.response_timeout = Duration::from_millis(500);
    let stage = Stage::in_redis(impatient, ManualClock::at(START)).await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    server.suspend();
    let attempt = conversation.bringing(&first, b"1");
    let answer = stage.store.accept(attempt.clone()).await;
    assert!(matches!(answer, Err(StoreError::OutcomeUnknown(_))), "{answer:?}");
    // The idle connection is closed after a while, so the next request is never executed.
    let other = conversation.bringing(&second, b"2");
    until("the connection is given up", async || {
        matches!(stage.store.accept(other.clone()).await, Err(StoreError::Unavailable(_)))
    })
    .await;
    server.resume();
    until("the store answers", async || stage.store.ping().await.is_ok()).await;
    assert!(!conversation.accept_with(attempt.clone()).await.unwrap().replayed, "it was this attempt");
    let mut repeated = attempt;
    repeated.attempt = Entropy.attempt_id();
    assert!(conversation.accept_with(repeated).await.unwrap().replayed);
    conversation.accept_with(other).await.unwrap();
    assert_eq!(conversation.results().await, ["1", "2"].map(|body| Some(body.into())));
}

#[tokio::test]
async fn lost_reply_to_a_read_is_unavailable() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port());
    let mut impatient = settings(format!("redis://127.0.0.1:{}/0", proxy.port()), ROOMY);
    impatient.response_timeout = Duration::from_millis(100);
    let stage = Stage::in_redis(impatient, ManualClock::at(START)).await;
    let conversation = stage.conversation().await;
    conversation.inspect().await.unwrap();
    proxy.cut(Cut::Answer, 2);
    let answer = stage.store.inspect(conversation.reference()).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    assert_eq!(proxy.cuts_left(), 0, "it was lost twice");
    proxy.swallow(true);
    let answer = stage.store.read(conversation.reference(), None, 1).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
}

#[tokio::test]
async fn large_page_arrives_over_a_slow_connection() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port());
    let mut impatient = settings(format!("redis://127.0.0.1:{}/0", proxy.port()), ROOMY);
    impatient.response_timeout = Duration::from_millis(300);
    let stage = Stage::in_redis(impatient, ManualClock::at(START)).await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(60_000).await;
    let result = format!("\"{}\"", "x".repeat(1024 * 1024));
    conversation.accept(&item, &result).await.unwrap();
    // A delay for each of at least 64 chunks: nearly a second.
    proxy.delay(15);
    let since = Instant::now();
    let page = stage.store.read(conversation.reference(), None, 1).await.unwrap().unwrap();
    assert!(since.elapsed() > Duration::from_millis(600), "{:?}", since.elapsed());
    assert_eq!(page.envelopes.len(), 1);
}

#[tokio::test]
async fn flushed_scripts_are_loaded_again() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let forget = || redis::cmd("SCRIPT").arg("FLUSH").exec(&mut server.connection(0)).unwrap();
    forget();
    let conversation = stage.conversation().await;
    forget();
    let [first, second, third] = conversation.issue_many(10).await;
    forget();
    conversation.accept(&first, "1").await.unwrap();
    forget();
    conversation.cancel(&second).await.unwrap();
    stage.wait_until(third.deadline);
    forget();
    let due = stage.due(10).await;
    forget();
    assert_eq!(stage.store.expire(due.conversations[0].clone(), None).await.unwrap().timed_out.len(), 1);
    forget();
    conversation.inspect().await.unwrap();
    forget();
    conversation.work_item(&first).await.unwrap();
    forget();
    conversation.end().await.unwrap();
    forget();
    let expected = [(1, Outcome::Succeeded), (2, Outcome::Cancelled), (3, Outcome::TimedOut)];
    assert_eq!(conversation.channel().await, expected);
}

#[tokio::test]
async fn full_redis_is_unavailable_and_changes_nothing() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let mut connection = server.connection(0);
    let mut memory = |limit: &str| {
        redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(limit).exec(&mut connection).unwrap();
    };
    let conversation = stage.conversation().await;
    let [first, second, third] = conversation.issue_many(1_000).await;
    conversation.accept(&second, "2").await.unwrap();
    let overdue = stage.conversation().await;
    let [late, withdrawn, _] = overdue.issue_many(10).await;
    let before = conversation.seen(&[&first, &second, &third]).await;
    memory("1");
    let attempt = conversation.bringing(&first, b"1");
    for _ in 0..2 {
        let answer = stage.store.accept(attempt.clone()).await;
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
        let answer = stage.store.issue(conversation.issuing(1_000)).await;
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
        let answer = stage.store.open(stage.unopened().opening()).await;
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    }
    assert_eq!(conversation.seen(&[&first, &second, &third]).await, before);
    memory("0");
    assert!(!conversation.accept_with(attempt).await.unwrap().replayed, "its token was not spent");
    assert_eq!(conversation.results().await, ["1", "2"].map(|body| Some(body.into())));
    memory("1");
    // Steps that settle items or free memory still work.
    overdue.cancel(&withdrawn).await.unwrap();
    stage.wait_until(late.deadline);
    for of in stage.due(10).await.conversations {
        stage.store.expire(of, None).await.unwrap();
    }
    let expected = [(1, Outcome::TimedOut), (2, Outcome::Cancelled), (3, Outcome::TimedOut)];
    assert_eq!(overdue.channel().await, expected);
    assert_eq!(conversation.end().await.unwrap().dropped_awaiting, 1);
}
