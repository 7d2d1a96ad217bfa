//! The program: see [`callback_ingress::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    callback_ingress::cli::main()
}
