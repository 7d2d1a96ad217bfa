//! A client process that reads and writes lines.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Duration, timeout};

/// Longest wait for a line: longer than any retry.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running process, killed when dropped. Its errors go to the terminal.
#[derive(Debug)]
pub(super) struct Program {
    process: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Program {
    pub(super) fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        // Without variables such as HTTP_PROXY.
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap_or_else(|error| {
            panic!("{program}: {error}; tests/run installs the programs that the tests need")
        });
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { input: process.stdin.take(), process, output }
    }

    /// Sends a line to its input.
    pub(super) async fn tell(&mut self, line: &str) {
        let line = format!("{line}\n");
        let sent = self.input.as_mut().unwrap().write_all(line.as_bytes());
        timeout(PATIENCE, sent).await.expect("it reads its input").unwrap();
    }

    /// The next line; `None` at the end of the output.
    pub(super) async fn line(&mut self) -> Option<String> {
        timeout(PATIENCE, self.output.next_line()).await.expect("a line in time").unwrap()
    }

    /// Closes its input, expects it to succeed, and returns the rest of its output.
    pub(super) async fn finish(mut self) -> Vec<String> {
        drop(self.input.take());
        let mut rest = Vec::new();
        while let Some(line) = self.line().await {
            rest.push(line);
        }
        let status = timeout(PATIENCE, self.process.wait()).await.expect("it ends").unwrap();
        assert!(status.success(), "{status}: {rest:?}");
        rest
    }
}
