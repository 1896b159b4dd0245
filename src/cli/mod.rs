//! The command line: arguments in, flows called, results shown, exit code out.
//!
//! Three stages. [`args`] is the line as it was typed. Each command's file in [`verbs`] turns that, the configuration
//! and the environment into the values that a flow wants, calls the flow, and shows what it returned ([`show`]).
//! Errors end in [`exit`], the one table from errors to exit codes. The flows know nothing of any of this.

mod args;
mod context;
mod exit;
mod logging;
mod open;
mod show;
mod verbs;

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use args::command_line::{CliCommand, CommandLine};
use args::usage;
use context::CliContext;
use exit::{CliError, CliExitCode, ExitCodeRule};
use logging::DefaultLogLevel;
use verbs::backup::{BackupArgs, BackupCommand};
use verbs::plan::{PlanArgs, PlanCommand};
use verbs::restore::{RestoreArgs, RestoreCommand};
use verbs::{archive_get, archive_push, check, fork, health, index, init, list, log, receive, recovery_ended, verify};

/// Runs the program with these arguments, the program's name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = usage::without_help(arguments.into_iter().collect());
    let trouble = ExitCodeRule::from_arguments(&arguments);
    std::panic::set_hook(Box::new(|panic| print_error(&format!("a bug in walkeep: {panic}; please report it"))));
    let ended = catch_unwind(AssertUnwindSafe(|| parse_and_dispatch(&arguments)));
    match ended {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(error)) => {
            print_error(&exit::error_line(&error));
            ExitCode::from(trouble.exit_code(exit::exit_code(&error)))
        }
        Err(_) => ExitCode::from(trouble.exit_code(CliExitCode::Failed)),
    }
}

/// The one line that a user sees of an error.
fn print_error(text: &str) {
    // Where standard error is gone there is nobody left to tell.
    let _told = writeln!(std::io::stderr().lock(), "walkeep: {text}");
}

fn parse_and_dispatch(arguments: &[OsString]) -> anyhow::Result<u8> {
    let line = match CommandLine::try_parse_from(arguments) {
        Ok(line) => line,
        Err(asked) if !asked.use_stderr() => {
            return match asked.print() {
                // Whoever reads help through `head` has seen enough.
                Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                    Err(error).context("cannot write to standard output")
                }
                _ => Ok(CliExitCode::Done as u8),
            };
        }
        Err(error) => return Err(CliError::usage(usage::usage_error_line(&error, arguments)).into()),
    };
    let around = CliContext::from_args(&line.global)?;
    let usual =
        if matches!(line.command, CliCommand::Receive(_)) { DefaultLogLevel::Verbose } else { DefaultLogLevel::Quiet };
    logging::init_logging(&line.global, usual, around.is_color_off());
    dispatch(line.command, &around)
}

fn dispatch(command: CliCommand, around: &CliContext) -> anyhow::Result<u8> {
    let code = match command {
        CliCommand::Init(args) => run_single_threaded(init::run(args, around))?,
        CliCommand::Check(args) => run_single_threaded(check::run(args, around))?,
        CliCommand::Receive(args) => run_multi_threaded(receive::run(args, around))?,
        CliCommand::ArchivePush(args) => run_single_threaded(archive_push::run(args, around))?,
        CliCommand::ArchiveGet(args) => return run_single_threaded(archive_get::run(args, around)),
        CliCommand::Plan(PlanArgs { of: PlanCommand::Postgres(args) }) => {
            run_multi_threaded(verbs::plan::postgres::run(args, around))?
        }
        CliCommand::Plan(PlanArgs { of: PlanCommand::Redis(args) }) => {
            run_multi_threaded(verbs::plan::redis::run(args, around))?
        }
        CliCommand::Plan(PlanArgs { of: PlanCommand::All(args) }) => {
            run_multi_threaded(verbs::plan::all::run(args, around))?
        }
        CliCommand::Restore(RestoreArgs { of: RestoreCommand::All(args) }) => {
            run_multi_threaded(verbs::restore::all::run(*args, around))?
        }
        CliCommand::Restore(RestoreArgs { of: RestoreCommand::Postgres(args) }) => {
            run_multi_threaded(verbs::restore::postgres::run(*args, around))?
        }
        CliCommand::Restore(RestoreArgs { of: RestoreCommand::Redis(args) }) => {
            run_multi_threaded(verbs::restore::redis::run(args, around))?
        }
        CliCommand::RecoveryEnded(args) => recovery_ended::run(&args, around)?,
        CliCommand::Backup(BackupArgs { of: BackupCommand::Postgres(args) }) => {
            run_multi_threaded(verbs::backup::postgres::run(args, around))?
        }
        CliCommand::Backup(BackupArgs { of: BackupCommand::Redis(args) }) => {
            run_single_threaded(verbs::backup::redis::run(args, around))?
        }
        CliCommand::Backup(BackupArgs { of: BackupCommand::All }) => {
            run_multi_threaded(verbs::backup::all::run(around))?
        }
        CliCommand::Backup(BackupArgs { of: BackupCommand::Keep(args) }) => {
            run_single_threaded(verbs::backup::single::keep(args, around))?
        }
        CliCommand::Backup(BackupArgs { of: BackupCommand::Unkeep(args) }) => {
            run_single_threaded(verbs::backup::single::unkeep(args, around))?
        }
        CliCommand::Backup(BackupArgs { of: BackupCommand::Delete(args) }) => {
            run_multi_threaded(verbs::backup::single::delete(args, around))?
        }
        CliCommand::List(args) => run_multi_threaded(list::run(args, around))?,
        CliCommand::Log(args) => run_multi_threaded(log::run(args, around))?,
        CliCommand::Health(args) => run_multi_threaded(health::run(args, around))?,
        CliCommand::Cleanup(args) => run_multi_threaded(verbs::cleanup::run(args, around))?,
        CliCommand::Verify(args) => run_multi_threaded(verify::run(args, around))?,
        CliCommand::Repository(args) => run_multi_threaded(verbs::repository::run(args, around))?,
        CliCommand::Fork(args) => run_single_threaded(fork::run(args.what, around))?,
        CliCommand::Index(args) => run_multi_threaded(index::run(args.what, around))?,
    };
    Ok(code as u8)
}

/// Runs on this thread alone, for commands that must start fast, have little to do, or read one socket in small
/// pieces: no other thread wakes this one for each. What takes the processor goes to threads of its own.
fn run_single_threaded<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(work)
}

/// Runs with a worker thread for each processor.
fn run_multi_threaded<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(work)
}
