//! The command line as it is typed. Nothing is looked up here; [`super::dispatch`] turns these into usable values.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

pub(super) mod target;

use super::help;
use super::redis_log::LogRedisArgs;
use super::verbs::backup::BackupArgs;
use super::verbs::cleanup::CleanupArgs;
use super::verbs::plan::PlanArgs;
use super::verbs::restore::RestoreArgs;
use crate::postgres::log::{DEFAULT_MIN_ROWS, LogEntryKind};

/// Keep PostgreSQL clusters and Redis instances restorable to any moment.
#[derive(Parser, Debug)]
#[command(name = "walkeep", version, max_term_width = 100, after_help = help::OVERVIEW_HELP)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
pub(super) struct CommandLine {
    #[command(flatten)]
    pub(super) global: GlobalArgs,
    #[command(subcommand)]
    pub(super) command: CliCommand,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub(super) struct GlobalArgs {
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
    /// Print times in this zone instead of UTC, like Europe/Vienna or local, and take those without a zone to be in it
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
pub(super) enum CliCommand {
    Init(InitArgs),
    Check(CheckArgs),
    Receive(ReceiveArgs),
    ArchivePush(ArchivePushArgs),
    ArchiveGet(ArchiveGetArgs),
    Backup(BackupArgs),
    List(ListArgs),
    Plan(PlanArgs),
    Restore(RestoreArgs),
    Log(LogArgs),
    Verify(VerifyArgs),
    Cleanup(CleanupArgs),
    Health(HealthArgs),
    Index(IndexArgs),
}

/// Create a repository, its key and the configuration for a cluster
#[derive(Args, Debug)]
#[command(after_help = help::INIT_HELP)]
pub(super) struct InitArgs {
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
#[command(after_help = help::CHECK_HELP)]
pub(super) struct CheckArgs {
    /// The cluster or Redis instance [default: all that are configured, one after the other]
    #[arg(value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

/// Stream WAL from a cluster, or the commands of a Redis instance, into the repository, in the foreground
#[derive(Args, Debug)]
#[command(after_help = help::RECEIVE_HELP)]
pub(super) struct ReceiveArgs {
    /// The cluster or Redis instance [default: the only one configured]
    #[arg(value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// End when everything before this position is archived
    #[arg(long, value_name = "LSN")]
    pub(super) end_lsn: Option<String>,
}

/// Archive one file: for archive_command
#[derive(Args, Debug)]
#[command(after_help = help::ARCHIVE_PUSH_HELP)]
pub(super) struct ArchivePushArgs {
    /// The file, as PostgreSQL gives it in %p
    #[arg(value_name = "PATH")]
    pub(super) path: PathBuf,
    /// The cluster [default: the only one configured]
    #[arg(long, value_name = "NAME")]
    pub(super) cluster: Option<String>,
}

/// Fetch one archived file: for restore_command
#[derive(Args, Debug)]
#[command(after_help = help::ARCHIVE_GET_HELP)]
pub(super) struct ArchiveGetArgs {
    /// The file's name, as PostgreSQL gives it in %f
    #[arg(value_name = "FILE")]
    pub(super) file: String,
    /// Where to put it, as PostgreSQL gives it in %p
    #[arg(value_name = "DEST")]
    pub(super) destination: PathBuf,
    /// The cluster [default: the only one configured]
    #[arg(long, value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// For a standby, which asks again: report trouble as a missing file instead of stopping the server
    #[arg(long)]
    pub(super) standby: bool,
    /// Fetch what follows segment FILE into the folder DEST; archive-get starts this itself
    #[arg(long, hide = true)]
    pub(super) fetch_ahead: bool,
}

/// Show backups, restorable windows, timelines and gaps
#[derive(Args, Debug)]
#[command(after_help = help::LIST_HELP, args_conflicts_with_subcommands = true)]
pub(super) struct ListArgs {
    #[command(subcommand)]
    pub(super) of: Option<ListCommand>,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Subcommand, Debug)]
pub(super) enum ListCommand {
    Postgres(ListPostgresArgs),
    Redis(ListRedisArgs),
}

/// Of Redis instances
#[derive(Args, Debug)]
#[command(after_help = help::LIST_HELP)]
pub(super) struct ListRedisArgs {
    /// One instance [default: all]
    #[arg(value_name = "NAME")]
    pub(super) instance: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

/// Of PostgreSQL clusters
#[derive(Args, Debug)]
#[command(after_help = help::LIST_HELP)]
pub(super) struct ListPostgresArgs {
    /// One cluster [default: all]
    #[arg(value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

/// Show what happened, with the target that restores to just before it
#[derive(Args, Debug)]
#[command(after_help = help::LOG_HELP, args_conflicts_with_subcommands = true)]
pub(super) struct LogArgs {
    #[command(subcommand)]
    pub(super) of: Option<LogCommand>,
    #[command(flatten)]
    pub(super) log: LogFilterArgs,
}

#[derive(Subcommand, Debug)]
pub(super) enum LogCommand {
    Postgres(LogPostgresArgs),
    Redis(LogRedisArgs),
}

/// In a PostgreSQL cluster
#[derive(Args, Debug)]
#[command(after_help = help::LOG_HELP)]
pub(super) struct LogPostgresArgs {
    /// The cluster [default: the only one configured]
    #[arg(value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    #[command(flatten)]
    pub(super) log: LogFilterArgs,
}

#[derive(Args, Debug)]
pub(super) struct LogFilterArgs {
    #[command(flatten)]
    pub(super) span: LogTimeArgs,
    /// Only events of this kind; may be given again [default: all but checkpoint and backup]
    #[arg(long = "event", value_name = "KIND", value_parser = event_kind_parser())]
    pub(super) events: Vec<LogEntryKind>,
    /// Only what befell this table: schema.table, or table
    #[arg(long, value_name = "TABLE")]
    pub(super) relation: Option<String>,
    /// Tell a DELETE or UPDATE that changes so many rows of a table in one transaction
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MIN_ROWS, value_parser = clap::value_parser!(u64).range(100..))]
    pub(super) rows: u64,
    /// Look back from this timeline instead of the newest
    #[arg(long, value_name = "TLI")]
    pub(super) timeline: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug, Clone)]
pub(super) struct LogTimeArgs {
    /// Only what happened then or later: a time as --target-time of restore takes it
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Only what happened then or earlier
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<String>,
}

fn event_kind_parser() -> impl TypedValueParser<Value = LogEntryKind> {
    named_value_parser(LogEntryKind::ALL, LogEntryKind::name)
}

/// One of these by its name; the others are listed where it is none.
pub(super) fn named_value_parser<K, const N: usize>(
    all: [K; N],
    name: fn(K) -> &'static str,
) -> impl TypedValueParser<Value = K>
where
    K: Copy + Send + Sync + 'static,
{
    let known = move |given: String| all.into_iter().find(|one| name(*one) == given).ok_or("no such kind of event");
    PossibleValuesParser::new(all.map(name)).try_map(known)
}

/// Read everything back and authenticate it
#[derive(Args, Debug)]
#[command(after_help = help::VERIFY_HELP)]
pub(super) struct VerifyArgs {
    /// The cluster or Redis instance [default: all that are configured]
    #[arg(value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// Only this backup and the WAL it needs
    #[arg(long, value_name = "LABEL")]
    pub(super) backup: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

/// Say how protected we are now; ends with 0 if all is well, else with 1
#[derive(Args, Debug)]
#[command(after_help = help::HEALTH_HELP)]
pub(super) struct HealthArgs {
    /// One cluster or instance [default: all that are configured]
    pub(super) name: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

/// The index: rebuild it from the repository, or show what it holds
#[derive(Args, Debug)]
#[command(after_help = help::INDEX_HELP)]
pub(super) struct IndexArgs {
    #[command(subcommand)]
    pub(super) what: IndexCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum IndexCommand {
    /// Make it anew from the repository, for all clusters
    Rebuild(IndexScopeArgs),
    /// Show what it covers and how large it is
    Stats(IndexScopeArgs),
}

#[derive(Args, Debug)]
pub(super) struct IndexScopeArgs {
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}
