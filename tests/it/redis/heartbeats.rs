//! The cost of heartbeats: few commands, no timer, no growth, and no cost for callbacks.

use std::collections::BTreeMap;
use std::time::Duration;

use ::redis::cmd;
use callback_ingress::domain::gate::Issue;
use callback_ingress::domain::progress::Progress;
use callback_ingress::domain::work_item::State;
use futures_util::{StreamExt, stream};
use serde_json::json;
use test_support::redis_server::RedisServer;
use tokio::time::{Instant, sleep};

use super::stage_in;
use crate::conversation::Conversation;
use crate::service::{CALLBACKS, Service, millis};

/// Calls of each command since the last time.
fn calls(connection: &mut redis::Connection) -> BTreeMap<String, u64> {
    let stats: String = cmd("INFO").arg("commandstats").query(connection).unwrap();
    cmd("CONFIG").arg("RESETSTAT").exec(connection).unwrap();
    let count = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split_once(',')?.0.parse().ok()?))
    };
    let own = ["info", "config|resetstat", "script|load", "zrange"];
    stats.lines().filter_map(count).filter(|(name, _)| !own.contains(&name.as_str())).collect()
}

fn watched(conversation: &Conversation<'_>) -> Issue {
    Issue { heartbeat_timeout_ms: Some(500), ..conversation.issuing(1_000) }
}

#[tokio::test]
async fn heartbeat_takes_four_commands_and_a_callback_none_more() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let mut connection = server.connection(0);
    let conversation = stage.conversation().await;
    let [plain, beaten] = conversation.issue_many(1_000).await;
    let item = conversation.issue_with(watched(&conversation)).await.unwrap().item;
    let warm = conversation.issue(1_000).await;
    // Loads the scripts.
    conversation.heartbeat(&warm, None).await.unwrap();
    let other = stage.conversation().await;
    let first = other.issue(1_000).await;
    other.accept(&first, "1").await.unwrap();
    let counts = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
    stage.clock.advance(10);
    calls(&mut connection);
    conversation.heartbeat(&item, None).await.unwrap();
    let four: BTreeMap<String, u64> = counts(&[("evalsha", 1), ("hmget", 1), ("hset", 1), ("pexpire", 1)]);
    assert_eq!(calls(&mut connection), four);
    conversation.heartbeat(&item, None).await.unwrap();
    assert_eq!(calls(&mut connection), counts(&[("evalsha", 1), ("hmget", 1)]), "in the same millisecond");
    stage.clock.advance(1);
    let progress = Progress::new(Some("half"), None).unwrap();
    conversation.heartbeat(&item, progress).await.unwrap();
    assert_eq!(calls(&mut connection), four.into_iter().chain([("publish".to_owned(), 1)]).collect());
    conversation.heartbeat(&beaten, None).await.unwrap();
    calls(&mut connection);
    let mut costs = Vec::new();
    for item in [&plain, &beaten, &item] {
        conversation.accept(item, "1").await.unwrap();
        costs.push(calls(&mut connection));
    }
    // The first one on a channel also sets the channel's TTL.
    let ttl = costs[0].remove("pexpire");
    assert_eq!((ttl, &costs[0], &costs[0]), (Some(1), &costs[1], &costs[2]));
}

#[tokio::test]
async fn full_redis_accepts_heartbeats() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let conversation = stage.conversation().await;
    let [plain, watched] = [conversation.issue(1_000).await, {
        conversation.issue_with(watched(&conversation)).await.unwrap().item
    }];
    cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).exec(&mut server.connection(0)).unwrap();
    for advance in [400, 400] {
        stage.clock.advance(advance);
        for item in [&plain, &watched] {
            let receipt = conversation.heartbeat(item, None).await.unwrap();
            assert_eq!(receipt.item.state, State::Awaiting);
            assert_eq!(receipt.item.last_heartbeat_at, Some(stage.clock.now()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_heartbeats_of_one_item_do_not_affect_others() {
    let server = RedisServer::start();
    let mut connection = server.connection(0);
    let stage = stage_in(&server).await;
    let conversation = stage.conversation().await;
    let issue = Issue { heartbeat_timeout_ms: Some(60_000), ..conversation.issuing(60_000) };
    let item = conversation.issue_with(issue).await.unwrap().item;
    conversation.heartbeat(&item, None).await.unwrap();
    let size = |connection: &mut redis::Connection| {
        let key = format!("*:conversation:{}", conversation.reference());
        let keys: Vec<String> = cmd("KEYS").arg(key).query(connection).unwrap();
        cmd("MEMORY").arg("USAGE").arg(&keys[0]).query::<u64>(connection).unwrap()
    };
    let timer = |connection: &mut redis::Connection| {
        let key = format!("{{cb:{}}}:timers", conversation.reference().partition(64));
        cmd("ZSCORE")
            .arg(key)
            .arg(format!("{}:1", conversation.reference()))
            .query::<u64>(connection)
            .unwrap()
    };
    let (before, set_for) = (size(&mut connection), timer(&mut connection));
    let progress =
        Progress::new(Some(&"x".repeat(1_000)), Some(&format!("\"{}\"", "x".repeat(4_000)))).unwrap();
    let beats = stream::iter(0..10_000_u32).map(|number| {
        if number % 10 == 0 {
            stage.clock.advance(1);
        }
        conversation.heartbeat(&item, progress.clone())
    });
    let beats = beats.buffer_unordered(64).for_each(|beat| async move { assert!(beat.is_ok()) });
    let others = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let began = Instant::now();
            let other = stage.conversation().await;
            let item = other.issue(60_000).await;
            other.accept(&item, "1").await.unwrap();
            slowest = slowest.max(began.elapsed());
        }
        slowest
    };
    let ((), slowest) = tokio::join!(beats, others);
    assert!(slowest < Duration::from_secs(10), "{slowest:?} for opening, issuing and a callback");
    assert!(size(&mut connection) <= before + 64, "a heartbeat replaces the one before");
    assert_eq!(timer(&mut connection), set_for, "its timer was left alone");
    let stats: String = cmd("INFO").arg("commandstats").query(&mut connection).unwrap();
    let calls = stats.split("cmdstat_evalsha:").nth(1).unwrap();
    let micros = calls.split("usec_per_call=").nth(1).unwrap().split([',', '\r']).next().unwrap();
    assert!(micros.parse::<f64>().unwrap() < 1_000.0, "{micros} µs for each call");
}

/// Time from the timeout of the first item to its release, in milliseconds.
async fn lateness(service: &Service, conversation: &str) -> u64 {
    let envelope = service.events(conversation, "?from=0").await.next().await.unwrap().envelope();
    assert_eq!((&envelope["outcome"], &envelope["reason"]), (&json!("timed_out"), &json!("heartbeat")));
    millis(&envelope["releasedAt"]) - millis(&envelope["receivedAt"])
}

async fn beat(service: &Service, token: &str) {
    let call = service.provider("POST", &format!("{CALLBACKS}/heartbeat"));
    assert_eq!(call.header("x-callback-token", token).send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_item_times_out_soon_after_its_last_heartbeat() {
    let server = RedisServer::start();
    let service = Service::on(&server).await;
    let conversation = service.open().await;
    let asked = json!({"kind": "tool", "timeoutMs": 600_000, "heartbeatTimeoutMs": 2_500});
    let item = service.issue(&conversation, &asked).await;
    // Its timer fires twice meanwhile.
    for _ in 0..12 {
        sleep(Duration::from_millis(500)).await;
        beat(&service, &item.token).await;
    }
    // Without the schedule, the rotation over all partitions finds the timer only within 22 seconds.
    let late = lateness(&service, &conversation).await;
    assert!(late <= 2_000, "{late} ms late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_item_of_a_stopped_instance_times_out_on_another() {
    let server = RedisServer::start();
    let (leaving, staying) = (Service::on(&server).await, Service::on(&server).await);
    let conversation = leaving.open().await;
    let asked = json!({"kind": "tool", "timeoutMs": 600_000, "heartbeatTimeoutMs": 5_000});
    let item = leaving.issue(&conversation, &asked).await;
    sleep(Duration::from_secs(3)).await;
    beat(&leaving, &item.token).await;
    // Long enough for the timer to fire and be set again, and for the announcement.
    sleep(Duration::from_millis(3_500)).await;
    leaving.drain();
    leaving.ended().await;
    let late = lateness(&staying, &conversation).await;
    assert!(late <= 2_500, "{late} ms late");
}
