//! The `walkeep` program: parse, dispatch, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    walkeep::cli::run(std::env::args_os())
}
