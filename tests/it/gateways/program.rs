//! Starts gateways, each on a free port with a temporary directory.
//!
//! A gateway never outlives its test: it is the child of a shell that kills it when its standard input closes, and the
//! kernel closes that however the test process ends.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;
use test_support::redis_server::free_port;
use tokio::time::Instant;

use super::recorder::plain;
use crate::node_packages::install;
use crate::service::PATIENCE;

/// `$1` is the directory, the rest is the command.
const KEEPER: &str = r#"
trap '' INT TERM
dir=$1
shift
"$@" >"$dir/log" 2>&1 &
pid=$!
read -r word
kill -9 "$pid" 2>"$dir/kill"
wait "$pid" 2>"$dir/kill"
"#;

/// The source files of the Node gateways.
const FILES: [(&str, &str); 4] = [
    ("package.json", include_str!("package.json")),
    ("package-lock.json", include_str!("package-lock.json")),
    ("gateway.js", include_str!("gateway.js")),
    ("defaults.js", include_str!("defaults.js")),
];

/// The kinds of gateways.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Reads a whole body before it forwards the request.
    Nginx,
    /// Forwards a body while it arrives.
    StreamingNginx,
    Fastify,
    /// With its default settings, as is the next one.
    DefaultNginx,
    DefaultFastify,
}

/// A running gateway. Dropping it kills the process and deletes its directory.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) address: SocketAddr,
    keeper: Child,
    directory: TempDir,
}

/// A request that the gateway forwarded, from its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forwarded {
    pub(super) id: String,
    /// The status of the response that the gateway matched to this request; `-` without one.
    pub(super) status: String,
    /// The request id in that response; empty without one.
    pub(super) answered: String,
    pub(super) method: String,
    pub(super) target: String,
}

impl Gateway {
    /// Starts a gateway in front of this address.
    pub(super) fn start(kind: Kind, upstream: SocketAddr) -> Self {
        for _ in 0..5 {
            let directory = tempfile::Builder::new().prefix("gateway-").tempdir().unwrap();
            let port = free_port();
            let program = match kind {
                Kind::Nginx => nginx(directory.path(), port, upstream, &buffering("on")),
                Kind::StreamingNginx => nginx(directory.path(), port, upstream, &buffering("off")),
                Kind::Fastify => fastify(directory.path(), port, upstream, "gateway.js"),
                Kind::DefaultNginx => nginx(directory.path(), port, upstream, include_str!("defaults.conf")),
                Kind::DefaultFastify => fastify(directory.path(), port, upstream, "defaults.js"),
            };
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            if let Some(gateway) = launch(&program, directory, address) {
                return gateway;
            }
        }
        panic!("no port that looked free was free a moment later, five times in a row");
    }

    /// The requests forwarded so far.
    pub(super) fn forwarded(&self) -> Vec<Forwarded> {
        let text = fs::read(self.directory.path().join("forwarded.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // Later log lines of a request replace earlier ones. An incomplete last line is ignored.
        let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let all: HashMap<String, Forwarded> =
            whole.map(Forwarded::read).map(|forwarded| (forwarded.id.clone(), forwarded)).collect();
        all.into_values().collect()
    }

    /// Its error log.
    pub(super) fn log(&self) -> String {
        log(self.directory.path())
    }
}

impl Forwarded {
    /// Whether the service's HTTP library refused it, without a request id.
    pub(super) fn is_refused(&self) -> bool {
        self.status == "400" && self.answered.is_empty()
    }

    /// Its target, if it was accepted as a callback.
    pub(super) fn spends(&self) -> Option<&str> {
        (self.status == "202" && self.method == "POST").then_some(self.target.as_str())
    }

    fn read(line: &str) -> Self {
        let mut words = line.splitn(5, ' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (id, status, answered) = (plain(&word()), word(), plain(&word()));
        Self { id, status, answered, method: word(), target: word() }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

fn log(directory: &Path) -> String {
    let texts = ["log", "error.log"].map(|name| fs::read(directory.join(name)).unwrap_or_default());
    String::from_utf8_lossy(&texts.concat()).into_owned()
}

/// `None` if another process took the port first.
fn launch(program: &[String], directory: TempDir, address: SocketAddr) -> Option<Gateway> {
    let keeper = Command::new("sh")
        .args(["-c", KEEPER, "keeper"])
        .arg(directory.path())
        .args(program)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh runs");
    let gateway = Gateway { address, keeper, directory };
    let since = Instant::now();
    while !gateway.directory.path().join("ready").exists() {
        let log = gateway.log();
        if log.contains("Address already in use") || log.contains("EADDRINUSE") {
            return None;
        }
        let lost = log.contains("[emerg]") || log.contains("Error:") || since.elapsed() > PATIENCE;
        assert!(!lost, "{} did not start:\n{log}", program[0]);
        sleep(Duration::from_millis(5));
    }
    Some(gateway)
}

/// The configuration of nginx, with or without buffering of requests.
fn buffering(on_or_off: &str) -> String {
    include_str!("nginx.conf").replace("{buffering}", on_or_off)
}

fn nginx(directory: &Path, port: u16, upstream: SocketAddr, configuration: &str) -> Vec<String> {
    // Debian installs it in a directory that only root has in PATH.
    let places = ["nginx", "/usr/sbin/nginx"];
    let program = places.into_iter().find(|place| runs(place, "-v"));
    let program = program.expect("these tests need the program nginx: install the package nginx");
    let directory = directory.to_str().unwrap();
    let configuration = configuration
        .replace("{directory}", directory)
        .replace("{port}", &port.to_string())
        .replace("{upstream}", &upstream.to_string());
    let file = format!("{directory}/nginx.conf");
    fs::write(&file, configuration).unwrap();
    [program, "-e", "stderr", "-p", directory, "-c", &file].map(str::to_owned).to_vec()
}

fn fastify(directory: &Path, port: u16, upstream: SocketAddr, script: &str) -> Vec<String> {
    static INSTALLED_IN: OnceLock<PathBuf> = OnceLock::new();
    let script = INSTALLED_IN.get_or_init(|| install("gateway", &FILES)).join(script);
    let directory = directory.to_str().unwrap();
    ["node", script.to_str().unwrap(), &port.to_string(), &upstream.to_string(), directory]
        .map(str::to_owned)
        .to_vec()
}

fn runs(program: &str, option: &str) -> bool {
    let mut command = Command::new(program);
    let output = command.arg(option).stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}
