//! `healthcheck`, the command for containers.

use crate::program::{keys, run, run_with};
use crate::service::{Service, eventually};

#[test]
fn exit_code_is_0_if_healthy_and_1_otherwise() {
    let mut service =
        Service::start(&["--set", "http.drain_grace_ms=600000", "--set", "http.drain_timeout_ms=600000"]);
    let address = service.public.clone();
    let healthy = run(&["healthcheck", "--public-addr", &address]).exits(0);
    assert_eq!((healthy.out.as_str(), healthy.err.as_str()), ("{\"status\":\"ok\"}\n", ""));
    let ready = run(&["healthcheck", "--ready", "--public-addr", &address]).exits(0);
    assert_eq!(ready.out, "{\"status\":\"ok\"}\n");
    let platform = format!("http://{}/health", service.platform);
    run(&["healthcheck", "--url", &platform]).exits(0);

    service.process.signal("TERM");
    service.log.wait_for(r#""draining""#);
    run(&["healthcheck", "--public-addr", &address]).exits(0);
    run(&["healthcheck", "--ready", "--public-addr", &address]).complains(1, &[&address, "503", "DRAINING"]);

    service.process.signal("KILL");
    assert_eq!(service.process.exit_code(), None);
    run(&["healthcheck", "--public-addr", &address]).complains(1, &[&address, "no response"]);
}

#[test]
fn service_without_its_store_is_alive_and_not_ready() {
    let service = Service::start(&["--store", "redis://127.0.0.1:1"]);
    let address = &service.public;
    run(&["healthcheck", "--public-addr", address]).exits(0);
    run(&["healthcheck", "--ready", "--public-addr", address]).complains(1, &["503", "STORE_UNAVAILABLE"]);
}

#[test]
fn container_checks_that_the_process_is_alive() {
    let dockerfile = include_str!("../../Dockerfile");
    let check = dockerfile.lines().find(|line| line.starts_with("HEALTHCHECK")).unwrap();
    assert!(check.ends_with(r#"CMD ["callback-ingress", "healthcheck"]"#), "{check}");
}

#[test]
fn wildcard_address_is_checked_on_loopback() {
    let service = Service::start_with(&keys(), &["--public-addr", "0.0.0.0:0"]);
    let (_, port) = service.public.rsplit_once(':').unwrap();
    let everywhere = format!("0.0.0.0:{port}");
    assert_eq!(service.public, everywhere);
    run_with(&keys(), &["healthcheck", "--public-addr", &everywhere]).exits(0);
}

#[test]
fn health_check_timeout_is_1() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let arguments = ["healthcheck", "--public-addr", &address, "--timeout-ms", "50"];
    run(&arguments).complains(1, &[&address, "no response"]);
}

#[test]
fn invalid_url_is_named() {
    run(&["healthcheck", "--url", "not a url"]).complains(1, &["not a url"]);
    let service = Service::start(&[]);
    let elsewhere = format!("http://{}/elsewhere", service.public);
    eventually("it answers", || run(&["healthcheck", "--url", &elsewhere]).code == Some(1));
}
