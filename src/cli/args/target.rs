//! The targets of `walkeep plan` and `walkeep restore`: the options, what they mean, and how they are written again.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use crate::base::units::parse_span;
use crate::cli::args::time::WrittenMoment;
use crate::cli::context::CliContext;
use crate::cli::exit::CliError;
use crate::cli::show::shell;
use crate::postgres::restore::target::{
    AcceptedDefects, RecoveryTarget, RecoveryTargetAction, RestoreRequest, TargetTimeline, parse_xid,
};
use crate::redis::archive::RedisTarget;
use crate::redis::restore::plan::{RedisRestoreRequest, RequestedTarget};

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Target (the newest reachable point without one)")]
pub(in crate::cli) struct PostgresTargetArgs {
    /// The state at a moment: RFC 3339, PostgreSQL's spelling with a zone, "now", or "5 minutes ago"
    #[arg(long, value_name = "TIME", group = "target")]
    pub(in crate::cli) target_time: Option<String>,
    /// The state after the record at this position
    #[arg(long, value_name = "LSN", group = "target")]
    pub(in crate::cli) target_lsn: Option<String>,
    /// The state after this transaction ended
    #[arg(long, value_name = "XID", group = "target")]
    pub(in crate::cli) target_xid: Option<String>,
    /// The state at a restore point made with pg_create_restore_point()
    #[arg(long, value_name = "NAME", group = "target")]
    pub(in crate::cli) target_name: Option<String>,
    /// The state just before the event that walkeep log shows at this position
    #[arg(long, value_name = "LSN", group = "target", conflicts_with = "target_exclusive")]
    pub(in crate::cli) before_event: Option<String>,
    /// The state at the end of the base backup
    #[arg(long, group = "target")]
    pub(in crate::cli) target_immediate: bool,
    /// The timeline to follow: a number, latest, or current for that of the backup [default: latest]
    #[arg(long, value_name = "TLI", default_value = "latest", hide_default_value = true)]
    pub(in crate::cli) target_timeline: String,
    /// Stop just before the target instead of just after it
    #[arg(long, requires = "target")]
    pub(in crate::cli) target_exclusive: bool,
    /// What the server does at the target
    #[arg(long, value_enum, default_value_t, value_name = "ACTION")]
    pub(in crate::cli) target_action: TargetActionArg,
    /// Start from this backup instead of the newest that fits
    #[arg(long, value_name = "LABEL")]
    pub(in crate::cli) backup: Option<String>,
    /// Take the nearest reachable point if the target itself cannot be reached
    #[arg(long)]
    pub(in crate::cli) nearest: bool,
    /// Use a backup with damaged pages, too: those pages stay damaged
    #[arg(long)]
    pub(in crate::cli) accept_damaged_pages: bool,
    /// Use a backup that lacks files, too: the tables in them cannot be read
    #[arg(long)]
    pub(in crate::cli) accept_missing_files: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::cli) enum TargetActionArg {
    /// End recovery and accept writes, on a new timeline
    #[default]
    Promote,
    /// Accept reads and wait for pg_wal_replay_resume()
    Pause,
    /// Stop, to be started again in recovery
    Shutdown,
}

#[derive(Args, Debug, Clone)]
pub(in crate::cli) struct PostgresServerArgs {
    /// The folder with pg_ctl and postgres [default: /usr/lib/postgresql/MAJOR/bin, then $PATH]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) pg_bindir: Option<PathBuf>,
    /// Options for the PostgreSQL server when it is started, like '-p 5433'
    #[arg(long, value_name = "OPTIONS", requires = "start", allow_hyphen_values = true)]
    pub(in crate::cli) server_options: Option<String>,
    /// Give the PostgreSQL server up if it makes no progress for this long, like 30min
    #[arg(long, value_name = "TIME", default_value = "10min", requires = "start", value_parser = parse_timeout)]
    pub(in crate::cli) start_timeout: Duration,
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let span = parse_span(text).ok().and_then(|span| Duration::try_from(span).ok());
    span.filter(|span| !span.is_zero()).ok_or_else(|| "write a time like 90s or 30min".to_owned())
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Target (the newest reachable moment without one)")]
pub(in crate::cli) struct RedisTargetArgs {
    /// The state at a moment: RFC 3339, PostgreSQL's spelling with a zone, "now", or "5 minutes ago"
    #[arg(long, value_name = "TIME", group = "redis-target")]
    pub(in crate::cli) target_time: Option<String>,
    /// The state just before what walkeep log redis shows at this place: OFFSET@HISTORY
    #[arg(long, value_name = "OFFSET", group = "redis-target")]
    pub(in crate::cli) target_offset: Option<String>,
    /// The snapshot as it is, without the commands behind it
    #[arg(long, group = "redis-target")]
    pub(in crate::cli) target_immediate: bool,
    /// Start from this snapshot instead of the newest that fits
    #[arg(long, value_name = "LABEL")]
    pub(in crate::cli) backup: Option<String>,
    /// Take the newest reachable moment before the target if the target itself cannot be reached
    #[arg(long)]
    pub(in crate::cli) nearest: bool,
}

#[derive(Args, Debug, Clone)]
pub(in crate::cli) struct RedisServerArgs {
    /// The Redis server that is to start [default: redis-server or valkey-server in $PATH, else one like that of the
    /// snapshot]
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) redis_server: Option<PathBuf>,
    /// Its configuration, to warn of what it would ignore [default: that in /etc, if it is there]
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) redis_conf: Option<PathBuf>,
}

/// What `plan` and `restore` are asked for, read once from the options.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::cli) struct TargetRequest<R> {
    /// The request.
    pub(in crate::cli) request: R,
    /// The options that name the same target again, for a line to copy. Nothing reads them but people.
    pub(in crate::cli) options: String,
}

/// Reads the target's options. What cannot be meant is refused with what to write instead.
pub(in crate::cli) fn read_postgres_target(
    args: &PostgresTargetArgs,
    around: &CliContext,
) -> Result<TargetRequest<RestoreRequest>, CliError> {
    let usage = |option: &str, why: &dyn std::fmt::Display| CliError::usage(format!("{option}: {why}"));
    let time = args.target_time.as_ref().map(|text| around.read_moment("--target-time", text)).transpose()?;
    let target = if let Some(time) = &time {
        RecoveryTarget::Time(time.moment)
    } else if let Some(text) = &args.target_lsn {
        RecoveryTarget::Lsn(text.parse().map_err(|why| usage("--target-lsn", &why))?)
    } else if let Some(text) = &args.target_xid {
        let wrong =
            || CliError::usage(format!("--target-xid: {text:?} is no transaction id; write its number, like 4711"));
        RecoveryTarget::Xid(parse_xid(text).ok_or_else(wrong)?)
    } else if let Some(name) = &args.target_name {
        RecoveryTarget::Name(name.clone())
    } else if let Some(text) = &args.before_event {
        RecoveryTarget::BeforeEvent(text.parse().map_err(|why| usage("--before-event", &why))?)
    } else if args.target_immediate {
        RecoveryTarget::Immediate
    } else {
        RecoveryTarget::Latest
    };
    let timeline: TargetTimeline = args.target_timeline.parse().map_err(|why| usage("--target-timeline", &why))?;
    let request = RestoreRequest::new(target, args.target_exclusive).map_err(|why| CliError::usage(why.to_string()))?;
    let accepted =
        AcceptedDefects { damaged_pages: args.accept_damaged_pages, missing_files: args.accept_missing_files };
    let request = request.on_timeline(timeline).from_backup(args.backup.clone()).or_nearest(args.nearest);
    let request = request.accepting(accepted);
    Ok(TargetRequest { request, options: postgres_options(args, time.map(|time| time.lasting)) })
}

/// What the server is to do at the target.
pub(in crate::cli) fn target_action(action: TargetActionArg) -> RecoveryTargetAction {
    match action {
        TargetActionArg::Promote => RecoveryTargetAction::Promote,
        TargetActionArg::Pause => RecoveryTargetAction::Pause,
        TargetActionArg::Shutdown => RecoveryTargetAction::Shutdown,
    }
}

/// The options, with a time that means the same tomorrow.
fn postgres_options(args: &PostgresTargetArgs, time: Option<String>) -> String {
    let mut words = Vec::new();
    let pairs = [
        ("--target-time", &time),
        ("--target-lsn", &args.target_lsn),
        ("--target-xid", &args.target_xid),
        ("--target-name", &args.target_name),
        ("--before-event", &args.before_event),
    ];
    for (option, value) in pairs {
        words.extend(value.as_ref().map(|value| format!("{option} {}", shell::quote_for_shell(value))));
    }
    words.extend(args.target_immediate.then(|| "--target-immediate".to_owned()));
    words.extend((args.target_timeline != "latest").then(|| format!("--target-timeline {}", args.target_timeline)));
    words.extend(args.target_exclusive.then(|| "--target-exclusive".to_owned()));
    words.extend(args.backup.as_ref().map(|label| format!("--backup {label}")));
    words.extend(args.nearest.then(|| "--nearest".to_owned()));
    words.extend(args.accept_damaged_pages.then(|| "--accept-damaged-pages".to_owned()));
    words.extend(args.accept_missing_files.then(|| "--accept-missing-files".to_owned()));
    words.join(" ")
}

/// Reads the options of a Redis target.
pub(in crate::cli) fn read_redis_target(
    args: &RedisTargetArgs,
    around: &CliContext,
) -> Result<TargetRequest<RedisRestoreRequest>, CliError> {
    let time = args.target_time.as_ref().map(|text| around.read_moment("--target-time", text)).transpose()?;
    let target = if let Some(time) = &time {
        RequestedTarget::Resolved(RedisTarget::Time(calendar_time(time)?))
    } else if let Some(text) = &args.target_offset {
        let position = text.parse().map_err(|why| CliError::usage(format!("--target-offset: {why}")))?;
        RequestedTarget::Position(position)
    } else if args.target_immediate {
        RequestedTarget::Resolved(RedisTarget::Snapshot)
    } else {
        RequestedTarget::Resolved(RedisTarget::Newest)
    };
    let request = RedisRestoreRequest { target, backup: args.backup.clone(), nearest: args.nearest };
    Ok(TargetRequest { request, options: redis_options(args, time.map(|time| time.lasting)) })
}

/// The moment as a time of the calendar, which PostgreSQL's times can exceed.
pub(in crate::cli) fn calendar_time(time: &WrittenMoment) -> Result<Timestamp, CliError> {
    time.moment.to_timestamp().ok_or_else(|| CliError::usage("--target-time: beyond every calendar"))
}

/// The options, with a time that means the same tomorrow.
fn redis_options(args: &RedisTargetArgs, time: Option<String>) -> String {
    let mut words = Vec::new();
    let pairs = [("--target-time", &time), ("--target-offset", &args.target_offset), ("--backup", &args.backup)];
    for (option, value) in pairs {
        words.extend(value.as_ref().map(|value| format!("{option} {}", shell::quote_for_shell(value))));
    }
    words.extend(args.target_immediate.then(|| "--target-immediate".to_owned()));
    words.extend(args.nearest.then(|| "--nearest".to_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::{RedisTargetArgs, redis_options};

    #[test]
    fn the_same_target_is_named_again() {
        let target = RedisTargetArgs { target_time: Some("now".into()), nearest: true, ..RedisTargetArgs::default() };
        let lasting = Some("2026-11-22 14:00:00+00".into());
        assert_eq!(redis_options(&target, lasting), "--target-time '2026-11-22 14:00:00+00' --nearest");
    }
}
