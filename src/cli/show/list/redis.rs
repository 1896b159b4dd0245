//! `walkeep list redis`: snapshots, the moments that can be restored, and breaks in the stream.

use anyhow::Context;
use jiff::Timestamp;

use crate::cli::CliContext;
use crate::cli::open;
use crate::cli::show::output::{TerminalOutput, TextTone, format_bytes, format_number};
use crate::config::{self, Config};
use crate::postgres::format::time::PgTime;
use crate::redis::archive::{Archive, SnapshotManifest, StreamStretch, remove_foreign_snapshots, unrecorded_intervals};
use crate::redis::wire::ReplicationId;

/// What `--json` prints of an instance.
#[derive(serde::Serialize)]
pub(in crate::cli) struct InstanceInventory {
    instance: String,
    flavour: Option<String>,
    backups: Vec<ListedSnapshot>,
    windows: Vec<InstanceWindow>,
    gaps: Vec<ListedGap>,
    /// What is missing between what is archived, and was not noticed when it came about.
    holes: Vec<String>,
    stream_stored_bytes: u64,
}

/// A snapshot; also what `backup redis --json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct ListedSnapshot {
    label: String,
    at: Timestamp,
    started_at: Timestamp,
    finished_at: Timestamp,
    server: String,
    flavour: String,
    version: String,
    rdb_version: u32,
    replid: Option<String>,
    offset: Option<u64>,
    keys: u64,
    logical_bytes: u64,
    stored_bytes: u64,
    warnings: Vec<String>,
    /// Why it cannot be restored.
    lacks: Option<String>,
}

impl ListedSnapshot {
    pub(in crate::cli) fn from_manifest(snapshot: &SnapshotManifest) -> ListedSnapshot {
        ListedSnapshot {
            label: snapshot.label.clone(),
            at: snapshot.at,
            started_at: snapshot.started_at,
            finished_at: snapshot.finished_at,
            server: format!("{} {}", snapshot.flavour, snapshot.version),
            flavour: snapshot.flavour.to_string().to_lowercase(),
            version: snapshot.version.clone(),
            rdb_version: snapshot.walk.version,
            replid: snapshot.replid.map(|id| id.to_string()),
            offset: snapshot.offset,
            keys: snapshot.walk.keys(),
            logical_bytes: snapshot.logical_bytes,
            stored_bytes: snapshot.stored_bytes,
            warnings: snapshot.walk.warnings(),
            lacks: None,
        }
    }
}

/// Every moment between is restorable.
#[derive(serde::Serialize)]
struct InstanceWindow {
    from_time: Timestamp,
    to_time: Timestamp,
    from_offset: Option<u64>,
    to_offset: Option<u64>,
    replid: Option<String>,
}

#[derive(serde::Serialize)]
struct ListedGap {
    replid: String,
    offset: u64,
    from_time: Option<Timestamp>,
    noticed_at: Timestamp,
    reason: String,
}

impl InstanceInventory {
    /// Whether nothing is archived under the name.
    pub(in crate::cli) const fn is_empty(&self) -> bool {
        self.flavour.is_none() && self.backups.is_empty()
    }
}

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
        stream_stored_bytes: instance.stored_stretches().await?.iter().map(|(_, _, stored)| stored).sum(),
    })
}

/// The moments to which a snapshot and the stream behind it lead: one window, or several where nobody received for a while.
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

pub(in crate::cli) fn print_inventory(overview: &InstanceInventory, out: &TerminalOutput) -> anyhow::Result<()> {
    let time = |time: Timestamp| out.format_short_time(PgTime::from_timestamp(time));
    let what = match (&overview.flavour, overview.is_empty()) {
        (Some(flavour), _) => flavour,
        (None, true) => "nothing is archived yet",
        (None, false) => "its identity is missing: see walkeep verify",
    };
    out.print_line(format!(
        "{}  {}",
        out.style(TextTone::Strong, &overview.instance),
        out.style(TextTone::Quiet, what)
    ))?;
    if overview.is_empty() {
        return Ok(());
    }
    let heading = |title: &str, empty: bool, instead: &str| {
        let title = out.style(TextTone::Strong, title);
        out.print_line(if empty { format!("\n{title}: {instead}") } else { format!("\n{title}") })
    };
    let instead =
        if overview.backups.is_empty() { "no: there is no snapshot yet" } else { "no: there is no whole snapshot" };
    heading("Can be restored to any moment", overview.windows.is_empty(), instead)?;
    let rows: Vec<_> = overview
        .windows
        .iter()
        .map(|window| {
            let offsets = window.from_offset.zip(window.to_offset);
            let offsets = offsets.map_or_else(|| "-".to_owned(), |(from, to)| format!("{from} to {to}"));
            let exact = |time: Timestamp| out.format_time(PgTime::from_timestamp(time));
            let (from, to) = match whole_seconds(window) {
                Some((from, to)) => (time(from), time(to)),
                None => (exact(window.from_time), exact(window.to_time)),
            };
            [from, to, offsets]
        })
        .collect();
    print_table(["from", "to", "offsets"], &rows, out)?;
    heading("Snapshots", overview.backups.is_empty(), "none; take one with walkeep backup redis")?;
    let rows: Vec<_> = overview
        .backups
        .iter()
        .map(|backup| {
            let (keys, logical, stored) =
                (format_number(backup.keys), format_bytes(backup.logical_bytes), format_bytes(backup.stored_bytes));
            [backup.label.clone(), time(backup.at), backup.server.clone(), keys, logical, stored]
        })
        .collect();
    print_table(["label", "as of", "server", ">keys", ">size", ">stored"], &rows, out)?;
    for (backup, lacks) in overview.backups.iter().filter_map(|backup| Some((backup, backup.lacks.as_ref()?))) {
        out.print_line(format!(
            "{}: {} cannot be restored: {lacks}",
            out.style(TextTone::Bad, "not whole"),
            backup.label
        ))?;
    }
    for (backup, warning) in
        overview.backups.iter().flat_map(|backup| backup.warnings.iter().map(move |warning| (backup, warning)))
    {
        out.print_line(format!("{}: {warning}", backup.label))?;
    }
    heading("Gaps", overview.gaps.is_empty() && overview.holes.is_empty(), "none")?;
    let rows: Vec<_> =
        overview.gaps.iter().map(|gap| [time(gap.noticed_at), gap.offset.to_string(), gap.reason.clone()]).collect();
    print_table(["noticed", ">after offset", "what is known"], &rows, out)?;
    for hole in &overview.holes {
        out.print_line(format!("{}: {hole}", out.style(TextTone::Bad, "missing")))?;
    }
    let snapshots = overview.backups.iter().map(|backup| backup.stored_bytes).sum();
    let (stream, total) = (overview.stream_stored_bytes, overview.stream_stored_bytes.saturating_add(snapshots));
    out.print_line(format!(
        "\n{} in each repository: {} of snapshots, {} of commands",
        format_bytes(total),
        format_bytes(snapshots),
        format_bytes(stream)
    ))
}

/// Beginning and end to the second, such that both are restorable as they are shown. `None` if the window is too short for that.
fn whole_seconds(window: &InstanceWindow) -> Option<(Timestamp, Timestamp)> {
    let (from, to) = (window.from_time, window.to_time);
    let up = from.as_second().saturating_add(i64::from(from.subsec_nanosecond() > 0));
    let seconds = Timestamp::from_second(up).ok().zip(Timestamp::from_second(to.as_second()).ok());
    seconds.filter(|(from, to)| from <= to)
}

/// Nothing where there are no rows.
fn print_table<const N: usize>(headings: [&str; N], rows: &[[String; N]], out: &TerminalOutput) -> anyhow::Result<()> {
    if rows.is_empty() { Ok(()) } else { out.print_table(headings, rows) }
}
