//! Child processes. They are killed by process id when they are dropped, on a panic and on a signal.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use test_support::process::{cpu_time, resident_kib};

/// The running children.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running child, killed when dropped.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut running = running();
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        running.push(child.id());
        Self { child }
    }

    /// Starts a server that prints its address in its first line, and exits at the end of its standard input.
    pub(crate) fn start_peer(command: &mut Command) -> (Self, SocketAddr) {
        let mut process = Self::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut line = String::new();
        process.output().read_line(&mut line).unwrap();
        let address = line.trim().parse().unwrap_or_else(|_| panic!("{command:?} did not print its address"));
        (process, address)
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its standard output, on the first call.
    pub(crate) fn output(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.child.stdout.take().unwrap())
    }

    /// Processor time so far, in user and kernel mode.
    pub(crate) fn cpu(&self) -> Duration {
        cpu_time(self.child.id())
    }

    /// Resident memory, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        resident_kib(self.child.id())
    }

    /// Waits until `ready` returns a value. If the process exits first, returns its output as an error.
    pub(crate) fn wait_until<T>(
        &mut self,
        name: &str,
        said: impl Fn() -> String,
        mut ready: impl FnMut() -> Option<T>,
    ) -> T {
        let begin = Instant::now();
        loop {
            if let Some(value) = ready() {
                return value;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{name} ended: {status}\n{}", said());
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "{name} does not answer\n{}", said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut running = running();
        let _ = self.child.kill();
        let _ = self.child.wait();
        running.retain(|&id| id != self.child.id());
    }
}

/// On SIGINT and SIGTERM kills the children and exits.
pub(crate) fn end_with_signals() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async {
            let mut terminate =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        });
        // Holds the lock, so that no further children are started.
        let running = running();
        for &id in running.iter() {
            let _ = kill_process(Pid::from_raw(i32::try_from(id).unwrap()).unwrap(), Signal::KILL);
        }
        std::process::exit(130);
    });
}

/// A free loopback port below the ephemeral range, so that no outgoing connection takes it before the server binds it.
pub(crate) fn free_port() -> u16 {
    let [port] = free_ports();
    port
}

/// Different free ports.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let ports = std::iter::repeat_with(|| rand::random_range(20_000..32_000_u16)).take(1000);
    let mut bound = ports.filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    let bound = [(); N].map(|()| bound.next().expect("a port is free"));
    bound.map(|listener| listener.local_addr().unwrap().port())
}

/// This program in another role.
pub(crate) fn this_program(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(role);
    command
}
