//! Connections at their limits, and clients that disconnect.

use callback_ingress::app;
use callback_ingress::clock::Clock;
use callback_ingress::config::{self, Sources};
use callback_ingress::telemetry::Telemetry;
use test_support::redis_server::RedisServer;
use tokio::time::{Duration, sleep};
use tokio_util::sync::CancellationToken;

use crate::service::secure::connect;
use crate::service::{Certificate, Raw, SERVICE_KEY, Service};

const HEALTH: &str = "GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn drain_waits_for_the_store_step_of_a_disconnected_client() {
    let redis = RedisServer::start();
    let service = Service::on(&redis).await;
    let item = service.fresh_tool().await;
    redis.suspend();
    let mut client = Raw::connect(service.platform).await;
    let head = format!(
        "DELETE /platform/v1{} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SERVICE_KEY}\r\n\r\n",
        item.path()
    );
    client.send(head).await;
    sleep(Duration::from_millis(300)).await;
    drop(client);
    service.drain();
    let mut ended = Box::pin(service.ended());
    tokio::select! {
        () = &mut ended => panic!("the store has not answered yet"),
        () = sleep(Duration::from_millis(500)) => redis.resume(),
    }
    ended.await;
    assert_eq!(Service::on(&redis).await.state(&item).await, "released", "with the outcome cancelled");
}

#[tokio::test]
async fn platform_keeps_its_share_of_the_connections() {
    let flags = [("http.public_addr", "127.0.0.1:0"), ("http.platform_addr", "127.0.0.1:0")];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let config = config::load(Sources { flags, ..Sources::default() }).unwrap().config;
    let app = app::build(&config, Clock::System, Telemetry::local()).await.unwrap().with_max_connections(4);
    let (public, platform) = (app.public_addr(), app.platform_addr());
    let stop = CancellationToken::new();
    let running = tokio::spawn(app.run(stop.clone().cancelled_owned()));
    // A part of a head keeps a connection from being idle.
    let mut busy = Vec::new();
    for _ in 0..3 {
        let mut raw = Raw::connect(public).await;
        raw.send("GET /health/live HTTP/1.1\r\n").await;
        busy.push(raw);
    }
    sleep(Duration::from_millis(300)).await;
    let mut fourth = Raw::connect(public).await;
    fourth.send(HEALTH).await;
    for _ in 0..2 {
        assert_eq!(Raw::say(platform, HEALTH).await.verdict(), (200, "ok".to_owned()));
    }
    assert!(fourth.is_silent(), "the public listener has three connections");
    drop(busy);
    assert_eq!(fourth.reply().await.verdict(), (200, "ok".to_owned()));
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn unfinished_handshake_frees_its_connection_before_the_head_timeout() {
    let certificate = Certificate::new();
    let own = certificate.flags();
    let mut flags: Vec<_> = own.iter().map(|(key, value)| (*key, value.as_str())).collect();
    flags.extend([("http.max_connections", "1"), ("http.head_timeout_ms", "600000")]);
    let service = Service::start(&flags).await;
    let mut unfinished = Raw::connect(service.public).await;
    unfinished.send([0x16]).await;
    connect(service.public, certificate.der(), "http/1.1").await.unwrap();
    assert_eq!(unfinished.closed().await, b"");
}
