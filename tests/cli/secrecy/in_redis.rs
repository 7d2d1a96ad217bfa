//! A Redis with a password behind a proxy, and captures of its data and commands.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread;

use redis::{Value, cmd};
use test_support::proxy::Proxy;
use test_support::redis_commands::{bytes, content};
use test_support::redis_server::RedisServer;

use super::search::Capture;
use crate::service::eventually;

/// A running server with its proxy.
#[derive(Debug)]
pub(crate) struct WatchedRedis {
    pub(crate) server: RedisServer,
    pub(crate) proxy: Proxy,
    password: String,
    heard: Vec<Arc<Mutex<Vec<u8>>>>,
}

impl WatchedRedis {
    pub(crate) fn start(password: &str) -> Self {
        let options = ["--requirepass", password, "--slowlog-log-slower-than", "0", "--appendonly", "yes"];
        let server = RedisServer::with(&options);
        let proxy = Proxy::to(server.port());
        let mut redis = Self { server, proxy, password: password.to_owned(), heard: Vec::new() };
        redis.listen();
        redis
    }

    /// The store's URL, through the proxy.
    pub(crate) fn url(&self) -> String {
        format!("redis://default:{}@127.0.0.1:{}/0", self.password, self.proxy.port())
    }

    pub(crate) fn connection(&self) -> redis::Connection {
        let url = format!("redis://:{}@127.0.0.1:{}/0", self.password, self.server.port());
        redis::Client::open(url).unwrap().get_connection().unwrap()
    }

    /// Captures every command from now on, including those of scripts.
    fn listen(&mut self) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.server.port())).unwrap();
        write!(stream, "AUTH {}\r\nMONITOR\r\n", self.password).unwrap();
        let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
        self.heard.push(Arc::clone(&heard));
        thread::spawn(move || {
            let mut buffer = [0; 8 * 1024];
            while let Ok(count) = stream.read(&mut buffer) {
                if count == 0 {
                    break;
                }
                heard.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        let heard = Arc::clone(&self.heard[self.heard.len() - 1]);
        eventually("Redis tells its commands", || heard.lock().unwrap().ends_with(b"+OK\r\n+OK\r\n"));
    }

    pub(crate) fn kill(&mut self) {
        self.server.kill();
    }

    pub(crate) fn restart(&mut self) {
        self.server.restart();
        self.listen();
    }

    /// Replaces each value of a conversation that is not a string by a string.
    pub(crate) fn corrupt(&self, key: &str) {
        let mut connection = self.connection();
        cmd("DEL").arg(key).exec(&mut connection).unwrap();
        cmd("SET").arg(key).arg("x").arg("EX").arg(600).exec(&mut connection).unwrap();
    }

    /// All keys with this pattern.
    pub(crate) fn keys(&self, pattern: &str) -> Vec<String> {
        cmd("KEYS").arg(pattern).query(&mut self.connection()).unwrap()
    }

    /// Every key with its value.
    pub(crate) fn content(&self) -> Vec<Capture> {
        let mut connection = self.connection();
        self.keys("*").into_iter().map(|key| read(&mut connection, &key)).collect()
    }

    /// The received commands and the slow log. Both may contain results, which are arguments.
    pub(crate) fn heard(&self) -> Vec<Capture> {
        let slow: Value = cmd("SLOWLOG").arg("GET").arg(-1).query(&mut self.connection()).unwrap();
        let heard = self.heard.iter().map(|heard| heard.lock().unwrap().clone());
        let mut captures: Vec<_> =
            heard.map(|bytes| Capture::with_results("the commands that Redis got", bytes)).collect();
        captures.push(Capture::with_results("the slow log of Redis", bytes(slow)));
        captures
    }
}

/// Results are allowed among the held ones and on the channel, nowhere else.
fn read(connection: &mut redis::Connection, key: &str) -> Capture {
    let bytes = [key.as_bytes(), b"\n", &content(connection, key)].concat();
    let name = format!("the key {key}");
    if key.contains(":channel:") || key.contains(":held:") {
        Capture::with_results(name, bytes)
    } else {
        Capture::new(name, bytes)
    }
}
