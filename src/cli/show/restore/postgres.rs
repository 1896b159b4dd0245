//! `walkeep restore postgres`: what was restored, and how the server is started.

use std::time::Duration;

use crate::cli::show::output::{TerminalOutput, TextTone, format_bytes, format_count, format_duration};
use crate::cli::show::shell;
use crate::postgres::restore::RestoredCluster;
use crate::postgres::restore::plan::RestorePlanDocument;
use crate::postgres::restore::server_start::ReachedTarget;
use crate::postgres::restore::target::RecoveryTargetAction;

/// What `restore --json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct PostgresRestoreJson<'r> {
    pub(in crate::cli) plan: RestorePlanDocument<'r>,
    pub(in crate::cli) restored: Option<&'r RestoredCluster>,
    pub(in crate::cli) reached: Option<&'r ReachedTarget>,
}

/// Prints what was placed where. `delta`: some of the files were in place already.
pub(in crate::cli) fn print_placed(
    restored: &RestoredCluster,
    delta: bool,
    took: Duration,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let (files, bytes) = (format_count(restored.files, "file"), format_bytes(restored.bytes));
    let kept = if delta { reused_bytes_note(restored) } else { String::new() };
    let (pgdata, took) = (restored.pgdata.display(), format_duration(took));
    out.print_line(format!("\nrestored {files}, {bytes}{kept}, into {pgdata} in {took}"))
}

/// How much there was to do.
fn reused_bytes_note(restored: &RestoredCluster) -> String {
    let fetched = restored.bytes.saturating_sub(restored.reused_bytes);
    format!(" ({} were there, {} fetched)", format_bytes(restored.reused_bytes), format_bytes(fetched))
}

pub(in crate::cli) fn print_reached(reached: &ReachedTarget, out: &TerminalOutput) -> anyhow::Result<()> {
    let did = match reached.action {
        RecoveryTargetAction::Promote => format!("takes writes on timeline {}", reached.timeline),
        RecoveryTargetAction::Pause => "is paused and takes reads; go on with SELECT pg_wal_replay_resume()".to_owned(),
        RecoveryTargetAction::Shutdown => "has stopped at the target".to_owned(),
    };
    let took = Duration::try_from_secs_f64(reached.seconds).unwrap_or_default();
    out.print_line(format!(
        "{} in {}: the server {did}",
        out.style(TextTone::Good, "target reached"),
        format_duration(took)
    ))?;
    if let Some(lsn) = reached.lsn {
        out.print_line(format!("  replayed up to  {lsn}"))?;
    }
    match reached.last_commit {
        Some(last) => {
            let (xid, lsn, time) = (last.xid, last.lsn, out.format_time(last.time));
            out.print_line(format!("  last commit     transaction {xid} at {lsn}, {time}"))
        }
        None => out.print_line("  last commit     none since the backup"),
    }
}

pub(in crate::cli) fn print_next_command(
    restored: &RestoredCluster,
    action: RecoveryTargetAction,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let pgdata = shell::quote_for_shell(&restored.pgdata.display().to_string());
    let then = match action {
        RecoveryTargetAction::Promote => "it replays WAL up to the target and then takes writes",
        RecoveryTargetAction::Pause => "it replays WAL up to the target and pauses there",
        RecoveryTargetAction::Shutdown => "it replays WAL up to the target and stops there",
    };
    out.print_line(format!("start it with: pg_ctl -D {pgdata} start"))?;
    out.print_line(out.style(TextTone::Quiet, format!("  {then}; it does not archive (archive_mode = off)")))
}
