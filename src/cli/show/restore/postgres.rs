//! `walkeep restore postgres`: what was restored, and how the server is started.

use std::io::{Write, stderr};
use std::time::Duration;

use crate::cli::show::output::{
    TerminalOutput, TextTone, format_bytes, format_count, format_duration, text_width, wrap_text,
};
use crate::cli::show::shell;
use crate::postgres::restore::RestoredCluster;
use crate::postgres::restore::plan::RestorePlanDocument;
use crate::postgres::restore::server_role::ServerRole;
use crate::postgres::restore::server_start::{LogExcerpt, ReachedTarget};
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

/// Prints what the role of the server means, the settings that it needs, and what else the user should know.
pub(in crate::cli) fn print_role(restored: &RestoredCluster, out: &TerminalOutput) -> anyhow::Result<()> {
    let what = match restored.role {
        ServerRole::Copy => "it is an isolated copy",
        ServerRole::Takeover => "it takes over from its original",
        ServerRole::Standby(_) => "it is a standby",
    };
    if restored.settings.is_empty() {
        out.print_line(what)?;
    } else {
        out.print_line(format!("{what}; these settings in postgresql.auto.conf make it one:"))?;
    }
    for setting in &restored.settings {
        let shown = setting.value.as_ref().map_or_else(|| "(as given)".to_owned(), |value| format!("'{value}'"));
        let before = setting.before.as_ref().map_or_else(String::new, |before| format!(" (before: '{before}')"));
        out.print_line(format!("  {} = {shown}", setting.name))?;
        out.print_line(out.style(TextTone::Quiet, format!("    {}{before}", setting.effect)))?;
    }
    if restored.role == ServerRole::Copy && !restored.settings.is_empty() {
        out.print_line("  to end the isolation: ALTER SYSTEM RESET each of them, then restart it")?;
    }
    let width = text_width().saturating_sub(4);
    for note in &restored.notes {
        for (nth, line) in wrap_text(note, width).iter().enumerate() {
            out.print_line(format!("  {} {line}", if nth == 0 { "-" } else { " " }))?;
        }
    }
    Ok(())
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
    if let Some(address) = &reached.address {
        let command = out.style(TextTone::Strong, address.psql());
        out.print_line(format!("  connect with    {command}"))?;
        if address.private {
            let why = "another server has the configured port; only this machine reaches the copy, by its socket";
            out.print_line(format!("                  {}", out.style(TextTone::Quiet, why)))?;
        }
    }
    match reached.last_commit {
        Some(last) => {
            let (xid, lsn, time) = (last.xid, last.lsn, out.format_time(last.time));
            out.print_line(format!("  last commit     transaction {xid} at {lsn}, {time}"))
        }
        None => out.print_line("  last commit     none since the backup"),
    }
}

/// Prints what a server logged to standard error, before the line with the error.
pub(in crate::cli) fn print_server_log(log: &LogExcerpt) {
    let mut error_output = stderr().lock();
    let title = std::iter::once(format!("\nthe server's log, in {}:", log.place));
    for line in title.chain(log.lines.iter().map(|line| format!("  {line}"))) {
        // What cannot be shown must not hide the error itself.
        let _shown = writeln!(error_output, "{line}");
    }
}

pub(in crate::cli) fn print_next_command(
    restored: &RestoredCluster,
    action: RecoveryTargetAction,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let pgdata = shell::quote_for_shell(&restored.pgdata.display().to_string());
    let then = match (&restored.role, action) {
        (ServerRole::Standby(_), _) => "it replays the archived WAL and then follows its primary",
        (_, RecoveryTargetAction::Promote) => "it replays WAL up to the target and then takes writes",
        (_, RecoveryTargetAction::Pause) => "it replays WAL up to the target and pauses there",
        (_, RecoveryTargetAction::Shutdown) => "it replays WAL up to the target and stops there",
    };
    let options = match &restored.config_file {
        Some(file) => {
            let quoted = |path: &std::path::Path| shell::quote_for_shell(&path.display().to_string());
            let both = format!("-c config_file={} -c data_directory={pgdata}", quoted(file));
            format!(" -o {}", shell::quote_for_shell(&both))
        }
        None => String::new(),
    };
    out.print_line(format!("start it with: pg_ctl -D {pgdata}{options} start"))?;
    out.print_line(out.style(TextTone::Quiet, format!("  {then}")))
}
