//! What every command is given.

use std::path::PathBuf;

use jiff::tz::TimeZone;

use super::args::global::GlobalArgs;
use super::args::time::{self, WrittenMoment};
use super::exit::CliError;
use super::show::output::TerminalOutput;
use crate::base::clock::{SharedClock, SystemClock};
use crate::config::{Config, ConfigError, ProcessEnvironment};

/// The configuration's place, the environment, the clock, and where to print.
#[derive(Debug)]
pub(super) struct CliContext {
    pub(super) named_config: Option<PathBuf>,
    pub(super) quiet: bool,
    pub(super) environment: ProcessEnvironment,
    pub(super) clock: SharedClock,
    /// Whether the output's zone was asked for.
    pub(super) zone_asked: bool,
    pub(super) output: TerminalOutput,
}

impl CliContext {
    pub(super) fn from_args(global: &GlobalArgs) -> Result<CliContext, CliError> {
        let environment = ProcessEnvironment::from_process();
        let zone = global.time_zone.as_deref().map_or(Ok(TimeZone::UTC), time::parse_zone).map_err(CliError::usage)?;
        let plain = is_color_off(&environment);
        Ok(CliContext {
            named_config: global.config.clone(),
            quiet: global.quiet,
            zone_asked: global.time_zone.is_some(),
            output: TerminalOutput::new(zone, plain),
            clock: SystemClock::shared(),
            environment,
        })
    }

    pub(super) fn read_config(&self) -> Result<Config, ConfigError> {
        Config::read(self.named_config.as_deref(), &self.environment)
    }

    /// Reads the moment that an option was given.
    pub(super) fn read_moment(&self, option: &str, text: &str) -> Result<WrittenMoment, CliError> {
        let read = time::read_moment(text, self.clock.now(), &self.local_zone());
        read.map_err(|why| CliError::usage(format!("{option}: {why}")))
    }

    /// The zone of a time that names none.
    pub(super) fn local_zone(&self) -> time::DefaultZone {
        let zone = self.output.zone.clone();
        if self.zone_asked { time::DefaultZone::Asked(zone) } else { time::DefaultZone::Machine(TimeZone::system()) }
    }

    pub(super) fn is_color_off(&self) -> bool {
        is_color_off(&self.environment)
    }
}

/// `NO_COLOR` of no-color.org, and terminals that know no colours.
fn is_color_off(environment: &ProcessEnvironment) -> bool {
    environment.get("NO_COLOR").is_some() || environment.get("TERM") == Some("dumb")
}
