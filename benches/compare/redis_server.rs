//! A Redis of the benchmark's own, and what it says of its work.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::{Command, Stdio};

use redis::Connection;
use tempfile::TempDir;

use crate::children::{Process, free_port};

/// What Redis writes to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aof {
    Off,
    EverySecond,
    Always,
}

pub(crate) struct RedisServer {
    pub(crate) process: Process,
    pub(crate) port: u16,
    connection: Connection,
    _directory: TempDir,
}

/// Commands and their time since Redis was started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Commands(BTreeMap<String, (u64, u64)>);

impl RedisServer {
    /// Starts one without data. It never rewrites its file or saves a snapshot, so that rounds are alike.
    pub(crate) fn start(aof: Aof) -> Self {
        let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let port = free_port();
        let (appendonly, appendfsync) = match aof {
            Aof::Off => ("no", "no"),
            Aof::EverySecond => ("yes", "everysec"),
            Aof::Always => ("yes", "always"),
        };
        let port_text = port.to_string();
        let log = directory.path().join("log");
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &port_text, "--save", ""])
            .args(["--appendonly", appendonly, "--appendfsync", appendfsync])
            .args(["--auto-aof-rewrite-percentage", "0", "--daemonize", "no", "--dir"])
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap());
        let mut process = Process::start(&mut command);
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        let connection = process.wait_until(
            "redis-server",
            || fs::read_to_string(&log).unwrap(),
            || {
                let mut connection = client.get_connection().ok()?;
                redis::cmd("PING").query::<String>(&mut connection).ok()?;
                Some(connection)
            },
        );
        Self { process, port, connection, _directory: directory }
    }

    fn info(&mut self, section: &str) -> String {
        redis::cmd("INFO").arg(section).query(&mut self.connection).unwrap()
    }

    pub(crate) fn commands(&mut self) -> Commands {
        let info = self.info("commandstats");
        let line = |line: &str| {
            // cmdstat_get:calls=1,usec=2,usec_per_call=2.00,…
            let (name, rest) = line.trim().strip_prefix("cmdstat_")?.split_once(':')?;
            let number =
                |field: &str| rest.split(',').find_map(|part| part.strip_prefix(field)?.parse().ok());
            Some((name.to_owned(), (number("calls=")?, number("usec=")?)))
        };
        Commands(info.lines().filter_map(line).collect())
    }

    /// Bytes in use, but for the buffers of its clients.
    pub(crate) fn used_memory(&mut self) -> u64 {
        let info = self.info("memory");
        let bytes = |field: &str| -> u64 {
            info.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok()).unwrap()
        };
        bytes("used_memory:") - bytes("mem_clients_normal:")
    }
}

impl Commands {
    /// What came since an earlier look: how many commands, those inside scripts included, and the time of scripts in
    /// microseconds; without scripts, of all commands. The benchmark's own are left out.
    pub(crate) fn since(&self, earlier: &Self) -> (u64, u64) {
        let (mut calls, mut all, mut scripts) = (0, 0, 0);
        for (name, &(now_calls, now_usec)) in &self.0 {
            let (then_calls, then_usec) = earlier.0.get(name).copied().unwrap_or_default();
            let usec = now_usec - then_usec;
            if name != "info" {
                calls += now_calls - then_calls;
                all += usec;
            }
            if matches!(name.as_str(), "evalsha" | "eval" | "fcall") {
                scripts += usec;
            }
        }
        (calls, if scripts > 0 { scripts } else { all })
    }
}
