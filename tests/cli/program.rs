//! Runs the program to its end.

use std::ffi::OsString;
use std::process::Output;
use std::time::Duration;

/// Path of the program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_callback-ingress");
/// Longest wait for a condition or an exit.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A token key and a service key for the tests.
pub(crate) const TOKEN_KEY: &str = "k1:dG9rZW4tc2lnbmluZy1rZXktb2YtdGhlLXRlc3RzLWFsb25l";
pub(crate) const SERVICE_KEY: &str = "service-key-of-the-tests-alone";

/// Environment variables with both keys.
pub(crate) fn keys() -> [(&'static str, String); 2] {
    [
        ("CALLBACK_INGRESS__TOKEN__KEYS", format!("[{TOKEN_KEY:?}]")),
        ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", format!("[{SERVICE_KEY:?}]")),
    ]
}

/// `PATH`, the only variable that the program inherits.
pub(crate) fn path() -> OsString {
    std::env::var_os("PATH").unwrap_or_default()
}

/// Exit code and output.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Asserts the exit code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// Asserts the exit code and that all of these texts are on standard error and nothing is on standard output.
    #[track_caller]
    pub(crate) fn complains(self, code: i32, of: &[&str]) -> Self {
        let ran = self.exits(code);
        assert_eq!(ran.out, "", "{ran:?}");
        for text in of {
            assert!(ran.err.contains(text), "{text:?} is not in {ran:?}");
        }
        ran
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("all output is UTF-8");
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Runs the program with these arguments.
pub(crate) fn run(arguments: &[&str]) -> Ran {
    run_with::<&str>(&[], arguments)
}

/// Runs the program with these environment variables and arguments.
pub(crate) fn run_with<V: AsRef<str>>(variables: &[(&str, V)], arguments: &[&str]) -> Ran {
    let variables = variables.iter().map(|(name, value)| (*name, value.as_ref()));
    let mut command = assert_cmd::Command::new(PROGRAM);
    command.env_clear().env("PATH", path()).envs(variables).args(arguments).timeout(PATIENCE);
    command.output().expect("the program can be run").into()
}
