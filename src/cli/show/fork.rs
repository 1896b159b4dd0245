//! What `walkeep fork` shows.

use crate::cli::show::output::{TerminalOutput, TextTone};
use crate::postgres::archive::fork::{Fork, ForkResolution, RecordedFork};
use crate::postgres::format::time::PgTime;

/// What `fork list --json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct ForkListJson<'f> {
    pub(in crate::cli) clusters: &'f [ClusterForksJson],
}

/// The forks of one cluster.
#[derive(serde::Serialize)]
pub(in crate::cli) struct ClusterForksJson {
    pub(in crate::cli) cluster: String,
    pub(in crate::cli) forks: Vec<RecordedFork>,
}

pub(in crate::cli) fn print_forks(all: &[ClusterForksJson], out: &TerminalOutput) -> anyhow::Result<()> {
    for ClusterForksJson { cluster, forks } in all {
        if forks.is_empty() {
            out.print_line(format!("{}: no forks", out.style(TextTone::Strong, cluster)))?;
        }
        for known in forks {
            print_fork(cluster, known, out)?;
        }
    }
    Ok(())
}

fn print_fork(cluster: &str, known: &RecordedFork, out: &TerminalOutput) -> anyhow::Result<()> {
    let Fork { timeline, at, archived_until, noticed_at, server, reason, .. } = &known.fork;
    let state = match &known.resolution {
        None => out.style(TextTone::Bad, "unresolved"),
        Some(_) => "resolved: the archive is kept".to_owned(),
    };
    out.print_line(format!("{}: timeline {timeline} at {at}, {state}", out.style(TextTone::Strong, cluster)))?;
    out.print_line(format!("  server    {server}"))?;
    out.print_line(format!("  archived  until {archived_until}"))?;
    out.print_line(format!("  noticed   {}", out.format_time(PgTime::from_timestamp(*noticed_at))))?;
    out.print_line(format!("  reason    {reason}"))?;
    if known.resolution.is_none() {
        let command = format!("walkeep fork resolve {cluster} --timeline {timeline} --at {at} --keep archive");
        out.print_line(format!("  decide    {command}"))?;
    }
    Ok(())
}

pub(in crate::cli) fn print_resolved(
    cluster: &str,
    fork: &Fork,
    resolution: &ForkResolution,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let (timeline, at) = (fork.timeline, fork.at);
    let when = out.format_time(PgTime::from_timestamp(resolution.decided_at));
    out.print_line(format!("{cluster}: the fork on timeline {timeline} at {at} is resolved ({when})"))?;
    out.print_line(format!(
        "The archive stays as it is. The receiver refuses {} on timeline {timeline} as long as its WAL differs.",
        fork.server
    ))
}
