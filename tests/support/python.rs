//! The Python packages of `tests/python-requirements.txt`, which `tests/run` installs in a virtual environment.

use std::fs;
use std::path::{Path, PathBuf};

const REQUIREMENTS: &str = include_str!("../python-requirements.txt");

/// The interpreter that has the packages. `target_tmpdir` is `env!("CARGO_TARGET_TMPDIR")` of the calling test.
pub fn interpreter(target_tmpdir: &str) -> PathBuf {
    let environment = Path::new(target_tmpdir).join("python");
    let installed = fs::read_to_string(environment.join("installed.txt")).unwrap_or_default();
    assert!(
        installed == REQUIREMENTS,
        "this test needs the packages in tests/python-requirements.txt in {}: tests/run installs them",
        environment.display()
    );
    environment.join("bin/python")
}
