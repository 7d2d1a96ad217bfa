//! Configuration and reload of certificates.

use std::fs;
use std::path::Path;

use crate::program::run;
use crate::service::Service;

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
fn sighup_reloads_the_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let files = write(directory.path());
    let flags = flags(&files);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let service = Service::start(&flags);
    let healthcheck =
        |flags: &[&str]| run(&[flags, &["healthcheck", "--public-addr", &service.public]].concat());
    healthcheck(&flags).exits(0);
    healthcheck(&[]).complains(1, &["no response"]);

    write(directory.path());
    service.process.signal("HUP");
    service.log.wait_for("certificate reloaded");
    healthcheck(&flags).exits(0);

    fs::write(&files[1], "no key").unwrap();
    service.process.signal("HUP");
    let line = service.log.wait_for("the new certificate cannot be used");
    assert!(line.contains("WARN") && line.contains(&files[1]), "{line}");
    healthcheck(&flags).exits(0);
}

#[test]
fn unusable_certificate_is_a_configuration_error() {
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
