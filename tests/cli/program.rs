//! Runs the program to its end.

use std::ffi::OsString;
use std::process::Output;
use std::time::Duration;

/// Where it is.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_callback-ingress");
/// How long anything may take that a test waits for: far longer than it does take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A token key and a service key: made up, and known to nothing else.
pub(crate) const TOKEN_KEY: &str = "k1:dG9rZW4tc2lnbmluZy1rZXktb2YtdGhlLXRlc3RzLWFsb25l";
pub(crate) const SERVICE_KEY: &str = "service-key-of-the-tests-alone";

/// Variables that configure both keys.
pub(crate) fn keys() -> [(&'static str, String); 2] {
    [
        ("CALLBACK_INGRESS__TOKEN__KEYS", format!("[{TOKEN_KEY:?}]")),
        ("CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS", format!("[{SERVICE_KEY:?}]")),
    ]
}

/// The only variable that is passed on: the rest of the environment must not change what a test sees.
pub(crate) fn path() -> OsString {
    std::env::var_os("PATH").unwrap_or_default()
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// That it ended with this code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// That it complains of all of this, on standard error alone.
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

/// Runs it with these arguments.
pub(crate) fn run(arguments: &[&str]) -> Ran {
    run_with::<&str>(&[], arguments)
}

/// Runs it with these variables and arguments.
pub(crate) fn run_with<V: AsRef<str>>(variables: &[(&str, V)], arguments: &[&str]) -> Ran {
    let variables = variables.iter().map(|(name, value)| (*name, value.as_ref()));
    let mut command = assert_cmd::Command::new(PROGRAM);
    command.env_clear().env("PATH", path()).envs(variables).args(arguments).timeout(PATIENCE);
    command.output().expect("the program can be run").into()
}
