//! The command line: one file per subcommand.
//!
//! Exit codes: 0 success, 1 failure, 2 wrong usage or configuration.

mod client;
mod config;
mod demo;
mod healthcheck;
mod pinned_get;
mod serve;

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use self::healthcheck::HealthcheckArgs;
use crate::config::{ConfigError, LoadedConfig, Sources, VARIABLE_PREFIX, load};

/// Receives the callbacks of asynchronous LLM and tool providers and delivers the results of each conversation in the
/// order of issue.
#[derive(Parser)]
#[command(version, about, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(subcommand)]
    command: Command,
}

#[expect(clippy::doc_markdown, reason = "shown as help on the terminal")]
/// Settings: defaults, file, CALLBACK_INGRESS__SECTION__KEY variables, flags; later ones override earlier ones.
// Does not derive `Debug`, which would show secrets.
#[derive(Args)]
#[command(next_help_heading = "Settings")]
struct SettingsArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Set any key, for example gate.default_timeout_ms=30000; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE", global = true)]
    set: Vec<String>,
    /// memory: or a redis:// or rediss:// URL (store.url)
    #[arg(long, value_name = "URL", global = true)]
    store: Option<String>,
    /// Address of the public listener (http.public_addr)
    #[arg(long, value_name = "ADDRESS:PORT", global = true)]
    public_addr: Option<String>,
    /// Address of the platform listener (http.platform_addr)
    #[arg(long, value_name = "ADDRESS:PORT", global = true)]
    platform_addr: Option<String>,
    /// A level, or tracing directives (telemetry.log_level)
    #[arg(long, value_name = "LEVEL", global = true)]
    log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service
    Serve,
    /// Run a demonstration of a few seconds: callbacks out of order, a retry, a forged token, a timeout
    Demo,
    /// Check or show the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Check the health of a running service
    Healthcheck(HealthcheckArgs),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Validate the configuration and check that the store is usable
    Check,
    /// Print the effective settings as TOML, without secrets
    Dump,
}

/// Parses a value of `--set`. Not done by clap, whose error messages repeat the value, which can be a secret.
fn parse_setting(text: &str) -> Result<(String, String), Failure> {
    let is_key = |key: &str| key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
    match text.split_once('=') {
        Some((key, value)) if is_key(key) => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Failure::Usage("--set must be followed by SECTION.KEY=VALUE".into())),
    }
}

impl SettingsArgs {
    fn load(self) -> Result<LoadedConfig, Failure> {
        let set = self.set.iter().map(|text| parse_setting(text)).collect::<Result<Vec<_>, _>>()?;
        let named = [
            ("store.url", self.store),
            ("http.public_addr", self.public_addr),
            ("http.platform_addr", self.platform_addr),
            ("telemetry.log_level", self.log_level),
        ];
        let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        let mut variables = Vec::new();
        for (name, value) in std::env::vars_os() {
            match (name.into_string(), value.into_string()) {
                (Ok(name), Ok(value)) => variables.push((name, value)),
                (Ok(name), Err(_)) if name.starts_with(VARIABLE_PREFIX) => {
                    return Err(Failure::Usage(format!("{name} is not UTF-8").into()));
                }
                _ => {}
            }
        }
        Ok(load(Sources { file: self.config, variables, flags: set.into_iter().chain(named).collect() })?)
    }
}

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    /// Wrong usage or configuration: exit code 2.
    Usage(Box<dyn Error>),
    /// Failure at runtime: exit code 1.
    Runtime(Box<dyn Error>),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.into())
    }
}

/// Parses the command line of the process and runs the command.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" that go to standard output.
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => report_error(&*error, 2),
        Err(Failure::Runtime(error)) => report_error(&*error, 1),
    }
}

/// Writes to standard output. A closed pipe is not an error.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Runtime(format!("cannot write to standard output: {error}").into()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Maximum time to write the error message before the process exits.
const STDERR_TIMEOUT: Duration = Duration::from_millis(500);

/// Writes the error with its causes to standard error.
fn report_error(error: &dyn Error, code: u8) -> ExitCode {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        message = format!("{message}: {source}");
        cause = source.source();
    }
    // In a thread, because a full pipe would block the exit of the process.
    let (sender, written) = mpsc::channel();
    std::thread::spawn(move || {
        anstream::eprintln!("callback-ingress: {message}");
        let _ = sender.send(());
    });
    let _ = written.recv_timeout(STDERR_TIMEOUT);
    ExitCode::from(code)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let loaded = match cli.command {
        Command::Demo => demo::settings(cli.settings).load()?,
        Command::Serve | Command::Config { .. } | Command::Healthcheck(_) => cli.settings.load()?,
    };
    let command: std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>>>> = match cli.command {
        Command::Serve => Box::pin(serve::run(loaded)),
        Command::Demo => Box::pin(demo::run(loaded)),
        Command::Config { command: ConfigCommand::Check } => Box::pin(config::check(loaded)),
        Command::Config { command: ConfigCommand::Dump } => return print(&loaded.dump()),
        Command::Healthcheck(arguments) => Box::pin(healthcheck::run(loaded, arguments)),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Runtime(error.into()))?;
    let result = runtime.block_on(command);
    // The drain timeout is over for tasks that are still running.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }
}
