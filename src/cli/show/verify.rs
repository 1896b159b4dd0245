//! What `walkeep verify` shows.

use std::time::Duration;

use crate::cli::show::output::{TerminalOutput, TextTone, format_bytes, format_count, format_duration, format_number};
use crate::postgres::verify::{self, RepositoryGap, VerifyReport};
use crate::redis::verify::{InstanceObjectCounts as InstanceCounts, InstanceVerifyReport};
use crate::vault::UnreachableRepositories;
use crate::vault::verify::DamagedObject;

/// What `--json` prints of a cluster.
#[derive(serde::Serialize)]
pub(in crate::cli) struct ClusterVerifyJson {
    pub(in crate::cli) cluster: String,
    pub(in crate::cli) whole: bool,
    /// Whether there is anything under this name.
    pub(in crate::cli) archived: bool,
    #[serde(flatten)]
    pub(in crate::cli) report: VerifyReport,
}

/// What `--json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct VerifyJson<'r> {
    pub(in crate::cli) whole: bool,
    pub(in crate::cli) clusters: &'r [ClusterVerifyJson],
    pub(in crate::cli) instances: &'r [InstanceVerifyJson],
}

/// What `--json` prints of a Redis instance.
#[derive(serde::Serialize)]
pub(in crate::cli) struct InstanceVerifyJson {
    pub(in crate::cli) instance: String,
    pub(in crate::cli) whole: bool,
    pub(in crate::cli) archived: bool,
    #[serde(flatten)]
    pub(in crate::cli) report: InstanceVerifyReport,
}

/// Nothing that is there and right is no good news.
pub(in crate::cli) fn print_nothing_archived(
    name: &str,
    asked: Option<String>,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let said = out.style(TextTone::Bad, "nothing is archived under this name");
    let asked = asked.map_or_else(String::new, |asked| format!("; {asked}"));
    out.print_line(format!("{}: {said}{asked}", out.style(TextTone::Strong, name)))
}

pub(in crate::cli) fn print_instance(
    name: &str,
    report: &InstanceVerifyReport,
    took: Duration,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let read = report.repositories.iter().map(|counts| counts.bytes).sum();
    print_verdict(name, (report.is_whole(), report.unreachable.is_empty()), read, took, out)?;
    let row = |counts: &InstanceCounts| {
        let [snapshots, parts, stretches] = [counts.snapshots, counts.parts, counts.stretches].map(format_number);
        [counts.repository.clone(), snapshots, parts, stretches, format_bytes(counts.bytes)]
    };
    let rows: Vec<_> = report.repositories.iter().map(row).collect();
    out.print_table(["repository", ">snapshots", ">parts", ">stretches of commands", ">read"], &rows)?;
    print_unreachable(&report.unreachable, out)?;
    print_damage(&report.damage, out)?;
    for hole in &report.holes {
        out.print_line(format!("  {}  in {}: {}", out.style(TextTone::Bad, "missing"), hole.repository, hole.what))?;
    }
    for gap in &report.gaps {
        let gone = out.style(TextTone::Warning, "gap");
        out.print_line(format!(
            "  {gone}      commands after offset {} of {}: {}",
            gap.offset, gap.replid, gap.reason
        ))?;
    }
    Ok(())
}

/// Repositories about which nothing is known.
fn print_unreachable(unreachable: &UnreachableRepositories, out: &TerminalOutput) -> anyhow::Result<()> {
    for (repository, why) in unreachable.iter() {
        let mark = out.style(TextTone::Bad, "unreachable");
        out.print_line(format!("  {mark}  repository {repository} was NOT verified: {why}"))?;
    }
    Ok(())
}

fn print_damage(found: &[DamagedObject], out: &TerminalOutput) -> anyhow::Result<()> {
    for damage in found {
        let (repository, object) = (&damage.repository, &damage.object);
        let mark = out.style(TextTone::Bad, "damaged");
        out.print_line(format!("  {mark}  {object} in {repository}: {}", damage.what))?;
    }
    Ok(())
}

fn print_verdict(
    name: &str,
    (whole, complete): (bool, bool),
    read: u64,
    took: Duration,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let verdict = match (whole, complete) {
        (true, true) => out.style(TextTone::Good, "everything is there and right"),
        (true, false) => out.style(TextTone::Bad, "NOT ALL VERIFIED; what was verified is there and right"),
        (false, _) => out.style(TextTone::Bad, "NOT WHOLE"),
    };
    out.print_line(format!(
        "{}: {verdict}, {} read in {}",
        out.style(TextTone::Strong, name),
        format_bytes(read),
        format_duration(took)
    ))?;
    out.print_line("")
}

pub(in crate::cli) fn print_cluster(
    cluster: &str,
    report: &VerifyReport,
    took: Duration,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let read = report.repositories.iter().map(|counts| counts.bytes).sum();
    print_verdict(cluster, (report.is_whole(), report.is_complete()), read, took, out)?;
    let row = |counts: &verify::VerifyCounts| {
        let numbers = [counts.segments, counts.files, counts.backups, counts.packs, counts.chunks].map(format_number);
        let [segments, files, backups, packs, chunks] = numbers;
        [counts.repository.clone(), segments, files, backups, packs, chunks, format_bytes(counts.bytes)]
    };
    let rows: Vec<_> = report.repositories.iter().map(row).collect();
    out.print_table(["repository", ">segments", ">files", ">backups", ">packs", ">chunks", ">read"], &rows)?;
    print_unreachable(&report.unreachable, out)?;
    print_damage(&report.damage, out)?;
    for lacking in &report.lacking {
        let mark = out.style(TextTone::Bad, "lacking");
        out.print_line(format!("  {mark}  {} lacks {lacking}, which another repository has", lacking.repository))?;
    }
    let gap = |RepositoryGap { repository, wal }: &RepositoryGap, what: &str, then: &str| {
        let lost = format_bytes(wal.to_lsn.bytes_since(wal.from_lsn));
        let (from, to, timeline, reason) = (wal.from_lsn, wal.to_lsn, wal.timeline, &wal.reason);
        out.print_line(format!(
            "  {what}      WAL from {from} to {to} on timeline {timeline} in {repository}, {lost}: {reason}{then}"
        ))
    };
    report.gaps.iter().try_for_each(|missing| gap(missing, &out.style(TextTone::Bad, "gap"), ""))?;
    let bridged = |missing| gap(missing, &out.style(TextTone::Warning, "gap"), "; newer backups do without it");
    report.bridged.iter().try_for_each(bridged)?;
    for stranded in &report.stranded {
        let (label, repository) = (&stranded.label, &stranded.repository);
        out.print_line(match &stranded.defects {
            None => format!(
                "  {}  {label} in {repository} cannot become consistent: WAL that it needs is missing there",
                out.style(TextTone::Bad, "useless")
            ),
            Some(defects) => format!(
                "  {}  {label} in {repository} was not whole when it was taken: {defects}",
                out.style(TextTone::Bad, "defect")
            ),
        })?;
    }
    if !report.is_whole() {
        let what = if report.lacking.len() == report.count_findings() {
            "run walkeep repository sync, which copies what one repository lacks from the others"
        } else if report.lacking.is_empty() {
            "take a new backup, and look for the cause before anything is deleted"
        } else {
            "run walkeep repository sync, which copies what one repository lacks from the others; if anything is left, \
             take a new backup, and look for the cause before anything is deleted"
        };
        out.print_line(format!("\n{}; {what}", format_count(report.count_findings() as u64, "finding")))?;
    }
    Ok(())
}
