//! Unreachable stores, and stores that must not be used.

use std::time::Duration;

use test_support::fake_redis;
use test_support::redis_server::RedisServer;

use crate::program::run;
use crate::service::{Service, eventually};
use crate::wire::{call, health};

#[test]
fn config_check_connects_to_the_store() {
    let url = RedisServer::shared().url(2);
    let check = run(&["config", "check", "--store", &url]).exits(0);
    assert!(
        check.out.ends_with(&format!("the configuration is valid; store: {url}; OTLP exports: none\n")),
        "{check:?}"
    );
    assert!(!check.out.contains("store.url is memory"), "{check:?}");
}

#[test]
fn weak_redis_settings_cause_warnings() {
    let redis = RedisServer::with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let url = redis.url(0);
    let check = run(&["config", "check", "--store", &url]).exits(0);
    let service = Service::start(&["--store", &url]);
    for word in ["appendonly no", "maxmemory-policy allkeys-lru"] {
        assert!(check.out.contains(word), "{check:?}");
        service.log.wait_for(word);
    }
    assert!(check.out.contains("note: Redis evicts keys"), "{check:?}");
    let durable = RedisServer::durable();
    let check = run(&["config", "check", "--store", &durable.url(0)]).exits(0);
    assert!(!check.out.contains("Redis"), "nothing to remark on: {check:?}");
    let user =
        ["ACL", "SETUSER", "ingress", "on", ">word", "~{cb:*", "~cb:layout", "&{cb:*", "+@all", "-@admin"];
    redis::cmd(user[0]).arg(&user[1..]).exec(&mut durable.connection(0)).unwrap();
    let url = durable.url(0).replace("://", "://ingress:word@");
    let check = run(&["config", "check", "--store", &url]).exits(0);
    assert!(
        check
            .out
            .contains("note: cannot check these settings of Redis, because they cannot be read: appendfsync"),
        "{check:?}"
    );
}

#[test]
fn missing_redis_permission_is_refused() {
    let redis = RedisServer::start();
    let user = ["ACL", "SETUSER", "ingress", "on", ">word", "~*", "&*", "+@all", "-xadd"];
    redis::cmd(user[0]).arg(&user[1..]).exec(&mut redis.connection(0)).unwrap();
    let url = redis.url(0).replace("://", "://ingress:word@");
    let check = run(&["config", "check", "--store", &url]).exits(2);
    assert!(check.err.contains("is not allowed to run XADD, which the service needs"), "{check:?}");
    assert!(!check.err.contains("word"), "{check:?}");
}

#[test]
fn unreachable_store_fails_the_check() {
    let check = run(&["config", "check", "--store", "redis://127.0.0.1:1"]).exits(1);
    assert!(check.err.contains("Connection refused"), "{check:?}");
    assert!(!check.out.contains("is good"), "{check:?}");
}

#[test]
fn store_with_other_partition_count_is_refused() {
    let url = RedisServer::shared().url(3);
    run(&["config", "check", "--store", &url]).exits(0);
    let other = ["--store", &url, "--set", "store.partitions=32"];
    let check = run(&[&["config", "check"], &other[..]].concat()).exits(2);
    assert!(check.err.contains("partitions=64") && check.err.contains("store.partitions is 32"), "{check:?}");
    let free = ["--public-addr", "127.0.0.1:0", "--platform-addr", "127.0.0.1:0"];
    let serve = run(&[&["serve"], &free[..], &other].concat()).exits(2);
    assert!(serve.err.contains("store.partitions is 32"), "{serve:?}");
    run(&[&["demo"], &other[..]].concat()).exits(2);
}

#[test]
fn old_redis_is_refused() {
    for (version, named) in [("6.0.16", "Redis 6.0"), ("5.0.7", "older than 6")] {
        let port = fake_redis::serve(move |command| match command[0].as_str() {
            "HELLO" if version < "6" => "-ERR unknown command `HELLO`\r\n".to_owned(),
            _ => fake_redis::greeting(version, command)
                .unwrap_or_else(|| "-ERR unknown command\r\n".to_owned()),
        });
        let url = format!("redis://127.0.0.1:{port}");
        let check = run(&["config", "check", "--store", &url]).exits(2);
        assert!(check.err.contains(named) && check.err.contains("6.2 or newer"), "{check:?}");
        let free = ["--public-addr", "127.0.0.1:0", "--platform-addr", "127.0.0.1:0"];
        run(&[&["serve", "--store", &url], &free[..]].concat()).exits(2);
    }
}

#[test]
fn startup_waits_for_the_store() {
    let mut redis = RedisServer::start();
    redis.kill();
    let service = Service::start(&["--store", &redis.url(0)]);
    service.log.wait_for("does not respond; retrying");
    assert!(service.log.text().contains("Connection refused"), "{}", service.log.text());
    for address in [&service.public, &service.platform] {
        health(address).refuses(503, "STORE_UNAVAILABLE");
        assert_eq!(call(address, "GET /health/live", &[], "").status, 200);
    }
    service.platform("PUT", "call-1", "").refuses(503, "STORE_UNAVAILABLE");
    run(&["healthcheck", "--ready", "--public-addr", &service.public]).complains(1, &["STORE_UNAVAILABLE"]);

    redis.restart();
    eventually("it is healthy", || health(&service.public).status == 200);
    eventually("it works", || service.platform("PUT", "call-1", "").status == 201);
}

#[test]
fn unusable_late_store_stops_the_service() {
    let mut redis = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    run(&["config", "check", "--store", &redis.url(0)]).exits(0);
    redis.kill();
    let mut service = Service::start(&["--store", &redis.url(0), "--set", "store.partitions=8"]);
    redis.restart();
    assert_eq!(service.process.exit_code(), Some(2));
    service.log.wait_for("callback-ingress: the store is in use with partitions=64");
}

#[test]
fn store_outage_loses_nothing_acknowledged() {
    let mut redis = RedisServer::durable();
    let service = Service::start(&["--store", &redis.url(0)]);
    let token = service.token("call-1");
    assert_eq!(service.callback(&token, r#"{"answer":42}"#).status, 202);
    redis.kill();
    eventually("the outage shows", || health(&service.public).status == 503);
    eventually("nothing is sent any more", || {
        let refused = service.callback(&token, r#"{"answer":42}"#);
        assert_eq!(refused.status, 503, "{refused:?}");
        refused.json()["error"]["code"] == "STORE_UNAVAILABLE"
    });
    redis.restart();
    eventually("it is healthy", || health(&service.public).status == 200);
    let again = service.callback(&token, r#"{"answer":42}"#);
    assert_eq!((again.status, &again.json()["replayed"]), (200, &true.into()), "{again:?}");
}

#[test]
fn sweep_failures_are_logged_with_backoff() {
    let redis = RedisServer::start();
    let service = Service::start(&["--store", &redis.url(0), "--set", "store.partitions=1"]);
    assert_eq!(service.platform("PUT", "call-1", "").status, 201);
    for _ in 0..300 {
        let issued = service.platform("POST", "call-1/work-items", r#"{"kind":"tool","timeoutMs":1500}"#);
        assert_eq!(issued.status, 201, "{issued:?}");
    }
    let mut connection = redis.connection(0);
    let key: Vec<String> = redis::cmd("KEYS").arg("*:conversation:*").query(&mut connection).unwrap();
    redis::cmd("DEL").arg(&key).exec(&mut connection).unwrap();
    redis::cmd("RPUSH").arg(&key).arg("spoilt").exec(&mut connection).unwrap();
    let line = service.log.wait_for("a conversation cannot be read; its timers are postponed");
    assert!(line.contains("ERROR") && line.contains("again_in_ms"), "{line}");
    std::thread::sleep(Duration::from_secs(8));
    // After 1, 2 and 4 seconds; six in a minute.
    let lines = service.log.text().matches("a conversation cannot be read; its timers are postponed").count();
    assert!((2..=5).contains(&lines), "{}", service.log.text());
}
