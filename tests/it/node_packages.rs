//! Installs packages from npm, in the versions of a `package-lock.json`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The lock file of a complete installation, written last.
const INSTALLED: &str = "installed-from.json";

/// Installs packages, with the files of a program that uses them, unless they are installed already. The files, each
/// with its name, include `package.json` and `package-lock.json`. Returns the directory.
pub(crate) fn install(name: &str, files: &[(&str, &str)]) -> PathBuf {
    for program in ["node", "npm"] {
        let found = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        assert!(
            found.is_ok_and(|output| output.status.success()),
            "these tests need the programs node, of version 20 or later, and npm: install the packages nodejs and \
             npm, and have both on PATH"
        );
    }
    let lock = files.iter().find(|(name, _)| *name == "package-lock.json").unwrap().1;
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = parent.join(name);
    let is_installed = || {
        let holds =
            |(name, text): &(&str, &str)| fs::read_to_string(folder.join(name)).is_ok_and(|is| is == *text);
        files.iter().chain([&(INSTALLED, lock)]).all(holds)
    };
    if is_installed() {
        return folder;
    }
    // Installed under a temporary name first, so that no other run uses it half installed.
    let fresh = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(parent).unwrap();
    for (name, text) in files {
        fs::write(fresh.path().join(name), text).unwrap();
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
        "npm ci could not install the packages of {name}, for which it needs a registry of packages:\n{said}"
    );
    fs::write(fresh.path().join(INSTALLED), lock).unwrap();
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{}: {error}", folder.display()),
        _ => {}
    }
    // Another run may have installed the same files meanwhile.
    let renamed = fs::rename(fresh.path(), &folder);
    assert!(renamed.is_ok() || is_installed(), "{}: {renamed:?}", folder.display());
    folder
}
