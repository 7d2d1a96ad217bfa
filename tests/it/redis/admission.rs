//! Checks before a Redis is used: layout, version, permissions, clock.

use callback_ingress::clock::{Clock, ManualClock};
use callback_ingress::domain::work_item::Outcome;
use callback_ingress::store::redis::{PreflightError, RedisSettings, RedisStore};
use callback_ingress::store::{Backend, Store, StoreError};
use test_support::fake_redis;
use test_support::redis_server::RedisServer;

use super::stage_in;
use crate::service::until;
use crate::stage::{ROOMY, START, Stage, instrumented, redis_store, settings};

pub(crate) async fn verify(settings: &RedisSettings) -> Result<(), PreflightError> {
    RedisStore::new(settings, Clock::System).unwrap().verify().await
}

pub(crate) fn refusal(verdict: Result<(), PreflightError>) -> String {
    match verdict {
        Err(PreflightError::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn other_partition_count_is_refused() {
    let server = RedisServer::start();
    let mut settings = settings(server.url(0), ROOMY);
    verify(&settings).await.unwrap();
    verify(&settings).await.unwrap();
    settings.partitions = 8;
    let why = refusal(verify(&settings).await);
    for word in ["in use with partitions=64", "store.partitions is 8", "Restore the setting"] {
        assert!(why.contains(word), "{why:?} does not say {word:?}");
    }
    settings.partitions = 64;
    verify(&settings).await.unwrap();
}

#[tokio::test]
async fn store_of_another_layout_version_is_refused() {
    let server = RedisServer::start();
    for former in ["partitions=64", "version=2 partitions=64", "version=3 partitions=64", "anything"] {
        redis::cmd("SET").arg("cb:layout").arg(former).exec(&mut server.connection(0)).unwrap();
        let why = refusal(verify(&settings(server.url(0), ROOMY)).await);
        for word in ["another version of callback-ingress", former, "an empty database"] {
            assert!(why.contains(word), "{why:?} does not say {word:?}");
        }
    }
}

#[tokio::test]
async fn unverified_store_refuses_all_operations() {
    let server = RedisServer::start();
    let store = RedisStore::new(&settings(server.url(0), ROOMY), Clock::System).unwrap();
    let store = instrumented(Backend::Redis(Box::new(store)));
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.due(&[0], 1).await, Err(StoreError::Unavailable(_))));
    let Backend::Redis(unchecked) = store.backend() else { unreachable!() };
    unchecked.verify().await.unwrap();
    store.ping().await.unwrap();
}

#[tokio::test]
async fn too_old_redis_is_refused() {
    let port = fake_redis::serve(|question| {
        fake_redis::greeting("6.0.16", question).unwrap_or_else(|| "+OK\r\n".to_owned())
    });
    let why = refusal(verify(&settings(format!("redis://127.0.0.1:{port}/0"), ROOMY)).await);
    assert!(why.contains("Redis 6.0;") && why.contains("6.2 or newer"), "{why:?}");
}

#[tokio::test]
async fn permission_revoked_mid_script_loses_no_result() {
    for right in ["xadd", "hset", "zrem"] {
        let server = RedisServer::start();
        let mut admin = server.connection(0);
        let mut rights = |rules: &[&str]| {
            redis::cmd("ACL").arg("SETUSER").arg("ingress").arg(rules).exec(&mut admin).unwrap();
        };
        rights(&["on", ">word", "~{cb:*", "~cb:layout", "&{cb:*", "+@all", "-@admin"]);
        let url = server.url(0).replace("redis://", "redis://ingress:word@");
        let stage = Stage::in_redis(settings(url, ROOMY), ManualClock::at(START)).await;
        let conversation = stage.conversation().await;
        let [first, second] = conversation.issue_many(60_000).await;
        conversation.accept(&second, "2").await.unwrap();
        rights(&[&format!("-{right}")]);
        let broken = stage.store.accept(conversation.bringing(&first, b"1")).await;
        // A leftover marker is harmless.
        assert!(matches!(broken, Err(StoreError::Broken(_))) || right == "zrem", "{right}: {broken:?}");
        rights(&[&format!("+{right}")]);
        // A new attempt, as when the provider retries.
        conversation.accept(&first, "1").await.unwrap();
        assert_eq!(conversation.results().await, ["1", "2"].map(|body| Some(body.into())), "{right}");
        let totals = stage.totals().await;
        assert_eq!((totals.held, totals.held_bytes), (0, 0), "{right}");
    }
}

#[tokio::test]
async fn user_restricted_to_the_services_keys_works() {
    let server = RedisServer::start();
    let rules = ["on", ">pass:word", "~{cb:*", "~cb:layout", "&{cb:*", "+@all", "-@admin"];
    redis::cmd("ACL").arg("SETUSER").arg("ingress").arg(&rules[..]).exec(&mut server.connection(0)).unwrap();
    redis::cmd("ACL").arg("SETUSER").arg("default").arg("off").exec(&mut server.connection(0)).unwrap();
    let as_user = |who: &str| settings(server.url(0).replace("redis://", &format!("redis://{who}@")), ROOMY);
    let settings = as_user("ingress:pass%3Aword");
    let stage = Stage::in_redis(settings, ManualClock::at(START)).await;
    let conversation = stage.conversation().await;
    let mut wake = stage.store.watch(conversation.reference());
    wake.changed().await;
    let soon = conversation.issue(10).await;
    let [second, third] = conversation.issue_many(1_000).await;
    conversation.accept(&second, "2").await.unwrap();
    stage.wait_until(soon.deadline);
    for of in stage.due(10).await.conversations {
        stage.store.expire(of, None).await.unwrap();
    }
    conversation.cancel(&third).await.unwrap();
    wake.changed().await;
    conversation.end().await.unwrap();
    let expected = [(1, Outcome::TimedOut), (2, Outcome::Succeeded), (3, Outcome::Cancelled)];
    assert_eq!(conversation.channel().await, expected);

    let refused = verify(&as_user("ingress:wrong-password")).await.unwrap_err();
    assert!(matches!(refused, PreflightError::Unavailable(StoreError::Unavailable(_))), "{refused:?}");
    assert!(!format!("{refused:?}{refused}").contains("wrong-password"));
}

#[tokio::test]
async fn deadlines_use_the_servers_clock() {
    let server = RedisServer::start();
    let mut connection = server.connection(0);
    let mut time = || {
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query(&mut connection).unwrap();
        seconds * 1_000 + micros / 1_000
    };
    let mut stage = stage_in(&server).await;
    stage.store = redis_store(&settings(server.url(0), ROOMY), Clock::System).await;
    let before = time();
    let conversation = stage.conversation().await;
    let item = conversation.issue(30).await;
    let after = time();
    assert!((before..=after).contains(&item.issued_at.as_millis()), "{before} {item:?} {after}");
    until("the deadline passes", async || conversation.work_item(&item).await.unwrap().settled.is_some())
        .await;
    assert!(time() >= item.deadline.as_millis());
    let timed_out = conversation.expire(&[&item]).await;
    assert_eq!(timed_out.len(), 1);
    assert_eq!(conversation.channel().await, [(1, Outcome::TimedOut)]);
}

#[tokio::test]
async fn user_without_publish_permission_works() {
    let server = RedisServer::start();
    let rules = ["on", ">password", "~*", "resetchannels", "+@all"];
    redis::cmd("ACL").arg("SETUSER").arg("quiet").arg(&rules[..]).exec(&mut server.connection(0)).unwrap();
    let settings = settings(server.url(0).replace("redis://", "redis://quiet:password@"), ROOMY);
    let stage = Stage::in_redis(settings, ManualClock::at(START)).await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    conversation.accept(&second, "2").await.unwrap();
    conversation.accept(&first, "1").await.unwrap();
    assert_eq!(conversation.channel().await, [(1, Outcome::Succeeded), (2, Outcome::Succeeded)]);
    conversation.end().await.unwrap();
}
