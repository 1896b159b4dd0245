//! What an archive holds, and to which moments it can restore: what `walkeep list` shows.
//!
//! [`build_inventory`] is pure: backups, histories, recorded gaps and the index come in, windows and gaps go out.
//! [`gather_inventory`] fetches those.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use jiff::Timestamp;

use futures_util::{StreamExt as _, TryStreamExt as _, future::ready, stream};

use super::gap::Gap;
use super::lookup::SegmentSource as _;
use super::manifest::BackupSummary;
use super::reindex::{ArchiveSegments, ReindexError};
use super::spool::Spool;
use super::timeline_tail;
use super::unfinished::{BeginningContext, UnfinishedSegment, segments_of_pieces};
use super::{Archive, ArchiveError};
use crate::base::blocking::run_blocking;
use crate::postgres::archive::layout::ClusterObject;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentNo, SegmentSize, SystemId};
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{TimelineHistory, TimelineId, TimelinePath};
use crate::postgres::index::key_value_store::ScanOrder;
use crate::postgres::index::{
    self, IndexEntry, IndexView, PathSearch, PathSegment, SegmentFilter, SegmentId, SegmentsByTimeline, WalDefect,
    WalHole, WalIndex, WalkNext, WalkStep,
};
use crate::vault;
use crate::vault::seal::SealedKind;

/// One cluster's archive.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct ArchiveInventory {
    /// The cluster's name.
    pub cluster: String,
    /// Its system identifier; none before its first segment.
    pub system_id: Option<SystemId>,
    /// The size of its segments.
    pub segment_size: Option<SegmentSize>,
    /// Its backups, oldest first.
    pub backups: Vec<InventoryBackup>,
    /// The stretches that can be restored to, by timeline and position.
    pub windows: Vec<RecoveryWindow>,
    /// Its timelines.
    pub timelines: Vec<InventoryTimeline>,
    /// The way to the newest of them.
    #[serde(skip)]
    pub path: TimelinePath,
    /// Log that is missing or damaged, by timeline and position.
    pub gaps: Vec<MissingWal>,
    /// Bytes of all segments' objects.
    pub wal_stored_bytes: u64,
    /// Bytes that all backups' packs took.
    pub backup_stored_bytes: u64,
}

/// A backup.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct InventoryBackup {
    /// Its name.
    pub label: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When its last byte had been read.
    pub finished_at: Timestamp,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// From where on it is consistent.
    pub stop_lsn: Lsn,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Bytes of its files.
    pub logical_bytes: u64,
    /// Bytes that were stored for it.
    pub stored_bytes: u64,
    /// The server's version.
    pub server_version: String,
    /// Whether the log it needs to become consistent is there, and nothing of it is missing or damaged.
    pub restorable: bool,
    /// What is missing in it or damaged, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defects: Option<String>,
}

/// A stretch of log, every point of which can be restored to.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct RecoveryWindow {
    /// The oldest moment: no transaction up to the backup's end committed later. None where none committed.
    pub from_time: Option<PgTime>,
    /// The newest commit or abort in it. A time to restore to must be before it; a restore without a target goes to the
    /// very end.
    pub to_time: Option<PgTime>,
    /// The end of the oldest backup.
    pub from_lsn: Lsn,
    /// Where the log that follows it without a hole ends.
    pub to_lsn: Lsn,
    /// The timeline it leads to.
    pub timeline: TimelineId,
    /// The backups it can be restored from.
    pub backups: Vec<String>,
}

/// A timeline.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct InventoryTimeline {
    /// Its number.
    pub timeline: TimelineId,
    /// The one it forked from.
    pub parent: Option<TimelineId>,
    /// Where it forked off.
    pub begin_lsn: Option<Lsn>,
    /// Why, in the server's words.
    pub reason: Option<String>,
    /// The first byte of log archived on it.
    pub from_lsn: Option<Lsn>,
    /// The end of the log archived on it.
    pub to_lsn: Option<Lsn>,
    /// Segments archived on it.
    pub segments: u64,
    /// Bytes of their objects.
    pub stored_bytes: u64,
}

/// Log that is not there, or damaged.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct MissingWal {
    /// The timeline it is looked for on.
    pub timeline: TimelineId,
    /// Where it begins.
    pub from_lsn: Lsn,
    /// Where it ends.
    pub to_lsn: Lsn,
    /// What is known of it.
    pub reason: String,
    /// When it was noticed, if it was recorded.
    pub noticed_at: Option<Timestamp>,
}

/// What an overview is made from.
#[derive(Clone, Copy)]
pub struct InventoryInput<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// Its identity.
    pub identity: Option<super::ArchiveIdentity>,
    /// Its backups, in any order.
    pub backups: &'a [BackupSummary],
    /// The archived histories.
    pub histories: &'a [TimelineHistory],
    /// The recorded gaps.
    pub gaps: &'a [Gap],
    /// The largest time at which a transaction ended in what a path takes from a segment that it leaves before its end.
    pub latest_time_in_cut_segment: &'a LatestTimeInCutSegment<'a>,
}

/// See [`InventoryInput::latest_time_in_cut_segment`].
pub type LatestTimeInCutSegment<'a> = dyn Fn(&PathSegment) -> Option<PgTime> + 'a;

impl std::fmt::Debug for InventoryInput<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents")
            .field("cluster", &self.cluster)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// What can be said of such a segment by its summary alone: no more than that nothing is known.
#[must_use]
pub fn no_time_in_cut_segment(_: &PathSegment) -> Option<PgTime> {
    None
}

/// What is read from a repository at the same time, where many small objects are wanted.
const READS_IN_FLIGHT: usize = 16;

/// Fetches what there is, in the repositories and in this machine's spool, and makes the overview of it.
///
/// # Errors
/// What index or repository say.
pub async fn gather_inventory(
    archive: &Arc<Archive>,
    index: &Arc<WalIndex>,
    spool: Option<Spool>,
) -> Result<ArchiveInventory, ReindexError> {
    gather_inventory_without(archive, index, spool, SegmentsByTimeline::new()).await
}

/// The same, as if the index did not have the segments `gone`.
pub(super) async fn gather_inventory_without(
    archive: &Arc<Archive>,
    index: &Arc<WalIndex>,
    spool: Option<Spool>,
    gone: SegmentsByTimeline,
) -> Result<ArchiveInventory, ReindexError> {
    let identity = archive.identity().await?;
    let (backups, histories, gaps) =
        (backup_summaries(archive).await?, timeline_histories(archive).await?, archive.gaps().await?);
    let growing = unfinished_segments(archive, index, spool, &histories).await?;
    let (cluster, index) = (archive.cluster().to_string(), Arc::clone(index));
    let size = identity.map_or(SegmentSize::DEFAULT, |identity| identity.segment_size);
    let shelf = ArchiveSegments::new(Arc::clone(archive), tokio::runtime::Handle::current(), size);
    let made = run_blocking(move || {
        let laid_over = growing.iter().map(|segment| IndexEntry { digest: &segment.digest, stored: 0 });
        let view = index.view_without(&cluster, &gone, laid_over)?;
        let shelf = shelf.with_unfinished(growing.clone());
        let cut = |stretch: &PathSegment| {
            let digest =
                shelf.digest(stretch.place).inspect_err(|error| tracing::warn!(%error, "cannot look into a segment"));
            let endings = digest.ok()?.endings.clone();
            endings.iter().filter(|ending| ending.end_lsn <= stretch.to).map(|ending| ending.time).max()
        };
        let (backups, histories, gaps) = (&backups, &histories, &gaps);
        build_inventory(
            &view,
            InventoryInput { cluster: &cluster, identity, backups, histories, gaps, latest_time_in_cut_segment: &cut },
        )
    });
    Ok(made.await??)
}

/// Segments that are not archived whole and are restored all the same, as far as there is anything of them
/// ([`Archive::segment_beginning`]).
///
/// # Errors
/// What index, repository or spool say.
pub async fn unfinished_segments(
    archive: &Arc<Archive>,
    index: &Arc<WalIndex>,
    spool: Option<Spool>,
    histories: &[TimelineHistory],
) -> Result<Vec<UnfinishedSegment>, ReindexError> {
    let Some(identity) = archive.identity().await? else { return Ok(Vec::new()) };
    let size = identity.segment_size;
    let (index, cluster, known) = (Arc::clone(index), archive.cluster().to_string(), histories.to_vec());
    let mut names = segments_of_pieces(&archive.list_pieces(None).await?, size);
    names.extend(archive.list_tails(None).await?.into_iter().map(|(name, _)| name));
    let spooled = spool.clone();
    let looked = run_blocking(move || {
        let view = index.view(&cluster)?;
        if let Some(spool) = spooled {
            names.extend(spool.list_segments().map_err(|error| vault::VaultError::Spool(Arc::new(error)))?);
        }
        names.extend(timeline_tail::unfinished_tails(&view, &known)?);
        names.sort_unstable();
        names.dedup();
        let mut missing = Vec::new();
        for name in names {
            let place = name.number(size).map(|segment| SegmentId { timeline: name.timeline(), segment });
            if let Some(place) = place
                && !view.contains(place)?
            {
                missing.push(name);
            }
        }
        Ok::<_, ReindexError>(missing)
    });
    let context = BeginningContext { spool: spool.as_ref(), size, histories };
    Ok(archive.unfinished(context, &looked.await??, identity).await?)
}

/// The summaries of all backups, oldest first. One that cannot be read is left out with a warning: the others are as
/// good as before.
///
/// # Errors
/// The repositories could not be asked.
pub async fn backup_summaries(archive: &Archive) -> Result<Vec<BackupSummary>, ArchiveError> {
    let listing = archive.vault().list(&archive.layout().backups(), None).await?;
    let keys = listing.objects.into_iter().filter_map(|object| match archive.layout().object_of_key(&object.key) {
        Some(ClusterObject::Backup(label)) => Some((label, object.key)),
        _ => None,
    });
    let read = stream::iter(keys).map(|(label, key)| async move {
        let summary = match archive.vault().get_trailer(SealedKind::Manifest, &key).await {
            Ok(Some(trailer)) => BackupSummary::from_bytes(trailer.metadata()).map_err(|error| error.to_string()),
            Ok(None) => return Ok(None),
            Err(error) if error.is_integrity() => Err(error.to_string()),
            Err(error) => return Err(ArchiveError::from(error)),
        };
        let warned = summary.inspect_err(|error| tracing::warn!(label, error, "this backup cannot be used"));
        Ok(warned.ok())
    });
    read.buffered(READS_IN_FLIGHT).try_filter_map(|found| ready(Ok(found))).try_collect().await
}

/// The histories of all timelines that have one. One that cannot be read is left out with a warning.
///
/// # Errors
/// The repositories could not be asked.
pub async fn timeline_histories(archive: &Archive) -> Result<Vec<TimelineHistory>, ArchiveError> {
    let read = stream::iter(archive.timelines().await?).map(|timeline| async move {
        match archive.history(timeline).await {
            Err(error) if error.is_integrity() => {
                tracing::warn!(%timeline, %error, "this history cannot be used");
                Ok(None)
            }
            read => read,
        }
    });
    read.buffered(READS_IN_FLIGHT).try_filter_map(|found| ready(Ok(found))).try_collect().await
}

/// Makes the overview.
///
/// # Errors
/// What the index says.
pub fn build_inventory(
    view: &IndexView<'_>,
    contents: InventoryInput<'_>,
) -> Result<ArchiveInventory, index::IndexError> {
    let paths = timeline_paths(view, contents.histories);
    let mut windows = Vec::new();
    let mut gaps: BTreeMap<(TimelineId, Lsn, Lsn), MissingWal> = BTreeMap::new();
    let mut timelines = Vec::new();
    for path in &paths {
        let history = contents.histories.iter().find(|history| history.timeline == path.target());
        timelines.push(inventory_timeline(view, path, history)?);
        let Some(along) = PathSearch::new(view, path) else { continue };
        windows.extend(windows_along(&along, path, &contents)?);
        for hole in holes_along(&along)? {
            gaps.insert((hole.timeline, hole.from, hole.to), missing_wal(&hole, contents.gaps));
        }
    }
    // What was lost at the end, or before the first segment, lies between no two segments.
    for path in &paths {
        let Some(along) = PathSearch::new(view, path) else { continue };
        for gap in contents.gaps.iter().filter(|gap| gap.timeline == path.target()) {
            let seen = gaps
                .values()
                .any(|seen| seen.timeline == gap.timeline && seen.from_lsn < gap.end && gap.start < seen.to_lsn);
            if !seen && let Some(hole) = along.first_hole(gap.start, gap.end)?.holes.first() {
                gaps.insert((hole.timeline, hole.from, hole.to), missing_wal(hole, contents.gaps));
            }
        }
    }
    let windows = without_repeated_windows(windows, &paths);
    let restorable = |label: &String| windows.iter().any(|window| window.backups.contains(label));
    let mut backups: Vec<InventoryBackup> =
        contents.backups.iter().map(|summary| inventory_backup(summary, restorable(&summary.label))).collect();
    backups.sort_by(|a, b| a.label.cmp(&b.label));
    Ok(ArchiveInventory {
        cluster: contents.cluster.to_owned(),
        system_id: contents.identity.map(|identity| identity.system_id),
        segment_size: contents.identity.map(|identity| identity.segment_size),
        backup_stored_bytes: contents.backups.iter().map(|summary| summary.stored_bytes).sum(),
        wal_stored_bytes: timelines.iter().map(|timeline| timeline.stored_bytes).sum(),
        backups,
        windows,
        timelines,
        path: paths.last().cloned().unwrap_or_else(TimelinePath::first),
        gaps: gaps.into_values().collect(),
    })
}

/// The path to each timeline that has log or a history, the newest last.
fn timeline_paths(view: &IndexView<'_>, histories: &[TimelineHistory]) -> Vec<TimelinePath> {
    let mut known: BTreeMap<TimelineId, TimelinePath> = BTreeMap::new();
    for timeline in view.timelines() {
        // Without its history nothing is known of where it came from: it stands alone.
        known.insert(*timeline, TimelineHistory { timeline: *timeline, entries: Vec::new() }.path());
    }
    for history in histories {
        known.insert(history.timeline, history.path());
    }
    for path in known.values_mut() {
        *path = path.clone().with_departures(histories);
    }
    known.into_values().collect()
}

fn inventory_backup(summary: &BackupSummary, restorable: bool) -> InventoryBackup {
    InventoryBackup {
        label: summary.label.clone(),
        started_at: summary.started_at,
        finished_at: summary.finished_at,
        start_lsn: summary.start_lsn,
        stop_lsn: summary.stop_lsn,
        timeline: summary.timeline,
        logical_bytes: summary.logical_bytes,
        stored_bytes: summary.stored_bytes,
        server_version: summary.server_version.clone(),
        restorable,
        defects: (!summary.defects.is_empty()).then(|| summary.defects.to_string()),
    }
}

fn inventory_timeline(
    view: &IndexView<'_>,
    path: &TimelinePath,
    history: Option<&TimelineHistory>,
) -> Result<InventoryTimeline, index::IndexError> {
    let own = path.target();
    let before = path.spans().iter().rev().nth(1);
    let mut found = InventoryTimeline {
        timeline: own,
        parent: before.map(|span| span.timeline),
        begin_lsn: before.and_then(|span| span.end),
        reason: history.and_then(|history| history.entries.last()).map(|entry| entry.reason.clone()),
        from_lsn: None,
        to_lsn: None,
        segments: 0,
        stored_bytes: 0,
    };
    let (first, last) = (SegmentNo::new(0), SegmentNo::new(u64::MAX));
    view.walk_blocks(own, first, last, ScanOrder::Forward, &mut |at, block| {
        found.segments = found.segments.saturating_add(block.segments);
        let stored = match block.full {
            Some(full) => full.stored,
            None => {
                let sizes = view.summaries(own, at.first(), at.end(), ScanOrder::Forward);
                sizes.map(|found| Ok(found?.1.stored)).sum::<Result<u64, index::IndexError>>()?
            }
        };
        found.stored_bytes = found.stored_bytes.saturating_add(stored);
        Ok(ControlFlow::Continue(WalkNext::Next))
    })?;
    let end = |order| view.summaries(own, first, last, order).next().transpose();
    found.from_lsn = end(ScanOrder::Forward)?.map(|(_, summary)| summary.digest.start());
    found.to_lsn = end(ScanOrder::Backward)?.map(|(_, summary)| summary.digest.valid_until);
    Ok(found)
}

/// The windows along one path: for each backup from where it is consistent to the end of the log that follows; those
/// that touch are one.
fn windows_along(
    along: &PathSearch<'_>,
    path: &TimelinePath,
    contents: &InventoryInput<'_>,
) -> Result<Vec<RecoveryWindow>, index::IndexError> {
    let on_path = |backup: &&BackupSummary| {
        backup.defects.is_empty()
            && path.contains(backup.timeline, backup.start_lsn)
            && path.contains(backup.timeline, backup.stop_lsn)
    };
    let mut backups: Vec<&BackupSummary> = contents.backups.iter().filter(on_path).collect();
    backups.sort_by_key(|backup| (backup.stop_lsn, backup.start_lsn));
    let mut windows: Vec<RecoveryWindow> = Vec::new();
    for backup in backups {
        // The newest backups lie in a stretch that is known to be whole already.
        let known =
            windows.last().filter(|window| window.from_lsn <= backup.start_lsn && backup.stop_lsn <= window.to_lsn);
        let end = match known {
            Some(window) => window.to_lsn,
            None => end_of_readable_wal(along, backup.start_lsn)?,
        };
        if end < backup.stop_lsn {
            continue;
        }
        match windows.last_mut().filter(|window| backup.stop_lsn <= window.to_lsn) {
            Some(window) => {
                window.to_lsn = window.to_lsn.max(end);
                window.backups.push(backup.label.clone());
            }
            None => windows.push(RecoveryWindow {
                from_time: latest_ending_time(along, backup.start_lsn, backup.stop_lsn, &|stretch| {
                    stretch.summary.latest
                })?,
                to_time: None,
                from_lsn: backup.stop_lsn,
                to_lsn: end,
                timeline: path.target(),
                backups: vec![backup.label.clone()],
            }),
        }
    }
    for window in &mut windows {
        window.to_time =
            latest_ending_time(along, window.from_lsn, window.to_lsn, contents.latest_time_in_cut_segment)?
                .or(window.from_time);
    }
    Ok(windows)
}

/// Where the log that can be read from `from` on ends.
fn end_of_readable_wal(along: &PathSearch<'_>, from: Lsn) -> Result<Lsn, index::IndexError> {
    Ok(along.first_hole(from, Lsn::MAX)?.holes.first().map_or(Lsn::MAX, |hole| hole.from))
}

/// The largest time at which a transaction ended in the segments of a stretch. Of a segment that the path leaves before
/// its end, `cut` says it.
fn latest_ending_time(
    along: &PathSearch<'_>,
    from: Lsn,
    to: Lsn,
    cut: &LatestTimeInCutSegment<'_>,
) -> Result<Option<PgTime>, index::IndexError> {
    let mut latest = None;
    along.walk_blocks(from, to, |step| {
        let in_it = match step {
            WalkStep::Block(block) => block.latest,
            WalkStep::Segment(stretch) if stretch.to == stretch.summary.digest.end() => stretch.summary.latest,
            WalkStep::Segment(stretch) => cut(&stretch),
        };
        latest = latest.max(in_it);
        ControlFlow::Continue(WalkNext::Next)
    })?;
    Ok(latest)
}

/// Leaves out windows that end before their timeline does anything of its own, where a longer one on another timeline
/// begins the same way.
fn without_repeated_windows(windows: Vec<RecoveryWindow>, paths: &[TimelinePath]) -> Vec<RecoveryWindow> {
    let path = |timeline: TimelineId| paths.iter().find(|path| path.target() == timeline);
    let within = |small: &RecoveryWindow, large: &RecoveryWindow| {
        let switch = path(large.timeline).and_then(|path| path.switch_point(small.timeline));
        small.timeline != large.timeline
            && switch.is_some_and(|switch| small.to_lsn <= switch)
            && large.from_lsn <= small.from_lsn
            && small.to_lsn <= large.to_lsn
    };
    windows.iter().filter(|small| !windows.iter().any(|large| within(small, large))).cloned().collect()
}

/// What is missing or damaged between the first and the last segment along a path.
fn holes_along(along: &PathSearch<'_>) -> Result<Vec<WalHole>, index::IndexError> {
    let first = along.next_segment(SegmentNo::new(0), SegmentFilter::Any)?;
    let last = along.previous_segment(SegmentNo::new(u64::MAX), SegmentFilter::Any)?;
    let Some((first, last)) = first.zip(last) else { return Ok(Vec::new()) };
    // The log of the last segment may just stop.
    let digest = &last.summary.digest;
    let end = if digest.switched { last.to } else { last.to.min(digest.valid_until) };
    let mut holes: Vec<WalHole> = Vec::new();
    for hole in along.continuity(first.from, end)?.holes {
        // The rest of a segment whose beginning is there, and the segments after it, are missing as one.
        match holes.last_mut().filter(|last| is_continued_by(last, &hole)) {
            Some(last) => last.to = hole.to,
            None => holes.push(hole),
        }
    }
    Ok(holes)
}

fn is_continued_by(one: &WalHole, next: &WalHole) -> bool {
    one.to == next.from && one.timeline == next.timeline && one.why == WalDefect::Missing && next.why == one.why
}

/// A hole, in the words of the record that tells of it, if one does.
fn missing_wal(hole: &WalHole, recorded: &[Gap]) -> MissingWal {
    let told = recorded.iter().find(|gap| gap.timeline == hole.timeline && gap.start < hole.to && hole.from < gap.end);
    let reason = match (&hole.why, told) {
        (WalDefect::Missing, Some(gap)) => gap.reason.clone(),
        (WalDefect::Missing, None) => "not archived".to_owned(),
        (why, _) => why.to_string(),
    };
    MissingWal {
        timeline: hole.timeline,
        from_lsn: hole.from,
        to_lsn: hole.to,
        reason,
        noticed_at: told.map(|gap| gap.noticed_at),
    }
}

#[cfg(test)]
mod tests {
    use super::{ArchiveInventory, InventoryInput, PathSegment, build_inventory};
    use crate::postgres::archive::gap::Gap;
    use crate::postgres::archive::manifest::{BackupSummary, sample_summary};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::segment::SegmentNo;
    use crate::postgres::format::timeline::{HistoryEntry, TimelineHistory};
    use crate::postgres::index::IndexView;
    use crate::postgres::index::test_archive::{CLUSTER_NAME, FIRST_SEGMENT, TestArchive, any_recipe};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    /// The histories of the timelines on a world's path.
    fn histories(world: &TestArchive) -> Vec<TimelineHistory> {
        let spans = world.path.spans();
        let entries: Vec<HistoryEntry> = spans
            .iter()
            .filter_map(|span| Some(HistoryEntry { timeline: span.timeline, end: span.end?, reason: String::new() }))
            .collect();
        (1..spans.len())
            .map(|at| TimelineHistory { timeline: spans[at].timeline, entries: entries[..at].to_vec() })
            .collect()
    }

    fn backup(world: &TestArchive, number: usize, start: Lsn, stop: Lsn) -> BackupSummary {
        let timeline = world.path.timeline_at(start);
        BackupSummary { label: format!("b{number}"), start_lsn: start, stop_lsn: stop, timeline, ..sample_summary() }
    }

    fn made(world: &TestArchive, backups: &[BackupSummary], gaps: &[Gap]) -> ArchiveInventory {
        let memory = world.index(5);
        let view = IndexView::new(&memory, CLUSTER_NAME).unwrap();
        let histories = histories(world);
        // As the digests have it.
        let cut = |stretch: &PathSegment| {
            let digest = world.digest(stretch.place).unwrap();
            digest.endings.iter().filter(|ending| ending.end_lsn <= stretch.to).map(|ending| ending.time).max()
        };
        let contents = InventoryInput {
            cluster: CLUSTER_NAME,
            identity: None,
            backups,
            histories: &histories,
            gaps,
            latest_time_in_cut_segment: &cut,
        };
        build_inventory(&view, contents).unwrap()
    }

    proptest! {
        #[test]
        fn a_position_is_in_a_window_if_a_backup_and_all_log_since_are_there(
            recipe in any_recipe(), starts in proptest::collection::vec((0..96_u64, 1..12_u64), 0..4), probe in 0..110_u64, twice in any::<bool>(),
        ) {
            let world = recipe.build();
            let eighth = world.size.get() / 8;
            let at = |eighths: u64| SegmentNo::new(FIRST_SEGMENT).start(world.size).saturating_add(eighths * eighth);
            let mut backups: Vec<BackupSummary> = starts
                .iter()
                .enumerate()
                .map(|(number, (start, len))| backup(&world, number, at(*start), at(start + len)))
                // One that was running when its timeline ended is none.
                .filter(|backup| world.path.contains(backup.timeline, backup.stop_lsn))
                .collect();
            if twice {
                backups.extend(backups.clone());
            }
            let overview = made(&world, &backups, &[]);
            let segments = world.segments();
            let whole = |from: Lsn, to: Lsn| {
                let mut reached = from;
                while reached < to {
                    match segments.iter().find(|(place, end)| place.segment.start(world.size) <= reached && reached < *end) {
                        Some((_, end)) => reached = *end,
                        None => return false,
                    }
                }
                true
            };
            let probe = at(probe);
            let expected = backups.iter().any(|backup| backup.stop_lsn <= probe && whole(backup.start_lsn, probe));
            let target = world.path.target();
            let windows: Vec<_> = overview.windows.iter().filter(|window| window.timeline == target).collect();
            let found = windows.iter().filter(|window| window.from_lsn <= probe && probe <= window.to_lsn).count();
            prop_assert_eq!(found, usize::from(expected), "{:?}", windows);
            for backup in &overview.backups {
                prop_assert_eq!(backup.restorable, whole(backup.start_lsn, backup.stop_lsn));
            }
            for window in &windows {
                let times = world.endings().into_iter().filter(|ending| ending.lsn >= window.from_lsn && ending.lsn < window.to_lsn);
                let newest = times.map(|ending| ending.time).max();
                prop_assert!(window.to_time >= newest);
            }
        }
    }

    #[test]
    fn a_gap_is_shown_in_the_words_of_its_record_until_it_is_filled() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut world = proptest::strategy::ValueTree::current(
            &proptest::strategy::Strategy::new_tree(&any_recipe(), &mut runner).unwrap(),
        )
        .build();
        let timeline = crate::postgres::format::timeline::TimelineId::FIRST;
        let segment = |number| {
            crate::postgres::index::test_archive::digest(timeline, SegmentNo::new(number), world.size, Vec::new())
        };
        world.digests = vec![segment(3), segment(4), segment(6)];
        world.path = crate::postgres::format::timeline::TimelinePath::first();
        let start = |number| SegmentNo::new(number).start(world.size);
        let gap = |from, to, reason: &str| Gap {
            timeline,
            start: start(from),
            end: start(to),
            noticed_at: jiff::Timestamp::UNIX_EPOCH,
            reason: reason.to_owned(),
        };
        let gaps = [gap(5, 6, "the slot was lost"), gap(3, 4, "filled since"), gap(7, 9, "lost at the end")];
        let found = made(&world, &[], &gaps).gaps;
        let told: Vec<_> = found.iter().map(|gap| (gap.from_lsn, gap.to_lsn, gap.reason.as_str())).collect();
        assert_eq!(told, [(start(5), start(6), "the slot was lost"), (start(7), start(9), "lost at the end")]);
        let unexplained = made(&world, &[], &[]).gaps;
        assert_eq!(unexplained.iter().map(|gap| gap.reason.as_str()).collect::<Vec<_>>(), ["not archived"]);
    }

    #[test]
    fn a_timeline_left_behind_is_shown_where_it_leads_elsewhere() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut world = proptest::strategy::ValueTree::current(
            &proptest::strategy::Strategy::new_tree(&any_recipe(), &mut runner).unwrap(),
        )
        .build();
        let timeline = |number| crate::postgres::format::timeline::TimelineId::new(number).unwrap();
        let segment = |on, number| {
            crate::postgres::index::test_archive::digest(timeline(on), SegmentNo::new(number), world.size, Vec::new())
        };
        let start = |number| SegmentNo::new(number).start(world.size);
        let fork = HistoryEntry { timeline: timeline(1), end: start(5), reason: String::new() };
        world.path = TimelineHistory { timeline: timeline(2), entries: vec![fork] }.path();
        world.digests = vec![segment(1, 3), segment(1, 4), segment(2, 5), segment(2, 6)];
        let backups = [backup(&world, 1, start(3), start(4))];
        let windows = made(&world, &backups, &[]).windows;
        assert_eq!(
            windows.iter().map(|window| window.timeline.get()).collect::<Vec<_>>(),
            [2],
            "timeline 1 leads nowhere else"
        );
        world.digests.push(segment(1, 5));
        let ArchiveInventory { windows, path, .. } = made(&world, &backups, &[]);
        let ends: Vec<_> = windows.iter().map(|window| (window.timeline.get(), window.to_lsn)).collect();
        assert_eq!(ends, [(1, start(6)), (2, start(7))]);
        assert_eq!(path.spans(), world.path.spans(), "the way to the newest");
    }
}
