//! `walkeep backup`: the label of a backup, its summary, and the JSON document.

use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;

use crate::cli::context::CliContext;
use crate::cli::show::list::redis::ListedSnapshot;
use crate::cli::show::output::{format_bytes, format_count, format_duration};
use crate::postgres::archive::manifest::{BackupDefects, BackupSummary, DamagedPage};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::timeline::TimelineId;
use crate::redis::archive::SnapshotManifest;

/// What `--json` prints: the backup as `list --json` has it.
#[derive(serde::Serialize)]
struct PostgresBackupJson<'r> {
    label: &'r str,
    started_at: Timestamp,
    finished_at: Timestamp,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    timeline: TimelineId,
    files: u64,
    logical_bytes: u64,
    stored_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    defects: Option<DefectsJson<'r>>,
}

/// What is missing in a backup or damaged.
#[derive(serde::Serialize)]
struct DefectsJson<'r> {
    missing_files: &'r [String],
    missing_file_count: u64,
    damaged_pages: &'r [DamagedPage],
    damaged_page_count: u64,
}

impl<'r> DefectsJson<'r> {
    fn of(defects: &'r BackupDefects) -> Option<DefectsJson<'r>> {
        (!defects.is_empty()).then_some(DefectsJson {
            missing_files: &defects.missing_files,
            missing_file_count: defects.missing_file_count,
            damaged_pages: &defects.damaged_pages,
            damaged_page_count: defects.damaged_page_count,
        })
    }
}

pub(in crate::cli) fn print_backup(
    summary: &BackupSummary,
    json: bool,
    quiet: bool,
    around: &CliContext,
) -> anyhow::Result<()> {
    if json {
        return around.output.print_json(&PostgresBackupJson {
            label: &summary.label,
            started_at: summary.started_at,
            finished_at: summary.finished_at,
            start_lsn: summary.start_lsn,
            stop_lsn: summary.stop_lsn,
            timeline: summary.timeline,
            files: summary.files,
            logical_bytes: summary.logical_bytes,
            stored_bytes: summary.stored_bytes,
            defects: DefectsJson::of(&summary.defects),
        });
    }
    let (files, bytes, stored) =
        (format_count(summary.files, "file"), format_bytes(summary.logical_bytes), format_bytes(summary.stored_bytes));
    let text = |took| format!("backup: {files}, {bytes} in {took}; {stored} were new and are stored");
    print_label_and_summary(&summary.label, (summary.started_at, summary.finished_at), text, quiet, around)
}

pub(in crate::cli) fn print_snapshot(
    snapshot: &SnapshotManifest,
    json: bool,
    quiet: bool,
    around: &CliContext,
) -> anyhow::Result<()> {
    if json {
        return around.output.print_json(&ListedSnapshot::from_manifest(snapshot));
    }
    let (keys, bytes, stored) = (
        format_count(snapshot.walk.keys(), "key"),
        format_bytes(snapshot.logical_bytes),
        format_bytes(snapshot.stored_bytes),
    );
    let text = |took| format!("snapshot: {keys}, {bytes} in {took}, stored as {stored}");
    print_label_and_summary(&snapshot.label, (snapshot.started_at, snapshot.finished_at), text, quiet, around)
}

/// The label for programs, and beside it for people what it took.
fn print_label_and_summary(
    label: &str,
    (started_at, finished_at): (Timestamp, Timestamp),
    text: impl FnOnce(String) -> String,
    quiet: bool,
    around: &CliContext,
) -> anyhow::Result<()> {
    if !quiet {
        let took = Duration::try_from(finished_at.duration_since(started_at)).unwrap_or_default();
        // What cannot be told must not spoil a good backup.
        let _told = writeln!(std::io::stderr().lock(), "{}", text(format_duration(took)));
    }
    around.output.print_line(label)
}
