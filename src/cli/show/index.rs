//! What `walkeep index` shows.

use std::path::Path;
use std::time::Duration;

use crate::cli::show::output::{TerminalOutput, format_bytes, format_count, format_duration, format_number};
use crate::postgres::archive::reindex::ReindexReport;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::index::{FamilyStats, IndexStats};

/// What `index rebuild --json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct IndexRebuildJson<'r> {
    pub(in crate::cli) segments: u64,
    pub(in crate::cli) seconds: f64,
    pub(in crate::cli) unreadable: Vec<UnreadableObjectJson<'r>>,
    pub(in crate::cli) unasked: Vec<&'r str>,
}

#[derive(serde::Serialize)]
pub(in crate::cli) struct UnreadableObjectJson<'r> {
    pub(in crate::cli) segment: String,
    pub(in crate::cli) why: &'r str,
}

/// What `index stats --json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct IndexStatsJson<'r> {
    pub(in crate::cli) directory: &'r Path,
    #[serde(flatten)]
    pub(in crate::cli) stats: &'r IndexStats,
    pub(in crate::cli) timelines: &'r [IndexedTimelineJson],
}

/// What the index covers of one timeline.
#[derive(serde::Serialize)]
pub(in crate::cli) struct IndexedTimelineJson {
    pub(in crate::cli) cluster: String,
    pub(in crate::cli) timeline: TimelineId,
    pub(in crate::cli) first: Option<String>,
    pub(in crate::cli) last: Option<String>,
}

pub(in crate::cli) fn print_rebuilt(
    report: &ReindexReport,
    took: Duration,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    out.print_line(format!(
        "the index holds {}, read in {}",
        format_count(report.added, "segment"),
        format_duration(took)
    ))?;
    for (segment, why) in &report.unreadable {
        out.print_line(format!("  {segment} cannot be read: {why}"))?;
    }
    for (name, why) in &report.unasked {
        out.print_line(format!("  repository {name} could not be asked: {why}"))?;
    }
    Ok(())
}

pub(in crate::cli) fn print_index_stats(shown: &IndexStatsJson<'_>, out: &TerminalOutput) -> anyhow::Result<()> {
    out.print_line(format!("the index in {}, format {}", shown.directory.display(), shown.stats.format))?;
    out.print_line("")?;
    let row = |extent: &IndexedTimelineJson| {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
        [extent.cluster.clone(), extent.timeline.to_string(), name(&extent.first), name(&extent.last)]
    };
    out.print_table(
        ["cluster", ">timeline", "first segment", "last segment"],
        &shown.timelines.iter().map(row).collect::<Vec<_>>(),
    )?;
    out.print_line("")?;
    let row = |family: &FamilyStats| [family.name.to_owned(), format_number(family.keys), format_bytes(family.bytes)];
    out.print_table(["family", ">keys", ">on disk"], &shown.stats.families.iter().map(row).collect::<Vec<_>>())
}
