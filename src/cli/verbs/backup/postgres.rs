//! `walkeep backup postgres`: takes a backup and prints its label.
//!
//! Only the label goes to standard output, so that a script can have it; how far it is and what it came to goes to standard error.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;

use crate::cli::CliContext;
use crate::cli::args::{BackupPostgresArgs, CheckpointMode};
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::output::{format_bytes, format_count, format_duration};
use crate::cli::progress::ProgressDisplay;
use crate::postgres::archive::manifest::BackupSummary;
use crate::postgres::backup::{self, BackupOptions, BackupProgress as Step};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::timeline::TimelineId;

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
}

pub(in crate::cli) async fn run(args: BackupPostgresArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let cluster = config.cluster(args.cluster.as_deref())?;
    let Some(server) = cluster.conninfo(&around.environment)? else {
        let path = config.path.display();
        let message = format!("[postgres.{}] has no connection to take a backup over; add one to {path}", cluster.name);
        return Err(CliError::usage(message).into());
    };
    let archive = Arc::new(open::open_archive(&config, cluster, around).await?);
    let options =
        BackupOptions { fast_checkpoint: args.checkpoint == CheckpointMode::Fast, ..BackupOptions::default() };
    let quiet = around.quiet || args.json;
    let bar = ProgressDisplay::new("checkpoint", 0, quiet);
    let mut reading = false;
    let mut tell = |step: Step| match step {
        Step::Checkpoint => bar.set_stage("waiting for the server's checkpoint"),
        Step::Reading { done, total, .. } => {
            if !std::mem::replace(&mut reading, true) {
                bar.set_stage("backup");
            }
            bar.set_done(done, total);
        }
        Step::WaitingForWal => bar.set_stage("waiting for the WAL that the backup needs"),
    };
    let taken = backup::take_backup(&archive, &server, &options, &mut tell).await;
    bar.finish();
    let summary = taken.with_context(|| format!("cannot take a backup of {}", cluster.name))?;
    print_backup(&summary, &args, quiet, around)?;
    Ok(CliExitCode::Done)
}

fn print_backup(
    summary: &BackupSummary,
    args: &BackupPostgresArgs,
    quiet: bool,
    around: &CliContext,
) -> anyhow::Result<()> {
    if args.json {
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
        });
    }
    let (files, bytes, stored) =
        (format_count(summary.files, "file"), format_bytes(summary.logical_bytes), format_bytes(summary.stored_bytes));
    let text = |took| format!("backup: {files}, {bytes} in {took}; {stored} were new and are stored");
    print_label_and_summary(&summary.label, (summary.started_at, summary.finished_at), text, quiet, around)
}

/// The label for programs, and beside it for people what it took.
pub(in crate::cli) fn print_label_and_summary(
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
