//! The index of waiting conversations in Redis: its cost, its reads, and foreign entries.

use std::collections::BTreeMap;

use callback_ingress::clock::ManualClock;
use callback_ingress::store::Store;
use futures_util::{StreamExt, stream};
use redis::Connection;
use test_support::redis_server::RedisServer;

use super::bounded::{SlowLog, is_short};
use super::stage_in;
use crate::conversation::Conversation;
use crate::stage::{ROOMY, START, Stage, settings};

/// The commands that a step runs in Redis, those of scripts included, and how often.
async fn commands(connection: &mut Connection, step: impl Future) -> BTreeMap<String, usize> {
    redis::cmd("CONFIG").arg("RESETSTAT").exec(connection).unwrap();
    step.await;
    let statistics: String = redis::cmd("INFO").arg("commandstats").query(connection).unwrap();
    let count = |line: &str| {
        let (name, rest) = line.trim().strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
    };
    let mut counts: BTreeMap<String, usize> = statistics.lines().filter_map(count).collect();
    counts.retain(|name, _| !name.starts_with("config") && name != "info");
    counts
}

fn counts<const N: usize>(expected: [(&str, usize); N]) -> BTreeMap<String, usize> {
    expected.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

#[tokio::test]
async fn callback_in_order_runs_no_command_on_the_index() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let mut connection = server.connection(0);
    let conversation = stage.conversation().await;
    let [first, second, third, fourth, fifth, sixth, _] = conversation.issue_many(1_000).await;
    let mut accept = async |item| commands(&mut connection, conversation.accept(item, "1")).await;
    // Loads the script, and sets the expiry of the new stream.
    accept(&first).await;
    let in_order = counts([
        ("evalsha", 1),
        ("hmget", 1),
        ("hset", 1),
        ("publish", 1),
        ("set", 1),
        ("xadd", 1),
        ("zrem", 1),
    ]);
    assert_eq!(accept(&second).await, in_order);
    // A callback that becomes held has no envelope, and is stored.
    let held = |index: usize, pexpire: usize| {
        let mut expected =
            counts([("evalsha", 1), ("hincrby", 2), ("hmget", 1), ("hset", 2), ("set", 1), ("zrem", 1)]);
        expected.extend(counts([("pexpire", pexpire), ("zadd", index)]));
        expected.retain(|_, count| *count > 0);
        expected
    };
    assert_eq!(accept(&fourth).await, held(1, 2), "the first that is held enters the conversation");
    assert_eq!(accept(&sixth).await, held(0, 0), "a later one changes nothing");
    let third = accept(&third).await;
    assert_eq!((third["hmget"], third.get("zadd"), third["zrem"]), (3, Some(&1), 1), "{third:?}");
    let fifth = accept(&fifth).await;
    assert_eq!((fifth.get("zadd"), fifth["zrem"]), (None, 2), "nothing is held any more: {fifth:?}");
    let last = conversation.issue(1_000).await;
    assert_eq!(accept(&last).await.get("zadd"), Some(&1));
}

/// Opens a conversation and holds a result in it.
async fn wait(conversation: &Conversation<'_>) {
    conversation.open(|_| ()).await.unwrap();
    let [_, second] = conversation.issue_many(100_000).await;
    conversation.accept(&second, "1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oldest_of_many_partitions_are_found_with_short_scripts() {
    for partitions in [1, 64, 16_384] {
        let server = RedisServer::start();
        let mut settings = settings(server.url(0), ROOMY);
        settings.partitions = partitions;
        let stage = Stage::in_redis(settings, ManualClock::at(START)).await;
        let mut expected = Vec::new();
        for _ in 0..30 {
            let ten: Vec<_> = (0..10).map(|_| stage.unopened()).collect();
            stream::iter(&ten).for_each_concurrent(None, wait).await;
            let mut references: Vec<_> = ten.iter().map(Conversation::reference).collect();
            references.sort_unstable();
            expected.extend(references);
            stage.clock.advance(1);
        }
        for limit in [1, 20, 100] {
            let listed = stage.store.waiting(limit).await.unwrap();
            let references: Vec<_> =
                listed.conversations.iter().map(|waiting| waiting.conversation_id.reference()).collect();
            assert_eq!(references, expected[..limit], "{partitions}, {limit}");
            assert!(listed.truncated);
        }
        let mut connection = server.connection(0);
        let calls = commands(&mut connection, stage.store.waiting(100)).await["evalsha"];
        // First the oldest of each partition, then 116 of at most 116 partitions, 17 of them in a call.
        let groups = usize::from(partitions).div_ceil(64);
        assert!(calls <= groups + 7 + 116, "{calls} calls for {partitions} partitions");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_index_is_read_in_short_scripts() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let mut connection = server.connection(0);
    for partition in 0..64_u32 {
        let mut add = redis::cmd("ZADD");
        add.arg(format!("{{cb:{partition}}}:waiting"));
        for number in 0..1_000_u32 {
            // A conversation of this partition, which does not exist.
            add.arg(number).arg(format!("{:08x}{number:024x}", partition + 64 * number));
        }
        add.exec(&mut connection).unwrap();
    }
    let mut slow_log = SlowLog::of(&server);
    is_short("listing", async || {
        let listed = stage.store.waiting(100).await.unwrap();
        assert_eq!((listed.conversations.len(), listed.truncated), (0, true), "it gives up");
        slow_log.take()
    })
    .await;
}

#[tokio::test]
async fn many_overdue_items_do_not_hide_who_waits() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    for _ in 0..17 {
        let overdue = stage.conversation().await;
        overdue.issue(100).await;
        let held = overdue.issue(1_000).await;
        overdue.accept(&held, "1").await.unwrap();
    }
    stage.clock.advance(100);
    wait(&stage.unopened()).await;
    assert!(stage.store.waiting(1).await.unwrap().truncated, "there can be more");
    let listed = stage.store.waiting(2).await.unwrap();
    assert_eq!((listed.conversations.len(), listed.truncated), (1, true));
    let listed = stage.store.waiting(3).await.unwrap();
    assert_eq!((listed.conversations.len(), listed.truncated), (1, false));
}

#[tokio::test]
async fn entry_of_a_lost_conversation_is_removed() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let (lost, other) = (stage.unopened(), stage.unopened());
    wait(&lost).await;
    stage.clock.advance(1);
    wait(&other).await;
    let mut connection = server.connection(0);
    let partition = format!("{{cb:{}}}", lost.reference().partition(64));
    let key = format!("{partition}:conversation:{}", lost.reference());
    redis::cmd("DEL").arg(key).exec(&mut connection).unwrap();
    let listed = stage.store.waiting(10).await.unwrap();
    let [only] = &listed.conversations[..] else { panic!("{listed:?}") };
    assert_eq!(only.conversation_id, other.id);
    let index = format!("{partition}:waiting");
    let score: Option<f64> =
        redis::cmd("ZSCORE").arg(index).arg(lost.reference().to_string()).query(&mut connection).unwrap();
    assert_eq!(score, None);
}

#[tokio::test]
async fn damaged_index_hides_no_other_partition() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let conversation = stage.unopened();
    wait(&conversation).await;
    let partition = conversation.reference().partition(64);
    let [damaged, odd] = [1, 2].map(|other| format!("{{cb:{}}}:waiting", (partition + other) % 64));
    let mut connection = server.connection(0);
    redis::cmd("SET").arg(damaged).arg("x").exec(&mut connection).unwrap();
    redis::cmd("ZADD").arg(odd).arg(1).arg("no conversation").exec(&mut connection).unwrap();
    let listed = stage.store.waiting(10).await.unwrap();
    assert_eq!(listed.conversations.len(), 1);
    assert!(!listed.truncated);
}
