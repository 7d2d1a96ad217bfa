//! Commands to a server, and its replies as bytes.

use redis::{Cmd, Connection, FromRedisValue, Value};

use crate::redis_server::RedisServer;

/// A command with these arguments.
pub fn words(words: &[&str]) -> Cmd {
    let mut command = Cmd::new();
    command.arg(words);
    command
}

/// Sends a command to database 0 and returns the reply.
pub fn ask<T: FromRedisValue>(server: &RedisServer, command: &[&str]) -> T {
    words(command).query(&mut server.connection(0)).unwrap()
}

/// `INFO replication` of a server; empty while it is down or closes its connections to change its role.
pub fn replication(server: &RedisServer) -> String {
    let connection = redis::Client::open(server.url(0)).unwrap().get_connection();
    let info = connection.and_then(|mut connection| words(&["INFO", "replication"]).query(&mut connection));
    info.unwrap_or_default()
}

/// Everything stored under a key.
pub fn content(connection: &mut Connection, key: &str) -> Vec<u8> {
    let kind: String = words(&["TYPE", key]).query(connection).unwrap();
    let read: &[&str] = match kind.as_str() {
        "string" => &["GET", key],
        "hash" => &["HGETALL", key],
        "set" => &["SMEMBERS", key],
        "zset" => &["ZRANGE", key, "0", "-1", "WITHSCORES"],
        "stream" => &["XRANGE", key, "-", "+"],
        other => panic!("{key} is a {other}"),
    };
    bytes(words(read).query(connection).unwrap())
}

/// The strings and integers of a reply, one a line.
#[expect(clippy::wildcard_enum_match_arm, reason = "any other type of reply fails the test")]
pub fn bytes(reply: Value) -> Vec<u8> {
    let mut bytes = match reply {
        Value::BulkString(bytes) => bytes,
        Value::Int(number) => number.to_string().into_bytes(),
        Value::Array(values) => values.into_iter().flat_map(bytes).collect(),
        other => panic!("{other:?}"),
    };
    bytes.push(b'\n');
    bytes
}
