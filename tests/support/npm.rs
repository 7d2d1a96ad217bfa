//! Installs npm packages for the tests.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const LOCK: &str = "package-lock.json";
/// The lock file of a complete installation, written last.
const INSTALLED: &str = "installed-from.json";

/// Installs a project below `parent`, unless it is already there, and returns its directory. `files` are its names and
/// texts, with `package.json` and `package-lock.json` among them.
pub fn install(parent: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
    for program in ["node", "npm"] {
        let ran = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        assert!(
            ran.is_ok_and(|output| output.status.success()),
            "these tests need the programs node, of version 20 or later, and npm: install the packages nodejs and \
             npm, and have both on PATH"
        );
    }
    let folder = parent.join(name);
    let lock = files.iter().find(|(name, _)| *name == LOCK).expect("a lock file").1;
    let is_installed = || {
        let holds =
            |(name, text): &(&str, &str)| fs::read_to_string(folder.join(name)).is_ok_and(|is| is == *text);
        files.iter().chain([&(INSTALLED, lock)]).all(holds)
    };
    if is_installed() {
        return folder;
    }
    // Installed under a temporary name first, so that no other run uses an incomplete installation.
    let fresh = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(parent).unwrap();
    for (name, text) in files {
        let file = fresh.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    let npm = Command::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(fresh.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&npm.stderr);
    assert!(
        npm.status.success(),
        "npm ci could not install {name}, for which it needs a registry of packages:\n{said}"
    );
    fs::write(fresh.path().join(INSTALLED), lock).unwrap();
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{}: {error}", folder.display()),
        _ => {}
    }
    // Another run may have installed the same files in the meantime.
    let renamed = fs::rename(fresh.path(), &folder);
    assert!(renamed.is_ok() || is_installed(), "{}: {renamed:?}", folder.display());
    folder
}
