//! The peer on Node: its packages are installed with `npm ci` into a folder beside this benchmark's results.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::peer::SCRIPT;

const FILES: [(&str, &str); 4] = [
    ("package.json", include_str!("peer/fastify/package.json")),
    ("package-lock.json", include_str!("peer/fastify/package-lock.json")),
    ("server.js", include_str!("peer/fastify/server.js")),
    ("callback.lua", SCRIPT),
];
/// A copy of the lock file, written when the installation is complete.
const INSTALLED: &str = "installed-from.json";

/// Installs the packages if necessary. Returns the folder, or the reason why they are not available.
pub(crate) fn install(folder: &Path) -> Result<PathBuf, String> {
    for program in ["node", "npm"] {
        let version = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        if !version.is_ok_and(|version| version.status.success()) {
            return Err(format!("there is no {program} on PATH"));
        }
    }
    fs::create_dir_all(folder).map_err(|error| error.to_string())?;
    for (name, text) in FILES {
        fs::write(folder.join(name), text).map_err(|error| error.to_string())?;
    }
    let lock = FILES[1].1;
    if fs::read_to_string(folder.join(INSTALLED)).is_ok_and(|installed| installed == lock) {
        return Ok(folder.to_owned());
    }
    eprintln!("installing Fastify and ioredis with npm ci");
    let npm = Command::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !npm.status.success() {
        let said = String::from_utf8_lossy(&npm.stderr);
        let line = said.lines().find(|line| !line.contains("warn")).unwrap_or("it failed");
        return Err(format!("npm ci: {line}"));
    }
    fs::write(folder.join(INSTALLED), lock).map_err(|error| error.to_string())?;
    Ok(folder.to_owned())
}

pub(crate) fn server(folder: &Path, redis_port: &str, secret: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(folder.join("server.js")).args([redis_port, secret]).env("NODE_ENV", "production");
    command
}
