//! From the target as it was typed to the request that a plan answers.

use crate::cli::CliContext;
use crate::cli::args::{PostgresTargetArgs, TargetActionArg};
use crate::cli::exit::CliError;
use crate::cli::moment;
use crate::postgres::restore::target::{
    RecoveryTarget, RecoveryTargetAction, RestoreRequest, TargetTimeline, parse_xid,
};

/// Reads the target's options. What cannot be meant is refused with what to write instead.
pub(in crate::cli) fn parse_target_request(
    args: &PostgresTargetArgs,
    around: &CliContext,
) -> Result<RestoreRequest, CliError> {
    let usage = |option: &str, why: &dyn std::fmt::Display| CliError::usage(format!("{option}: {why}"));
    let target = if let Some(text) = &args.target_time {
        let (now, local) = (around.clock.now(), &around.local_zone());
        RecoveryTarget::Time(moment::parse_time(text, now, local).map_err(|why| usage("--target-time", &why))?)
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
    Ok(request.on_timeline(timeline).from_backup(args.backup.clone()).or_nearest(args.nearest))
}

/// What the server is to do at the target.
pub(in crate::cli) fn target_action(args: &PostgresTargetArgs) -> RecoveryTargetAction {
    match args.target_action {
        TargetActionArg::Promote => RecoveryTargetAction::Promote,
        TargetActionArg::Pause => RecoveryTargetAction::Pause,
        TargetActionArg::Shutdown => RecoveryTargetAction::Shutdown,
    }
}

/// The options that name the same target again, for a line to copy.
pub(in crate::cli) fn target_options(args: &PostgresTargetArgs) -> String {
    let mut words = Vec::new();
    let pairs = [
        ("--target-time", &args.target_time),
        ("--target-lsn", &args.target_lsn),
        ("--target-xid", &args.target_xid),
        ("--target-name", &args.target_name),
        ("--before-event", &args.before_event),
    ];
    for (option, value) in pairs {
        words.extend(
            value.as_ref().map(|value| format!("{option} {}", crate::cli::open::quote_for_postgres_command(value))),
        );
    }
    words.extend(args.target_immediate.then(|| "--target-immediate".to_owned()));
    words.extend((args.target_timeline != "latest").then(|| format!("--target-timeline {}", args.target_timeline)));
    words.extend(args.target_exclusive.then(|| "--target-exclusive".to_owned()));
    words.extend(args.backup.as_ref().map(|label| format!("--backup {label}")));
    words.extend(args.nearest.then(|| "--nearest".to_owned()));
    words.join(" ")
}
