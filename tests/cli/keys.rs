//! `keys new`, and keys in files, which SIGHUP reloads.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::program::{SERVICE_KEY, TOKEN_KEY, keys, run, run_with};
use crate::service::Service;
use crate::wire::call;

#[test]
fn new_keys_are_a_valid_configuration() {
    let keys = run(&["keys", "new"]).exits(0);
    assert_eq!(keys.err, "");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.toml");
    std::fs::write(&file, &keys.out).unwrap();
    let check = ["config", "check", "--public-addr", "0.0.0.0:8080", "--config", file.to_str().unwrap()];
    let check = run(&check).exits(0);
    assert!(!check.out.contains("keys is empty"), "{check:?}");
    assert_ne!(run(&["keys", "new"]).exits(0).out, keys.out);
}

#[test]
fn new_keys_are_printed_for_a_shell() {
    let keys = run(&["keys", "new", "--format", "shell", "--id", "k7"]).exits(0).out;
    assert!(keys.starts_with("export CALLBACK_INGRESS__TOKEN__KEYS='[\"k7:"), "{keys}");
    let value = |line: &str| line.split_once('=').unwrap().1.trim_matches('\'').to_owned();
    let [token, service] = [0, 1].map(|line| value(keys.lines().nth(line).unwrap()));
    let variables =
        [("CALLBACK_INGRESS__TOKEN__KEYS", token), ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", service)];
    run_with(&variables, &["config", "check", "--public-addr", "0.0.0.0:8080"]).exits(0);
}

#[test]
fn invalid_key_id_is_refused() {
    run(&["keys", "new", "--id", "too-long-an-id"])
        .complains(2, &["--id: a key id must be 1 to 8 characters"]);
}

/// Files with the keys of the tests, and the variables that name them.
struct KeyFiles {
    _directory: TempDir,
    token: PathBuf,
    service: PathBuf,
}

impl KeyFiles {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files = Self {
            token: directory.path().join("token"),
            service: directory.path().join("service"),
            _directory: directory,
        };
        write(&files.token, &[TOKEN_KEY]);
        write(&files.service, &[SERVICE_KEY]);
        files
    }

    fn variables(&self) -> [(&'static str, String); 2] {
        [
            ("CALLBACK_INGRESS__TOKEN__KEYS_FILE", self.token.to_str().unwrap().to_owned()),
            ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS_FILE", self.service.to_str().unwrap().to_owned()),
        ]
    }
}

fn write(file: &Path, keys: &[&str]) {
    std::fs::write(file, keys.join("\n")).unwrap();
}

/// The status of a platform request with this service key.
fn open(service: &Service, key: &str) -> u16 {
    let key = format!("authorization: Bearer {key}");
    call(&service.platform, "PUT /platform/v1/conversations/call-1", &[&key], "").status
}

/// Issues a work item and returns its token.
fn issue(service: &Service, key: &str) -> String {
    let key = format!("authorization: Bearer {key}");
    let path = "POST /platform/v1/conversations/call-1/work-items";
    let issued = call(&service.platform, path, &[&key], r#"{"kind":"tool"}"#);
    issued.json()["callback"]["token"].as_str().unwrap().to_owned()
}

#[test]
fn keys_in_files_rotate_without_a_restart() {
    let files = KeyFiles::new();
    let service = Service::start_with(&files.variables(), &[]);
    assert_eq!(open(&service, SERVICE_KEY), 201);
    let (first, second) = (issue(&service, SERVICE_KEY), issue(&service, SERVICE_KEY));

    let new_key = run(&["keys", "new", "--format", "signing-key"]).exits(0).out;
    let new_service_key = run(&["keys", "new", "--format", "service-key"]).exits(0).out;
    let (new_key, new_service_key) = (new_key.trim(), new_service_key.trim());
    write(&files.token, &[new_key, TOKEN_KEY]);
    write(&files.service, &[SERVICE_KEY, new_service_key]);
    service.process.signal("HUP");
    service.log.wait_for("token.keys_file was reloaded");
    service.log.wait_for("platform.service_keys_file was reloaded");
    let third = issue(&service, new_service_key);
    assert_eq!(service.callback(&first, "1").status, 202);

    write(&files.token, &[new_key]);
    write(&files.service, &[new_service_key]);
    service.process.signal("HUP");
    crate::service::eventually("the old service key is retired", || open(&service, SERVICE_KEY) == 401);
    service.callback(&second, "2").refuses(401, "CALLBACK_TOKEN_INVALID");
    assert_eq!(service.callback(&third, "3").status, 202);
    let log = service.log.text();
    for secret in [new_key.split_once(':').unwrap().1, new_service_key, SERVICE_KEY] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn file_that_cannot_be_used_keeps_the_previous_keys() {
    let files = KeyFiles::new();
    let service = Service::start_with(&files.variables(), &[]);
    assert_eq!(open(&service, SERVICE_KEY), 201);
    let token = issue(&service, SERVICE_KEY);
    write(&files.token, &["k1:hunter2"]);
    write(&files.service, &[]);
    service.process.signal("HUP");
    let line = service.log.wait_for("token.keys_file cannot be used; the previous keys stay in use");
    assert!(line.contains("line 1: "), "{line}");
    let line = service.log.wait_for("platform.service_keys_file cannot be used");
    assert!(line.contains("contains no key"), "{line}");
    assert_eq!(service.callback(&token, "1").status, 202);
    assert_eq!(open(&service, SERVICE_KEY), 200);
    assert!(!service.log.text().contains("hunter2"));
}

#[test]
fn keys_in_a_file_and_in_the_configuration_are_an_error() {
    let files = KeyFiles::new();
    for (in_file, in_configuration) in files.variables().into_iter().zip(keys()) {
        let complaint = format!("(from {}): ", in_file.0);
        let variables = [in_file, in_configuration];
        run_with(&variables, &["serve"]).complains(2, &[&complaint, "is set as well: use one of them"]);
    }
}
