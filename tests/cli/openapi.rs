//! The OpenAPI documents against the running program: they are valid, and requests that schemathesis generates from them
//! get the responses that they describe.

#![expect(clippy::print_stdout, reason = "the number of requests is worth a look")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use test_support::python;

use crate::program::{SERVICE_KEY, keys, path};
use crate::service::Service;
use crate::wire::call;

/// Requests that schemathesis generates for each operation, at most. More: `OPENAPI_EXAMPLES=1000`, in another order at
/// each run.
const EXAMPLES: &str = "30";

fn service() -> Service {
    let settings = [
        r#"token.carriers=["header","query","body","path"]"#,
        "rate_limit.max=0",
        "rate_limit.failed_max=0",
        "telemetry.log_level=error,callback_ingress=info",
    ];
    Service::start_with(&keys(), &settings.map(|setting| ["--set", setting]).concat())
}

fn schemathesis(service: &Service, directory: &Path, arguments: &[&str]) -> Command {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/openapi");
    let mut command = Command::new(python::interpreter(env!("CARGO_TARGET_TMPDIR")));
    command
        .args(["-m", "schemathesis.cli", "--no-color", "--config-file"])
        .arg(files.join("schemathesis.toml"))
        .arg("run")
        .args(arguments)
        .env_clear()
        .env("PATH", path())
        .env("SCHEMATHESIS_HOOKS", files.join("hooks.py"))
        .env("PLATFORM", format!("http://{}", service.platform))
        .env("PUBLIC", format!("http://{}", service.public))
        .env("KEY", SERVICE_KEY)
        .env("HOME", directory)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(directory)
        .stdin(Stdio::null());
    command
}

fn shown(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Gets a document, validates it, and sends the requests that schemathesis generates from it.
fn check(listener: &str, address: &str, path: &str, service: &Service) {
    let directory = tempfile::tempdir().unwrap();
    let authorization = format!("Authorization: Bearer {SERVICE_KEY}");
    let document = call(address, &format!("GET {path}"), &[&authorization], "");
    assert_eq!(document.status, 200, "{document:?}");
    let file = directory.path().join("openapi.json");
    fs::write(&file, &document.body).unwrap();

    let mut validator = Command::new(python::interpreter(env!("CARGO_TARGET_TMPDIR")));
    let validated =
        validator.args(["-m", "openapi_spec_validator", "--schema", "3.1"]).arg(&file).output().unwrap();
    assert!(validated.status.success(), "{}", shown(&validated));

    let url = format!("http://{address}");
    let more = std::env::var_os("OPENAPI_EXAMPLES").map(|more| more.into_string().unwrap());
    let mut arguments =
        vec![file.to_str().unwrap(), "--url", &url, "--continue-on-failure", "--warnings", "off"];
    arguments.extend(["--no-shrink", "--request-timeout", "20"]);
    arguments.extend(["--max-examples", more.as_deref().unwrap_or(EXAMPLES)]);
    if more.is_none() {
        arguments.push("--generation-deterministic");
    } else {
        arguments.extend(["--generation-database", "none"]);
    }
    if listener == "platform" {
        arguments.extend(["--header", &authorization]);
    }
    let tested = schemathesis(service, directory.path(), &arguments).output().unwrap();
    let shown = shown(&tested);
    assert!(tested.status.success(), "{shown}");
    let summary =
        shown.lines().find(|line| line.contains(" generated, ")).unwrap_or_else(|| panic!("{shown}"));
    println!("{listener}:{summary}");
    let cases = summary.split_whitespace().next().and_then(|word| word.parse::<usize>().ok());
    assert!(cases.is_some_and(|cases| cases > 100), "{shown}");
}

#[test]
fn providers_document_describes_the_service() {
    let service = service();
    check("public", &service.public, "/api/v1/webhooks/openapi.json", &service);
    let accepted = service.log.text().matches(r#""callback.delivery":"#).count();
    println!("accepted callbacks: {accepted}");
    assert!(accepted > 20, "{accepted}");
}

#[test]
fn platforms_document_describes_the_service() {
    let service = service();
    check("platform", &service.platform, "/platform/v1/openapi.json", &service);
}

#[test]
fn platforms_document_needs_the_service_key() {
    let service = service();
    call(&service.platform, "GET /platform/v1/openapi.json", &[], "").refuses(401, "SERVICE_KEY_MISSING");
    call(&service.public, "GET /platform/v1/openapi.json", &[], "").refuses(404, "NOT_FOUND");
    let posted = call(&service.public, "POST /api/v1/webhooks/openapi.json", &[], "");
    posted.refuses(405, "METHOD_NOT_ALLOWED");
    assert!(posted.head.contains("allow: get,head"), "{posted:?}");
}
