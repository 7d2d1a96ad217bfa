//! The executable. The subcommands are in [`callback_ingress::cli`].

use std::process::ExitCode;

/// Unlike the C library's allocator, mimalloc returns the memory of large bodies to the system after a burst.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    callback_ingress::cli::main()
}
