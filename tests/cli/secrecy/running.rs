//! The running program with its captured output.

use std::fs;
use std::process::{Command, Stdio};

use tempfile::NamedTempFile;

use super::search::Capture;
use crate::program::{PROGRAM, path};
use crate::service::{Process, eventually};

/// `serve` with its output in files.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) process: Process,
    out: NamedTempFile,
    err: NamedTempFile,
    pub(crate) public: String,
    pub(crate) platform: String,
}

impl Running {
    pub(crate) fn start(variables: &[(&str, String)]) -> Self {
        let (out, err) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
        let mut command = Command::new(PROGRAM);
        command.arg("serve").env_clear().env("PATH", path());
        command.envs(variables.iter().map(|(name, value)| (*name, value)));
        command.stdin(Stdio::null()).stdout(out.reopen().unwrap()).stderr(err.reopen().unwrap());
        let mut process = Process(command.spawn().unwrap());
        let mut addresses = Vec::new();
        eventually("it serves", || {
            let log = fs::read_to_string(err.path()).unwrap_or_default();
            assert!(process.0.try_wait().unwrap().is_none(), "it ended:\n{log}");
            addresses =
                log.lines().find(|line| line.contains("serving")).map(addresses_in).unwrap_or_default();
            addresses.len() >= 2
        });
        let (public, platform) = (addresses[0].clone(), addresses[1].clone());
        Self { process, out, err, public, platform }
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.err.path()).unwrap()).into_owned()
    }

    /// Waits for its exit; returns all output.
    pub(crate) fn ended(mut self, code: i32) -> [Capture; 2] {
        assert_eq!(self.process.exit_code(), Some(code), "{}", self.log());
        [("standard output", &self.out), ("standard error", &self.err)]
            .map(|(name, file)| Capture::new(name, fs::read(file.path()).unwrap()))
    }
}

/// The addresses of the public and the platform listener.
fn addresses_in(line: &str) -> Vec<String> {
    let addresses = line.match_indices("127.0.0.1:").map(|(at, _)| {
        let port = line[at + 10..].chars().take_while(char::is_ascii_digit);
        format!("127.0.0.1:{}", port.collect::<String>())
    });
    addresses.collect()
}
