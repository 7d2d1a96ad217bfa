//! A real `redis-server` of the test's own, on a free port, in a directory of its own.
//!
//! It cannot outlive the tests: it is the child of a small shell that waits for its standard input to close, and
//! the kernel closes that however the test process ends.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use tokio::time::Instant;

/// `$1` is the directory, the rest is for the server. Answers with the server's process id, then waits for a word:
/// `keep` leaves the directory for the next start, the end of the input does not.
const KEEPER: &str = r#"
trap '' INT TERM
dir=$1
shift
redis-server "$@" >"$dir/log" 2>&1 &
pid=$!
echo "$pid"
read -r word
kill -9 "$pid" 2>"$dir/kill"
wait "$pid" 2>"$dir/kill"
[ "$word" = keep ] || rm -rf "$dir"
"#;

/// Conversations of different tests are kept apart by the number of their database.
pub(crate) const DATABASES: u16 = 4096;

/// How long a server may take to start, or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server. Stops, and takes its directory with it, when it is dropped.
#[derive(Debug)]
pub(crate) struct RedisServer {
    port: u16,
    directory: PathBuf,
    options: Vec<String>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    keeper: Child,
    pid: u32,
}

impl RedisServer {
    /// A server that forgets everything when it stops.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// A server that has written down whatever it acknowledged.
    pub(crate) fn durable() -> Self {
        Self::with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// A server with more options, as on `redis-server`'s command line.
    pub(crate) fn with(options: &[&str]) -> Self {
        Self::configured(None, options)
    }

    /// A sentinel with this configuration.
    pub(crate) fn sentinel(configuration: &str) -> Self {
        Self::configured(Some(configuration), &["--sentinel"])
    }

    fn configured(file: Option<&str>, options: &[&str]) -> Self {
        check_installed();
        for _ in 0..5 {
            let directory = tempfile::Builder::new().prefix("redis-").tempdir().unwrap().keep();
            let port = free_port();
            let mut all: Vec<String> = Vec::new();
            if let Some(text) = file {
                let path = directory.join("conf");
                fs::write(&path, text).unwrap();
                all.push(path.to_str().unwrap().to_owned());
            }
            all.extend(options.iter().map(|&option| option.to_owned()));
            let options = all;
            if let Ok(running) = launch(port, &directory, &options) {
                return Self { port, directory, options, running: Some(running) };
            }
        }
        panic!("no port that looked free was free a moment later, five times in a row");
    }

    /// The one server that all tests share that do not stop it, or look at all of it.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<RedisServer> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Its URL, for one of its databases.
    pub(crate) fn url(&self, database: u16) -> String {
        format!("redis://127.0.0.1:{}/{database}", self.port)
    }

    /// Whether it has not been killed.
    pub(crate) const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Its port.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// A connection for the test itself.
    pub(crate) fn connection(&self, database: u16) -> redis::Connection {
        redis::Client::open(self.url(database)).unwrap().get_connection().unwrap()
    }

    /// Ends it without warning, as a power cut does. What it wrote to its disk stays.
    pub(crate) fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.signal("KILL");
            running.dismiss("keep\n");
        }
    }

    /// Starts it again after [`RedisServer::kill`], on the same port, with what it had on its disk.
    pub(crate) fn restart(&mut self) {
        let since = Instant::now();
        while self.running.is_none() {
            assert!(since.elapsed() < PATIENCE, "port {} does not become free", self.port);
            self.running = launch(self.port, &self.directory, &self.options).ok();
        }
    }

    /// Lets it do nothing, its connections open, until [`RedisServer::resume`].
    pub(crate) fn suspend(&self) {
        self.signal("STOP");
    }

    /// Ends [`RedisServer::suspend`].
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        self.running.as_ref().expect("the server runs").signal(name);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        match self.running.take() {
            Some(mut running) => running.dismiss(""),
            None => drop(fs::remove_dir_all(&self.directory)),
        }
    }
}

impl Running {
    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "SIG{name} could not be sent");
    }

    fn dismiss(&mut self, word: &str) {
        if let Some(mut input) = self.keeper.stdin.take() {
            // A keeper that is gone already needs no word.
            drop(input.write_all(word.as_bytes()));
        }
        drop(self.keeper.wait());
    }
}

/// Somebody else was faster.
#[derive(Debug)]
struct PortTaken;

/// A free port, of which the one that a cluster's nodes speak to each other on is free, too.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let Some(bus) = port.checked_add(10_000) else { continue };
        if TcpListener::bind(("127.0.0.1", bus)).is_ok() {
            return port;
        }
    }
}

fn check_installed() {
    let found = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    assert!(
        found.is_ok_and(|status| status.success()),
        "these tests need the program redis-server: install the package redis-server (Debian, Ubuntu) or redis \
         (Fedora, Homebrew)"
    );
}

fn launch(port: u16, directory: &Path, options: &[String]) -> Result<Running, PortTaken> {
    // So that nothing of an earlier start is read as this one's.
    File::create(directory.join("log")).unwrap();
    let mut keeper = Command::new("sh")
        .args(["-c", KEEPER, "keeper"])
        .arg(directory)
        // A file of configuration comes first.
        .args(options)
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""])
        .args(["--databases", &DATABASES.to_string(), "--dir"])
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh runs");
    let mut pid = String::new();
    BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    let mut running = Running { keeper, pid: pid.trim().parse().expect("the keeper tells the process id") };
    let since = Instant::now();
    loop {
        let log = fs::read_to_string(directory.join("log")).unwrap();
        if log.contains("Ready to accept connections") || log.contains("Sentinel ID is") {
            return Ok(running);
        }
        if log.contains("Address already in use") {
            running.dismiss("keep\n");
            return Err(PortTaken);
        }
        if log.contains("FATAL") || since.elapsed() > PATIENCE {
            running.dismiss("");
            panic!("redis-server did not start:\n{log}");
        }
        sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_server_keeps_what_it_acknowledged_through_a_kill_and_leaves_nothing_behind() {
    let mut server = RedisServer::durable();
    redis::cmd("SET").arg("k").arg("v").exec(&mut server.connection(0)).unwrap();
    server.kill();
    assert!(redis::Client::open(server.url(0)).unwrap().get_connection().is_err());
    server.restart();
    let kept: String = redis::cmd("GET").arg("k").query(&mut server.connection(0)).unwrap();
    assert_eq!(kept, "v");
    let directory = server.directory.clone();
    drop(server);
    assert!(!directory.exists());
}
