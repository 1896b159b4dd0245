//! `walkeep index rebuild|stats`: the index is derived, and can be made anew from the repository alone.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::CliExitCode;
use crate::cli::open;
use crate::cli::show::index::{
    IndexRebuildJson, IndexStatsJson, IndexedTimelineJson, UnreadableObjectJson, print_index_stats, print_rebuilt,
};
use crate::cli::show::output::TerminalOutput;
use crate::postgres::archive::Archive;
use crate::postgres::archive::reindex;
use crate::postgres::format::segment::SegmentNo;
use crate::postgres::index::key_value_store::ScanOrder;
use crate::postgres::index::{SegmentId, WalIndex};

/// The index: rebuild it from the repository, or show what it holds
#[derive(Args, Debug)]
#[command(after_help = help::INDEX_HELP)]
pub(in crate::cli) struct IndexArgs {
    #[command(subcommand)]
    pub(in crate::cli) what: IndexCommand,
}

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum IndexCommand {
    /// Make it anew from the repository, for all clusters
    Rebuild(IndexScopeArgs),
    /// Show what it covers and how large it is
    Stats(IndexScopeArgs),
}

#[derive(Args, Debug)]
pub(in crate::cli) struct IndexScopeArgs {
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}
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
    print_index_stats(&IndexStatsJson { directory: dir, stats: &stats, timelines: &extents }, out)?;
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
