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
use crate::config::{Config, ConfigError, Environment};
use args::{Backup, BackupOf, Command, Line, Plan, PlanOf, Restore, RestoreOf};
use exit::{Code, Failure, Trouble};
use logging::Usual;
use output::Output;

/// Runs the program with these arguments, the program's name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = usage::without_help(arguments.into_iter().collect());
    let trouble = Trouble::of(&arguments);
    std::panic::set_hook(Box::new(|panic| complain(&format!("a bug in walkeep: {panic}; please report it"))));
    let ended = catch_unwind(AssertUnwindSafe(|| parse_and_dispatch(&arguments)));
    match ended {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(error)) => {
            complain(&exit::explain(&error));
            ExitCode::from(trouble.code(exit::code(&error)))
        }
        Err(_) => ExitCode::from(trouble.code(Code::Failed)),
    }
}

/// The one line that a user sees of an error.
fn complain(text: &str) {
    // Where standard error is gone there is nobody left to tell.
    let _told = writeln!(std::io::stderr().lock(), "walkeep: {text}");
}

fn parse_and_dispatch(arguments: &[OsString]) -> anyhow::Result<u8> {
    let line = match Line::try_parse_from(arguments) {
        Ok(line) => line,
        Err(asked) if !asked.use_stderr() => {
            return match asked.print() {
                // Whoever reads help through `head` has seen enough.
                Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                    Err(error).context("cannot write to standard output")
                }
                _ => Ok(Code::Done as u8),
            };
        }
        Err(error) => return Err(Failure::usage(usage::wrong(&error, arguments)).into()),
    };
    let around = Surroundings::of(&line.global)?;
    let usual = if matches!(line.command, Command::Receive(_)) { Usual::Talkative } else { Usual::Quiet };
    logging::start(&line.global, usual, around.no_color());
    dispatch(line.command, &around)
}

fn dispatch(command: Command, around: &Surroundings) -> anyhow::Result<u8> {
    let code = match command {
        Command::Init(args) => light(init::run(args, around))?,
        Command::Check(args) => light(check::run(args, around))?,
        Command::Receive(args) => heavy(receive::run(args, around))?,
        Command::ArchivePush(args) => light(push::run(args, around))?,
        Command::ArchiveGet(args) => return light(get::run(args, around)),
        Command::Plan(Plan { of: PlanOf::Postgres(args) }) => heavy(restore::plan(args, around))?,
        Command::Plan(Plan { of: PlanOf::Redis(args) }) => heavy(redis_restore::plan(args, around))?,
        Command::Plan(Plan { of: PlanOf::All(args) }) => heavy(restore_all::plan(args, around))?,
        Command::Restore(Restore { of: RestoreOf::All(args) }) => heavy(restore_all::run(*args, around))?,
        Command::Restore(Restore { of: RestoreOf::Postgres(args) }) => heavy(restore::run(*args, around))?,
        Command::Restore(Restore { of: RestoreOf::Redis(args) }) => heavy(redis_restore::run(args, around))?,
        Command::Backup(Backup { of: BackupOf::Postgres(args) }) => heavy(backup::run(args, around))?,
        Command::Backup(Backup { of: BackupOf::Redis(args) }) => light(redis::backup(args, around))?,
        Command::Backup(Backup { of: BackupOf::All }) => heavy(redis::backup_all(around))?,
        Command::List(args) => heavy(list::run(args, around))?,
        Command::Log(args) => heavy(log::run(args, around))?,
        Command::Health(args) => heavy(health::run(args, around))?,
        Command::Cleanup(args) => heavy(cleanup::run(args, around))?,
        Command::Verify(args) => heavy(verify::run(args, around))?,
        Command::Index(args) => heavy(index::run(args.what, around))?,
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
struct Surroundings {
    named_config: Option<PathBuf>,
    quiet: bool,
    environment: Environment,
    clock: SharedClock,
    /// Whether the output's zone was asked for.
    zone_asked: bool,
    output: Output,
}

impl Surroundings {
    fn of(global: &args::Global) -> Result<Surroundings, Failure> {
        let environment = Environment::of_process();
        let zone = global.time_zone.as_deref().map_or(Ok(TimeZone::UTC), moment::zone).map_err(Failure::usage)?;
        let plain = no_color(&environment);
        Ok(Surroundings {
            named_config: global.config.clone(),
            quiet: global.quiet,
            zone_asked: global.time_zone.is_some(),
            output: Output::new(zone, plain),
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
    fn local_zone(&self) -> moment::Zone {
        let zone = self.output.zone.clone();
        if self.zone_asked { moment::Zone::Asked(zone) } else { moment::Zone::Machine(TimeZone::system()) }
    }

    fn no_color(&self) -> bool {
        no_color(&self.environment)
    }
}

/// `NO_COLOR` of no-color.org, and terminals that know no colours.
fn no_color(environment: &Environment) -> bool {
    environment.get("NO_COLOR").is_some() || environment.get("TERM") == Some("dumb")
}
