//! What `walkeep verify` shows.

use std::time::Duration;

use crate::cli::show::output::{TerminalOutput, TextTone, format_bytes, format_count, format_duration, format_number};
use crate::postgres::archive::inventory::MissingWal;
use crate::postgres::verify::{self, VerifyReport};
use crate::redis::verify::{InstanceObjectCounts as InstanceCounts, InstanceVerifyReport};

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
    print_verdict(name, report.is_whole(), report.repositories.iter().map(|counts| counts.bytes).sum(), took, out)?;
    let row = |counts: &InstanceCounts| {
        let [snapshots, parts, stretches] = [counts.snapshots, counts.parts, counts.stretches].map(format_number);
        [counts.repository.clone(), snapshots, parts, stretches, format_bytes(counts.bytes)]
    };
    let rows: Vec<_> = report.repositories.iter().map(row).collect();
    out.print_table(["repository", ">snapshots", ">parts", ">stretches of commands", ">read"], &rows)?;
    for damage in &report.damage {
        let (repository, object) = (&damage.repository, &damage.object);
        out.print_line(format!(
            "  {}  {object} in {repository}: {}",
            out.style(TextTone::Bad, "damaged"),
            damage.what
        ))?;
    }
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

fn print_verdict(name: &str, whole: bool, read: u64, took: Duration, out: &TerminalOutput) -> anyhow::Result<()> {
    let verdict = if whole {
        out.style(TextTone::Good, "everything is there and right")
    } else {
        out.style(TextTone::Bad, "NOT WHOLE")
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
    print_verdict(cluster, report.is_whole(), report.repositories.iter().map(|counts| counts.bytes).sum(), took, out)?;
    let row = |counts: &verify::VerifyCounts| {
        let numbers = [counts.segments, counts.files, counts.backups, counts.packs, counts.chunks].map(format_number);
        let [segments, files, backups, packs, chunks] = numbers;
        [counts.repository.clone(), segments, files, backups, packs, chunks, format_bytes(counts.bytes)]
    };
    let rows: Vec<_> = report.repositories.iter().map(row).collect();
    out.print_table(["repository", ">segments", ">files", ">backups", ">packs", ">chunks", ">read"], &rows)?;
    for damage in &report.damage {
        let (repository, object) = (&damage.repository, &damage.object);
        out.print_line(format!(
            "  {}  {object} in {repository}: {}",
            out.style(TextTone::Bad, "damaged"),
            damage.what
        ))?;
    }
    let gap = |gap: &MissingWal, what: &str, then: &str| {
        let lost = format_bytes(gap.to_lsn.bytes_since(gap.from_lsn));
        let (from, to, timeline, reason) = (gap.from_lsn, gap.to_lsn, gap.timeline, &gap.reason);
        out.print_line(format!("  {what}      WAL from {from} to {to} on timeline {timeline}, {lost}: {reason}{then}"))
    };
    report.gaps.iter().try_for_each(|missing| gap(missing, &out.style(TextTone::Bad, "gap"), ""))?;
    let bridged = |missing| gap(missing, &out.style(TextTone::Warning, "gap"), "; newer backups do without it");
    report.bridged.iter().try_for_each(bridged)?;
    for label in &report.stranded {
        out.print_line(format!(
            "  {}  {label} cannot become consistent: WAL that it needs is missing",
            out.style(TextTone::Bad, "useless")
        ))?;
    }
    if !report.is_whole() {
        let found = report.damage.len() + report.gaps.len() + report.stranded.len();
        out.print_line(format!(
            "\n{}; take a new backup, and look for the cause before anything is deleted",
            format_count(found as u64, "finding")
        ))?;
    }
    Ok(())
}
