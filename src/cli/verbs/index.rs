//! `walkeep index rebuild|stats`: the index is derived, and can be made anew from the repository alone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::cli::CliContext;
use crate::cli::args::{IndexCommand, IndexScopeArgs};
use crate::cli::exit::CliExitCode;
use crate::cli::open;
use crate::cli::show::output::{TerminalOutput, format_bytes, format_count, format_duration, format_number};
use crate::postgres::archive::Archive;
use crate::postgres::archive::reindex::{self, ReindexReport};
use crate::postgres::format::segment::SegmentNo;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::index::key_value_store::ScanOrder;
use crate::postgres::index::{IndexStats, SegmentId, WalIndex};

pub(in crate::cli) async fn run(what: IndexCommand, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let mut archives = Vec::new();
    for cluster in &config.clusters {
        archives.push(Arc::new(open::open_archive(&config, cluster, around).await?));
    }
    let dir = open::index_dir(&config);
    match what {
        IndexCommand::Rebuild(args) => rebuild_indexes(&args, &archives, &dir, around).await,
        IndexCommand::Stats(args) => print_stats(&args, &archives, &dir, &around.output),
    }
}

/// What `index rebuild --json` prints.
#[derive(serde::Serialize)]
struct IndexRebuildJson<'r> {
    segments: u64,
    seconds: f64,
    unreadable: Vec<UnreadableObjectJson<'r>>,
    unasked: Vec<&'r str>,
}

#[derive(serde::Serialize)]
struct UnreadableObjectJson<'r> {
    segment: String,
    why: &'r str,
}

async fn rebuild_indexes(
    args: &IndexScopeArgs,
    archives: &[Arc<Archive>],
    dir: &Path,
    around: &CliContext,
) -> anyhow::Result<CliExitCode> {
    let began = around.clock.elapsed();
    let (_, report) = reindex::rebuild_index(archives, dir.to_owned()).await.context("cannot rebuild the index")?;
    let took = around.clock.elapsed().saturating_sub(began);
    let out = &around.output;
    if args.json {
        let unreadable = report.unreadable.iter();
        out.print_json(&IndexRebuildJson {
            segments: report.added,
            seconds: took.as_secs_f64(),
            unreadable: unreadable
                .map(|(segment, why)| UnreadableObjectJson { segment: segment.to_string(), why })
                .collect(),
            unasked: report.unasked.iter().map(|(name, _)| name.as_str()).collect(),
        })?;
    } else {
        print_rebuilt(&report, took, out)?;
    }
    Ok(match (report.unreadable.is_empty(), report.unasked.is_empty()) {
        (false, _) => CliExitCode::Integrity,
        (true, false) => CliExitCode::Unavailable,
        (true, true) => CliExitCode::Done,
    })
}

fn print_rebuilt(report: &ReindexReport, took: Duration, out: &TerminalOutput) -> anyhow::Result<()> {
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

/// What `index stats --json` prints.
#[derive(serde::Serialize)]
struct IndexStatsJson<'r> {
    directory: &'r Path,
    #[serde(flatten)]
    stats: &'r IndexStats,
    timelines: &'r [IndexedTimelineJson],
}

/// What the index covers of one timeline.
#[derive(serde::Serialize)]
struct IndexedTimelineJson {
    cluster: String,
    timeline: TimelineId,
    first: Option<String>,
    last: Option<String>,
}

fn print_stats(
    args: &IndexScopeArgs,
    archives: &[Arc<Archive>],
    dir: &Path,
    out: &TerminalOutput,
) -> anyhow::Result<CliExitCode> {
    let identity: Vec<String> = archives.iter().flat_map(|archive| reindex::repository_ids(archive)).collect();
    let index = WalIndex::open_reader(dir, &identity)?;
    let stats = index.stats()?;
    let mut extents = Vec::new();
    for archive in archives {
        extents.extend(indexed_timelines(&index, archive.cluster().as_str())?);
    }
    if args.json {
        out.print_json(&IndexStatsJson { directory: dir, stats: &stats, timelines: &extents })?;
        return Ok(CliExitCode::Done);
    }
    out.print_line(format!("the index in {}, format {}", dir.display(), stats.format))?;
    out.print_line("")?;
    let row = |extent: &IndexedTimelineJson| {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
        [extent.cluster.clone(), extent.timeline.to_string(), name(&extent.first), name(&extent.last)]
    };
    out.print_table(
        ["cluster", ">timeline", "first segment", "last segment"],
        &extents.iter().map(row).collect::<Vec<_>>(),
    )?;
    out.print_line("")?;
    let row = |family: &crate::postgres::index::FamilyStats| {
        [family.name.to_owned(), format_number(family.keys), format_bytes(family.bytes)]
    };
    out.print_table(["family", ">keys", ">on disk"], &stats.families.iter().map(row).collect::<Vec<_>>())?;
    Ok(CliExitCode::Done)
}

fn indexed_timelines(index: &WalIndex, cluster: &str) -> anyhow::Result<Vec<IndexedTimelineJson>> {
    let view = index.view(cluster)?;
    let Some(segment_size) = view.segment_size() else { return Ok(Vec::new()) };
    let mut extents = Vec::new();
    for timeline in view.timelines() {
        let mut ends = Vec::new();
        for order in [ScanOrder::Forward, ScanOrder::Backward] {
            let mut all = view.summaries(*timeline, SegmentNo::new(0), SegmentNo::new(u64::MAX), order);
            let place: Option<SegmentId> = all.next().transpose()?.map(|(place, _)| place);
            let name = place.and_then(|place| {
                crate::postgres::format::segment::SegmentName::new(place.timeline, place.segment, segment_size)
            });
            ends.push(name.map(|name| name.to_string()));
        }
        let last = ends.pop().flatten();
        extents.push(IndexedTimelineJson {
            cluster: cluster.to_owned(),
            timeline: *timeline,
            first: ends.pop().flatten(),
            last,
        });
    }
    Ok(extents)
}
