//! What `walkeep health` shows.

use jiff::Timestamp;

use crate::base::findings::{Finding, FindingLevel};
use crate::cli::show::output::{TerminalOutput, TextTone, text_width, wrap_text};
use crate::postgres::format::time::PgTime;
use crate::{postgres, redis};

/// What `--json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct HealthJson<'d> {
    pub(in crate::cli) healthy: bool,
    pub(in crate::cli) clusters: &'d [postgres::health::HealthReport],
    pub(in crate::cli) instances: &'d [redis::health::HealthReport],
}

pub(in crate::cli) fn print_health(
    clusters: &[postgres::health::HealthReport],
    instances: &[redis::health::HealthReport],
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    for health in clusters {
        let newest = health.newest.map(|newest| {
            let time = newest.time.map_or_else(String::new, |time| format!(", last commit {}", out.format_time(time)));
            format!("can be restored up to {} on timeline {}{time}", newest.lsn, newest.timeline)
        });
        print_store((&health.cluster, health.healthy), newest, &health.findings, out)?;
    }
    for health in instances {
        let time = |time: Timestamp| out.format_time(PgTime::from_timestamp(time));
        let newest = health.newest.map(|newest| format!("can be restored up to {}", time(newest.time)));
        print_store((&health.instance, health.healthy), newest, &health.findings, out)?;
    }
    Ok(())
}

fn print_store(
    (name, healthy): (&str, bool),
    newest: Option<String>,
    findings: &[Finding],
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let state = if healthy { out.style(TextTone::Good, "healthy") } else { out.style(TextTone::Bad, "NOT healthy") };
    out.print_line(format!("{}  {state}", out.style(TextTone::Strong, name)))?;
    if let Some(newest) = newest {
        out.print_line(format!("  {:<12} {newest}", "newest"))?;
    }
    for finding in findings {
        let mark = match finding.level {
            FindingLevel::Good => out.style(TextTone::Good, "ok "),
            FindingLevel::Warning => out.style(TextTone::Warning, "!  "),
            FindingLevel::Bad => out.style(TextTone::Bad, "BAD"),
        };
        for (nth, line) in wrap_text(&finding.text, text_width().saturating_sub(19)).iter().enumerate() {
            match nth {
                0 => out.print_line(format!("  {:<12} {mark} {line}", finding.subject))?,
                _ => out.print_line(format!("  {:<12}     {line}", ""))?,
            }
        }
    }
    Ok(())
}
