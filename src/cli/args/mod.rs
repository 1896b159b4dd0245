//! The command line as it is typed. Nothing is looked up here; `cli::dispatch` turns these into usable values.

pub(super) mod command_line;
pub(super) mod global;
pub(super) mod help;
pub(super) mod named_values;
pub(super) mod time;
pub(super) mod usage;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::restore_all::{PlanAllArgs, RestoreAllArgs};

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

/// `30`, or `30d` as a retention is written in the configuration.
fn parse_days(text: &str) -> Result<u32, &'static str> {
    let number = text.strip_suffix('d').unwrap_or(text).parse().ok();
    number.filter(|days| (1..=36_500).contains(days)).ok_or("write a number of days, like 30")
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
