//! The command line: one file a subcommand.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

mod client;
mod config;
mod demo;
mod healthcheck;
mod pinned;
mod serve;

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, LoadedConfig, Sources, VARIABLE_PREFIX, load};

/// Takes the callbacks of asynchronous LLM and tool providers and puts each conversation's results, in the order of
/// issue, on its routing channel.
#[derive(Parser)]
#[command(version, about, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

#[expect(clippy::doc_markdown, reason = "shown as help on the terminal")]
/// Settings: the defaults, then the file, then CALLBACK_INGRESS__SECTION__KEY variables, then these flags.
// Without `Debug`, which would show secrets.
#[derive(Args)]
#[command(next_help_heading = "Settings")]
struct Settings {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Sets any key, such as gate.default_timeout_ms=30000; can be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", global = true)]
    set: Vec<String>,
    /// memory: or a redis:// or rediss:// URL (store.url)
    #[arg(long, value_name = "URL", global = true)]
    store: Option<String>,
    /// Where providers post (http.public_addr)
    #[arg(long, value_name = "ADDRESS:PORT", global = true)]
    public_addr: Option<String>,
    /// Where the platform works (http.platform_addr)
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
    /// Show the whole story in a few seconds: callbacks out of order, a retry, a forged token, a timeout
    Demo,
    /// Check or show the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Ask a running service whether it is healthy
    Healthcheck(healthcheck::Arguments),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check the configuration, and that the store can be reached and used
    Check,
    /// Print the settings in force as TOML, without secrets
    Dump,
}

/// Not left to clap, which repeats what it does not understand: it may hold a secret.
fn setting(text: &str) -> Result<(String, String), Failure> {
    let is_key = |key: &str| key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
    match text.split_once('=') {
        Some((key, value)) if is_key(key) => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Failure::Wrong("--set must be followed by SECTION.KEY=VALUE".into())),
    }
}

impl Settings {
    fn load(self) -> Result<LoadedConfig, Failure> {
        let set = self.set.iter().map(|text| setting(text)).collect::<Result<Vec<_>, _>>()?;
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
                    return Err(Failure::Wrong(format!("{name} is not UTF-8").into()));
                }
                _ => {}
            }
        }
        Ok(load(Sources { file: self.config, variables, flags: set.into_iter().chain(named).collect() })?)
    }
}

/// What a command came to.
#[derive(Debug)]
enum Failure {
    /// Wrong usage or configuration.
    Wrong(Box<dyn Error>),
    /// It was tried, and failed.
    Failed(Box<dyn Error>),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Wrong(error.into())
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors, and go to standard output.
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Wrong(error)) => complain(&*error, 2),
        Err(Failure::Failed(error)) => complain(&*error, 1),
    }
}

/// Writes to standard output. A reader that has gone away has read what it wanted.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("cannot write to standard output: {error}").into()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// How long the end of the process waits for whoever reads standard error.
const LAST_WORDS: Duration = Duration::from_millis(500);

fn complain(error: &dyn Error, code: u8) -> ExitCode {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        message = format!("{message}: {source}");
        cause = source.source();
    }
    // A pipe that nobody empties must not keep the process from ending.
    let (said, heard) = mpsc::channel();
    std::thread::spawn(move || {
        anstream::eprintln!("callback-ingress: {message}");
        let _ = said.send(());
    });
    let _ = heard.recv_timeout(LAST_WORDS);
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
        Command::Config { command: ConfigCommand::Dump } => return say(&loaded.dump()),
        Command::Healthcheck(arguments) => Box::pin(healthcheck::run(loaded, arguments)),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Failed(error.into()))?;
    let result = runtime.block_on(command);
    // What still runs has had its time to drain.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
