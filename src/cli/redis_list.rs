//! `walkeep list redis`: snapshots, the moments that can be restored, and breaks in the stream.

use anyhow::Context;
use jiff::Timestamp;

use super::Surroundings;
use super::open;
use super::output::{Output, Tone, grouped, size};
use crate::archive::instance::{Instance, Snapshot, Stretch};
use crate::config::{self, Config};
use crate::postgres::time::PgTime;

/// What `--json` prints of an instance.
#[derive(serde::Serialize)]
pub(super) struct Overview {
    instance: String,
    flavour: Option<String>,
    backups: Vec<Backup>,
    windows: Vec<Window>,
    gaps: Vec<Gap>,
    stream_stored_bytes: u64,
}

/// A snapshot; also what `backup redis --json` prints.
#[derive(serde::Serialize)]
pub(super) struct Backup {
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
}

impl Backup {
    pub(super) fn of(snapshot: &Snapshot) -> Backup {
        Backup {
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
        }
    }
}

/// Every moment between is restorable.
#[derive(serde::Serialize)]
struct Window {
    from_time: Timestamp,
    to_time: Timestamp,
    from_offset: Option<u64>,
    to_offset: Option<u64>,
    replid: Option<String>,
}

#[derive(serde::Serialize)]
struct Gap {
    replid: String,
    offset: u64,
    from_time: Option<Timestamp>,
    noticed_at: Timestamp,
    reason: String,
}

pub(super) async fn gather(config: &Config, of: &config::Instance, around: &Surroundings) -> anyhow::Result<Overview> {
    let instance = open::instance(config, of, around).await?;
    look(&instance).await.with_context(|| format!("cannot list what is archived of {}", of.name))
}

async fn look(instance: &Instance) -> anyhow::Result<Overview> {
    let snapshots = instance.snapshots().await?;
    let mut windows: Vec<(Window, Vec<Stretch>)> = Vec::new();
    let mut backups = Vec::new();
    for snapshot in snapshots {
        let known = windows.last().is_some_and(|(window, way)| {
            let on = |stretch: &Stretch| {
                let offsets = stretch.first..=stretch.last;
                Some(stretch.replid) == snapshot.replid && snapshot.offset.is_some_and(|at| offsets.contains(&at))
            };
            snapshot.at <= window.to_time && way.iter().any(on)
        });
        if !known {
            let way = instance.behind(&snapshot).await?;
            let to_time = way.iter().map(|stretch| stretch.ended_at).max().unwrap_or(snapshot.at).max(snapshot.at);
            let window = Window {
                from_time: snapshot.at,
                to_time,
                from_offset: snapshot.offset,
                to_offset: way.last().map(|stretch| stretch.last).or(snapshot.offset),
                replid: way.last().map(|stretch| stretch.replid).or(snapshot.replid).map(|id| id.to_string()),
            };
            windows.push((window, way));
        }
        backups.push(Backup::of(&snapshot));
    }
    let gap = |gap: crate::archive::instance::Gap| Gap {
        replid: gap.replid.to_string(),
        offset: gap.offset,
        from_time: gap.until,
        noticed_at: gap.noticed_at,
        reason: gap.reason,
    };
    Ok(Overview {
        instance: instance.name().to_string(),
        flavour: instance.identity().await?.map(|identity| identity.flavour.to_string()),
        backups,
        windows: windows.into_iter().map(|(window, _)| window).collect(),
        gaps: instance.gaps().await?.into_iter().map(gap).collect(),
        stream_stored_bytes: instance.stored_stretches().await?.iter().map(|(_, _, stored)| stored).sum(),
    })
}

pub(super) fn show(overview: &Overview, out: &Output) -> anyhow::Result<()> {
    let time = |time: Timestamp| out.short_time(PgTime::from_timestamp(time));
    let what = overview.flavour.as_deref().unwrap_or("nothing is archived yet");
    out.line(format!("{}  {}", out.tone(Tone::Strong, &overview.instance), out.tone(Tone::Quiet, what)))?;
    if overview.flavour.is_none() {
        return Ok(());
    }
    let heading = |title: &str, empty: bool, instead: &str| {
        let title = out.tone(Tone::Strong, title);
        out.line(if empty { format!("\n{title}: {instead}") } else { format!("\n{title}") })
    };
    heading("Can be restored to any moment", overview.windows.is_empty(), "no: there is no snapshot yet")?;
    let rows: Vec<_> = overview
        .windows
        .iter()
        .map(|window| {
            let offsets = window.from_offset.zip(window.to_offset);
            let offsets = offsets.map_or_else(|| "-".to_owned(), |(from, to)| format!("{from} to {to}"));
            [time(window.from_time), time(window.to_time), offsets]
        })
        .collect();
    shown(["from", "to", "offsets"], &rows, out)?;
    heading("Snapshots", overview.backups.is_empty(), "none; take one with walkeep backup redis")?;
    let rows: Vec<_> = overview
        .backups
        .iter()
        .map(|backup| {
            let (keys, logical, stored) = (grouped(backup.keys), size(backup.logical_bytes), size(backup.stored_bytes));
            [backup.label.clone(), time(backup.at), backup.server.clone(), keys, logical, stored]
        })
        .collect();
    shown(["label", "as of", "server", ">keys", ">size", ">stored"], &rows, out)?;
    heading("Gaps", overview.gaps.is_empty(), "none")?;
    let rows: Vec<_> =
        overview.gaps.iter().map(|gap| [time(gap.noticed_at), gap.offset.to_string(), gap.reason.clone()]).collect();
    shown(["noticed", ">after offset", "what is known"], &rows, out)?;
    let snapshots = overview.backups.iter().map(|backup| backup.stored_bytes).sum();
    let (stream, total) = (overview.stream_stored_bytes, overview.stream_stored_bytes.saturating_add(snapshots));
    out.line(format!(
        "\n{} in each repository: {} of snapshots, {} of commands",
        size(total),
        size(snapshots),
        size(stream)
    ))
}

/// Nothing where there are no rows.
fn shown<const N: usize>(headings: [&str; N], rows: &[[String; N]], out: &Output) -> anyhow::Result<()> {
    if rows.is_empty() { Ok(()) } else { out.table(headings, rows) }
}
