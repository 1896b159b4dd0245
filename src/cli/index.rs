//! `walkeep index rebuild|stats`: the index is derived, and can be made anew from the repository alone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::Surroundings;
use super::args::{IndexArgs, IndexWhat};
use super::exit::Code;
use super::open;
use super::output::{Output, count, grouped, size, span};
use crate::postgres::archive::Archive;
use crate::postgres::archive::reindex::{self, Report};
use crate::postgres::format::segment::SegmentNo;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::index::key_value_store::Order;
use crate::postgres::index::{Index, Place, Stats};

pub(super) async fn run(what: IndexWhat, around: &Surroundings) -> anyhow::Result<Code> {
    let config = around.config()?;
    let mut archives = Vec::new();
    for cluster in &config.clusters {
        archives.push(Arc::new(open::archive(&config, cluster, around).await?));
    }
    let dir = open::index_dir(&config);
    match what {
        IndexWhat::Rebuild(args) => rebuild(&args, &archives, &dir, around).await,
        IndexWhat::Stats(args) => stats(&args, &archives, &dir, &around.output),
    }
}

/// What `index rebuild --json` prints.
#[derive(serde::Serialize)]
struct Rebuilt<'r> {
    segments: u64,
    seconds: f64,
    unreadable: Vec<Unreadable<'r>>,
    unasked: Vec<&'r str>,
}

#[derive(serde::Serialize)]
struct Unreadable<'r> {
    segment: String,
    why: &'r str,
}

async fn rebuild(
    args: &IndexArgs,
    archives: &[Arc<Archive>],
    dir: &Path,
    around: &Surroundings,
) -> anyhow::Result<Code> {
    let began = around.clock.elapsed();
    let (_, report) = reindex::rebuild(archives, dir.to_owned()).await.context("cannot rebuild the index")?;
    let took = around.clock.elapsed().saturating_sub(began);
    let out = &around.output;
    if args.json {
        let unreadable = report.unreadable.iter();
        out.json(&Rebuilt {
            segments: report.added,
            seconds: took.as_secs_f64(),
            unreadable: unreadable.map(|(segment, why)| Unreadable { segment: segment.to_string(), why }).collect(),
            unasked: report.unasked.iter().map(|(name, _)| name.as_str()).collect(),
        })?;
    } else {
        say_rebuilt(&report, took, out)?;
    }
    Ok(match (report.unreadable.is_empty(), report.unasked.is_empty()) {
        (false, _) => Code::Integrity,
        (true, false) => Code::Unavailable,
        (true, true) => Code::Done,
    })
}

fn say_rebuilt(report: &Report, took: Duration, out: &Output) -> anyhow::Result<()> {
    out.line(format!("the index holds {}, read in {}", count(report.added, "segment"), span(took)))?;
    for (segment, why) in &report.unreadable {
        out.line(format!("  {segment} cannot be read: {why}"))?;
    }
    for (name, why) in &report.unasked {
        out.line(format!("  repository {name} could not be asked: {why}"))?;
    }
    Ok(())
}

/// What `index stats --json` prints.
#[derive(serde::Serialize)]
struct Report_<'r> {
    directory: &'r Path,
    #[serde(flatten)]
    stats: &'r Stats,
    timelines: &'r [Extent],
}

/// What the index covers of one timeline.
#[derive(serde::Serialize)]
struct Extent {
    cluster: String,
    timeline: TimelineId,
    first: Option<String>,
    last: Option<String>,
}

fn stats(args: &IndexArgs, archives: &[Arc<Archive>], dir: &Path, out: &Output) -> anyhow::Result<Code> {
    let identity: Vec<String> = archives.iter().flat_map(|archive| reindex::identity(archive)).collect();
    let index = Index::open_reader(dir, &identity)?;
    let stats = index.stats()?;
    let mut extents = Vec::new();
    for archive in archives {
        extents.extend(extent(&index, archive.cluster().as_str())?);
    }
    if args.json {
        out.json(&Report_ { directory: dir, stats: &stats, timelines: &extents })?;
        return Ok(Code::Done);
    }
    out.line(format!("the index in {}, format {}", dir.display(), stats.format))?;
    out.line("")?;
    let row = |extent: &Extent| {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
        [extent.cluster.clone(), extent.timeline.to_string(), name(&extent.first), name(&extent.last)]
    };
    out.table(["cluster", ">timeline", "first segment", "last segment"], &extents.iter().map(row).collect::<Vec<_>>())?;
    out.line("")?;
    let row = |family: &crate::postgres::index::FamilyStats| {
        [family.name.to_owned(), grouped(family.keys), size(family.bytes)]
    };
    out.table(["family", ">keys", ">on disk"], &stats.families.iter().map(row).collect::<Vec<_>>())?;
    Ok(Code::Done)
}

fn extent(index: &Index, cluster: &str) -> anyhow::Result<Vec<Extent>> {
    let view = index.view(cluster)?;
    let Some(segment_size) = view.segment_size() else { return Ok(Vec::new()) };
    let mut extents = Vec::new();
    for timeline in view.timelines() {
        let mut ends = Vec::new();
        for order in [Order::Forward, Order::Backward] {
            let mut all = view.summaries(*timeline, SegmentNo::new(0), SegmentNo::new(u64::MAX), order);
            let place: Option<Place> = all.next().transpose()?.map(|(place, _)| place);
            let name = place.and_then(|place| {
                crate::postgres::format::segment::SegmentName::new(place.timeline, place.segment, segment_size)
            });
            ends.push(name.map(|name| name.to_string()));
        }
        let last = ends.pop().flatten();
        extents.push(Extent { cluster: cluster.to_owned(), timeline: *timeline, first: ends.pop().flatten(), last });
    }
    Ok(extents)
}
