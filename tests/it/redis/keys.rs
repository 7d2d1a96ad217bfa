//! Keys in Redis, their content and lifetime.

use std::collections::BTreeMap;

use callback_ingress::clock::ManualClock;
use callback_ingress::domain::ids::{Fingerprint, IdempotencyDigest};
use callback_ingress::domain::reason::Reason;
use callback_ingress::store::Store;
use test_support::redis_commands::content;
use test_support::redis_server::RedisServer;

use super::stage_in;
use crate::stage::{ROOMY, START, Stage, settings};

/// Live, idle and ended conversations with items in each state.
async fn workload(stage: &Stage) {
    for end in [false, true, true] {
        let conversation = stage.conversation().await;
        let soon = conversation.issue(20).await;
        let mut keyed = conversation.issuing(1_000);
        keyed.idempotency =
            Some((IdempotencyDigest::of("idempotency-key").unwrap(), Fingerprint::of(b"request")));
        conversation.issue_with(keyed).await.unwrap();
        let [third, fourth, fifth] = conversation.issue_many(1_000).await;
        conversation.accept(&third, "\"payload-3\"").await.unwrap();
        conversation.cancel(&fourth).await.unwrap();
        stage.wait_until(soon.deadline);
        conversation.expire(&[&soon]).await;
        if end {
            conversation.end().await.unwrap();
        } else {
            conversation.accept(&fifth, "\"payload-5\"").await.unwrap();
        }
    }
    // An item without a result is held first.
    let cancelled_first = stage.conversation().await;
    let [_, withdrawn, third] = cancelled_first.issue_many(1_000).await;
    cancelled_first.cancel(&withdrawn).await.unwrap();
    cancelled_first.accept(&third, "\"payload-3\"").await.unwrap();
    let released = stage.conversation().await;
    let [item, held] = released.issue_many(1_000).await;
    released.accept(&held, "\"payload-2\"").await.unwrap();
    released.accept(&item, "\"payload-1\"").await.unwrap();
    released.accept(&item, "\"payload-1\"").await.unwrap();
    released.accept(&item, "\"another\"").await.unwrap_err();
    released.open(|open| open.idle_ttl_ms = Some(5_000)).await.unwrap();
    let brief = stage.unopened();
    brief.open(|open| open.idle_ttl_ms = Some(1)).await.unwrap();
    brief.issue(1).await;
    stage.clock.advance(2);
    brief.end().await.unwrap();
}

fn all_keys(connection: &mut redis::Connection) -> Vec<String> {
    redis::cmd("KEYS").arg("*").query(connection).unwrap()
}

#[tokio::test]
async fn every_key_has_a_ttl_and_a_hash_tag() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    workload(&stage).await;
    let mut connection = server.connection(0);
    let keys = all_keys(&mut connection);
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for key in &keys {
        let ttl: i64 = redis::cmd("PTTL").arg(key).query(&mut connection).unwrap();
        assert!(ttl > 0, "{key} would stay for ever");
        if key == "cb:layout" {
            continue;
        }
        let partition = key.strip_prefix("{cb:").and_then(|rest| rest.split_once("}:"));
        let (number, rest) = partition.unwrap_or_else(|| panic!("{key} has no hash tag"));
        assert!(number.parse::<u16>().unwrap() < 64, "{key}");
        *kinds.entry(rest.split(':').next().unwrap().to_owned()).or_default() += 1;
    }
    assert!(keys.contains(&"cb:layout".to_owned()));
    let kinds: Vec<_> = kinds.keys().map(String::as_str).collect();
    assert_eq!(
        kinds,
        ["channel", "conversation", "held", "timers", "totals", "used", "waiting"],
        "all there are"
    );
}

#[tokio::test]
async fn no_key_expires_while_its_data_is_needed() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(500_000).await;
    conversation.accept(&second, "\"held\"").await.unwrap();
    let third = conversation.issue(10).await;
    stage.clock.advance(5);
    let fourth = conversation.issue(10).await;
    conversation.accept(&fourth, "\"held\"").await.unwrap();
    let mut connection = server.connection(0);
    let mut check = |idle_in: u64| {
        for key in all_keys(&mut connection) {
            let ttl: u64 = redis::cmd("PTTL").arg(&key).query(&mut connection).unwrap();
            let needed = if key.ends_with(&format!("used:{}:{}", conversation.reference(), second.id)) {
                stage.clock.now().millis_until(second.expires_at)
            } else if key.contains(":used:") {
                stage.clock.now().millis_until(fourth.expires_at)
            } else if key.ends_with(":timers") {
                stage.clock.now().millis_until(first.deadline)
            } else {
                idle_in + ROOMY.ended_retention_ms
            };
            assert!(ttl > needed, "{key} goes in {ttl} ms and is needed for {needed}");
        }
    };
    check(ROOMY.conversation_idle_ttl_ms);
    stage.wait_until(third.deadline);
    conversation.expire(&[&third]).await;
    check(ROOMY.conversation_idle_ttl_ms - 10);
    conversation.end().await.unwrap();
    check(0);
}

#[tokio::test]
async fn results_are_stored_only_on_the_channel_or_held() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    workload(&stage).await;
    let mut connection = server.connection(0);
    let mut found = 0;
    for key in all_keys(&mut connection) {
        let content = content(&mut connection, &key);
        let holds = |text: &str| content.windows(text.len()).any(|window| window == text.as_bytes());
        let may_hold = key.contains(":channel:") || key.contains(":held:");
        assert!(may_hold || !holds("payload"), "{key} holds a result");
        found += usize::from(holds("payload"));
        for secret in ["cbt_", "idempotency-key", "another"] {
            assert!(!holds(secret) && !key.contains(secret), "{key} holds {secret}");
        }
    }
    // The channels with released results, and the held results of live conversations. Released and dropped results are
    // no longer held.
    assert_eq!(found, 3);
}

#[tokio::test]
async fn channel_is_a_stream_under_the_reported_key() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    conversation.accept(&first, "{\"n\": 1}").await.unwrap();
    conversation.cancel(&second).await.unwrap();
    let Some(key) = stage.store.channel(conversation.reference()) else {
        panic!("the channel of a store in Redis can be read in Redis");
    };
    let entries: Vec<(String, BTreeMap<String, String>)> =
        redis::cmd("XRANGE").arg(&key).arg("-").arg("+").query(&mut server.connection(0)).unwrap();
    let [(one, result), (two, cancelled)] = &entries[..] else { panic!("{entries:?}") };
    let opened_at = conversation.inspect().await.unwrap().opened_at.as_millis();
    assert_eq!(
        (one, two),
        (&format!("{opened_at}-1"), &format!("{opened_at}-2")),
        "when it was opened, and the sequence"
    );
    assert_eq!(result.keys().collect::<Vec<_>>(), ["envelope", "outcome", "sequence"]);
    assert_eq!((result["sequence"].as_str(), result["outcome"].as_str()), ("1", "succeeded"));
    let page = conversation.read(0, 10).await.unwrap();
    assert_eq!(
        [&result["envelope"], &cancelled["envelope"]],
        [0, 1].map(|at| { std::str::from_utf8(page.envelopes[at].bytes()).unwrap() })
    );
    let now = stage.clock.now();
    assert!(result["envelope"].contains(&format!("\"result\":{{\"n\": 1}},\"issuedAt\":\"{now}\"")));
    let reason = Reason::parse("the \"caller\" hung up").unwrap();
    stage.store.end(conversation.reference(), None, Some(reason)).await.unwrap().unwrap();
    let entries: Vec<(String, BTreeMap<String, String>)> =
        redis::cmd("XRANGE").arg(&key).arg("-").arg("+").query(&mut server.connection(0)).unwrap();
    let (id, end) = &entries[2];
    assert_eq!(id, &format!("{opened_at}-3"));
    let reason = r#""the \"caller\" hung up""#;
    let expected = format!(r#"{{"conversationId":"{}","state":"ended","reason":{reason}}}"#, conversation.id);
    assert_eq!(end, &BTreeMap::from([("end".to_owned(), expected)]));
    assert_eq!(conversation.channel().await.len(), 2, "an end is no envelope");
}

#[tokio::test]
async fn thousands_of_due_timers_are_returned_at_once() {
    let server = RedisServer::start();
    let mut one_partition = settings(server.url(0), ROOMY);
    one_partition.partitions = 1;
    let stage = Stage::in_redis(one_partition, ManualClock::at(START)).await;
    for _ in 0..9 {
        let conversation = stage.conversation().await;
        futures_util::future::join_all((0..1_000).map(|_| conversation.issue(10))).await;
    }
    stage.clock.advance(10);
    let due = stage.due(100_000).await;
    let told: usize = due.conversations.iter().map(|of| of.sequences.len()).sum();
    assert_eq!(told, 9_000, "more than Lua can unpack");
    for of in due.conversations {
        assert_eq!(stage.store.expire(of, None).await.unwrap().timed_out.len(), 1_000);
    }
    assert_eq!(stage.due(100).await.conversations, []);
}

#[tokio::test]
async fn timers_live_as_long_as_their_conversation() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let conversation = stage.conversation().await;
    conversation.issue(10).await;
    let mut connection = server.connection(0);
    let keys: Vec<String> = redis::cmd("KEYS").arg("*:timers").query(&mut connection).unwrap();
    let left: i64 = redis::cmd("PTTL").arg(&keys).query(&mut connection).unwrap();
    let idle_ttl = i64::try_from(ROOMY.conversation_idle_ttl_ms).unwrap();
    assert!(left > idle_ttl, "{left} of {idle_ttl}");
    // A conversation with a shorter lifetime in the same partition has no effect.
    let other = stage.conversation().await;
    other.open(|open| open.idle_ttl_ms = Some(1_000)).await.unwrap();
    other.issue(10).await;
    for key in redis::cmd("KEYS").arg("*:timers").query::<Vec<String>>(&mut connection).unwrap() {
        let left: i64 = redis::cmd("PTTL").arg(&key).query(&mut connection).unwrap();
        assert!(left > 0, "{key}: {left}");
    }
}

#[tokio::test]
async fn corrupt_key_does_not_stop_other_timers() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(10).await;
    let partition = conversation.reference().partition(64);
    let (spoilt, odd) = ((partition + 1) % 64, (partition + 2) % 64);
    let mut connection = server.connection(0);
    redis::cmd("SET").arg(format!("{{cb:{spoilt}}}:timers")).arg("x").exec(&mut connection).unwrap();
    let odd = format!("{{cb:{odd}}}:timers");
    redis::cmd("ZADD").arg(odd).arg(1).arg("no marker").exec(&mut connection).unwrap();
    stage.wait_until(item.deadline);
    let due = stage.due(10).await;
    let told: Vec<_> = due.conversations.iter().flat_map(|of| of.sequences.clone()).collect();
    assert_eq!(told, [item.sequence]);
}

#[tokio::test]
async fn page_size_is_bounded_in_bytes() {
    let server = RedisServer::start();
    let stage = stage_in(&server).await;
    let conversation = stage.conversation().await;
    let large = format!("\"{}\"", "x".repeat(200 * 1024));
    for _ in 0..20 {
        let item = conversation.issue(1_000).await;
        conversation.accept(&item, &large).await.unwrap();
    }
    let page = conversation.read(0, 100).await.unwrap();
    assert_eq!(
        (page.released, page.envelopes.len()),
        (20, 1),
        "what there is room for, whatever was asked for"
    );
    assert_eq!(conversation.read(19, 100).await.unwrap().envelopes.len(), 1);
}
