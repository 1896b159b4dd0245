//! What `walkeep list postgres` shows.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::cli::show::output::{
    TerminalOutput, TextTone, format_bytes, format_duration, format_number, text_width, wrap_text,
};
use crate::postgres::archive::coverage::{ArchiveCoverage, RepositoryCoverage};
use crate::postgres::archive::inventory::{InventoryBackup, InventoryTimeline, MissingWal, RecoveryWindow};
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;

/// The columns of a row of a backup with its time.
const WIDE_ROW_COLUMNS: usize = 96;

pub(in crate::cli) fn print_inventory(coverage: &ArchiveCoverage, out: &TerminalOutput) -> anyhow::Result<()> {
    let ArchiveCoverage { together: overview, repositories } = coverage;
    let identity = match (overview.system_id, overview.segment_size) {
        (Some(id), Some(segments)) => format!("system {id}, segments of {} MiB", segments.get() >> 20),
        _ => "nothing is archived yet".to_owned(),
    };
    out.print_line(format!(
        "{}  {}",
        out.style(TextTone::Strong, &overview.cluster),
        out.style(TextTone::Quiet, identity)
    ))?;
    if overview.system_id.is_none() {
        return Ok(());
    }
    print_heading(
        "Can be restored to any moment",
        overview.windows.is_empty(),
        "no: there is no backup with its WAL yet",
        out,
    )?;
    print_windows(&overview.windows, out)?;
    print_heading("Backups", overview.backups.is_empty(), "none; take one with walkeep backup postgres", out)?;
    print_backups(&overview.backups, out)?;
    print_heading("Timelines and their WAL", overview.timelines.is_empty(), "none", out)?;
    print_timelines(&overview.timelines, out)?;
    print_heading("Gaps", overview.gaps.is_empty(), "none", out)?;
    print_gaps(&overview.gaps, out)?;
    print_repositories(repositories, out)?;
    let (wal, packs) = (overview.wal_stored_bytes, overview.backup_stored_bytes);
    out.print_line("")?;
    let (total, wal, packs) = (format_bytes(wal.saturating_add(packs)), format_bytes(wal), format_bytes(packs));
    let each = repositories.iter().all(|coverage| coverage.unreachable.is_none() && coverage.lacking.is_empty());
    let place = if each { "in each repository" } else { "in all repositories together" };
    out.print_line(format!("{total} {place}: {wal} of WAL, {packs} of backups"))
}

/// What each repository restores by itself, and what it lacks.
fn print_repositories(repositories: &[RepositoryCoverage], out: &TerminalOutput) -> anyhow::Result<()> {
    if repositories.is_empty() {
        return Ok(());
    }
    print_heading("Each repository by itself", false, "", out)?;
    let reached = repositories.iter().filter(|coverage| coverage.unreachable.is_none());
    let rows: Vec<_> = reached.map(|coverage| coverage_row(coverage, out)).collect();
    if is_narrow() {
        let rows: Vec<_> =
            rows.into_iter().map(|[name, to, _, backups, wal, lacking]| [name, to, backups, wal, lacking]).collect();
        print_table(["repository", "restores up to", ">backups", ">lacking WAL", ">and backups"], &rows, out)?;
    } else {
        let headings = ["repository", "restores up to", "last commit", ">backups", ">lacking WAL", ">and backups"];
        print_table(headings, &rows, out)?;
    }
    for coverage in repositories {
        if let Some(why) = &coverage.unreachable {
            print_remark(&coverage.repository, "is unreachable, and nothing here counts on it", why, out)?;
        }
        let lacking = &coverage.lacking;
        if let (Some(first), Some(last)) = (&lacking.first_segment, &lacking.last_segment) {
            let range = if first == last { first.clone() } else { format!("{first} to {last}") };
            print_remark(&coverage.repository, "lacks WAL that another repository has", &range, out)?;
        }
        if !lacking.backups.is_empty() {
            let labels = lacking.backups.join(", ");
            print_remark(&coverage.repository, "lacks backups that another repository has", &labels, out)?;
        }
    }
    Ok(())
}

fn coverage_row(coverage: &RepositoryCoverage, out: &TerminalOutput) -> [String; 6] {
    let newest = coverage.windows.iter().max_by_key(|window| (window.timeline, window.to_lsn));
    let position = |window: &RecoveryWindow| format!("{} on {}", window.to_lsn, window.timeline);
    let number = |number: u64| match number {
        0 => "-".to_owned(),
        some => format_number(some),
    };
    [
        coverage.repository.clone(),
        newest.map_or_else(|| "NOTHING".to_owned(), position),
        coverage.newest_time.map_or_else(|| "-".to_owned(), |time| out.format_short_time(time)),
        format_number(coverage.backups.len() as u64),
        number(coverage.lacking.segments),
        number(coverage.lacking.backups.len() as u64),
    ]
}

/// A sentence about one repository or backup, broken to fit.
fn print_remark(name: &str, what: &str, detail: &str, out: &TerminalOutput) -> anyhow::Result<()> {
    let lines = wrap_text(&format!("{name} {what}: {detail}"), text_width().saturating_sub(4));
    lines.iter().enumerate().try_for_each(|(nth, line)| {
        let line = out.style(TextTone::Warning, line);
        out.print_line(format!("  {}{line}", if nth == 0 { "" } else { "  " }))
    })
}

fn print_heading(title: &str, empty: bool, instead: &str, out: &TerminalOutput) -> anyhow::Result<()> {
    out.print_line("")?;
    let title = out.style(TextTone::Strong, title);
    out.print_line(if empty { format!("{title}: {instead}") } else { title })
}

fn print_windows(windows: &[RecoveryWindow], out: &TerminalOutput) -> anyhow::Result<()> {
    let time =
        |time: Option<PgTime>, none: &str| time.map_or_else(|| none.to_owned(), |time| out.format_short_time(time));
    let row = |window: &RecoveryWindow| {
        let (from, to) = (window.from_lsn, window.to_lsn);
        [
            time(window.from_time, "the backup's end"),
            time(window.to_time, "no commit since"),
            format!("{from} to {to}"),
            window.timeline.to_string(),
        ]
    };
    let rows: Vec<_> = windows.iter().map(row).collect();
    print_table(["from", "to", "positions", ">timeline"], &rows, out)
}

fn print_backups(backups: &[InventoryBackup], out: &TerminalOutput) -> anyhow::Result<()> {
    let row = |backup: &InventoryBackup| {
        [
            backup.label.clone(),
            out.format_short_time(PgTime::from_timestamp(backup.started_at)),
            format_duration(duration_between(backup.started_at, backup.finished_at)),
            backup.stop_lsn.to_string(),
            format_bytes(backup.logical_bytes),
            format_bytes(backup.stored_bytes),
            if backup.restorable { "yes".to_owned() } else { "NO".to_owned() },
        ]
    };
    let rows: Vec<_> = backups.iter().map(row).collect();
    if is_narrow() {
        // The label begins with that time.
        let rows: Vec<_> = rows
            .into_iter()
            .map(|[label, _, took, from, size, stored, whole]| [label, took, from, size, stored, whole])
            .collect();
        print_table(["label", ">took", "good from", ">size", ">stored", "whole"], &rows, out)?;
    } else {
        print_table(["label", "begun", ">took", "good from", ">size", ">stored", "whole"], &rows, out)?;
    }
    for backup in backups {
        if let Some(defects) = &backup.defects {
            print_remark(&backup.label, "is not whole", defects, out)?;
        }
    }
    Ok(())
}

fn duration_between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

fn print_timelines(timelines: &[InventoryTimeline], out: &TerminalOutput) -> anyhow::Result<()> {
    let row = |(branch, timeline): (String, &InventoryTimeline)| {
        let origin = match (timeline.parent, timeline.begin_lsn) {
            (Some(parent), Some(begin)) => format!("{parent} at {begin}"),
            _ => "-".to_owned(),
        };
        let positions = match (timeline.from_lsn, timeline.to_lsn) {
            (Some(from), Some(to)) => format!("{from} to {to}"),
            _ => "-".to_owned(),
        };
        let (segments, stored) = (format_number(timeline.segments), format_bytes(timeline.stored_bytes));
        // What the server writes for a plain promotion (`StartupXLOG` in xlog.c) says little to people.
        let reason = timeline.reason.as_deref().unwrap_or_default().replace("no recovery target specified", "promoted");
        [branch, origin, positions, segments, stored, out.style(TextTone::Quiet, reason)]
    };
    let rows: Vec<_> = timeline_tree(timelines, out.is_styled()).into_iter().map(row).collect();
    print_table(["timeline", "forked from", "positions", ">segments", ">stored", ""], &rows, out)
}

/// The timelines in the order of the tree that they make, each with its branch drawn before its number.
fn timeline_tree(timelines: &[InventoryTimeline], drawn: bool) -> Vec<(String, &InventoryTimeline)> {
    let known = |parent: TimelineId| timelines.iter().any(|timeline| timeline.timeline == parent);
    let mut children: BTreeMap<Option<TimelineId>, Vec<&InventoryTimeline>> = BTreeMap::new();
    for timeline in timelines {
        children.entry(timeline.parent.filter(|parent| known(*parent))).or_default().push(timeline);
    }
    for siblings in children.values_mut() {
        siblings.sort_by_key(|timeline| (timeline.begin_lsn, timeline.timeline));
    }
    let (fork, corner, line) = if drawn { ("├─ ", "└─ ", "│  ") } else { ("|- ", "`- ", "|  ") };
    let mut found = Vec::with_capacity(timelines.len());
    // What is still to be drawn, the next one last: what stands before its branch, the branch, and the timeline.
    let roots = children.get(&None).into_iter().flatten().rev();
    let mut waiting: Vec<(String, &str, &InventoryTimeline)> = roots.map(|root| (String::new(), "", *root)).collect();
    while let Some((before, branch, timeline)) = waiting.pop() {
        found.push((format!("{before}{branch}{}", timeline.timeline), timeline));
        let below = match branch {
            "" => before,
            branch if branch == corner => before + "   ",
            _ => before + line,
        };
        let own = children.get(&Some(timeline.timeline)).into_iter().flatten().rev().enumerate();
        waiting.extend(own.map(|(nth, child)| (below.clone(), if nth == 0 { corner } else { fork }, *child)));
    }
    found
}

fn print_gaps(gaps: &[MissingWal], out: &TerminalOutput) -> anyhow::Result<()> {
    let row = |gap: &MissingWal| {
        let bytes = format_bytes(gap.to_lsn.bytes_since(gap.from_lsn));
        [gap.timeline.to_string(), format!("{} to {}", gap.from_lsn, gap.to_lsn), bytes, gap.reason.clone()]
    };
    let rows: Vec<_> = gaps.iter().map(row).collect();
    print_table([">timeline", "positions", ">size", "what is known"], &rows, out)
}

/// Whether times do not fit beside all else in a row.
fn is_narrow() -> bool {
    text_width() < WIDE_ROW_COLUMNS
}

fn print_table<const N: usize>(headings: [&str; N], rows: &[[String; N]], out: &TerminalOutput) -> anyhow::Result<()> {
    if rows.is_empty() { Ok(()) } else { out.print_table(headings, rows) }
}

#[cfg(test)]
mod tests {
    use super::{InventoryTimeline, timeline_tree};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::timeline::TimelineId;

    #[test]
    fn timelines_are_drawn_as_the_tree_they_are() {
        let timeline = |number: u32, parent: u32, begin: u64| InventoryTimeline {
            timeline: TimelineId::new(number).unwrap(),
            parent: TimelineId::new(parent),
            begin_lsn: TimelineId::new(parent).map(|_| Lsn::new(begin)),
            reason: None,
            from_lsn: None,
            to_lsn: None,
            segments: 0,
            stored_bytes: 0,
        };
        let timelines = [
            timeline(1, 0, 0),
            timeline(2, 1, 50),
            timeline(3, 2, 70),
            timeline(4, 1, 20),
            timeline(5, 2, 60),
            timeline(7, 6, 9),
        ];
        let lines = |drawn| timeline_tree(&timelines, drawn).into_iter().map(|(branch, _)| branch).collect::<Vec<_>>();
        assert_eq!(lines(false), ["1", "|- 4", "`- 2", "   |- 5", "   `- 3", "7"], "the history of 6 is not archived");
        assert_eq!(lines(true), ["1", "├─ 4", "└─ 2", "   ├─ 5", "   └─ 3", "7"]);
        assert!(timeline_tree(&[], true).is_empty());
    }
}
