//! The program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    mailrace_loadtest::cli::main()
}
