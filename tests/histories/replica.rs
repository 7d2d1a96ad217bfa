//! One instance of the service: the program as a process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;

use callback_ingress::config::{self, Sources};
use callback_ingress::domain::gate::Limits;
use serde_json::Value;

use crate::clock::SteppedClock;

const PROGRAM: &str = env!("CARGO_BIN_EXE_callback-ingress");
/// The service key of all instances.
pub(crate) const SERVICE_KEY: &str = "the-platforms-key-of-the-histories";

/// Settings of every instance, except its store.
const SETTINGS: [(&str, &str); 9] = [
    ("http.public_addr", "127.0.0.1:0"),
    ("http.platform_addr", "127.0.0.1:0"),
    // The same on every instance, because it is part of issued URLs.
    ("http.public_base_url", "http://callbacks.test"),
    ("token.keys", r#"["k1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="]"#),
    ("platform.service_keys", r#"["the-platforms-key-of-the-histories"]"#),
    // The clients set request ids, as a gateway does.
    ("http.trusted_proxies", r#"["127.0.0.0/8"]"#),
    // Half of the default, so that more outcomes are unknown.
    ("store.response_timeout_ms", "500"),
    // All clients share one address, and many tokens are forged.
    ("rate_limit.failed_max", "0"),
    // Only the line with the addresses.
    ("telemetry.log_level", "callback_ingress::cli::serve=info,error"),
];

/// With Redis replicas: wait for them as long as for a reply.
const WAITING: [(&str, &str); 2] = [("store.wait_replicas", "1"), ("store.wait_timeout_ms", "500")];

/// The limits of every instance.
pub(crate) fn limits() -> Limits {
    let flags = SETTINGS.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    config::load(Sources { flags, ..Sources::default() }).unwrap().config.limits()
}

/// The addresses of an instance, new after each start.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) public: String,
    pub(crate) platform: String,
}

/// `$@` is the command. Prints its process id, and kills it when standard input closes, so that it never outlives the
/// tests.
const KEEPER: &str = r#"
trap '' INT TERM
"$@" >/dev/null &
echo "$!"
read -r _
kill -9 "$!" 2>/dev/null
wait "$!" 2>/dev/null
"#;

/// An instance, running or killed; stopped when dropped.
#[derive(Debug)]
pub(crate) struct Replica {
    store_url: String,
    waits: bool,
    clock: SteppedClock,
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    keeper: Child,
    pid: u32,
    addresses: Addresses,
}

impl Running {
    /// Kills it, unless it has exited.
    fn end(&mut self) {
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

impl Replica {
    pub(crate) fn start(store_url: String, waits: bool) -> Self {
        let clock = SteppedClock::new();
        let running = Mutex::new(launch(&store_url, waits, &clock));
        Self { store_url, waits, clock, running }
    }

    pub(crate) fn addresses(&self) -> Addresses {
        self.running.lock().unwrap().addresses.clone()
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&self) {
        self.signal("KILL");
        self.running.lock().unwrap().end();
    }

    /// Starts it again after [`Replica::kill`].
    pub(crate) fn restart(&self) {
        *self.running.lock().unwrap() = launch(&self.store_url, self.waits, &self.clock);
    }

    /// Sends SIGSTOP: its connections stay open, until [`Replica::resume`].
    pub(crate) fn suspend(&self) {
        self.signal("STOP");
    }

    /// Sends SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    /// Sets the offset of its system clock.
    pub(crate) fn step_clock(&self, seconds: i64) {
        self.clock.step(seconds);
    }

    fn signal(&self, name: &str) {
        let pid = self.running.lock().unwrap().pid.to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.is_ok_and(|status| status.success()), "SIG{name} could not be sent");
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.running.get_mut().unwrap().end();
    }
}

fn launch(store_url: &str, waits: bool, clock: &SteppedClock) -> Running {
    let waiting = WAITING.into_iter().filter(|_| waits);
    let settings = SETTINGS.into_iter().chain([("store.url", store_url)]).chain(waiting);
    let mut keeper = Command::new("/bin/sh")
        .args(["-c", KEEPER, "keeper", PROGRAM, "serve"])
        .args(settings.flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")]))
        .env_clear()
        .envs(clock.variables())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pid = String::new();
    BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    let pid = pid.trim().parse().expect("the keeper tells the process id");
    let mut log = BufReader::new(keeper.stderr.take().unwrap()).lines().map_while(Result::ok);
    let line = log.find(|line| line.contains(r#""serving""#)).expect("the program serves");
    let line: Value = serde_json::from_str(&line).unwrap();
    // Prints the instance's log; an unread pipe would also block it.
    thread::spawn(move || log.for_each(|line| eprintln!("{line}")));
    let address = |name: &str| line[name].as_str().unwrap().to_owned();
    let addresses = Addresses { public: address("public"), platform: address("platform") };
    Running { keeper, pid, addresses }
}
