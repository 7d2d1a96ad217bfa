//! The benchmark's Redis, and the command statistics and memory that it reports.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use redis::Connection;
use test_support::process::cpu_time;
use test_support::redis_server::RedisServer;

/// How Redis persists writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aof {
    Off,
    EverySecond,
    Always,
}

/// A running server, with a connection for its statistics.
pub(crate) struct MeasuredRedis {
    server: RedisServer,
    connection: Connection,
}

/// Number of commands and their time since the start of Redis.
#[derive(Clone, Debug, Default)]
pub(crate) struct Commands(BTreeMap<String, (u64, u64)>);

impl MeasuredRedis {
    /// Starts an empty server, with its files on the disk of the build, because `/tmp` may be in memory. Rewriting of the
    /// append-only file is disabled, so that all rounds do the same work.
    pub(crate) fn start(aof: Aof) -> Self {
        let (appendonly, appendfsync) = match aof {
            Aof::Off => ("no", "no"),
            Aof::EverySecond => ("yes", "everysec"),
            Aof::Always => ("yes", "always"),
        };
        let server = RedisServer::with_files_below(
            Path::new(env!("CARGO_TARGET_TMPDIR")),
            &["--appendonly", appendonly, "--appendfsync", appendfsync, "--auto-aof-rewrite-percentage", "0"],
        );
        let connection = server.connection(0);
        Self { server, connection }
    }

    pub(crate) const fn port(&self) -> u16 {
        self.server.port()
    }

    /// Processor time so far, in user and kernel mode.
    pub(crate) fn cpu(&self) -> Duration {
        cpu_time(self.server.pid())
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

    /// Bytes in use, without the buffers of clients.
    pub(crate) fn used_memory(&mut self) -> u64 {
        let info = self.info("memory");
        let bytes = |field: &str| -> u64 {
            info.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok()).unwrap()
        };
        bytes("used_memory:") - bytes("mem_clients_normal:")
    }
}

impl Commands {
    /// The difference to earlier statistics: the number of commands, including those inside scripts, and the time of
    /// scripts in microseconds, or of all commands if there is no script. Excludes the benchmark's own commands.
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
