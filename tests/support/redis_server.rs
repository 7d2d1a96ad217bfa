//! Starts `redis-server` on a free port, with a temporary directory.
//!
//! The server never outlives its test: it is the child of a shell that kills it when its standard input closes, and the
//! kernel closes that however the test process ends.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use tokio::time::Instant;

/// `$1` is the directory, the rest are the server's arguments. Prints the server's process id, then waits for a line or
/// the end of its input, and kills the server. After the line `keep` the directory stays, for a restart.
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

/// Number of databases. Tests that share a server use different ones.
pub const DATABASES: u16 = 4096;

/// Longest time for a start or a stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server. Dropping it kills the server and deletes its directory.
#[derive(Debug)]
pub struct RedisServer {
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
    /// Starts a server without persistence.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts a server that writes each command to disk before it replies.
    pub fn durable() -> Self {
        Self::with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// Starts a server with more options, as on `redis-server`'s command line.
    pub fn with(options: &[&str]) -> Self {
        Self::configured(&std::env::temp_dir(), None, options)
    }

    /// The same with its files in a directory below `parent`, for measurements that depend on the file system.
    pub fn with_files_below(parent: &Path, options: &[&str]) -> Self {
        Self::configured(parent, None, options)
    }

    /// Starts a sentinel with this configuration file.
    pub fn sentinel(configuration: &str) -> Self {
        Self::configured(&std::env::temp_dir(), Some(configuration), &["--sentinel"])
    }

    fn configured(parent: &Path, file: Option<&str>, options: &[&str]) -> Self {
        check_installed();
        for _ in 0..5 {
            let directory = tempfile::Builder::new().prefix("redis-").tempdir_in(parent).unwrap().keep();
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
        panic!("five free ports in a row were taken before redis-server could bind them");
    }

    /// The server shared by all tests that neither stop it nor inspect all of its keys.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<RedisServer> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: u16) -> String {
        format!("redis://127.0.0.1:{}/{database}", self.port)
    }

    /// False after [`RedisServer::kill`], until the restart.
    pub const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The port that it listens on.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("the server runs").pid
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A new connection to one of its databases.
    pub fn connection(&self, database: u16) -> redis::Connection {
        redis::Client::open(self.url(database)).unwrap().get_connection().unwrap()
    }

    /// Sends SIGKILL, as a power cut would. The files stay.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.signal("KILL");
            running.dismiss("keep\n");
        }
    }

    /// Starts it again after [`RedisServer::kill`], on the same port and with the same files.
    pub fn restart(&mut self) {
        let since = Instant::now();
        while self.running.is_none() {
            assert!(since.elapsed() < PATIENCE, "port {} does not become free", self.port);
            self.running = launch(self.port, &self.directory, &self.options).ok();
        }
    }

    /// Sends SIGSTOP: the connections stay open without replies, until [`RedisServer::resume`].
    pub fn suspend(&self) {
        self.signal("STOP");
    }

    /// Sends SIGCONT.
    pub fn resume(&self) {
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
            // Fails where the shell has already exited.
            drop(input.write_all(word.as_bytes()));
        }
        drop(self.keeper.wait());
    }
}

/// Another process took the port first.
#[derive(Debug)]
struct PortTaken;

/// A free port of loopback whose cluster bus port, 10000 above, is free as well.
pub fn free_port() -> u16 {
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
    // Otherwise the log of an earlier start could be taken for this one's.
    File::create(directory.join("log")).unwrap();
    let mut keeper = Command::new("sh")
        .args(["-c", KEEPER, "keeper"])
        .arg(directory)
        // The configuration file has to be the first argument.
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
