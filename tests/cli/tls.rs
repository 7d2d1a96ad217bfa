//! Certificates, as an operator configures and replaces them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::program::{PROGRAM, path, run};
use crate::service::{Lines, Process, Service};

fn write(directory: &Path) -> [String; 2] {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = ["chain.pem", "key.pem"].map(|name| directory.join(name));
    fs::write(&files[0], made.cert.pem()).unwrap();
    fs::write(&files[1], made.signing_key.serialize_pem()).unwrap();
    files.map(|file| file.display().to_string())
}

fn flags([chain, key]: &[String; 2]) -> [String; 4] {
    let set = "--set".to_owned();
    [set.clone(), format!("http.public_tls_cert={chain}"), set, format!("http.public_tls_key={key}")]
}

#[test]
fn a_certificate_is_replaced_on_a_signal_and_the_health_check_knows_it() {
    let directory = tempfile::tempdir().unwrap();
    let files = write(directory.path());
    let flags = flags(&files);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let service = Service::start(&flags);
    let healthcheck =
        |flags: &[&str]| run(&[flags, &["healthcheck", "--public-addr", &service.public]].concat());
    healthcheck(&flags).exits(0);
    healthcheck(&[]).complains(1, &["does not answer"]);

    write(directory.path());
    service.process.signal("HUP");
    service.log.wait_for("serving another certificate");
    healthcheck(&flags).exits(0);

    fs::write(&files[1], "no key").unwrap();
    service.process.signal("HUP");
    let line = service.log.wait_for("the new certificate cannot be used");
    assert!(line.contains("WARN") && line.contains(&files[1]), "{line}");
    healthcheck(&flags).exits(0);
}

#[test]
fn a_certificate_that_cannot_be_used_is_wrong_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let files = write(directory.path());
    let good = flags(&files);
    let good: Vec<&str> = good.iter().map(String::as_str).collect();
    run(&[&good[..], &["config", "check"]].concat()).exits(0);
    run(&[&good[..2], &["config", "check"]].concat()).complains(2, &["http.public_tls_key", "needs its key"]);
    fs::write(&files[1], "no key").unwrap();
    let checked = run(&[&good[..], &["config", "check"]].concat()).exits(2);
    assert!(checked.err.contains(&files[1]) && checked.err.contains("private key"), "{checked:?}");
    run(&[&good[..], &["serve", "--public-addr", "127.0.0.1:0", "--platform-addr", "127.0.0.1:0"]].concat())
        .complains(2, &["http.public", &files[1]]);
}

#[test]
fn out_of_file_descriptors_it_says_so_once_a_second_and_recovers() {
    let limited = format!("ulimit -n 40; exec {PROGRAM} serve");
    let child = Command::new("sh")
        .args(["-c", &limited])
        .env_clear()
        .env("PATH", path())
        .env("CALLBACK_INGRESS__HTTP__PUBLIC_ADDR", "127.0.0.1:0")
        .env("CALLBACK_INGRESS__HTTP__PLATFORM_ADDR", "127.0.0.1:0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut process = Process(child.unwrap());
    let log = Lines::of(process.0.stderr.take().unwrap());
    let serving: serde_json::Value = serde_json::from_str(&log.wait_for(r#""serving""#)).unwrap();
    let public = serving["public"].as_str().unwrap();
    let connections: Vec<_> = (0..60).map(|_| std::net::TcpStream::connect(public).unwrap()).collect();
    log.wait_for("connections cannot be accepted");
    std::thread::sleep(std::time::Duration::from_millis(1_200));
    let complaints = log.text().matches("connections cannot be accepted").count();
    assert!((1..=3).contains(&complaints), "{complaints}");
    drop(connections);
    run(&["healthcheck", "--public-addr", public, "--timeout-ms", "20000"]).exits(0);
}
