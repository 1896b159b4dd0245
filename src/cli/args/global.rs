//! The options that every command takes.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub(in crate::cli) struct GlobalArgs {
    /// The configuration file [default: $WALKEEP_CONFIG, ./walkeep.toml, /etc/walkeep/walkeep.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
    /// How logs on standard error are written
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(in crate::cli) log_format: LogFormat,
    /// Log more; twice for debugging
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(in crate::cli) verbose: u8,
    /// Log errors only, and show no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(in crate::cli) quiet: bool,
    /// Print times in this zone instead of UTC, like Europe/Vienna or local, and take those without a zone to be in it
    #[arg(long, global = true, value_name = "ZONE")]
    pub(in crate::cli) time_zone: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::cli) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}
