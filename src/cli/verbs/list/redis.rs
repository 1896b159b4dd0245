//! What is archived of a Redis instance: snapshots, the moments that can be restored, and gaps in the stream.

use anyhow::Context;
use jiff::Timestamp;

use crate::cli::context::CliContext;
use crate::cli::open;
use crate::cli::show::list::redis::{InstanceInventory, InstanceWindow, ListedGap, ListedSnapshot};
use crate::config::{self, Config};
use crate::redis::archive::{Archive, SnapshotManifest, StreamStretch, remove_foreign_snapshots, unrecorded_intervals};
use crate::redis::wire::ReplicationId;

pub(in crate::cli) async fn read_inventory(
    config: &Config,
    of: &config::InstanceConfig,
    around: &CliContext,
) -> anyhow::Result<InstanceInventory> {
    let instance = open::open_instance(config, of, around).await?;
    build_inventory(&instance).await.with_context(|| format!("cannot list what is archived of {}", of.name))
}

async fn build_inventory(instance: &Archive) -> anyhow::Result<InstanceInventory> {
    instance.list_known_stretches().await?.unreachable().log_warnings();
    let (mut snapshots, gaps) = (instance.read_snapshots().await?, instance.gaps().await?);
    let mut lacking = instance.find_missing_parts(&snapshots).await?;
    let backup = |snapshot: &SnapshotManifest| ListedSnapshot {
        lacks: lacking.remove(&snapshot.label),
        ..ListedSnapshot::from_manifest(snapshot)
    };
    let backups: Vec<ListedSnapshot> = snapshots.iter().map(backup).collect();
    // What a restore to a moment goes by.
    remove_foreign_snapshots(&mut snapshots);
    let is_whole = |label: &str| backups.iter().any(|backup| backup.label == label && backup.lacks.is_none());
    snapshots.retain(|snapshot| is_whole(&snapshot.label));
    snapshots.sort_by_key(|snapshot| snapshot.at);
    let mut windows: Vec<InstanceWindow> = Vec::new();
    let (mut ways, mut holes) = (Vec::<(Timestamp, Vec<StreamStretch>)>::new(), Vec::new());
    for snapshot in &snapshots {
        let known = ways.last().is_some_and(|(end, way)| {
            let on = |stretch: &StreamStretch| {
                let offsets = stretch.first..=stretch.last;
                Some(stretch.replid) == snapshot.replid && snapshot.offset.is_some_and(|at| offsets.contains(&at))
            };
            snapshot.at <= *end && way.iter().any(on)
        });
        if !known {
            let (way, hole) = instance.stretches_and_hole_after(snapshot).await?;
            holes.extend(hole.filter(|hole| !hole.is_explained(&snapshots, &gaps)).map(|hole| hole.to_string()));
            windows.extend(restorable_windows(snapshot, &way));
            ways.push((windows.last().map_or(snapshot.at, |window| window.to_time), way));
        }
    }
    let gap = |gap: crate::redis::archive::Gap| ListedGap {
        replid: gap.replid.to_string(),
        offset: gap.offset,
        from_time: gap.until,
        noticed_at: gap.noticed_at,
        reason: gap.reason,
    };
    Ok(InstanceInventory {
        instance: instance.name().to_string(),
        flavour: instance.identity().await?.map(|identity| identity.flavour.to_string()),
        backups,
        windows,
        holes,
        gaps: gaps.into_iter().map(gap).collect(),
        stream_stored_bytes: instance.stored_stretches().await?.iter().map(|listed| listed.stored_bytes).sum(),
    })
}

/// The moments to which a snapshot and the stream behind it lead: one window, or several where nobody received for a
/// while.
fn restorable_windows(snapshot: &SnapshotManifest, way: &[StreamStretch]) -> Vec<InstanceWindow> {
    let end = way.iter().map(|stretch| stretch.ended_at).max().unwrap_or(snapshot.at).max(snapshot.at);
    let mut windows = Vec::new();
    let mut from = (snapshot.at, snapshot.offset);
    let mut close = |from: (Timestamp, Option<u64>), to_time, to: (Option<ReplicationId>, Option<u64>)| {
        // Of nothing but the snapshot's own moment, which stands among the backups.
        if from.0 < to_time || way.is_empty() {
            let ((from_time, from_offset), (replid, to_offset)) = (from, to);
            let replid = replid.map(|id| id.to_string());
            windows.push(InstanceWindow { from_time, to_time, from_offset, to_offset, replid });
        }
    };
    for (to, again) in unrecorded_intervals(snapshot, way) {
        close(from, to, position_at(snapshot, way, to));
        from = (again, position_at(snapshot, way, again).1);
    }
    let last = way.last().map(|stretch| (Some(stretch.replid), Some(stretch.last)));
    close(from, end, last.unwrap_or((snapshot.replid, snapshot.offset)));
    windows
}

/// How far the stream had come by a time.
fn position_at(
    snapshot: &SnapshotManifest,
    way: &[StreamStretch],
    time: Timestamp,
) -> (Option<ReplicationId>, Option<u64>) {
    let marks = way.iter().flat_map(|stretch| stretch.marks.iter().map(move |mark| (stretch.replid, mark)));
    let marks = marks.filter(|(_, mark)| Some(mark.offset) > snapshot.offset);
    let last = marks.take_while(|(_, mark)| mark.time <= time).last();
    last.map_or((snapshot.replid, snapshot.offset), |(replid, mark)| (Some(replid), Some(mark.offset)))
}
