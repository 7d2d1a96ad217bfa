//! Commands that Redis rejects: either nothing was executed and no token is spent, or the partial execution is reported.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use callback_ingress::clock::ManualClock;
use callback_ingress::domain::gate::Accept;
use callback_ingress::domain::work_item::Outcome;
use callback_ingress::store::{Store, StoreError};
use test_support::fake_redis;
use test_support::redis_commands::{ask, words};
use test_support::redis_server::RedisServer;

use super::admission::{refusal, verify};
use super::stage_in;
use crate::conversation::Conversation;
use crate::service::until;
use crate::stage::{ROOMY, START, Stage, settings};

/// A conversation with a held result, and an attempt to accept the result before it.
async fn setting(stage: &Stage) -> (Conversation<'_>, Accept) {
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    conversation.accept(&second, "2").await.unwrap();
    let attempt = conversation.bringing(&first, b"1");
    (conversation, attempt)
}

/// The attempt fails as unavailable and changes nothing.
async fn is_refused(stage: &Stage, attempt: &Accept, word: &str) {
    for _ in 0..2 {
        match stage.store.accept(attempt.clone()).await {
            Err(error @ StoreError::Unavailable(_)) => {
                assert!(error.chain().contains(word), "{}", error.chain());
            }
            other => panic!("{word}: {other:?}"),
        }
    }
}

/// The attempt succeeds as the first, and both results are on the channel.
async fn is_taken(conversation: &Conversation<'_>, attempt: Accept) {
    assert!(!conversation.accept_with(attempt).await.unwrap().replayed, "its token was not spent");
    assert_eq!(conversation.results().await, ["1", "2"].map(|body| Some(body.into())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_redis_spends_no_token() {
    let server = RedisServer::with(&["--lua-time-limit", "20"]);
    let stage = stage_in(&server).await;
    let (conversation, attempt) = setting(&stage).await;
    let mut connection = server.connection(0);
    let long =
        thread::spawn(move || words(&["EVAL", "while true do end", "0"]).exec(&mut connection).is_err());
    let mut other = server.connection(0);
    until("it is busy", async || words(&["PING"]).exec(&mut other).is_err()).await;
    is_refused(&stage, &attempt, "BUSY").await;
    words(&["SCRIPT", "KILL"]).exec(&mut other).unwrap();
    assert!(long.join().unwrap());
    is_taken(&conversation, attempt).await;
}

#[tokio::test]
async fn redis_that_cannot_save_spends_no_token() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let (conversation, attempt) = setting(&stage).await;
    // Saving a snapshot fails, because a directory has its name.
    let (_, directory): (String, String) = ask(&server, &["CONFIG", "GET", "dir"]);
    let in_the_way = format!("{directory}/dump.rdb/x");
    fs::create_dir_all(&in_the_way).unwrap();
    ask::<()>(&server, &["CONFIG", "SET", "save", "3600 1"]);
    ask::<()>(&server, &["BGSAVE"]);
    until("saving fails", async || {
        ask::<String>(&server, &["INFO", "persistence"]).contains("rdb_last_bgsave_status:err")
    })
    .await;
    is_refused(&stage, &attempt, "MISCONF").await;
    ask::<()>(&server, &["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]);
    is_taken(&conversation, attempt).await;
}

#[tokio::test]
async fn replica_spends_no_token() {
    let (server, master) = (RedisServer::start(), RedisServer::start());
    let stage = stage_in(&server).await;
    let (conversation, attempt) = setting(&stage).await;
    let follow = |port: u16| ask::<()>(&server, &["REPLICAOF", "127.0.0.1", &port.to_string()]);
    // Without a primary, the replica keeps its data and rejects writes.
    follow(1);
    is_refused(&stage, &attempt, "ReadOnly").await;
    ask::<()>(&server, &["CONFIG", "SET", "replica-serve-stale-data", "no"]);
    is_refused(&stage, &attempt, "MasterDown").await;
    ask::<()>(&server, &["REPLICAOF", "NO", "ONE"]);
    is_taken(&conversation, attempt).await;
    drop(master);
}

#[tokio::test]
async fn redis_without_enough_replicas_spends_no_token() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let (conversation, attempt) = setting(&stage).await;
    ask::<()>(&server, &["CONFIG", "SET", "min-replicas-to-write", "1"]);
    is_refused(&stage, &attempt, "NOREPLICAS").await;
    ask::<()>(&server, &["CONFIG", "SET", "min-replicas-to-write", "0"]);
    is_taken(&conversation, attempt).await;
}

/// A server that passes the checks and rejects every other script with this error.
fn refusing(reply: &'static str) -> (u16, Arc<AtomicUsize>) {
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let port = fake_redis::serve(move |question| {
        if let Some(answer) = fake_redis::greeting("7.0.0", question) {
            return answer;
        }
        match question[0].as_str() {
            "SET" | "PEXPIRE" | "SCRIPT" => "+OK\r\n".to_owned(),
            "GET" => "$23\r\nversion=5 partitions=64\r\n".to_owned(),
            // The probe is the only script with one argument after its one key.
            "EVALSHA" if question.len() == 5 => "*0\r\n".to_owned(),
            _ => {
                count.fetch_add(1, Ordering::SeqCst);
                format!("-{reply}\r\n")
            }
        }
    });
    (port, refused)
}

#[tokio::test]
async fn rejected_command_is_not_executed() {
    for reply in [
        "LOADING Redis is loading the dataset in memory",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "MOVED 1 127.0.0.1:1",
        "ASK 1 127.0.0.1:1",
        "BUSY Redis is busy running a script",
        "NOPERM this user has no permissions to run the 'evalsha' command",
        "NOAUTH Authentication required.",
    ] {
        let (port, refused) = refusing(reply);
        let url = format!("redis://127.0.0.1:{port}");
        let stage = Stage::in_redis(settings(url, ROOMY), ManualClock::at(START)).await;
        let answer = stage.store.end(stage.unopened().reference(), None, None).await;
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{reply}: {answer:?}");
        assert_eq!(refused.load(Ordering::SeqCst), 1, "{reply}: asked once");
    }
}

#[tokio::test]
async fn missing_permission_is_named_before_use() {
    let server = RedisServer::start();
    let verdict = async |rules: &[&str]| {
        let all = [
            "ACL",
            "SETUSER",
            "ingress",
            "reset",
            "on",
            ">word",
            "~{cb:*",
            "~cb:layout",
            "&{cb:*",
            "+@all",
            "-@admin",
        ];
        ask::<()>(&server, &[&all[..], rules].concat());
        verify(&settings(server.url(0).replace("://", "://ingress:word@"), ROOMY)).await
    };
    verdict(&[]).await.unwrap();
    // Without notifications, readers poll.
    verdict(&["-publish"]).await.unwrap();
    verdict(&["resetchannels"]).await.unwrap();
    for command in [
        "hset", "hget", "hmget", "hdel", "zadd", "zrem", "zrange", "zcard", "xadd", "xrange", "hincrby",
        "set", "get", "unlink", "pexpire", "time", "evalsha", "script", "info",
    ] {
        let why = refusal(verdict(&[&format!("-{command}")]).await);
        assert!(why.to_lowercase().contains(command), "without {command}: {why}");
    }
    let why = refusal(verdict(&["-xadd", "-hset"]).await);
    assert!(why.contains("HSET") && why.contains("XADD") && why.contains("halfway"), "{why}");
    let why = refusal(verdict(&["resetkeys", "~cb:layout"]).await);
    assert!(why.contains("key"), "{why}");
    assert_eq!(ask::<Vec<String>>(&server, &["KEYS", "*probe*"]), [""; 0], "nothing is left behind");
}

#[tokio::test]
async fn permission_error_inside_a_script_is_not_a_rejection() {
    let server = RedisServer::start();
    let url = server.url(0).replace("://", "://ingress:word@");
    let rules = ["ACL", "SETUSER", "ingress", "on", ">word", "~*", "&*", "+@all"];
    ask::<()>(&server, &rules);
    let stage = Stage::in_redis(settings(url.clone(), ROOMY), ManualClock::at(START)).await;
    let (_, attempt) = setting(&stage).await;
    ask::<()>(&server, &["ACL", "SETUSER", "ingress", "-xadd"]);
    let answer = stage.store.accept(attempt.clone()).await;
    assert!(matches!(answer, Err(StoreError::Broken(_))), "{answer:?}");
    assert!(refusal(verify(&settings(url, ROOMY)).await).contains("XADD"));
}

#[tokio::test]
async fn corrupt_key_failure_is_completed_by_a_retry() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    for what in ["conversation", "channel", "timers", "held", "totals", "waiting", "used"] {
        let conversation = stage.conversation().await;
        let [first, second, third] = conversation.issue_many(1_000).await;
        let partition = format!("{{cb:{}}}", conversation.reference().partition(64));
        let key = match what {
            "timers" | "totals" | "waiting" => format!("{partition}:{what}"),
            "used" => format!("{partition}:used:{}:{}", conversation.reference(), second.id),
            other => format!("{partition}:{other}:{}", conversation.reference()),
        };
        let mut connection = server.connection(0);
        let there: bool = words(&["EXISTS", &key]).query(&mut connection).unwrap();
        assert_eq!(there, matches!(what, "conversation" | "timers" | "totals"), "{key}");
        let kept = format!("{partition}:kept");
        if there {
            words(&["RENAME", &key, &kept]).exec(&mut connection).unwrap();
        }
        // A list, which is the wrong type for each key.
        words(&["RPUSH", &key, "spoilt"]).exec(&mut connection).unwrap();
        let accepts = [conversation.bringing(&second, b"2"), conversation.bringing(&first, b"1")];
        let cancel = conversation.withdrawing(&third);
        let mut failed = 0;
        for accept in &accepts {
            match stage.store.accept(accept.clone()).await {
                Ok(taken) => drop(taken.unwrap()),
                Err(StoreError::Broken(_)) => failed += 1,
                Err(other) => panic!("{what}: {other}"),
            }
        }
        match stage.store.cancel(cancel.clone()).await {
            Ok(cancelled) => drop(cancelled.unwrap()),
            Err(StoreError::Broken(_)) => failed += 1,
            Err(other) => panic!("{what}: {other}"),
        }
        assert!(failed > 0 || matches!(what, "timers" | "waiting"), "{what}: it is used by one of them");
        if matches!(what, "conversation" | "timers") {
            let answer = stage.store.issue(conversation.issuing(1_000)).await;
            assert!(matches!(answer, Err(StoreError::Broken(_))), "{what}: {answer:?}");
            let answer = stage.store.end(conversation.reference(), None, None).await;
            assert!(matches!(answer, Err(StoreError::Broken(_))), "{what}: {answer:?}");
        }
        words(&["DEL", &key]).exec(&mut connection).unwrap();
        if there {
            words(&["RENAME", &kept, &key]).exec(&mut connection).unwrap();
        }
        for accept in accepts {
            assert!(!conversation.accept_with(accept).await.unwrap().replayed, "{what}");
        }
        stage.store.cancel(cancel).await.unwrap().unwrap();
        let expected = [(1, Outcome::Succeeded), (2, Outcome::Succeeded), (3, Outcome::Cancelled)];
        assert_eq!(conversation.channel().await, expected, "{what}");
        assert_eq!(conversation.results().await, [Some("1".into()), Some("2".into()), None], "{what}");
    }
}
