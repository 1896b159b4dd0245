//! `walkeep cleanup`: what was removed, what stays, and why.

use jiff::Timestamp;

use crate::cli::show::output::{TerminalOutput, TextTone, format_bytes, format_count};
use crate::postgres::format::time::PgTime;
use crate::postgres::retention::{self, ClusterCleanup};
use crate::redis;
use crate::vault::retention::{CleanupReport, KeepReason, ObjectTotals};

/// What `--json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct CleanupJson<'d> {
    pub(in crate::cli) clusters: Vec<ClusterCleanupJson<'d>>,
    pub(in crate::cli) instances: Vec<InstanceCleanupJson<'d>>,
}

#[derive(serde::Serialize)]
pub(in crate::cli) struct ClusterCleanupJson<'d> {
    pub(in crate::cli) cluster: &'d str,
    #[serde(flatten)]
    pub(in crate::cli) report: &'d CleanupReport<ClusterCleanup>,
}

#[derive(serde::Serialize)]
pub(in crate::cli) struct InstanceCleanupJson<'d> {
    pub(in crate::cli) instance: &'d str,
    #[serde(flatten)]
    pub(in crate::cli) report: &'d CleanupReport<redis::retention::InstanceCleanup>,
}

/// What was done to each repository, by one that knows what it holds.
pub(in crate::cli) fn print_report<C>(
    name: &str,
    report: &CleanupReport<C>,
    each: fn(&str, &C, bool, &TerminalOutput) -> anyhow::Result<()>,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    report.repositories.iter().try_for_each(|cleaned| each(name, cleaned, report.dry_run, out))?;
    for repository in &report.without_retention {
        out.print_line(format!("{name} in repository {repository}: no retention is configured, everything is kept"))?;
    }
    for (name, why) in &report.unreachable {
        out.print_line(format!("{}: {why}", out.style(TextTone::Bad, format!("repository {name} was not cleaned"))))?;
    }
    Ok(())
}

fn print_title(name: &str, repository: &str, since: Timestamp, out: &TerminalOutput) -> anyhow::Result<()> {
    let since = out.format_short_time(PgTime::from_timestamp(since));
    let title = out.style(TextTone::Strong, format!("{name} in repository {repository}"));
    out.print_line(format!("{title}  every moment since {since} stays restorable"))
}

fn print_notes(notes: &[String], out: &TerminalOutput) -> anyhow::Result<()> {
    notes.iter().try_for_each(|note| out.print_line(format!("  {}  {note}", out.style(TextTone::Warning, "note"))))
}

const fn past_verb(dry_run: bool) -> &'static str {
    if dry_run { "would go" } else { "went" }
}

pub(in crate::cli) fn print_cluster(
    name: &str,
    cleaned: &ClusterCleanup,
    dry_run: bool,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    print_title(name, &cleaned.repository, cleaned.since, out)?;
    let of = |backup: &retention::RetainedBackup| (backup.label.clone(), backup.finished_at, backup.kept);
    print_backups(["backup", "ended"], "WAL", cleaned.backups.iter().map(of), dry_run, out)?;
    print_row("WAL", cleaned.wal, cleaned.wal_kept, "segment", past_verb(dry_run), out)?;
    print_row("backup data", cleaned.packs, cleaned.packs_waiting, "pack", past_verb(dry_run), out)?;
    print_notes(&cleaned.notes, out)
}

pub(in crate::cli) fn instance_sweep(
    name: &str,
    cleaned: &redis::retention::InstanceCleanup,
    dry_run: bool,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    print_title(name, &cleaned.repository, cleaned.since, out)?;
    let of = |snapshot: &redis::retention::SnapshotRetention| (snapshot.label.clone(), snapshot.at, snapshot.kept);
    print_backups(["snapshot", "as of"], "commands", cleaned.snapshots.iter().map(of), dry_run, out)?;
    print_row("commands", cleaned.stream, cleaned.stream_kept, "stretch", past_verb(dry_run), out)?;
    print_row("snapshots", cleaned.parts, cleaned.parts_waiting, "part", past_verb(dry_run), out)?;
    print_notes(&cleaned.notes, out)
}

/// Backups or snapshots, and why they stay.
fn print_backups(
    [noun, when]: [&str; 2],
    log: &str,
    bases: impl Iterator<Item = (String, Timestamp, Option<KeepReason>)>,
    dry_run: bool,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let rows: Vec<[String; 4]> = bases
        .map(|(label, at, kept)| {
            let (fate, why) = match kept {
                Some(why) => ("stays".to_owned(), retention_reason(why)),
                None => (out.style(TextTone::Warning, past_verb(dry_run)), "a newer one serves all of the window"),
            };
            [label, out.format_short_time(PgTime::from_timestamp(at)), fate, why.to_owned()]
        })
        .collect();
    if rows.is_empty() {
        return out.print_line(format!("  no {noun} yet, so no {log} goes either"));
    }
    out.print_table([noun, when, "", "why"], &rows)
}

fn retention_reason(why: KeepReason) -> &'static str {
    match why {
        KeepReason::Pinned => "kept with walkeep backup keep",
        KeepReason::Minimum => "minimum-backups would not be left",
        KeepReason::Young => "made within the window",
        KeepReason::Anchor => "serves the window's beginning",
        KeepReason::Irreplaceable => "no other could take its place",
        KeepReason::Unknown => "its timeline's history is missing",
    }
}

fn print_row(
    name: &str,
    gone: ObjectTotals,
    left: ObjectTotals,
    noun: &str,
    did: &str,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let what = if noun == "stretch" { format_stretch_count(gone.objects) } else { format_count(gone.objects, noun) };
    let bytes = format_bytes(gone.bytes);
    let rest = match (noun, left.objects) {
        (_, 0) => String::new(),
        ("pack" | "part", n) => {
            format!(
                "; {} of {} more when no backup under way can need them",
                format_count(n, noun),
                format_bytes(left.bytes)
            )
        }
        ("stretch", n) => format!("; {} of {} stay", format_stretch_count(n), format_bytes(left.bytes)),
        (_, n) => format!("; {} of {} stay", format_count(n, noun), format_bytes(left.bytes)),
    };
    out.print_line(format!("  {name:<12} {what}, {bytes}, {did}{rest}"))
}

/// The one noun here whose plural is no plain `s`.
fn format_stretch_count(number: u64) -> String {
    if number == 1 { format_count(1, "stretch") } else { format_count(number, "stretche") }
}
