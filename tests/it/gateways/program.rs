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
use test_support::npm;
use test_support::redis_server::free_port;
use tokio::time::Instant;

use super::recorder::plain;
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
/// The shipped gateways.
const SHIPPED_NGINX: &str = include_str!("../../../config/nginx.conf");
const SHIPPED_FASTIFY: [(&str, &str); 3] = [
    ("package.json", include_str!("../../../config/fastify/package.json")),
    ("package-lock.json", include_str!("../../../config/fastify/package-lock.json")),
    ("server.js", include_str!("../../../config/fastify/server.js")),
];

/// The kinds of gateways.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Reads a whole body before it forwards the request.
    Nginx,
    /// Forwards a body while it arrives.
    StreamingNginx,
    Fastify,
    /// nginx with its default settings.
    DefaultNginx,
    /// Fastify with its default settings.
    DefaultFastify,
}

/// The gateways in `config/`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shipped {
    Nginx,
    Fastify,
}

/// The addresses of an instance of the service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instance {
    pub(super) public: SocketAddr,
    pub(super) platform: SocketAddr,
}

/// A command with its environment variables, and what shows that it has started.
struct Program {
    command: Vec<String>,
    variables: Vec<(&'static str, String)>,
    is_ready: fn(&Gateway) -> bool,
}

/// A running gateway. Dropping it kills the process and deletes its directory.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) address: SocketAddr,
    /// The platform's address of a shipped gateway.
    pub(super) platform: SocketAddr,
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
        Self::on_free_ports(|directory, port, _| Program {
            command: match kind {
                Kind::Nginx => nginx(directory, port, upstream, &buffering("on")),
                Kind::StreamingNginx => nginx(directory, port, upstream, &buffering("off")),
                Kind::Fastify => fastify(directory, port, upstream, "gateway.js"),
                Kind::DefaultNginx => nginx(directory, port, upstream, include_str!("defaults.conf")),
                Kind::DefaultFastify => fastify(directory, port, upstream, "defaults.js"),
            },
            variables: Vec::new(),
            is_ready: Self::has_written_ready,
        })
    }

    /// Starts a gateway of `config/` in front of these instances.
    pub(super) fn shipped(kind: Shipped, instances: [Instance; 2]) -> Self {
        Self::on_free_ports(|directory, port, platform_port| match kind {
            Shipped::Nginx => shipped_nginx(directory, [port, platform_port], instances),
            Shipped::Fastify => shipped_fastify([port, platform_port], instances),
        })
    }

    fn on_free_ports(program: impl Fn(&Path, u16, u16) -> Program) -> Self {
        for _ in 0..5 {
            let directory = tempfile::Builder::new().prefix("gateway-").tempdir().unwrap();
            let (port, platform_port) = (free_port(), free_port());
            let program = program(directory.path(), port, platform_port);
            let [address, platform] =
                [port, platform_port].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
            if let Some(gateway) = launch(&program, directory, address, platform) {
                return gateway;
            }
        }
        panic!("no port that looked free was free a moment later, five times in a row");
    }

    fn has_written_ready(&self) -> bool {
        self.directory.path().join("ready").exists()
    }

    /// All files that it has written.
    pub(super) fn written(&self) -> String {
        let files = fs::read_dir(self.directory.path()).unwrap().map(|file| file.unwrap().path());
        let logs = files.filter(|file| file.is_file() && !file.ends_with("nginx.conf"));
        let texts: Vec<_> = logs.map(|file| fs::read(file).unwrap()).collect();
        String::from_utf8_lossy(&texts.concat()).into_owned()
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
fn launch(
    program: &Program,
    directory: TempDir,
    address: SocketAddr,
    platform: SocketAddr,
) -> Option<Gateway> {
    let keeper = Command::new("sh")
        .args(["-c", KEEPER, "keeper"])
        .arg(directory.path())
        .args(&program.command)
        .envs(program.variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh runs");
    let gateway = Gateway { address, platform, keeper, directory };
    let since = Instant::now();
    while !(program.is_ready)(&gateway) {
        let log = gateway.log();
        if log.contains("Address already in use") || log.contains("EADDRINUSE") {
            return None;
        }
        let lost = log.contains("[emerg]") || log.contains("Error:") || since.elapsed() > PATIENCE;
        assert!(!lost, "{} did not start:\n{log}", program.command[0]);
        sleep(Duration::from_millis(5));
    }
    Some(gateway)
}

/// Debian installs it in a directory that only root has in PATH.
fn nginx_program() -> &'static str {
    let places = ["nginx", "/usr/sbin/nginx"];
    let program = places.into_iter().find(|place| runs(place, "-v"));
    program.expect("these tests need the program nginx: install the package nginx")
}

/// The configuration of nginx, with or without buffering of requests.
fn buffering(on_or_off: &str) -> String {
    include_str!("nginx.conf").replace("{buffering}", on_or_off)
}

fn nginx(directory: &Path, port: u16, upstream: SocketAddr, configuration: &str) -> Vec<String> {
    let directory = directory.to_str().unwrap();
    let configuration = configuration
        .replace("{directory}", directory)
        .replace("{port}", &port.to_string())
        .replace("{upstream}", &upstream.to_string());
    let file = format!("{directory}/nginx.conf");
    fs::write(&file, configuration).unwrap();
    [nginx_program(), "-e", "stderr", "-p", directory, "-c", &file].map(str::to_owned).to_vec()
}

/// The shipped configuration, with other addresses and paths.
fn shipped_nginx(directory: &Path, ports: [u16; 2], instances: [Instance; 2]) -> Program {
    let directory = directory.to_str().unwrap();
    let mut configuration = SHIPPED_NGINX.to_owned();
    for (shipped, here) in [
        ("listen 8000 default_server", format!("listen 127.0.0.1:{} default_server", ports[0])),
        ("listen 127.0.0.1:8001", format!("listen 127.0.0.1:{}", ports[1])),
        ("server 127.0.0.1:8080 ", format!("server {} ", instances[0].public)),
        ("server 127.0.0.1:8081 ", format!("server {} ", instances[0].platform)),
        ("server 127.0.0.1:8082 ", format!("server {} ", instances[1].public)),
        ("server 127.0.0.1:8083 ", format!("server {} ", instances[1].platform)),
        ("/var/log/nginx/error.log warn", format!("{directory}/error.log warn")),
        ("/var/log/nginx/callbacks.log", format!("{directory}/callbacks.log")),
        ("/run/nginx.pid", format!("{directory}/ready")),
        // Paths that nginx can write without being root.
        (
            "client_max_body_size",
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|name| format!("{name}_temp_path {directory}/{name};"))
                .concat()
                + "client_max_body_size",
        ),
    ] {
        assert_eq!(configuration.matches(shipped).count(), 1, "{shipped}");
        configuration = configuration.replace(shipped, &here);
    }
    let file = format!("{directory}/nginx.conf");
    fs::write(&file, configuration).unwrap();
    let foreground = "daemon off; master_process off;";
    let command = [nginx_program(), "-e", "stderr", "-p", directory, "-c", &file, "-g", foreground];
    Program {
        command: command.map(str::to_owned).to_vec(),
        variables: Vec::new(),
        is_ready: Gateway::has_written_ready,
    }
}

fn shipped_fastify(ports: [u16; 2], instances: [Instance; 2]) -> Program {
    static INSTALLED_IN: OnceLock<PathBuf> = OnceLock::new();
    let folder = INSTALLED_IN.get_or_init(|| npm::install(parent(), "shipped-gateway", &SHIPPED_FASTIFY));
    let origins =
        |of: fn(Instance) -> SocketAddr| instances.map(|instance| format!("http://{}", of(instance)));
    Program {
        command: vec!["node".to_owned(), folder.join("server.js").to_str().unwrap().to_owned()],
        variables: vec![
            ("HOST", "127.0.0.1".to_owned()),
            ("PORT", ports[0].to_string()),
            ("PLATFORM_PORT", ports[1].to_string()),
            ("INSTANCES", origins(|instance| instance.public).join(",")),
            ("PLATFORM_INSTANCES", origins(|instance| instance.platform).join(",")),
        ],
        is_ready: |gateway| gateway.log().matches("Server listening").count() == 2,
    }
}

fn parent() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

fn fastify(directory: &Path, port: u16, upstream: SocketAddr, script: &str) -> Vec<String> {
    static INSTALLED_IN: OnceLock<PathBuf> = OnceLock::new();
    let script = INSTALLED_IN.get_or_init(|| npm::install(parent(), "gateway", &FILES)).join(script);
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
