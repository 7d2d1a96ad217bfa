//! `probe`, through the public URL and through faulty gateways.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;
use tempfile::TempDir;
use test_support::redis_server::{RedisServer, free_port};

use crate::program::{PROGRAM, Ran, SERVICE_KEY, keys, path, run, run_with};
use crate::service::{Lines, Process, Service, eventually};
use crate::wire::call;

const CARRIERS: [&str; 4] = ["header", "query", "body", "path"];
/// The carriers are not all allowed by default.
const ALL: [&str; 2] = ["--set", r#"token.carriers=["header","query","body","path"]"#];

fn service(arguments: &[&str]) -> Service {
    Service::start_with(&keys(), &[&ALL, arguments].concat())
}

/// Probes with the service's key.
fn probe(service: &Service, arguments: &[&str]) -> Ran {
    let platform = format!("http://{}", service.platform);
    let ran = run_with(&keys(), &[&["probe", "--platform-url", &platform], arguments].concat());
    // Every token begins with its version.
    for secret in ["cbt_A", SERVICE_KEY] {
        assert!(!ran.out.contains(secret) && !ran.err.contains(secret), "{ran:?}");
    }
    ran
}

/// The conversation that a probe has opened, from the report in JSON.
fn conversation_of(ran: &Ran) -> String {
    let report: Value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    report["conversationId"].as_str().unwrap().to_owned()
}

fn state(service: &Service, conversation: &str) -> Value {
    let authorization = format!("authorization: Bearer {SERVICE_KEY}");
    let path = format!("GET /platform/v1/conversations/{conversation}");
    call(&service.platform, &path, &[&authorization], "").json()
}

/// Runs a probe that fails, and checks that nothing is left behind.
#[track_caller]
fn fails(service: &Service, arguments: &[&str], step: &str, reasons: &[&str]) {
    let ran = probe(service, &[arguments, &["--json"]].concat()).exits(1);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&report["ok"], &report["failure"]["step"]), (&false.into(), &step.into()), "{ran:?}");
    let told = report["failure"]["reason"].as_str().unwrap();
    for reason in reasons {
        assert!(told.contains(reason), "{reason:?} is not in {told:?}");
    }
    assert!(ran.err.starts_with(&format!("callback-ingress: {step}: ")) && ran.err.contains(told), "{ran:?}");
    let state = state(service, &conversation_of(&ran));
    assert!(state["state"] == "ended" || state["error"]["code"] == "CONVERSATION_NOT_FOUND", "{state}");
}

#[test]
fn every_carrier_makes_a_round_trip() {
    let redis = RedisServer::start();
    for store in ["memory:", &redis.url(0)] {
        let service = service(&["--store", store]);
        let public = format!("http://{}", service.public);
        let ran = probe(&service, &["--url", &public]).exits(0);
        let mut lines = ran.out.lines();
        let expected = ["open ", "events "]
            .into_iter()
            .map(ToOwned::to_owned)
            .chain(CARRIERS.iter().flat_map(|carrier| {
                [format!("issue for {carrier} "), format!("callback by {carrier} "), "event ".to_owned()]
            }))
            .chain(["end ".to_owned(), "end of the events ".to_owned(), "ok ".to_owned()]);
        for step in expected {
            let line = lines.next().unwrap();
            assert!(line.starts_with(&step) && line.contains(" ms"), "{step:?} is not {line:?} in {ran:?}");
        }
        assert_eq!((lines.next(), ran.err.as_str()), (None, ""));
    }
}

#[test]
fn result_is_one_json_document() {
    let service = service(&[]);
    let ran = probe(&service, &["--json"]).exits(0);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&report["ok"], &report["carriers"]), (&true.into(), &CARRIERS.as_slice().into()));
    assert_eq!(report["steps"].as_array().unwrap().len(), 16, "{report}");
    assert!(report["totalMs"].as_f64().unwrap() > 0.0 && report.get("failure").is_none(), "{report}");
    let state = state(&service, &conversation_of(&ran));
    assert_eq!((&state["state"], &state["reason"]), (&"ended".into(), &"probe".into()), "{state}");
    assert_eq!((&state["droppedHeld"], &state["droppedAwaiting"]), (&0.into(), &0.into()), "{state}");
}

#[test]
fn disabled_carriers_are_omitted() {
    let service = Service::start_with(
        &keys(),
        &["--set", r#"token.carriers=["query"]"#, "--set", "token.default_carrier=query"],
    );
    let ran = probe(&service, &["--json"]).exits(0);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["carriers"], Value::from(["query"].as_slice()));
}

#[test]
fn platform_address_is_that_of_the_configuration() {
    let service = service(&[]);
    run_with(&keys(), &["probe", "--platform-addr", &service.platform]).exits(0);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{SERVICE_KEY}").unwrap();
    let key_file = file.path().to_str().unwrap();
    run(&["probe", "--platform-addr", &service.platform, "--service-key-file", key_file]).exits(0);
    let arguments = ["probe", "--platform-url", "http://a", "--platform-addr", &service.platform];
    run_with(&keys(), &arguments).complains(2, &["probe does not use --platform-addr"]);
}

#[test]
fn wrong_usage_is_explained() {
    run(&["probe"]).complains(2, &["probe needs a service key", "--service-key-file"]);
    for (arguments, complaint) in [
        (["--url", "api.example.com"], "--url must be an absolute URL"),
        (["--url", "https://user:hunter2@a"], "--url must consist of"),
        (["--platform-url", "redis://a"], "--platform-url must consist of"),
        (["--timeout-ms", "soon"], "--timeout-ms"),
        (["--timeout-ms", "0"], "--timeout-ms"),
        (["--ca", "/nowhere.pem"], "--ca /nowhere.pem"),
    ] {
        let ran = run_with(&keys(), &[&["probe"], &arguments[..]].concat()).complains(2, &[complaint]);
        assert!(!ran.err.contains("hunter2"), "{ran:?}");
    }
}

#[test]
fn wrong_key_or_platform_url_is_explained() {
    let service = service(&[]);
    let platform = format!("http://{}", service.platform);
    let other = [("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", "[\"another-key-of-the-tests\"]")];
    let ran = run_with(&other, &["probe", "--platform-url", &platform]).exits(1);
    assert!(ran.err.contains("401 SERVICE_KEY_INVALID") && ran.err.contains("not one of this deployment"));
    assert!(!ran.err.contains("another-key"), "{ran:?}");

    let public = format!("http://{}", service.public);
    let ran = run_with(&keys(), &["probe", "--platform-url", &public]).exits(1);
    assert!(ran.err.contains("404 NOT_FOUND") && ran.err.contains("address of the platform listener?"));

    let closed = format!("http://127.0.0.1:{}", free_port());
    let ran = run_with(&keys(), &["probe", "--platform-url", &closed]).exits(1);
    assert!(ran.err.contains("open: the platform URL: connection refused by 127.0.0.1:"), "{ran:?}");
}

#[test]
fn public_url_without_a_response_is_explained() {
    let service = service(&[]);
    let closed = format!("http://127.0.0.1:{}", free_port());
    fails(
        &service,
        &["--url", &closed],
        "callback by header",
        &["the public URL: connection refused by 127"],
    );
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let arguments = ["--url", &silent, "--timeout-ms", "1000"];
    fails(&service, &arguments, "callback by header", &["no response within the time limit of 1s"]);
    let public = format!("https://{}", service.public);
    fails(&service, &["--url", &public], "callback by header", &["does not speak TLS: is the URL http://?"]);
}

#[test]
fn untrusted_certificate_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let [chain, key] = ["chain.pem", "key.pem"].map(|name| directory.path().join(name).display().to_string());
    fs::write(&chain, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let set = |name: &str, file: &str| format!("http.{name}={file}");
    let (public_chain, public_key) = (set("public_tls_cert", &chain), set("public_tls_key", &key));
    let service = service(&["--set", &public_chain, "--set", &public_key]);
    let (_, port) = service.public.rsplit_once(':').unwrap();
    let url = format!("https://localhost:{port}");
    fails(
        &service,
        &["--url", &url],
        "callback by header",
        &["TLS error at localhost", "UnknownIssuer", "--ca"],
    );
    probe(&service, &["--url", &url, "--ca", &chain]).exits(0);

    // The platform's own certificate is known from the configuration.
    let (platform_chain, platform_key) = (set("platform_tls_cert", &chain), set("platform_tls_key", &key));
    let tls = ["--set", &platform_chain, "--set", &platform_key];
    let service = self::service(&tls);
    let arguments = [&["probe", "--platform-addr", &service.platform][..], &tls].concat();
    run_with(&keys(), &arguments).exits(0);
}

#[test]
fn another_deployment_is_explained() {
    let (service, other) = (service(&[]), Service::start(&ALL));
    let url = format!("http://{}", other.public);
    fails(
        &service,
        &["--url", &url],
        "callback by header",
        &["401 CALLBACK_TOKEN_INVALID", "other token.keys?"],
    );
    let other = self::service(&[]);
    let url = format!("http://{}", other.public);
    fails(
        &service,
        &["--url", &url],
        "callback by header",
        &["409 CONVERSATION_ENDED", "another store.url?"],
    );
}

#[test]
fn interrupted_probe_leaves_nothing_behind() {
    let service = service(&[]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(PROGRAM);
    command
        .args(["probe", "--json", "--platform-url", &format!("http://{}", service.platform), "--url"])
        .arg(format!("http://{}", silent.local_addr().unwrap()))
        .env_clear()
        .env("PATH", path())
        .envs(keys())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = Process(command.spawn().unwrap());
    let out = Lines::of(process.0.stdout.take().unwrap());
    let log = Lines::of(process.0.stderr.take().unwrap());
    // The callback is under way.
    let _callback = silent.accept().unwrap();
    process.signal("INT");
    assert_eq!(process.exit_code(), Some(1));
    assert_eq!(log.whole(), "callback-ingress: callback by header: interrupted");
    let report: Value = serde_json::from_str(&out.whole()).unwrap();
    let state = state(&service, report["conversationId"].as_str().unwrap());
    assert_eq!((&state["state"], &state["droppedAwaiting"]), (&"ended".into(), &1.into()), "{state}");
}

/// nginx, with the path prefix `/edge`.
struct Nginx {
    _process: Process,
    _directory: TempDir,
    url: String,
}

impl Nginx {
    /// Starts it with these directives in the location of the service.
    fn before(service: &Service, directives: &str) -> Self {
        for _ in 0..5 {
            let directory = tempfile::Builder::new().prefix("nginx-").tempdir().unwrap();
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let configuration = include_str!("probe/nginx.conf")
                .replace("{directory}", directory.path().to_str().unwrap())
                .replace("{address}", &address.to_string())
                .replace("{upstream}", &service.public)
                .replace("{directives}", directives);
            if let Some(process) = launch(directory.path(), &configuration) {
                return Self { _process: process, _directory: directory, url: format!("http://{address}") };
            }
        }
        panic!("no port that looked free was free a moment later, five times in a row");
    }
}

/// `None` if another process took the port first.
fn launch(directory: &Path, configuration: &str) -> Option<Process> {
    let file = directory.join("nginx.conf");
    fs::write(&file, configuration).unwrap();
    // Debian installs it in a directory that only root has in PATH.
    let program = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
    let child = Command::new(program)
        .args(["-e", "stderr", "-p"])
        .arg(directory)
        .arg("-c")
        .arg(&file)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("these tests need the program nginx: install the package nginx");
    let mut process = Process(child);
    let log = Lines::of(process.0.stderr.take().unwrap());
    let mut taken = false;
    eventually("nginx is ready", || {
        taken = log.text().contains("Address already in use");
        taken || directory.join("ready").exists()
    });
    (!taken).then_some(process)
}

#[test]
fn probe_goes_through_nginx() {
    let service = service(&[]);
    let nginx = Nginx::before(&service, "");
    let prefixed = format!("{}/edge", nginx.url);
    probe(&service, &["--url", &prefixed]).exits(0);
    let whole = format!("{prefixed}/api/v1/webhooks/callbacks");
    probe(&service, &["--url", &whole, "--bytes", "60000"]).exits(0);

    let step = "callback by header";
    fails(
        &service,
        &["--url", &nginx.url],
        step,
        &["404, but not from callback-ingress", "path prefix of the gateway"],
    );
    let too_large = ["--url", &prefixed, "--bytes", "70000"];
    fails(&service, &too_large, step, &["413, but not from callback-ingress", "less than 70000 bytes"]);
    let too_large = ["--bytes", "2000000"];
    fails(&service, &too_large, step, &["413 BODY_TOO_LARGE", "http.max_body_bytes is less than 2000000"]);
}

#[test]
fn faults_of_a_gateway_are_explained() {
    let service = service(&[]);
    for (directives, step, reasons) in [
        (
            r#"proxy_set_header X-Callback-Token "";"#,
            "callback by header",
            ["401 CALLBACK_TOKEN_MISSING", "does the gateway drop the header X-Callback-Token?"],
        ),
        (
            "rewrite ^/edge(.*)$ $1? break;",
            "callback by query",
            ["401 CALLBACK_TOKEN_MISSING", "does the gateway drop the query parameter callbackToken?"],
        ),
        (
            "return 301 https://api.example.com$request_uri;",
            "callback by header",
            [
                "301, but not from callback-ingress (Server: nginx",
                "redirects to https://api.example.com/edge/api",
            ],
        ),
        (
            "return 401;",
            "callback by header",
            ["401, but not from callback-ingress", "require its own credentials?"],
        ),
        (
            "return 200 hello;",
            "callback by header",
            ["200, but not from callback-ingress", "another service responds"],
        ),
        (
            "return 502;",
            "callback by header",
            ["502, but not from callback-ingress", "reach the public listener?"],
        ),
    ] {
        let nginx = Nginx::before(&service, directives);
        fails(&service, &["--url", &format!("{}/edge", nginx.url)], step, &reasons);
    }
}

/// A gateway that repeats the request, and with it the token, in its answer.
#[test]
fn token_that_a_gateway_repeats_is_not_printed() {
    let service = service(&["--set", "token.default_carrier=path", "--set", r#"token.carriers=["path"]"#]);
    let gateway = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", gateway.local_addr().unwrap());
    let answering = thread::spawn(move || {
        let (stream, _) = gateway.accept().unwrap();
        let mut request = String::new();
        BufReader::new(&stream).read_line(&mut request).unwrap();
        let path = request.split(' ').nth(1).unwrap();
        let head = format!("HTTP/1.1 308 Moved\r\nlocation: https://a{path}\r\ncontent-length: 0\r\n\r\n");
        (&stream).write_all(head.as_bytes()).unwrap();
    });
    fails(
        &service,
        &["--url", &url],
        "callback by path",
        &["redirects to https://a/api/v1/webhooks/callbacks/cbt_…;"],
    );
    answering.join().unwrap();
}
