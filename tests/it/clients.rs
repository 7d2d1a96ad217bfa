//! Providers and platforms with common HTTP clients, from `tests/clients`.

mod faulty;
mod outage;
mod program;
mod providers;
mod readers;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use test_support::{npm, python};
use tokio::task::block_in_place;

use self::program::Program;

/// The programs for Node, with their packages.
const NODE_FILES: [(&str, &str); 4] = [
    ("package.json", include_str!("../clients/package.json")),
    ("package-lock.json", include_str!("../clients/package-lock.json")),
    ("provider.mjs", include_str!("../clients/provider.mjs")),
    ("reader.mjs", include_str!("../clients/reader.mjs")),
];

/// The directory of the programs for Node and their packages.
fn node_directory() -> &'static Path {
    static INSTALLED_IN: OnceLock<PathBuf> = OnceLock::new();
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    block_in_place(|| INSTALLED_IN.get_or_init(|| npm::install(parent, "clients", &NODE_FILES)))
}

/// Starts one of Node's programs.
fn node(script: &str, arguments: &[&str]) -> Program {
    let script = node_directory().join(script);
    Program::start("node", &[&[script.to_str().unwrap()], arguments].concat())
}

/// Starts a Python program with the packages of the virtual environment.
fn python(script: &str, arguments: &[&str]) -> Program {
    let interpreter = python::interpreter(env!("CARGO_TARGET_TMPDIR"));
    Program::start(interpreter.to_str().unwrap(), &[&[source(script).as_str()], arguments].concat())
}

/// Builds a Go program, and returns its path.
fn built_with_go(script: &str) -> String {
    let directory = env!("CARGO_TARGET_TMPDIR");
    let program = format!("{directory}/{script}.program");
    let built = block_in_place(|| {
        let mut go = Command::new("go");
        go.args(["build", "-o", &program, &source(script)]).env("GOCACHE", format!("{directory}/go-cache"));
        go.output().expect("these tests need the program go: install the package golang-go")
    });
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program
}

/// The path of a program that runs where it is.
fn source(script: &str) -> String {
    format!("{}/tests/clients/{script}", env!("CARGO_MANIFEST_DIR"))
}
