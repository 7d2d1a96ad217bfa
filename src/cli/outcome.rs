//! How a command ends: its output, its error message and its exit code.

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use tokio::sync::oneshot;

use crate::config::ConfigErrors;

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Wrong usage or configuration: exit code 2.
    Usage(Box<dyn Error>),
    /// Failure at runtime: exit code 1.
    Runtime(Box<dyn Error>),
}

impl From<ConfigErrors> for Failure {
    fn from(error: ConfigErrors) -> Self {
        Self::Usage(error.into())
    }
}

/// Writes to standard output. A closed pipe is not an error.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    write(text).map(|_| ())
}

/// Writes to standard output. Returns false if it is a closed pipe.
pub(super) fn write(text: &str) -> Result<bool, Failure> {
    let mut out = anstream::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Runtime(format!("cannot write to standard output: {error}").into()))
        }
        Ok(()) => Ok(true),
        Err(_) => Ok(false),
    }
}

/// Waits until standard output is a closed pipe, without writing. A file is never closed.
pub(super) async fn stdout_closed() {
    let (sender, closed) = oneshot::channel();
    // A thread instead of a task, because the process does not wait for it when it exits.
    std::thread::spawn(move || {
        let stdout = std::io::stdout();
        let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
        if retry_on_intr(|| poll(&mut watched, None)).is_ok() {
            let _ = sender.send(());
        }
    });
    if closed.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Writes a note to standard error. Ignores write errors.
pub(super) fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "callback-ingress: {text}");
}

/// Maximum time to write the error message before the process exits.
const STDERR_TIMEOUT: Duration = Duration::from_secs(3);

/// Writes the error with its causes to standard error.
pub(super) fn report_error(error: &dyn Error, code: u8) -> ExitCode {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        // Some errors repeat their cause.
        let source_text = source.to_string();
        if !message.ends_with(&source_text) {
            message = format!("{message}: {source_text}");
        }
        cause = source.source();
    }
    // In a separate thread, because a full pipe would block the exit of the process.
    let (sender, written) = mpsc::channel();
    std::thread::spawn(move || {
        anstream::eprintln!("callback-ingress: {message}");
        let _ = sender.send(());
    });
    let _ = written.recv_timeout(STDERR_TIMEOUT);
    ExitCode::from(code)
}
