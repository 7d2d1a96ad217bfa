//! The machine and the software versions of a measurement.

use std::process::{Command, Stdio};
use std::time::SystemTime;

use serde_json::{Value, json};

/// The machine, the versions of its programs, and the date.
pub(crate) fn describe() -> Value {
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let memory = read("/proc/meminfo");
    json!({
        "date": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        "cpu": model.map(|(_, name)| name.trim()),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": memory.lines().find_map(|line| Some(line.strip_prefix("MemTotal:")?.trim().to_owned())),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_before": read("/proc/loadavg").trim(),
        "revision": said("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
        "redis": said("redis-server", &["--version"]),
        "node": said("node", &["--version"]),
        "rustc": said("rustc", &["--version"]),
    })
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A warning if other programs use the processors.
pub(crate) fn busy() -> Option<String> {
    let load = read("/proc/loadavg");
    let last_minute: f64 = load.split(' ').next()?.parse().ok()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let text = format!(
        "The machine was busy before the run (load {last_minute} on {cores} cores): its ratios are not reliable."
    );
    (last_minute > 0.5 * cores as f64).then_some(text)
}

/// The first line of a program's output. `None` if the program is not installed.
pub(crate) fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
}
