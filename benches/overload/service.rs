//! The program, restarted for each round.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use test_support::process::resident_kib;

pub(crate) const KEY: &str = "a-service-key-for-the-benchmark";

/// A running program, killed when dropped, with its log in a file.
pub(crate) struct Service {
    child: Child,
    pub(crate) public: String,
    pub(crate) platform: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Service {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut log = tempfile::tempfile().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_callback-ingress"))
            .args(["serve", "--public-addr", "127.0.0.1:0", "--platform-addr", "127.0.0.1:0"])
            .arg("--set")
            .arg(format!("platform.service_keys=[{KEY:?}]"))
            .args(["--set", "telemetry.log_format=json"])
            .args(arguments)
            .stderr(Stdio::from(log.try_clone().unwrap()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let line = serving(&mut log);
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        Self { public: text("public"), platform: text("platform"), child }
    }

    /// Resident memory, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        resident_kib(self.child.id())
    }
}

/// The log line with the addresses.
fn serving(log: &mut File) -> serde_json::Value {
    loop {
        let mut text = String::new();
        log.rewind().unwrap();
        log.read_to_string(&mut text).unwrap();
        if let Some(line) = text.lines().find(|line| line.contains("\"serving\"") && line.ends_with('}')) {
            return serde_json::from_str(line).unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
