//! `walkeep plan redis`: the plan as text and as JSON.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::postgres::estimate_basis;
use crate::base::restore_estimate::RestoreEstimator;
use crate::cli::show::output::{TerminalOutput, TextTone, format_bytes, format_count, format_duration};
use crate::postgres::format::time::PgTime;
use crate::redis::archive::{RestoreRoute, UnreachableState, UnseenSources};
use crate::redis::restore::plan::restore_work;

/// What `plan --json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct RedisPlanJson {
    reachable: bool,
    reason: Option<String>,
    backup: Option<String>,
    /// The state reached is the one after the commands that had come by then.
    at: Option<Timestamp>,
    /// And it is that of every moment before this one.
    before: Option<Timestamp>,
    /// What is archived behind it and cannot be reached, because something is missing between.
    hole: Option<String>,
    replid: Option<String>,
    offset: Option<u64>,
    snapshot_bytes: u64,
    command_bytes: u64,
    keys_in_snapshot: u64,
    /// About how long it takes to write the files and to load them.
    estimated_seconds: u64,
    /// Restores on this machine that the estimate was made from; with none it is a guess for a modest one.
    estimated_from_restores: u64,
    nearest_before: Option<Timestamp>,
    nearest_after: Option<Timestamp>,
    /// What could not be looked at.
    #[serde(flatten)]
    unseen: UnseenSources,
}

impl RedisPlanJson {
    pub(in crate::cli) fn from_route(
        reach: &Result<RestoreRoute, UnreachableState>,
        pace: &RestoreEstimator,
    ) -> RedisPlanJson {
        let to = reach.as_ref().ok();
        let not = reach.as_ref().err();
        RedisPlanJson {
            reachable: to.is_some(),
            reason: not.map(|not| not.reason.clone()),
            backup: to.map(|reach| reach.snapshot.label.clone()),
            at: to.map(|reach| reach.at),
            before: to.and_then(|reach| reach.before),
            hole: to.and_then(|reach| reach.hole).map(|hole| hole.to_string()),
            replid: to.and_then(RestoreRoute::replid).map(|id| id.to_string()),
            offset: to.and_then(|reach| reach.to).map(|cut| cut.offset),
            snapshot_bytes: to.map_or(0, |reach| reach.snapshot.logical_bytes),
            command_bytes: to.map_or(0, RestoreRoute::command_bytes),
            keys_in_snapshot: to.map_or(0, |reach| reach.snapshot.walk.keys()),
            estimated_seconds: to.map_or(0, |reach| pace.estimated_seconds(&restore_work(reach))),
            estimated_from_restores: pace.restores(),
            nearest_before: not.and_then(|not| not.nearest_before),
            nearest_after: not.and_then(|not| not.nearest_after),
            unseen: reach.as_ref().map_or_else(|not| &not.unseen, |route| &route.unseen).clone(),
        }
    }
}

/// Prints the plan. `options` are those of the target if the plan was only asked for: then it ends with how `program`
/// carries it out.
pub(in crate::cli) fn print_plan(
    reach: &Result<RestoreRoute, UnreachableState>,
    pace: &RestoreEstimator,
    (program, instance): (&str, &str),
    options: Option<&str>,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let command = |options: &str| {
        let line = format!("{program} restore redis {instance} --dir DIR {options}");
        out.style(TextTone::Strong, line.trim_end())
    };
    let route = match reach {
        Ok(route) => route,
        Err(not) => return print_unreachable(not, instance, &command, out),
    };
    print_route(route, pace, instance, out)?;
    let Some(options) = options else { return Ok(()) };
    out.print_line("\nTo do it:")?;
    out.print_line(format!("  {} --start", command(options)))
}

fn print_unreachable(
    not: &UnreachableState,
    instance: &str,
    command: &dyn Fn(&str) -> String,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let time = |time: Timestamp| out.format_time(PgTime::from_timestamp(time));
    let no = out.style(TextTone::Bad, "NOT REACHABLE");
    out.print_line(format!("{no}: {instance} cannot be restored there: {}", not.reason))?;
    print_unseen(&not.unseen, out)?;
    // Times are shown to the microsecond: rounded up, and with --nearest, they lead to the very moment, also
    // where nothing follows it.
    let up = |time: Timestamp| time.checked_add(SignedDuration::from_nanos(999)).unwrap_or(time);
    let points = [("before", not.nearest_before.map(up)), ("after", not.nearest_after.map(up))];
    if points.iter().all(|(_, point)| point.is_none()) {
        return out
            .print_line(format!("No moment near it can be reached. walkeep list redis {instance} shows which can."));
    }
    out.print_line("\nWhat can be reached instead:")?;
    for (side, point) in points {
        let Some(point) = point else { continue };
        out.print_line(format!("  {side} it: {}", time(point)))?;
        out.print_line(format!("    {}", command(&format!("--target-time '{}' --nearest", time(point)))))?;
    }
    Ok(())
}

fn print_route(
    route: &RestoreRoute,
    pace: &RestoreEstimator,
    instance: &str,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let time = |time: Timestamp| out.format_time(PgTime::from_timestamp(time));
    let snapshot = &route.snapshot;
    out.print_line(format!("{}: {instance} as of {}", out.style(TextTone::Good, "reachable"), time(route.at)))?;
    out.print_line(format!(
        "  snapshot  {}, {}, {}",
        snapshot.label,
        format_count(snapshot.walk.keys(), "key"),
        format_bytes(snapshot.logical_bytes)
    ))?;
    out.print_line(format!("  commands  {} behind it", format_bytes(route.command_bytes())))?;
    let basis = out.style(TextTone::Quiet, format!("  {}", estimate_basis(pace.restores())));
    let takes = format_duration(Duration::from_secs(pace.estimated_seconds(&restore_work(route))));
    out.print_line(format!("  takes     about {takes}{basis}"))?;
    if let (Some(replid), Some(to)) = (route.replid(), route.to) {
        out.print_line(format!("  position  offset {} of {replid}", to.offset))?;
    }
    if let Some(before) = route.before {
        out.print_line(format!("  the next commands came at {}", time(before)))?;
    }
    if let Some(hole) = &route.hole {
        let warning = out.style(TextTone::Warning, "warning");
        out.print_line(format!("  {warning}: this is not all that is archived: {hole}"))?;
    }
    print_unseen(&route.unseen, out)
}

fn print_unseen(unseen: &UnseenSources, out: &TerminalOutput) -> anyhow::Result<()> {
    let warning = out.style(TextTone::Warning, "warning");
    unseen.describe().iter().try_for_each(|text| out.print_line(format!("  {warning}: {text}")))
}
