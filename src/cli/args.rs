//! The command line as it is typed. Nothing is looked up here; [`super::dispatch`] turns these into usable values.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use super::help;

/// Keep a PostgreSQL cluster restorable to any moment.
#[derive(Parser, Debug)]
#[command(name = "walkeep", version, max_term_width = 100, after_help = help::OVERVIEW, after_long_help = help::EXIT_CODES)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
pub(super) struct Line {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// The configuration file [default: $WALKEEP_CONFIG, ./walkeep.toml, /etc/walkeep/walkeep.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// How logs on standard error are written
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(super) log_format: LogFormat,
    /// Log more; twice for debugging
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(super) verbose: u8,
    /// Log errors only, and show no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(super) quiet: bool,
    /// Print times in this zone instead of UTC, like Europe/Vienna or local
    #[arg(long, global = true, value_name = "ZONE")]
    pub(super) time_zone: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    Init(Init),
    Check(Check),
    ArchivePush(ArchivePush),
}

/// Create a repository, its key and the configuration for a cluster
#[derive(Args, Debug)]
#[command(after_help = help::INIT)]
pub(super) struct Init {
    /// What the cluster is to be called
    #[arg(long, value_name = "NAME")]
    pub(super) cluster: String,
    /// How to reach it: a libpq connection string or URI; without, archive_command alone feeds it
    #[arg(long, value_name = "CONNINFO")]
    pub(super) connection: Option<String>,
    /// Where to store: file:///folder, s3://bucket/folder, gs://bucket/folder or az://container/folder
    #[arg(long, value_name = "URL")]
    pub(super) repository: String,
    /// Where the index, the spool and the control socket go [default: /var/lib/walkeep]
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,
    /// Where the new key goes [default: walkeep.key beside the configuration]
    #[arg(long, value_name = "FILE", conflicts_with = "no_encryption")]
    pub(super) key_file: Option<PathBuf>,
    /// Store without encryption
    #[arg(long)]
    pub(super) no_encryption: bool,
}

/// Prove that archiving works, end to end, now
#[derive(Args, Debug)]
#[command(after_help = help::CHECK)]
pub(super) struct Check {
    /// The cluster [default: the only one configured]
    #[arg(value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

/// Archive one file: for archive_command
#[derive(Args, Debug)]
#[command(after_help = help::ARCHIVE_PUSH)]
pub(super) struct ArchivePush {
    /// The file, as PostgreSQL gives it in %p
    #[arg(value_name = "PATH")]
    pub(super) path: PathBuf,
    /// The cluster [default: the only one configured]
    #[arg(long, value_name = "NAME")]
    pub(super) cluster: Option<String>,
}
