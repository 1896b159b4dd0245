//! `walkeep list`: what is archived, and to which moments it can be restored.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;

use super::Surroundings;
use super::args::{List, ListOf};
use super::exit::Code;
use super::open;
use super::output::{Output, Tone, grouped, size, span};
use crate::archive::overview::{self, Backup, Missing, Overview, Timeline, Window};
use crate::archive::reindex;
use crate::postgres::time::PgTime;

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Report<'r> {
    clusters: &'r [Overview],
}

pub(super) async fn run(args: List, around: &Surroundings) -> anyhow::Result<Code> {
    let (name, json) = match args.of {
        Some(ListOf::Postgres(of)) => (of.cluster, of.json || args.json),
        None => (None, args.json),
    };
    let config = around.config()?;
    let clusters = match &name {
        Some(name) => vec![config.cluster(Some(name))?],
        None => config.clusters.iter().collect(),
    };
    let mut overviews = Vec::new();
    for cluster in clusters {
        let archive = Arc::new(open::archive(&config, cluster, around).await?);
        let (index, _) = reindex::open(&archive, &open::index_dir(&config)).await.context("cannot open the index")?;
        let overview = overview::gather(&archive, &index).await;
        overviews.push(overview.with_context(|| format!("cannot list what is archived of {}", cluster.name))?);
    }
    if json {
        around.output.json(&Report { clusters: &overviews })?;
        return Ok(Code::Done);
    }
    if overviews.is_empty() {
        around.output.line(format!("no cluster is configured in {}", config.path.display()))?;
    }
    for (nth, overview) in overviews.iter().enumerate() {
        if nth > 0 {
            around.output.line("")?;
        }
        show(overview, &around.output)?;
    }
    Ok(Code::Done)
}

fn show(overview: &Overview, out: &Output) -> anyhow::Result<()> {
    let identity = match (overview.system_id, overview.segment_size) {
        (Some(id), Some(segments)) => format!("system {id}, segments of {} MiB", segments.get() >> 20),
        _ => "nothing is archived yet".to_owned(),
    };
    out.line(format!("{}  {}", out.tone(Tone::Strong, &overview.cluster), out.tone(Tone::Quiet, identity)))?;
    if overview.system_id.is_none() {
        return Ok(());
    }
    heading(
        "Can be restored to any moment",
        overview.windows.is_empty(),
        "no: there is no backup with its WAL yet",
        out,
    )?;
    windows(&overview.windows, out)?;
    heading("Backups", overview.backups.is_empty(), "none; take one with walkeep backup postgres", out)?;
    backups(&overview.backups, out)?;
    heading("WAL", overview.timelines.is_empty(), "none", out)?;
    timelines(&overview.timelines, out)?;
    heading("Gaps", overview.gaps.is_empty(), "none", out)?;
    gaps(&overview.gaps, out)?;
    let (wal, packs) = (overview.wal_stored_bytes, overview.backup_stored_bytes);
    out.line("")?;
    let total = size(wal.saturating_add(packs));
    out.line(format!("{total} in each repository: {} of WAL, {} of backups", size(wal), size(packs)))
}

fn heading(title: &str, empty: bool, instead: &str, out: &Output) -> anyhow::Result<()> {
    out.line("")?;
    let title = out.tone(Tone::Strong, title);
    out.line(if empty { format!("{title}: {instead}") } else { title })
}

fn windows(windows: &[Window], out: &Output) -> anyhow::Result<()> {
    let time = |time: Option<PgTime>, none: &str| time.map_or_else(|| none.to_owned(), |time| out.short_time(time));
    let row = |window: &Window| {
        let (from, to) = (window.from_lsn, window.to_lsn);
        [
            time(window.from_time, "the backup's end"),
            time(window.to_time, "no commit since"),
            format!("{from} to {to}"),
            window.timeline.to_string(),
        ]
    };
    let rows: Vec<_> = windows.iter().map(row).collect();
    table(["from", "to", "positions", ">timeline"], &rows, out)
}

fn backups(backups: &[Backup], out: &Output) -> anyhow::Result<()> {
    let row = |backup: &Backup| {
        [
            backup.label.clone(),
            out.short_time(PgTime::from_timestamp(backup.started_at)),
            span(between(backup.started_at, backup.finished_at)),
            backup.stop_lsn.to_string(),
            size(backup.logical_bytes),
            size(backup.stored_bytes),
            if backup.restorable { "yes".to_owned() } else { out.tone(Tone::Bad, "NO") },
        ]
    };
    let rows: Vec<_> = backups.iter().map(row).collect();
    table(["label", "begun", ">took", "good from", ">size", ">stored", "whole"], &rows, out)
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

fn timelines(timelines: &[Timeline], out: &Output) -> anyhow::Result<()> {
    let row = |timeline: &Timeline| {
        let origin = match (timeline.parent, timeline.begin_lsn) {
            (Some(parent), Some(begin)) => format!("{parent} at {begin}"),
            _ => "-".to_owned(),
        };
        let positions = match (timeline.from_lsn, timeline.to_lsn) {
            (Some(from), Some(to)) => format!("{from} to {to}"),
            _ => "-".to_owned(),
        };
        let (segments, stored) = (grouped(timeline.segments), size(timeline.stored_bytes));
        [timeline.timeline.to_string(), origin, positions, segments, stored]
    };
    let rows: Vec<_> = timelines.iter().map(row).collect();
    table([">timeline", "from timeline", "positions", ">segments", ">stored"], &rows, out)
}

fn gaps(gaps: &[Missing], out: &Output) -> anyhow::Result<()> {
    let row = |gap: &Missing| {
        let bytes = size(gap.to_lsn.bytes_since(gap.from_lsn));
        [gap.timeline.to_string(), format!("{} to {}", gap.from_lsn, gap.to_lsn), bytes, gap.reason.clone()]
    };
    let rows: Vec<_> = gaps.iter().map(row).collect();
    table([">timeline", "positions", ">size", "what is known"], &rows, out)
}

fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]], out: &Output) -> anyhow::Result<()> {
    if rows.is_empty() { Ok(()) } else { out.table(headings, rows) }
}
