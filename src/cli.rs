//! The command line: one file per subcommand.
//!
//! Exit codes: 0 success, 1 failure, 2 wrong usage or configuration.

mod client;
mod client_tls;
mod config;
mod demo;
mod event_stream;
mod healthcheck;
mod keys;
mod outcome;
mod platform_client;
mod probe;
mod serve;
mod settings;
mod show;
mod tail;
mod text;
mod waiting;
mod width;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::healthcheck::HealthcheckArgs;
use self::keys::NewKeysArgs;
use self::outcome::{Failure, print, report_error};
use self::probe::ProbeArgs;
use self::settings::SettingsArgs;
use self::show::ShowArgs;
use self::tail::TailArgs;
use self::waiting::WaitingArgs;

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
    /// Create keys
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Check that a running service is alive, or with --ready that it can accept callbacks
    Healthcheck(HealthcheckArgs),
    /// Make a round trip through a running deployment: open, issue, post a callback with each carrier, read, end
    Probe(ProbeArgs),
    /// List the conversations that hold results, longest wait first, and the work item that each waits for
    Waiting(WaitingArgs),
    /// Show the work items of a conversation as a timeline: issued, received, held, released; times are in UTC
    Show(ShowArgs),
    /// Follow the channel of a conversation until it ends, one line per envelope; times are in UTC
    Tail(TailArgs),
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Print a new signing key and a new service key, in the form that the configuration expects
    New(NewKeysArgs),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Validate the configuration and check that the store is usable
    Check,
    /// Print the effective settings as TOML, without secrets
    Dump,
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

fn run(cli: Cli) -> Result<(), Failure> {
    let settings = cli.settings;
    let loaded = match &cli.command {
        Command::Keys { command: KeysCommand::New(arguments) } => {
            settings.refuse_unused("keys new", &[])?;
            return keys::new(arguments);
        }
        Command::Demo => demo::settings(settings)?.load()?,
        Command::Healthcheck(arguments) => {
            settings.refuse_unused("healthcheck", arguments.used_settings())?;
            settings.load()?
        }
        Command::Probe(arguments) => arguments.load(settings)?,
        Command::Waiting(arguments) => arguments.platform.load("waiting", settings)?,
        Command::Show(arguments) => arguments.platform.load("show", settings)?,
        Command::Tail(arguments) => arguments.platform.load("tail", settings)?,
        Command::Serve | Command::Config { .. } => settings.load()?,
    };
    let command: std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>>>> = match cli.command {
        Command::Serve => Box::pin(serve::run(loaded)),
        Command::Demo => Box::pin(demo::run(loaded)),
        Command::Config { command: ConfigCommand::Check } => Box::pin(config::check(loaded)),
        Command::Config { command: ConfigCommand::Dump } => return print(&loaded.dump()),
        Command::Keys { .. } => return Ok(()),
        Command::Healthcheck(arguments) => Box::pin(healthcheck::run(loaded, arguments)),
        Command::Probe(arguments) => Box::pin(probe::run(loaded, arguments)),
        Command::Waiting(arguments) => Box::pin(waiting::run(loaded, arguments)),
        Command::Show(arguments) => Box::pin(show::run(loaded, arguments)),
        Command::Tail(arguments) => Box::pin(tail::run(loaded, arguments)),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Runtime(error.into()))?;
    let result = runtime.block_on(command);
    // Does not wait for tasks that are still running: the command has already waited for those that matter.
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
