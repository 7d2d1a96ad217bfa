//! A low limit on open files, and a client that opens as many connections as possible.

use std::net::TcpStream;
use std::time::Duration;

use test_support::redis_server::RedisServer;
use tokio::time::Instant;

use crate::program::run;
use crate::service::{Service, eventually};
use crate::wire::{call, health};

/// Far less than the keep-alive timeout, even on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(10);

#[test]
fn idle_clients_leave_file_descriptors_for_others() {
    let redis = RedisServer::start();
    let service = Service::start_with_open_files(256, &["--store", &redis.url(0)]);
    let token = service.token("call-1");
    let idle: Vec<_> = (0..400).map(|_| TcpStream::connect(&service.public).unwrap()).collect();
    let since = Instant::now();
    assert_eq!(health(&service.platform).status, 200);
    assert_eq!(service.platform("PUT", "call-2", "").status, 201);
    assert_eq!(health(&service.public).status, 200);
    // Forces the service to reconnect.
    let killed: u32 = redis::cmd("CLIENT")
        .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
        .query(&mut redis.connection(0))
        .unwrap();
    assert!(killed > 0);
    let mut status = 0;
    eventually("a callback is taken", || {
        status = service.callback(&token, "1").status;
        status != 503
    });
    assert!(matches!(status, 200 | 202), "{status}");
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    drop(idle);
}

#[test]
fn both_listeners_work_with_few_file_descriptors() {
    let service = Service::start_with_open_files(40, &[]);
    let idle: Vec<_> = (0..60).map(|_| TcpStream::connect(&service.public).unwrap()).collect();
    run(&["healthcheck", "--public-addr", &service.public, "--timeout-ms", "20000"]).exits(0);
    let metrics = call(&service.platform, "GET /metrics", &[], "");
    assert_eq!(metrics.status, 200);
    drop(idle);
}
