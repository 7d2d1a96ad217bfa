//! `store.wait_replicas`: a write is acknowledged once enough replicas have it.

use std::time::Duration;

use callback_ingress::clock::{Entropy, ManualClock};
use callback_ingress::store::redis::Replicas;
use callback_ingress::store::{Store, StoreError};
use futures_util::future::join_all;
use test_support::redis_commands::ask;
use test_support::redis_server::RedisServer;

use crate::service::{Service, until};
use crate::stage::{ROOMY, START, Stage, settings};

/// A primary with a replica.
pub(crate) async fn pair() -> (RedisServer, RedisServer) {
    let master = RedisServer::with(&["--repl-diskless-sync-delay", "0"]);
    let replica = RedisServer::with(&["--replicaof", "127.0.0.1", &master.port().to_string()]);
    until("the replica follows", async || {
        ask::<String>(&master, &["INFO", "replication"]).contains("state=online")
    })
    .await;
    (master, replica)
}

async fn stage_in(master: &RedisServer, count: u64, timeout_ms: u64) -> Stage {
    let mut settings = settings(master.url(0), ROOMY);
    settings.replicas = Some(Replicas { count, timeout: Duration::from_millis(timeout_ms) });
    Stage::in_redis(settings, ManualClock::at(START)).await
}

fn is_unknown<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> bool {
    match answer {
        Err(error @ StoreError::OutcomeUnknown(_)) => {
            assert!(error.chain().contains("0 of 1 replicas have the write"), "{}", error.chain());
            true
        }
        Ok(_) => false,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nothing_is_acknowledged_without_the_replica() {
    let (master, replica) = pair().await;
    let patient = stage_in(&master, 1, 10_000).await;
    let patient = patient.conversation().await;
    let [first, second, third] = patient.issue_many(1_000).await;
    patient.accept(&first, "1").await.unwrap();
    let stage = stage_in(&master, 1, 100).await;
    let conversation = stage.named(patient.id.clone());
    let before = conversation.bringing(&first, b"1");
    replica.suspend();
    let attempt = conversation.bringing(&second, b"2");
    assert!(is_unknown(stage.store.accept(attempt.clone()).await));
    // The result is stored and may still be lost, so neither a receipt nor a refusal is correct.
    assert_eq!(conversation.results().await, ["1", "2"].map(|body| Some(body.into())));
    for _ in 0..2 {
        assert!(is_unknown(stage.store.accept(attempt.clone()).await));
        let again = conversation.bringing(&second, b"2");
        assert!(is_unknown(stage.store.accept(again).await));
        assert!(is_unknown(stage.store.accept(conversation.bringing(&second, b"another")).await));
        assert!(is_unknown(stage.store.accept(before.clone()).await));
    }
    let withdrawing = conversation.withdrawing(&third);
    assert!(is_unknown(stage.store.cancel(withdrawing.clone()).await));
    assert!(is_unknown(stage.store.issue(conversation.issuing(1_000)).await));
    assert!(is_unknown(stage.store.end(conversation.reference(), None, None).await));
    // Another instance, whose connection has written nothing, must not confirm it either.
    let elsewhere = stage.seen_from_elsewhere().await;
    assert!(is_unknown(elsewhere.store.accept(attempt.clone()).await));
    replica.resume();
    until("the replica confirms", async || !is_unknown(stage.store.accept(attempt.clone()).await)).await;
    assert!(!patient.accept_with(attempt.clone()).await.unwrap().replayed);
    let mut repeated = attempt;
    repeated.attempt = Entropy.attempt_id();
    assert!(patient.accept_with(repeated).await.unwrap().replayed);
    assert_eq!(patient.end().await.unwrap().dropped_awaiting, 1, "the one that was issued meanwhile");
}

#[tokio::test]
async fn acknowledged_results_are_on_the_replica() {
    let (mut master, replica) = pair().await;
    let stage = stage_in(&master, 1, 10_000).await;
    let conversation = stage.conversation().await;
    let items: [_; 100] = conversation.issue_many(1_000).await;
    let conversation = &conversation;
    let taken = items.chunks(20).map(|items| async move {
        for item in items {
            conversation.accept(item, &item.sequence.to_string()).await.unwrap();
        }
    });
    join_all(taken).await;
    // Immediately, with the data that the replica has not received.
    master.kill();
    ask::<()>(&replica, &["REPLICAOF", "NO", "ONE"]);
    let after = Stage::in_redis(settings(replica.url(0), ROOMY), ManualClock::at(START)).await;
    let expected: Vec<_> = (1..=100).map(|number| Some(number.to_string().into())).collect();
    assert_eq!(after.named(conversation.id.clone()).results().await, expected);
}

#[tokio::test]
async fn one_wait_serves_many_callers() {
    let (master, replica) = pair().await;
    let stage = stage_in(&master, 1, 2_000).await;
    let conversation = stage.conversation().await;
    let items: [_; 64] = conversation.issue_many(1_000).await;
    replica.suspend();
    let waiting =
        join_all(items.iter().map(|item| conversation.stage.store.accept(conversation.bringing(item, b"1"))));
    let reading = async {
        // Requests without a wait are answered meanwhile, on both connections.
        until("all are there", async || conversation.read(0, 100).await.unwrap().released == 64).await;
        stage.store.due(&[0], 1).await.unwrap();
        replica.resume();
    };
    let (answers, ()) = tokio::join!(waiting, reading);
    assert!(answers.iter().all(|answer| matches!(answer, Ok(Ok(_)))), "{answers:?}");
    let statistics: String = ask(&master, &["INFO", "commandstats"]);
    let waits = statistics.lines().find_map(|line| line.strip_prefix("cmdstat_wait:calls=")).unwrap();
    let waits: u32 = waits.split(',').next().unwrap().parse().unwrap();
    // One for each setup step, which run in sequence, and one for the permission check.
    assert!((66..66 + 32).contains(&waits), "{waits}");
}

#[tokio::test]
async fn too_few_replicas_cause_a_warning() {
    let (master, _replica) = pair().await;
    let stage = stage_in(&master, 2, 50).await;
    let conversation = stage.unopened();
    let answer = stage.store.end(conversation.reference(), None, None).await;
    assert!(matches!(answer, Err(StoreError::OutcomeUnknown(_))), "{answer:?}");
    let callback_ingress::store::Backend::Redis(store) = stage.store.backend() else { unreachable!() };
    let warnings: Vec<String> = store.new_warnings().await.iter().map(ToString::to_string).collect();
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("wait_replicas is 2, but the number of connected replicas is 1")),
        "{warnings:?}"
    );
    assert_eq!(store.new_warnings().await, [], "each warning is returned once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provider_retry_resolves_an_unknown_outcome() {
    let (master, replica) = pair().await;
    let url = master.url(0);
    let flags =
        [("store.url", url.as_str()), ("store.wait_replicas", "1"), ("store.wait_timeout_ms", "1000")];
    let service = Service::start(&flags).await;
    let conversation = service.open().await;
    let item = service.tool(&conversation).await;
    replica.suspend();
    for _ in 0..3 {
        let reply = service.callback(&item.token, "1").send().await;
        assert_eq!(reply.verdict(), (503, "OUTCOME_UNKNOWN".to_owned()));
    }
    replica.resume();
    until("it is told", async || service.callback(&item.token, "1").send().await.status != 503).await;
    let reply = service.callback(&item.token, "1").send().await;
    assert_eq!((reply.verdict(), &reply.json()["replayed"]), ((200, "delivered".to_owned()), &true.into()));
}
