//! The Compose file and the systemd unit in `config/`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use test_support::python;
use test_support::redis_server::RedisServer;

use crate::collector::{Collector, Protocol};
use crate::program::{PROGRAM, run, run_with};
use crate::service::{Service, eventually};
use crate::wire::call;

const COMPOSE: &str = include_str!("../../config/compose.yaml");
const DOCKERFILE: &str = include_str!("../../Dockerfile");
const UNIT: &str = include_str!("../../config/callback-ingress.service");
const DEPLOY: &str = include_str!("../../docs/deploy.md");

fn compose() -> Value {
    serde_saphyr::from_str(COMPOSE).unwrap()
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// The variables of a service, in which `${NAME:-default}` is its default.
fn environment(service: &Value) -> BTreeMap<String, String> {
    let of = |value: &Value| {
        let text = value.as_str().unwrap();
        let default = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')?.split_once(":-"));
        default.map_or(text, |(_, default)| default).to_owned()
    };
    service["environment"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| (name.clone(), of(value)))
        .collect()
}

#[test]
fn compose_file_is_valid() {
    let python = python::interpreter(env!("CARGO_TARGET_TMPDIR"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/compose.yaml");
    let mut check = Command::new(python.parent().unwrap().join("check-jsonschema"));
    let ran = check.args(["--builtin-schema", "vendor.compose-spec"]).arg(file).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));

    let compose = compose();
    for (name, service) in compose["services"].as_object().unwrap() {
        for dependency in service["depends_on"].as_object().into_iter().flatten() {
            let (other, condition) = (dependency.0, &dependency.1["condition"]);
            assert_eq!(condition, "service_healthy", "{name}");
            assert!(compose["services"][other]["healthcheck"].is_object(), "{other}");
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            let is_there = match source.strip_prefix("./") {
                Some(file) => Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file).exists(),
                None => compose["volumes"].get(source).is_some(),
            };
            assert!(is_there, "{name}: {source}");
        }
    }
    // Exactly the variables of the collector's file are set.
    let collector = environment(&compose["services"]["otel-collector"]);
    let given: Vec<_> = collector.keys().map(String::as_str).collect();
    let used = ["SIGNOZ_INGESTION_KEY", "SIGNOZ_OTLP_ENDPOINT", "SIGNOZ_OTLP_INSECURE"];
    assert_eq!(given, used);
    assert!(used.iter().all(|name| crate::signoz::COLLECTOR.contains(&format!("${{env:{name}"))));
}

/// Starts the services of the file without containers: the same commands, variables and health checks, on free ports of
/// this machine.
#[test]
fn processes_of_the_compose_file_work_together() {
    let compose = compose();
    let (service, redis) = (&compose["services"]["callback-ingress"], &compose["services"]["redis"]);

    let command = strings(&redis["command"]);
    assert_eq!(command[0], "redis-server");
    let options: Vec<_> = command[1..].iter().map(String::as_str).collect();
    let server = RedisServer::with(&options);
    let check = strings(&redis["healthcheck"]["test"]);
    assert_eq!(check[0], "CMD");
    let mut probe = Command::new(&check[1]);
    let ran = probe.args(["-p", &server.port().to_string()]).args(&check[2..]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout).trim(), "PONG");

    let collector = Collector::start(Protocol::Http);
    let mut variables = environment(service);
    // The addresses of the image, which the tests replace by free ports.
    for (name, port) in [("PUBLIC", 8080), ("PLATFORM", 8081)] {
        assert!(DOCKERFILE.contains(&format!("CALLBACK_INGRESS__HTTP__{name}_ADDR=0.0.0.0:{port}")));
        assert!(strings(&service["ports"]).contains(&format!("127.0.0.1:{port}:{port}")));
    }
    let here = [
        ("redis://redis:6379", format!("redis://127.0.0.1:{}", server.port())),
        ("http://otel-collector:4318", collector.variables()[0].1.clone()),
    ];
    for (there, here) in &here {
        let replaced = variables.values_mut().filter(|value| value.contains(there));
        assert_eq!(replaced.map(|value| *value = value.replace(there, here)).count(), 1, "{there}");
    }
    let key = serde_json::from_str::<Vec<String>>(&variables["CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS"]);
    let key = key.unwrap().remove(0);
    variables.insert("OTEL_METRIC_EXPORT_INTERVAL".to_owned(), "200".to_owned());
    assert_eq!(strings(&service["command"]), ["serve"]);
    let pairs: Vec<_> = variables.iter().map(|(name, value)| (&**name, &**value)).collect();
    let running = Service::start_with(&pairs, &[]);
    eventually("it is healthy", || {
        let test = strings(&service["healthcheck"]["test"]);
        assert_eq!(test[..2], ["CMD", "callback-ingress"]);
        let address = ("CALLBACK_INGRESS__HTTP__PUBLIC_ADDR", &*running.public);
        let arguments: Vec<_> = test[2..].iter().map(String::as_str).collect();
        run_with(&[&pairs[..], &[address]].concat(), &arguments).code == Some(0)
    });

    // The demo in the file's first lines, and a callback with the keys that the file shows.
    let demo = COMPOSE.lines().find_map(|line| line.split_once("run --rm callback-ingress ")).unwrap().1;
    let demo = demo.replace(here[0].0, &here[0].1);
    run_with(&pairs, &demo.split(' ').collect::<Vec<_>>()).exits(0);
    let authorization = format!("authorization: Bearer {key}");
    let platform = |request: &str, body: &str| {
        call(
            &running.platform,
            &request.replace("/conversations", "/platform/v1/conversations"),
            &[&authorization],
            body,
        )
    };
    assert_eq!(platform("PUT /conversations/call-1", "").status, 201);
    let issued =
        platform("POST /conversations/call-1/work-items", &json!({"kind": "tool"}).to_string()).json();
    let callback = &issued["callback"];
    assert!(callback["url"].as_str().unwrap().starts_with("http://127.0.0.1:8080/"), "{callback}");
    assert_eq!(running.callback(callback["token"].as_str().unwrap(), "1").status, 202);
    eventually("logs, traces and metrics arrive", || {
        let received = collector.received();
        !received.logs.is_empty() && !received.spans.is_empty() && !received.metrics.is_empty()
    });
    let resource = collector.received().resource.clone();
    assert_eq!(resource["deployment.environment"], "compose");

    let mut connection = server.connection(0);
    let setting = |connection: &mut redis::Connection, name: &str| -> String {
        let pair: Vec<String> = redis::cmd("CONFIG").arg("GET").arg(name).query(connection).unwrap();
        pair[1].clone()
    };
    assert_eq!(setting(&mut connection, "appendonly"), "yes");
    assert_eq!(setting(&mut connection, "maxmemory-policy"), "noeviction");
    assert!(!running.log.text().contains("WARN"), "the service warns of nothing: {}", running.log.text());
}

#[test]
fn systemd_accepts_the_unit() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("callback-ingress.service");
    let installed = "/usr/local/bin/callback-ingress";
    assert_eq!(UNIT.matches(installed).count(), 1);
    fs::write(&file, UNIT.replace(installed, PROGRAM)).unwrap();
    let analyze = |arguments: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        let ran = command.args(arguments).arg(&file).env("SYSTEMD_LOG_LEVEL", "warning").output();
        let ran = ran.expect("this test needs the program systemd-analyze: install the package systemd");
        (
            ran.status.success(),
            String::from_utf8(ran.stdout).unwrap() + &String::from_utf8(ran.stderr).unwrap(),
        )
    };
    assert_eq!(analyze(&["verify", "--man=no"]), (true, String::new()));
    // On this scale, which ends at 100, a service without restrictions has 96.
    let (is_restricted, report) = analyze(&["security", "--offline=true", "--threshold=20", "--no-pager"]);
    assert!(is_restricted, "{report}");
}

/// The commands and the file that the documentation gives for systemd.
#[test]
fn documented_configuration_for_systemd_works() {
    let block = |start: &str| DEPLOY.split(start).nth(1).unwrap().split("\n```").next().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().to_str().unwrap();
    let key = |format: &str| run(&["keys", "new", "--format", format]).exits(0).out;
    fs::write(directory.path().join("token-keys"), key("signing-key")).unwrap();
    fs::write(directory.path().join("service-keys"), key("service-key")).unwrap();
    let config = block("```toml\n").replace("/etc/callback-ingress", folder);
    let config = config.replace("redis://127.0.0.1:6379/0", &RedisServer::shared().url(7));
    let file = directory.path().join("config.toml");
    fs::write(&file, config).unwrap();
    let line = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/callback-ingress serve "))
        .unwrap();
    let arguments = line.replace("/etc/callback-ingress", folder);
    let checked = [&["config", "check"][..], &arguments.split(' ').collect::<Vec<_>>()].concat();
    run(&checked).exits(0);
    let mut running = Service::start(&arguments.split(' ').collect::<Vec<_>>());
    let reload = UNIT.lines().find_map(|line| line.strip_prefix("ExecReload=kill -")).unwrap();
    running.process.signal(reload.split(' ').next().unwrap());
    running.log.wait_for("keys");
    running.process.signal("TERM");
    assert_eq!(running.process.exit_code(), Some(0));
}
