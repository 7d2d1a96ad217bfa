//! A running `serve`, killed when dropped.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::program::{PATIENCE, PROGRAM, path};
use crate::wire::{Reply, call};

/// The lines that a process has written so far.
#[derive(Clone, Debug)]
pub(crate) struct Lines(Arc<(Mutex<Written>, Condvar)>);

#[derive(Debug, Default)]
struct Written {
    lines: Vec<String>,
    whole: bool,
}

impl Lines {
    pub(crate) fn of(source: impl Read + Send + 'static) -> Self {
        let lines = Self(Arc::default());
        let shared = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(source).lines().map_while(Result::ok) {
                shared.0.0.lock().unwrap().lines.push(line);
                shared.0.1.notify_all();
            }
            shared.0.0.lock().unwrap().whole = true;
            shared.0.1.notify_all();
        });
        lines
    }

    /// Waits for a line with this text.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        let found = |written: &Written| written.lines.iter().find(|line| line.contains(text)).cloned();
        let missing = |written: &Written| !written.whole && found(written).is_none();
        let written = self.wait_while(missing);
        found(&written).unwrap_or_else(|| panic!("{text:?} does not come:\n{}", written.lines.join("\n")))
    }

    /// Waits for the end of the output and returns all of it.
    pub(crate) fn whole(&self) -> String {
        let written = self.wait_while(|written| !written.whole);
        assert!(written.whole, "the output does not end");
        written.lines.join("\n")
    }

    fn wait_while(&self, condition: impl Fn(&Written) -> bool) -> MutexGuard<'_, Written> {
        let (written, more) = &*self.0;
        let written = written.lock().unwrap();
        more.wait_timeout_while(written, PATIENCE, |written| condition(written)).unwrap().0
    }

    /// Everything so far.
    pub(crate) fn text(&self) -> String {
        self.0.0.lock().unwrap().lines.join("\n")
    }
}

/// Polls until the condition holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A child process, killed when dropped.
#[derive(Debug)]
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) {
        let script = ["-c", r#"kill -s "$1" "$2""#, "kill", name, &self.0.id().to_string()];
        assert!(Command::new("sh").args(script).status().unwrap().success(), "SIG{name} could not be sent");
    }

    /// Waits for its exit code; `None` after a signal.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        eventually("the process ends", || self.0.try_wait().unwrap().is_some());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails where it has already exited.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// `serve` on free ports.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) process: Process,
    /// Address of the public listener.
    pub(crate) public: String,
    /// Address of the platform listener.
    pub(crate) platform: String,
    pub(crate) out: Lines,
    pub(crate) log: Lines,
}

impl Service {
    /// Starts it with these arguments.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_with::<&str>(&[], arguments)
    }

    /// Starts it with these environment variables and arguments.
    pub(crate) fn start_with<V: AsRef<str>>(variables: &[(&str, V)], arguments: &[&str]) -> Self {
        Self::spawn(Command::new(PROGRAM), variables, arguments)
    }

    /// Starts it with this limit on open files.
    pub(crate) fn start_with_open_files(limit: u32, arguments: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {limit}; exec {PROGRAM} \"$@\""), "sh"]);
        Self::spawn::<&str>(shell, &[], arguments)
    }

    fn spawn<V: AsRef<str>>(mut command: Command, variables: &[(&str, V)], arguments: &[&str]) -> Self {
        let child = command
            .arg("serve")
            .args(arguments)
            .env_clear()
            .env("PATH", path())
            .env("CALLBACK_INGRESS__HTTP__PUBLIC_ADDR", "127.0.0.1:0")
            .env("CALLBACK_INGRESS__HTTP__PLATFORM_ADDR", "127.0.0.1:0")
            .envs(variables.iter().map(|(name, value)| (*name, value.as_ref())))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut process = Process(child.unwrap());
        let out = Lines::of(process.0.stdout.take().unwrap());
        let log = Lines::of(process.0.stderr.take().unwrap());
        let line = log.wait_for("serving");
        let address = |name: &str| match serde_json::from_str::<Value>(&line) {
            Ok(fields) => fields[name].as_str().unwrap().to_owned(),
            Err(_) => line.split_once(&format!("{name}=")).unwrap().1.split(' ').next().unwrap().to_owned(),
        };
        Self { process, public: address("public"), platform: address("platform"), out, log }
    }

    /// The service key that it generated.
    pub(crate) fn made_key(&self) -> String {
        self.out.wait_for("KEY=").split_once("KEY=").unwrap().1.to_owned()
    }

    /// A request to the platform listener; the path is below `/platform/v1/conversations/`.
    pub(crate) fn platform(&self, method: &str, path: &str, body: &str) -> Reply {
        let key = format!("authorization: Bearer {}", self.made_key());
        call(&self.platform, &format!("{method} /platform/v1/conversations/{path}"), &[&key], body)
    }

    /// Opens a conversation and issues a work item; returns its token.
    pub(crate) fn token(&self, conversation: &str) -> String {
        assert!(self.platform("PUT", conversation, "").status <= 201);
        let body = json!({"kind": "tool"}).to_string();
        let issued = self.platform("POST", &format!("{conversation}/work-items"), &body);
        assert_eq!(issued.status, 201, "{issued:?}");
        issued.json()["callback"]["token"].as_str().unwrap().to_owned()
    }

    /// Posts a callback.
    pub(crate) fn callback(&self, token: &str, body: &str) -> Reply {
        let token = format!("x-callback-token: {token}");
        call(&self.public, "POST /api/v1/webhooks/callbacks", &[&token], body)
    }
}
