//! Memory stays within the budgets. `cargo bench --bench overload -- memory redis://…` runs longer with more clients,
//! and checks that the memory is released.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use test_support::process::resident_kib;
use test_support::redis_server::RedisServer;

use crate::service::{Service, eventually};
use crate::wire::{begin, health};

/// `http.max_buffered_bytes`, in MiB.
const BUDGET: u64 = 24;

fn start(redis: &RedisServer) -> Service {
    let budget = format!("http.max_buffered_bytes={}", BUDGET << 20);
    Service::start(&["--store", &redis.url(0), "--set", &budget])
}

/// Resident memory, in MiB.
fn resident(service: &Service) -> u64 {
    resident_kib(service.process.0.id()) / 1024
}

/// The largest resident memory during this time, in MiB.
fn most_memory(service: &Service, during: Duration) -> u64 {
    let looks = during.as_millis() / 20;
    let look = |_| {
        thread::sleep(Duration::from_millis(20));
        resident(service)
    };
    (0..looks).map(look).max().unwrap()
}

#[test]
fn callbacks_stay_within_the_memory_budget() {
    let redis = RedisServer::start();
    let service = start(&redis);
    let tokens: Vec<String> = (0..48).map(|_| service.token("call-1")).collect();
    let large = format!("\"{}\"", "x".repeat(1024 * 1024 - 2));
    let before = resident(&service);
    let stop = AtomicBool::new(false);
    redis.suspend();
    let most = thread::scope(|scope| {
        for token in &tokens {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && service.callback(token, &large).status == 503 {
                    thread::sleep(Duration::from_millis(100));
                }
            });
        }
        let most = most_memory(&service, Duration::from_secs(4));
        stop.store(true, Ordering::Relaxed);
        redis.resume();
        most
    });
    assert!(most <= before + BUDGET * 3 / 2, "{before} MiB before, {most} MiB at most");
    eventually("it is healthy", || health(&service.public).status == 200);
}

#[test]
fn unread_streams_stay_within_the_memory_budget() {
    let redis = RedisServer::start();
    let service = start(&redis);
    let large = format!("\"{}\"", "x".repeat(1024 * 1024 - 2));
    for _ in 0..4 {
        let token = service.token("call-1");
        assert_eq!(service.callback(&token, &large).status, 202);
    }
    let before = resident(&service);
    let key = format!("authorization: Bearer {}", service.made_key());
    let path = "GET /platform/v1/conversations/call-1/events?from=0";
    let streams: Vec<_> = (0..300).map(|_| begin(&service.platform, path, &[&key], "")).collect();
    let most = most_memory(&service, Duration::from_secs(4));
    // Each connection has buffers of its own.
    assert!(most <= before + BUDGET + 64, "{before} MiB before, {most} MiB at most");
    // Other requests of the platform are served meanwhile.
    assert_eq!(service.platform("PUT", "call-2", "").status, 201);
    drop(streams);
}
