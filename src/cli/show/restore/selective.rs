//! `walkeep restore postgres --database` and `--table`: what was found and what was returned.

use std::time::Duration;

use crate::cli::show::output::{TerminalOutput, TextTone, format_bytes, format_duration, text_width, wrap_text};
use crate::cli::show::shell;
use crate::postgres::restore::plan::RestorePlanDocument;
use crate::postgres::restore::selective::{RestoreLeftovers, SelectedObject, SelectiveRestoreReport};

/// What `--json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct SelectiveRestoreJson<'r> {
    pub(in crate::cli) plan: RestorePlanDocument<'r>,
    pub(in crate::cli) returned: Option<&'r SelectiveRestoreReport>,
}

pub(in crate::cli) fn describe_part(part: &SelectedObject) -> String {
    match part {
        SelectedObject::Database { name, new } => format!("database {name} as {new}"),
        SelectedObject::Table { database, name, new } => format!("table {name} of database {database} as {new}"),
    }
}

/// Logs what earlier runs left: it is on standard error, beside the result.
pub(in crate::cli) fn log_found(found: &RestoreLeftovers) {
    for left in &found.scratch {
        let dir = shell::quote_for_shell(&left.dir.display().to_string());
        match left.server {
            Some(pid) => tracing::warn!(
                "{dir} was left by a run that was killed, and its server still runs (process {pid}); to clean up: \
                 kill -QUIT {pid}; rm -r {dir}"
            ),
            None => tracing::warn!("{dir} was left by a run that was killed; to clean up: rm -r {dir}"),
        }
    }
    for name in &found.databases {
        tracing::warn!(
            "database {name} is half filled, by a run that was killed or one under way; to clean up: DROP DATABASE \
             {name}"
        );
    }
}

pub(in crate::cli) fn print_returned(
    returned: &SelectiveRestoreReport,
    part: &SelectedObject,
    into: &str,
    took: Duration,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let what = match &returned.table {
        Some(table) => format!("table {table} is in database {}", returned.database),
        None => format!("database {} is there", returned.database),
    };
    out.print_line("")?;
    out.print_line(format!(
        "{}: {what}, {}, in {}",
        out.style(TextTone::Good, "brought back"),
        format_bytes(returned.bytes),
        format_duration(took)
    ))?;
    out.print_line(format!("  on           {into}"))?;
    if let Some(last) = returned.reached.last_commit {
        out.print_line(format!(
            "  last commit  transaction {} at {}, {}",
            last.xid,
            last.lsn,
            out.format_time(last.time)
        ))?;
    }
    out.print_line(format!(
        "  fetched      {} of the backup's {}",
        format_bytes(returned.fetched_bytes),
        format_bytes(returned.backup_bytes)
    ))?;
    for note in &returned.notes {
        for (nth, line) in wrap_text(note, text_width().saturating_sub(15)).iter().enumerate() {
            out.print_line(format!("  {:<11}  {line}", if nth == 0 { "note" } else { "" }))?;
        }
    }
    for failure in &returned.failures {
        out.print_line(format!("  {}      {}", out.style(TextTone::Bad, "failed"), failure.object))?;
        let wrapped = |text: &str| wrap_text(text, text_width().saturating_sub(15));
        // A statement is there to be copied.
        let longer = failure.statement.iter().filter(|statement| **statement != failure.object);
        let statement = longer.flat_map(|statement| statement.lines().map(str::to_owned));
        for line in wrapped(&failure.reason).into_iter().chain(statement).chain(wrapped(&failure.advice)) {
            out.print_line(format!("               {line}"))?;
        }
    }
    if let SelectedObject::Database { new, .. } = part {
        let advice =
            format!("it has no planner statistics yet: vacuumdb --analyze-only {}", shell::quote_for_shell(new));
        out.print_line(out.style(TextTone::Quiet, advice))?;
    }
    Ok(())
}
