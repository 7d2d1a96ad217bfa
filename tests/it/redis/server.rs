//! The test support itself: what a killed server keeps, and what it leaves behind.

use test_support::redis_commands::{ask, words};
use test_support::redis_server::RedisServer;

#[test]
fn durable_server_keeps_writes_through_a_kill() {
    let mut server = RedisServer::durable();
    words(&["SET", "k", "v"]).exec(&mut server.connection(0)).unwrap();
    server.kill();
    assert!(redis::Client::open(server.url(0)).unwrap().get_connection().is_err());
    server.restart();
    assert_eq!(ask::<String>(&server, &["GET", "k"]), "v");
    let directory = server.directory().to_owned();
    drop(server);
    assert!(!directory.exists());
}
