//! A cluster: keys on several nodes, migrating slots, failing nodes.

use std::time::Duration;

use callback_ingress::clock::ManualClock;
use callback_ingress::domain::work_item::{Outcome, WorkItem};
use callback_ingress::store::redis::Replicas;
use callback_ingress::store::{CLAIM_MS, Store, StoreError};
use futures_util::future::join_all;
use test_support::redis_cluster::RedisCluster;
use test_support::redis_commands::ask;
use test_support::redis_server::RedisServer;
use tokio::task::block_in_place;
use tokio::time::{Instant, timeout};

use super::admission::{refusal, verify};
use super::faults::deliver;
use crate::conversation::Conversation;
use crate::service::until;
use crate::stage::{Backend, ROOMY, START, Stage, settings};

/// A stage on this cluster.
async fn stage_in(cluster: &RedisCluster, replicas: Option<Replicas>) -> Stage {
    let mut settings = settings(cluster.url(), ROOMY);
    settings.replicas = replicas;
    Stage::in_redis(settings, ManualClock::at(START)).await
}

/// The hash slot of a conversation's keys, as Redis computes it.
fn slot(cluster: &RedisCluster, conversation: &Conversation<'_>) -> u16 {
    let tag = format!("cb:{}", conversation.reference().partition(64));
    ask(cluster.masters().next().unwrap(), &["CLUSTER", "KEYSLOT", &tag])
}

/// Open conversations in at least this many different slots.
async fn conversations(stage: &Stage, count: usize) -> Vec<Conversation<'_>> {
    join_all((0..count).map(|_| stage.conversation())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_are_spread_over_the_nodes() {
    let stage = Backend::Cluster.alone(ROOMY).await;
    for conversation in conversations(&stage, 90).await {
        let item = conversation.issue(1_000).await;
        conversation.accept(&item, "1").await.unwrap();
    }
    let counts: Vec<u64> = RedisCluster::shared().masters().map(|master| ask(master, &["DBSIZE"])).collect();
    assert_eq!(counts.len(), 3);
    // Three keys for each of 90 conversations; timers and totals of their partitions; the layout key.
    let (least, most) = (3 * 90 + 1, 3 * 90 + 2 * 64 + 1);
    assert!((least..=most).contains(&counts.iter().sum::<u64>()), "{counts:?}");
    assert!(counts.iter().all(|&count| count > least / 10), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn due_timers_of_all_nodes_are_found() {
    let stage = Backend::Cluster.alone(ROOMY).await;
    let conversations = conversations(&stage, 90).await;
    let items = join_all(conversations.iter().map(|conversation| conversation.issue(10))).await;
    stage.wait_until(items[0].deadline);
    let due = stage.due(100).await;
    assert_eq!(due.conversations.len(), 90);
    for of in due.conversations {
        assert_eq!(stage.store.expire(of, None).await.unwrap().timed_out.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn url_scheme_must_match_the_server() {
    let cluster = block_in_place(RedisCluster::shared);
    let node = cluster.masters().next().unwrap();
    let why = refusal(verify(&settings(node.url(0), ROOMY)).await);
    assert!(why.contains("is a cluster node: use redis+cluster://"), "{why}");
    let alone = RedisServer::start();
    let url = format!("redis+cluster://127.0.0.1:{}", alone.port());
    let why = refusal(verify(&settings(url, ROOMY)).await);
    assert!(why.contains("is not a cluster node: use redis://"), "{why}");
}

#[test]
fn hash_slot_matches_redis() {
    let cluster = RedisCluster::shared();
    let slot: u16 = ask(cluster.masters().next().unwrap(), &["CLUSTER", "KEYSLOT", "{cb:17}:items:x"]);
    assert_ne!(cluster.owner(slot), cluster.owner((slot + 8_192) % 16_384));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_move_with_their_slot() {
    let cluster = block_in_place(|| RedisCluster::start(30_000));
    let stage = stage_in(&cluster, None).await;
    let conversation = stage.conversation().await;
    let [first, second, third] = conversation.issue_many(1_000).await;
    conversation.accept(&first, "1").await.unwrap();
    conversation.accept(&third, "3").await.unwrap();
    let before = conversation.seen(&[&first, &second, &third]).await;
    let slot = slot(&cluster, &conversation);
    let attempt = conversation.bringing(&second, b"2");
    let to = (cluster.owner(slot) + 1) % 3;
    cluster.migrate(slot, to);
    // The target node has all keys and answers with ASK.
    assert_eq!(conversation.seen(&[&first, &second, &third]).await, before);
    // This step would create a key in a migrating slot: Redis rejects all of it.
    let answer = stage.store.accept(attempt.clone()).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    assert_eq!(conversation.seen(&[&first, &second, &third]).await, before);
    cluster.give(slot, to);
    assert!(!conversation.accept_with(attempt).await.unwrap().replayed, "its token was not spent");
    assert_eq!(conversation.results().await, ["1", "2", "3"].map(|body| Some(body.into())));
    // Another client, whose slot map is outdated.
    let elsewhere = stage.seen_from_elsewhere().await;
    assert_eq!(elsewhere.named(conversation.id.clone()).results().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_killed_under_load_loses_nothing() {
    let mut cluster = block_in_place(|| RedisCluster::start(1_000));
    let replicas = Replicas { count: 1, timeout: Duration::from_secs(5) };
    let stage = stage_in(&cluster, Some(replicas)).await;
    let conversations = conversations(&stage, 30).await;
    let slots: Vec<u16> = conversations.iter().map(|conversation| slot(&cluster, conversation)).collect();
    let victim = cluster.owner(slots[0]);
    let (here, there): (Vec<usize>, Vec<usize>) =
        (0..30).partition(|&number| cluster.owner(slots[number]) == victim);
    assert!(!there.is_empty());
    let items: Vec<[WorkItem; 20]> =
        join_all(conversations.iter().map(|conversation| conversation.issue_many(60_000))).await;
    let mut wake = stage.store.watch(conversations[there[0]].reference());
    let killed = async {
        // Some results are acknowledged by then.
        until("results are released", async || {
            conversations[here[0]].read(0, 100).await.unwrap().released >= 3
        })
        .await;
        block_in_place(|| cluster.node(victim).kill());
        // Conversations on the other nodes continue during the failover.
        let other = &conversations[there[0]];
        let item = other.issue(60_000).await;
        deliver(other, &item, "21").await;
        block_in_place(|| {
            cluster.wait_for_another_owner(slots[0], victim);
            // Nothing is acknowledged until there is a replica again.
            cluster.node(victim).restart();
        });
    };
    let load = join_all(conversations.iter().zip(&items).map(async |(conversation, items)| {
        for item in items {
            deliver(conversation, item, &item.sequence.to_string()).await;
        }
    }));
    tokio::join!(load, killed);
    for (number, conversation) in conversations.iter().enumerate() {
        let extra = usize::from(number == there[0]);
        let expected: Vec<_> = (1..=20 + extra).map(|n| Some(n.to_string().into())).collect();
        until("the store reads", async || stage.store.inspect(conversation.reference()).await.is_ok()).await;
        assert_eq!(conversation.results().await, expected);
    }
    // The listener may have been connected to any node.
    timeout(Duration::from_secs(30), wake.changed()).await.unwrap();
    let other = &conversations[there[0]];
    let item = other.issue(60_000).await;
    deliver(other, &item, "22").await;
    timeout(Duration::from_secs(30), async {
        while other.read(0, 100).await.unwrap().released < 22 {
            wake.changed().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(other.channel().await.last(), Some(&(22, Outcome::Succeeded)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promoted_node_is_used_within_2_s() {
    let mut cluster = block_in_place(|| RedisCluster::start(1_000));
    let stage = stage_in(&cluster, None).await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(60_000).await;
    let slot = slot(&cluster, &conversation);
    let victim = cluster.owner(slot);
    block_in_place(|| cluster.node(victim).kill());
    let attempt = conversation.bringing(&item, b"1");
    let answer = stage.store.accept(attempt.clone()).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_))), "{answer:?}");
    block_in_place(|| cluster.wait_for_another_owner(slot, victim));
    let since = Instant::now();
    until("the new owner is used", async || stage.store.accept(attempt.clone()).await.is_ok()).await;
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_node_is_replaced_by_its_replica() {
    let mut cluster = block_in_place(|| RedisCluster::start(1_000));
    let mut impatient = settings(cluster.url(), ROOMY);
    impatient.connect_timeout = Duration::from_secs(1);
    impatient.response_timeout = Duration::from_secs(1);
    let clock = ManualClock::at(START);
    let taking = Stage::in_redis(impatient.clone(), clock.clone()).await;
    // Separate connections, so that each store detects the failure itself.
    let sweeping = taking.seen_from_elsewhere().await;
    // The replica is promoted without the data that it has not received.
    impatient.replicas = Some(Replicas { count: 1, timeout: Duration::from_secs(5) });
    let issuing = Stage::in_redis(impatient, clock).await;
    let conversations = conversations(&issuing, 20).await;
    let on_the_second = |conversation: &&Conversation<'_>| cluster.owner(slot(&cluster, conversation)) == 1;
    let mut there = conversations.iter().filter(on_the_second);
    let (conversation, other) = (there.next().unwrap(), there.next().unwrap());
    let slot = slot(&cluster, conversation);
    let item = conversation.issue(60_000).await;
    issuing.wait_until(other.issue(10).await.deadline);
    let partitions: Vec<u16> = (0..64).collect();
    let due =
        async || sweeping.store.due(&partitions, 10).await.is_ok_and(|due| due.conversations.len() == 1);
    assert!(due().await);
    block_in_place(|| {
        cluster.node(1).suspend();
        cluster.wait_for_another_owner(slot, 1);
    });
    let since = Instant::now();
    let attempt = conversation.bringing(&item, b"1");
    until("the callback is taken", async || taking.store.accept(attempt.clone()).await.is_ok()).await;
    // One request waits for a reply that never comes.
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    let since = Instant::now();
    sweeping.clock.advance(CLAIM_MS);
    until("what is due is found", due).await;
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unavailable_node_does_not_delay_timers_of_others() {
    let mut cluster = block_in_place(|| RedisCluster::start(30_000));
    let mut impatient = settings(cluster.url(), ROOMY);
    impatient.connect_timeout = Duration::from_secs(1);
    impatient.response_timeout = Duration::from_secs(1);
    let stage = Stage::in_redis(impatient, ManualClock::at(START)).await;
    let conversations = conversations(&stage, 30).await;
    let items = join_all(conversations.iter().map(|conversation| conversation.issue(10))).await;
    stage.wait_until(items[0].deadline);
    let slots: Vec<u16> = conversations.iter().map(|conversation| slot(&cluster, conversation)).collect();
    let victim = cluster.owner(slots[0]);
    let there = slots.iter().filter(|&&slot| cluster.owner(slot) != victim).count();
    assert!((1..30).contains(&there));
    // Unreachable for this store, not yet failed for the cluster.
    block_in_place(|| cluster.node(victim).suspend());
    // What waits on the other nodes is listed.
    let listed = stage.store.waiting(100).await.unwrap();
    assert_eq!((listed.conversations.len(), listed.truncated), (0, true));
    for _ in 0..5 {
        let since = Instant::now();
        assert_eq!(stage.due(100).await.conversations.len(), there);
        stage.clock.advance(CLAIM_MS);
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    }
    stage.store.ping().await.unwrap();
    // No totals without all of their parts.
    let totals = stage.store.totals(&stage.partitions()).await;
    assert!(totals.is_err(), "{totals:?}");
    block_in_place(|| cluster.node(victim).resume());
    until("all are found", async || {
        stage.clock.advance(CLAIM_MS);
        stage.due(100).await.conversations.len() == 30
    })
    .await;
    assert_eq!(stage.totals().await.awaiting, 30);
    // The service stays healthy while one node accepts callbacks.
    let full = |node: &RedisServer| ask::<()>(node, &["CONFIG", "SET", "maxmemory", "1"]);
    cluster.masters().skip(1).for_each(full);
    stage.store.ping().await.unwrap();
    cluster.masters().take(1).for_each(full);
    let answer = stage.store.ping().await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
}
