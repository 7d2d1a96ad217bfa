//! The program: see [`callback_ingress::cli`].

use std::process::ExitCode;

/// Unlike the C library's, it gives the memory of large bodies back once a burst is over.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    callback_ingress::cli::main()
}
