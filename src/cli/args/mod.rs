//! The command line as it is typed. Nothing is looked up here; [`super::dispatch`] turns these into usable values.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

pub(super) mod target;

use super::help;
use super::redis_log::LogRedisArgs;
use super::verbs::restore::all::{PlanAllArgs, RestoreAllArgs};
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

/// Take a backup now and print its label
#[derive(Args, Debug)]
#[command(after_help = help::BACKUP_HELP)]
pub(super) struct BackupArgs {
    #[command(subcommand)]
    pub(super) of: BackupCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum BackupCommand {
    Postgres(BackupPostgresArgs),
    Redis(BackupRedisArgs),
    /// Of everything that is configured, one after the other
    #[command(after_help = help::BACKUP_HELP)]
    All,
}

/// Of a Redis or Valkey instance
#[derive(Args, Debug)]
#[command(after_help = help::BACKUP_HELP)]
pub(super) struct BackupRedisArgs {
    /// The instance [default: the only one configured]
    #[arg(value_name = "INSTANCE")]
    pub(super) instance: Option<String>,
    /// Import this RDB file instead of asking the server
    #[arg(long, value_name = "PATH")]
    pub(super) from_file: Option<PathBuf>,
    /// Print one JSON document instead of the label
    #[arg(long)]
    pub(super) json: bool,
}

/// Of a PostgreSQL cluster
#[derive(Args, Debug)]
#[command(after_help = help::BACKUP_HELP)]
pub(super) struct BackupPostgresArgs {
    /// The cluster [default: the only one configured]
    #[arg(value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    /// How the server makes its first checkpoint: at once, or spread over checkpoint_completion_target
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub(super) checkpoint: CheckpointMode,
    /// Print one JSON document instead of the label
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum CheckpointMode {
    /// At once
    #[default]
    Fast,
    /// Gently, which may take minutes
    Spread,
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

/// Resolve a target and prove whether it can be reached; touches nothing
#[derive(Args, Debug)]
#[command(after_help = help::PLAN_HELP)]
pub(super) struct PlanArgs {
    #[command(subcommand)]
    pub(super) of: PlanCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum PlanCommand {
    Postgres(PlanPostgresArgs),
    Redis(PlanRedisArgs),
    All(PlanAllArgs),
}

/// For a Redis or Valkey instance
#[derive(Args, Debug)]
#[command(after_help = help::PLAN_REDIS_HELP)]
pub(super) struct PlanRedisArgs {
    /// The instance [default: the only one configured]
    #[arg(value_name = "INSTANCE")]
    pub(super) instance: Option<String>,
    #[command(flatten)]
    pub(super) target: RedisTargetArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Target (the newest reachable moment without one)")]
pub(super) struct RedisTargetArgs {
    /// The state at a moment: RFC 3339, PostgreSQL's spelling with a zone, "now", or "5 minutes ago"
    #[arg(long, value_name = "TIME", group = "redis-target")]
    pub(super) target_time: Option<String>,
    /// The state just before what walkeep log redis shows at this place: OFFSET@HISTORY
    #[arg(long, value_name = "OFFSET", group = "redis-target")]
    pub(super) target_offset: Option<String>,
    /// The snapshot as it is, without the commands behind it
    #[arg(long, group = "redis-target")]
    pub(super) target_immediate: bool,
    /// Start from this snapshot instead of the newest that fits
    #[arg(long, value_name = "LABEL")]
    pub(super) backup: Option<String>,
    /// Take the newest reachable moment before the target if the target itself cannot be reached
    #[arg(long)]
    pub(super) nearest: bool,
}

/// For a PostgreSQL cluster
#[derive(Args, Debug)]
#[command(after_help = help::PLAN_HELP)]
pub(super) struct PlanPostgresArgs {
    /// The cluster [default: the only one configured]
    #[arg(value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    #[command(flatten)]
    pub(super) target: PostgresTargetArgs,
    /// Where it would be restored to: also proves that there is room
    #[arg(long, value_name = "DIR")]
    pub(super) pgdata: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

/// Plan, then restore
#[derive(Args, Debug)]
#[command(after_help = help::RESTORE_HELP)]
pub(super) struct RestoreArgs {
    #[command(subcommand)]
    pub(super) of: RestoreCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum RestoreCommand {
    Postgres(Box<RestorePostgresArgs>),
    Redis(RestoreRedisArgs),
    All(Box<RestoreAllArgs>),
}

/// A Redis or Valkey instance: write what a stock server starts from
#[derive(Args, Debug)]
#[command(after_help = help::RESTORE_REDIS_HELP)]
pub(super) struct RestoreRedisArgs {
    /// The instance [default: the only one configured]
    #[arg(value_name = "INSTANCE")]
    pub(super) instance: Option<String>,
    /// The empty or new folder to restore into, which becomes the server's dir
    #[arg(long, value_name = "DIR")]
    pub(super) dir: PathBuf,
    #[command(flatten)]
    pub(super) target: RedisTargetArgs,
    /// Start a server on it that nobody can reach, wait until it has loaded, compare its keys, and end it
    #[arg(long)]
    pub(super) start: bool,
    #[command(flatten)]
    pub(super) server: RedisServerArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug, Clone)]
pub(super) struct RedisServerArgs {
    /// The Redis server that is to start [default: redis-server or valkey-server in $PATH, else one like that of the snapshot]
    #[arg(long, value_name = "PATH")]
    pub(super) redis_server: Option<PathBuf>,
    /// Its configuration, to warn of what it would ignore [default: that in /etc, if it is there]
    #[arg(long, value_name = "FILE")]
    pub(super) redis_conf: Option<PathBuf>,
}

/// A PostgreSQL cluster
#[derive(Args, Debug)]
#[command(after_help = help::RESTORE_HELP)]
pub(super) struct RestorePostgresArgs {
    /// The cluster [default: the only one configured]
    #[arg(value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    /// The empty or new folder to restore into; with --delta, an old data directory of the cluster
    #[arg(long, value_name = "DIR", required_unless_present_any = ["database", "table"], conflicts_with_all = ["database", "table"])]
    pub(super) pgdata: Option<PathBuf>,
    #[command(flatten)]
    pub(super) single: SelectiveRestoreArgs,
    #[command(flatten)]
    pub(super) target: PostgresTargetArgs,
    /// Put the tablespace that was in OLD into NEW; once for each
    #[arg(long = "tablespace-mapping", value_name = "OLD=NEW")]
    pub(super) tablespaces: Vec<String>,
    /// Restore over what is in --pgdata: what is right stays, by hash; all else is replaced or removed, also WAL that was not
    /// archived (plan --pgdata names it)
    #[arg(long, requires = "pgdata")]
    pub(super) delta: bool,
    /// Whether the restored server goes on archiving as it did when it was backed up
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub(super) archive_mode: ArchiveModeAfterRestore,
    /// Start the server, wait until the target is reached, and say what was reached
    #[arg(long)]
    pub(super) start: bool,
    #[command(flatten)]
    pub(super) server: PostgresServerArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug, Clone)]
pub(super) struct PostgresServerArgs {
    /// The folder with pg_ctl and postgres [default: /usr/lib/postgresql/MAJOR/bin, then $PATH]
    #[arg(long, value_name = "DIR")]
    pub(super) pg_bindir: Option<PathBuf>,
    /// Options for the PostgreSQL server when it is started, like '-p 5433'
    #[arg(long, value_name = "OPTIONS", requires = "start", allow_hyphen_values = true)]
    pub(super) server_options: Option<String>,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "One database or table, into a running server under another name (instead of --pgdata)")]
pub(super) struct SelectiveRestoreArgs {
    /// Bring back this database alone; with --table, the database that the table is in
    #[arg(long, value_name = "NAME")]
    pub(super) database: Option<String>,
    /// Bring back this table alone, into the same database
    #[arg(long, value_name = "SCHEMA.NAME")]
    pub(super) table: Option<String>,
    /// What it is to be called [default: its name and _restored]
    #[arg(long = "as", value_name = "NAME")]
    pub(super) new_name: Option<String>,
    /// The running server [default: the cluster's connection]
    #[arg(long, value_name = "CONNINFO")]
    pub(super) into: Option<String>,
    /// Where the scratch server's files go for the while [default: scratch in the state directory]
    #[arg(long, value_name = "DIR")]
    pub(super) scratch_dir: Option<PathBuf>,
    /// Tables that are copied at a time [default: one a processor, up to 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(super) jobs: Option<u8>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum ArchiveModeAfterRestore {
    /// It does not: a copy that archives to its original's archive spoils it
    #[default]
    Off,
    /// It does
    Preserve,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Target (the newest reachable point without one)")]
pub(super) struct PostgresTargetArgs {
    /// The state at a moment: RFC 3339, PostgreSQL's spelling with a zone, "now", or "5 minutes ago"
    #[arg(long, value_name = "TIME", group = "target")]
    pub(super) target_time: Option<String>,
    /// The state after the record at this position
    #[arg(long, value_name = "LSN", group = "target")]
    pub(super) target_lsn: Option<String>,
    /// The state after this transaction ended
    #[arg(long, value_name = "XID", group = "target")]
    pub(super) target_xid: Option<String>,
    /// The state at a restore point made with pg_create_restore_point()
    #[arg(long, value_name = "NAME", group = "target")]
    pub(super) target_name: Option<String>,
    /// The state just before the event that walkeep log shows at this position
    #[arg(long, value_name = "LSN", group = "target", conflicts_with = "target_exclusive")]
    pub(super) before_event: Option<String>,
    /// The state at the end of the base backup
    #[arg(long, group = "target")]
    pub(super) target_immediate: bool,
    /// The timeline to follow: a number, latest, or current for that of the backup [default: latest]
    #[arg(long, value_name = "TLI", default_value = "latest", hide_default_value = true)]
    pub(super) target_timeline: String,
    /// Stop just before the target instead of just after it
    #[arg(long, requires = "target")]
    pub(super) target_exclusive: bool,
    /// What the server does at the target
    #[arg(long, value_enum, default_value_t, value_name = "ACTION")]
    pub(super) target_action: TargetActionArg,
    /// Start from this backup instead of the newest that fits
    #[arg(long, value_name = "LABEL")]
    pub(super) backup: Option<String>,
    /// Take the nearest reachable point if the target itself cannot be reached
    #[arg(long)]
    pub(super) nearest: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum TargetActionArg {
    /// End recovery and accept writes, on a new timeline
    #[default]
    Promote,
    /// Accept reads and wait for pg_wal_replay_resume()
    Pause,
    /// Stop, to be started again in recovery
    Shutdown,
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

/// `30`, or `30d` as a retention is written in the configuration.
fn parse_days(text: &str) -> Result<u32, &'static str> {
    let number = text.strip_suffix('d').unwrap_or(text).parse().ok();
    number.filter(|days| (1..=36_500).contains(days)).ok_or("write a number of days, like 30")
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

/// Apply retention: take away what no moment of the last days needs
#[derive(Args, Debug)]
#[command(after_help = help::CLEANUP_HELP)]
pub(super) struct CleanupArgs {
    /// Keep every moment of so many days restorable [default: each repository's retention]
    #[arg(value_name = "DAYS", value_parser = parse_days)]
    pub(super) days: Option<u32>,
    /// Only say what would go, and why
    #[arg(long)]
    pub(super) dry_run: bool,
    /// One cluster or Redis instance [default: all that are configured]
    #[arg(long, value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// Hours for which data outlives the last backup that used it: longer than any backup takes
    #[arg(long, value_name = "HOURS", default_value_t = 48)]
    pub(super) grace: u32,
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
