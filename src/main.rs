//! The `mailrace` command: the library's command line under the program's allocator.

use std::process::ExitCode;

/// Short-lived objects of many sizes, freed on the core that made them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mailrace::cli::main(std::env::args_os())
}
