//! The command line: arguments in, flows called, results shown, exit code out.
//!
//! Three stages. [`args`] is the line as it was typed. Each command's file turns that, the configuration and the environment into the
//! values that a flow wants, calls the flow, and shows what it returned ([`output`], [`progress`]). Errors end in [`exit`], the one table
//! from errors to exit codes. The flows know nothing of any of this.

mod open;
mod help;
mod output;
mod single;
mod restore_all;
mod health;
mod index;
mod logging;
mod init;
mod args;
mod check_redis;
mod progress;
mod verify;
mod redis_list;
mod backup;
mod skew;
mod exit;
mod redis_log;
mod usage;
mod receive;
mod server;
mod restore;
mod redis;
mod redis_restore;
mod moment;
mod log;
mod list;
mod one_moment;
mod cleanup;
mod plan;
mod target;
mod get;
mod push;
mod check;

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use jiff::tz::TimeZone;

use crate::base::clock::{SharedClock, SystemClock};
use crate::config::{Config, ConfigError, ProcessEnvironment};
use args::{BackupArgs, BackupCommand, CliCommand, CommandLine, PlanArgs, PlanCommand, RestoreArgs, RestoreCommand};
use exit::{CliError, CliExitCode, ExitCodeRule};
use logging::DefaultLogLevel;
use output::TerminalOutput;

/// Runs the program with these arguments, the program's name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = usage::without_help(arguments.into_iter().collect());
    let trouble = ExitCodeRule::of(&arguments);
    std::panic::set_hook(Box::new(|panic| complain(&format!("a bug in walkeep: {panic}; please report it"))));
    let ended = catch_unwind(AssertUnwindSafe(|| parse_and_dispatch(&arguments)));
    match ended {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(error)) => {
            complain(&exit::explain(&error));
            ExitCode::from(trouble.code(exit::code(&error)))
        }
        Err(_) => ExitCode::from(trouble.code(CliExitCode::Failed)),
    }
}

/// The one line that a user sees of an error.
fn complain(text: &str) {
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
        Err(error) => return Err(CliError::usage(usage::wrong(&error, arguments)).into()),
    };
    let around = CliContext::of(&line.global)?;
    let usual = if matches!(line.command, CliCommand::Receive(_)) {
        DefaultLogLevel::Talkative
    } else {
        DefaultLogLevel::Quiet
    };
    logging::start(&line.global, usual, around.no_color());
    dispatch(line.command, &around)
}

fn dispatch(command: CliCommand, around: &CliContext) -> anyhow::Result<u8> {
    let code = match command {
        CliCommand::Init(args) => light(init::run(args, around))?,
        CliCommand::Check(args) => light(check::run(args, around))?,
        CliCommand::Receive(args) => heavy(receive::run(args, around))?,
        CliCommand::ArchivePush(args) => light(push::run(args, around))?,
        CliCommand::ArchiveGet(args) => return light(get::run(args, around)),
        CliCommand::Plan(PlanArgs { of: PlanCommand::Postgres(args) }) => heavy(restore::plan(args, around))?,
        CliCommand::Plan(PlanArgs { of: PlanCommand::Redis(args) }) => heavy(redis_restore::plan(args, around))?,
        CliCommand::Plan(PlanArgs { of: PlanCommand::All(args) }) => heavy(restore_all::plan(args, around))?,
        CliCommand::Restore(RestoreArgs { of: RestoreCommand::All(args) }) => heavy(restore_all::run(*args, around))?,
        CliCommand::Restore(RestoreArgs { of: RestoreCommand::Postgres(args) }) => heavy(restore::run(*args, around))?,
        CliCommand::Restore(RestoreArgs { of: RestoreCommand::Redis(args) }) => {
            heavy(redis_restore::run(args, around))?
        }
        CliCommand::Backup(BackupArgs { of: BackupCommand::Postgres(args) }) => heavy(backup::run(args, around))?,
        CliCommand::Backup(BackupArgs { of: BackupCommand::Redis(args) }) => light(redis::backup(args, around))?,
        CliCommand::Backup(BackupArgs { of: BackupCommand::All }) => heavy(redis::backup_all(around))?,
        CliCommand::List(args) => heavy(list::run(args, around))?,
        CliCommand::Log(args) => heavy(log::run(args, around))?,
        CliCommand::Health(args) => heavy(health::run(args, around))?,
        CliCommand::Cleanup(args) => heavy(cleanup::run(args, around))?,
        CliCommand::Verify(args) => heavy(verify::run(args, around))?,
        CliCommand::Index(args) => heavy(index::run(args.what, around))?,
    };
    Ok(code as u8)
}

/// Runs on this thread alone, for commands that must start fast, have little to do, or read one socket in small pieces: no other thread wakes
/// this one for each. What takes the processor goes to threads of its own.
fn light<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(work)
}

/// Runs with a worker thread for each processor.
fn heavy<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(work)
}

/// What every command is given: the configuration's place, the environment, the clock, and where to print.
#[derive(Debug)]
struct CliContext {
    named_config: Option<PathBuf>,
    quiet: bool,
    environment: ProcessEnvironment,
    clock: SharedClock,
    /// Whether the output's zone was asked for.
    zone_asked: bool,
    output: TerminalOutput,
}

impl CliContext {
    fn of(global: &args::GlobalArgs) -> Result<CliContext, CliError> {
        let environment = ProcessEnvironment::of_process();
        let zone = global.time_zone.as_deref().map_or(Ok(TimeZone::UTC), moment::zone).map_err(CliError::usage)?;
        let plain = no_color(&environment);
        Ok(CliContext {
            named_config: global.config.clone(),
            quiet: global.quiet,
            zone_asked: global.time_zone.is_some(),
            output: TerminalOutput::new(zone, plain),
            clock: SystemClock::shared(),
            environment,
        })
    }

    fn config(&self) -> Result<Config, ConfigError> {
        Config::read(self.named_config.as_deref(), &self.environment)
    }

    /// A moment as a line to copy can have it.
    fn lasting(&self, moment: &str) -> String {
        moment::lasting(moment, self.clock.now(), &self.local_zone())
    }

    /// The zone of a time that names none.
    fn local_zone(&self) -> moment::DefaultZone {
        let zone = self.output.zone.clone();
        if self.zone_asked {
            moment::DefaultZone::Asked(zone)
        } else {
            moment::DefaultZone::Machine(TimeZone::system())
        }
    }

    fn no_color(&self) -> bool {
        no_color(&self.environment)
    }
}

/// `NO_COLOR` of no-color.org, and terminals that know no colours.
fn no_color(environment: &ProcessEnvironment) -> bool {
    environment.get("NO_COLOR").is_some() || environment.get("TERM") == Some("dumb")
}
