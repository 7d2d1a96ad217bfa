//! The command line that `cargo test` expects of a test binary. This one has a single test: the self-check.

use std::process::ExitCode;

/// The only test.
const NAME: &str = "compare_gets_the_expected_replies";
/// Options of test binaries that take a value.
const WITH_VALUE: [&str; 6] = ["--test-threads", "--skip", "--color", "--format", "--logfile", "-Z"];

/// Runs the test if the arguments ask for it.
pub(crate) fn run(arguments: &[String], test: impl FnOnce() -> Result<String, String>) -> ExitCode {
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    let (mut filters, mut skipped, mut before) = (Vec::new(), false, "");
    for argument in arguments {
        if before == "--skip" {
            skipped |= NAME.contains(argument.as_str());
        } else if !argument.starts_with('-') && !WITH_VALUE.contains(&before) {
            filters.push(argument.as_str());
        }
        before = argument;
    }
    let matches = |filter: &&str| if has("--exact") { NAME == *filter } else { NAME.contains(*filter) };
    let wanted = (filters.is_empty() || filters.iter().any(matches)) && !skipped && !has("--ignored");
    if has("--list") {
        if wanted {
            println!("{NAME}: test");
        }
        return ExitCode::SUCCESS;
    }
    if !wanted {
        println!("compare: 0 tests, 1 filtered out");
        return ExitCode::SUCCESS;
    }
    match test() {
        Ok(said) => {
            println!("test {NAME} ... ok: {said}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            println!("test {NAME} ... FAILED: {reason}");
            ExitCode::FAILURE
        }
    }
}
