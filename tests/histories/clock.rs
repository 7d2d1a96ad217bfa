//! A process's clock that can be stepped.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::{NamedTempFile, TempDir};

/// The offset from the true time, in a file.
#[derive(Debug)]
pub(crate) struct SteppedClock(NamedTempFile);

impl SteppedClock {
    /// A clock without an offset.
    pub(crate) fn new() -> Self {
        let clock = Self(NamedTempFile::new().unwrap());
        clock.step(0);
        clock
    }

    /// Sets the offset.
    pub(crate) fn step(&self, seconds: i64) {
        self.0.as_file().write_all_at(&(seconds * 1_000).to_ne_bytes(), 0).unwrap();
    }

    /// Environment variables that make a process use this clock.
    pub(crate) fn variables(&self) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", library().to_owned()), ("CLOCK_OFFSET_FILE", self.0.path().to_owned())]
    }
}

/// The library `clock.c`, built once per run.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = LIBRARY.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let (source, library) = (directory.path().join("clock.c"), directory.path().join("clock.so"));
        fs::write(&source, include_str!("clock.c")).unwrap();
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).args([&library, &source]).status();
        assert!(
            built.is_ok_and(|status| status.success()),
            "these tests need a C compiler under the name cc"
        );
        (directory, library)
    });
    path
}
