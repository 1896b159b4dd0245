//! What `walkeep list redis` shows: snapshots, the moments that can be restored, and gaps in the stream.

use jiff::Timestamp;

use crate::cli::show::output::{TerminalOutput, TextTone, format_bytes, format_number, text_width, wrap_text};
use crate::postgres::format::time::PgTime;
use crate::redis::archive::coverage::{InstanceContents, InstanceCoverage, RepositoryCoverage, RestorableWindow};
use crate::redis::archive::layout::InstanceName;
use crate::redis::archive::{ArchiveIdentity, Gap, SnapshotManifest};

/// What `--json` prints of an instance.
#[derive(serde::Serialize)]
pub(in crate::cli) struct InstanceInventory {
    pub(in crate::cli) instance: String,
    pub(in crate::cli) flavour: Option<String>,
    pub(in crate::cli) backups: Vec<ListedSnapshot>,
    pub(in crate::cli) windows: Vec<RestorableWindow>,
    pub(in crate::cli) gaps: Vec<ListedGap>,
    /// What is missing between what is archived, and was not noticed when it came about.
    pub(in crate::cli) holes: Vec<String>,
    pub(in crate::cli) stream_stored_bytes: u64,
    /// What each repository has by itself, where there are several.
    pub(in crate::cli) repositories: Vec<RepositoryCoverage>,
    /// Why this machine's spool could not be read.
    pub(in crate::cli) unread_spool: Option<String>,
    #[serde(skip)]
    unseen: Vec<String>,
}

/// A snapshot; also what `backup redis --json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct ListedSnapshot {
    pub(in crate::cli) label: String,
    pub(in crate::cli) at: Timestamp,
    pub(in crate::cli) started_at: Timestamp,
    pub(in crate::cli) finished_at: Timestamp,
    pub(in crate::cli) server: String,
    pub(in crate::cli) flavour: String,
    pub(in crate::cli) version: String,
    pub(in crate::cli) rdb_version: u32,
    pub(in crate::cli) replid: Option<String>,
    pub(in crate::cli) offset: Option<u64>,
    pub(in crate::cli) keys: u64,
    pub(in crate::cli) logical_bytes: u64,
    pub(in crate::cli) stored_bytes: u64,
    pub(in crate::cli) warnings: Vec<String>,
    /// Why it cannot be restored.
    pub(in crate::cli) lacks: Option<String>,
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

#[derive(serde::Serialize)]
pub(in crate::cli) struct ListedGap {
    pub(in crate::cli) replid: String,
    pub(in crate::cli) offset: u64,
    pub(in crate::cli) from_time: Option<Timestamp>,
    pub(in crate::cli) noticed_at: Timestamp,
    pub(in crate::cli) reason: String,
}

impl From<Gap> for ListedGap {
    fn from(gap: Gap) -> ListedGap {
        ListedGap {
            replid: gap.replid.to_string(),
            offset: gap.offset,
            from_time: gap.until,
            noticed_at: gap.noticed_at,
            reason: gap.reason,
        }
    }
}

impl InstanceInventory {
    pub(in crate::cli) fn new(
        name: &InstanceName,
        identity: Option<ArchiveIdentity>,
        coverage: InstanceCoverage,
    ) -> InstanceInventory {
        let InstanceContents { snapshots, mut lacking_parts, gaps, windows, holes } = coverage.together;
        let backup = |snapshot: &SnapshotManifest| ListedSnapshot {
            lacks: lacking_parts.remove(&snapshot.label),
            ..ListedSnapshot::from_manifest(snapshot)
        };
        InstanceInventory {
            instance: name.to_string(),
            flavour: identity.map(|identity| identity.flavour.to_string()),
            backups: snapshots.iter().map(backup).collect(),
            windows,
            gaps: gaps.into_iter().map(ListedGap::from).collect(),
            holes,
            stream_stored_bytes: coverage.stream_stored_bytes,
            repositories: coverage.repositories,
            unseen: coverage.unseen.describe(),
            unread_spool: coverage.unseen.unread_spool,
        }
    }

    /// Whether nothing is archived under the name.
    pub(in crate::cli) const fn is_empty(&self) -> bool {
        self.flavour.is_none() && self.backups.is_empty()
    }
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
        return print_repositories(overview, out);
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
    print_snapshot_notes(overview, out)?;
    heading("Gaps", overview.gaps.is_empty() && overview.holes.is_empty(), "none")?;
    let rows: Vec<_> =
        overview.gaps.iter().map(|gap| [time(gap.noticed_at), gap.offset.to_string(), gap.reason.clone()]).collect();
    print_table(["noticed", ">after offset", "what is known"], &rows, out)?;
    for hole in &overview.holes {
        out.print_line(format!("{}: {hole}", out.style(TextTone::Bad, "missing")))?;
    }
    print_repositories(overview, out)?;
    let snapshots = overview.backups.iter().map(|backup| backup.stored_bytes).sum();
    let (stream, total) = (overview.stream_stored_bytes, overview.stream_stored_bytes.saturating_add(snapshots));
    let is_equal = |coverage: &RepositoryCoverage| coverage.unreachable.is_none() && coverage.lacking.is_empty();
    let each = overview.repositories.iter().all(is_equal);
    out.print_line(format!(
        "\n{} in {}: {} of snapshots, {} of commands",
        format_bytes(total),
        if each { "each repository" } else { "all repositories together" },
        format_bytes(snapshots),
        format_bytes(stream)
    ))
}

/// What each repository restores by itself, what it lacks, and what could not be looked at.
fn print_repositories(overview: &InstanceInventory, out: &TerminalOutput) -> anyhow::Result<()> {
    if !overview.repositories.is_empty() {
        out.print_line(format!("\n{}", out.style(TextTone::Strong, "Each repository by itself")))?;
    }
    let number = |number: u64| if number == 0 { "-".to_owned() } else { format_number(number) };
    let row = |coverage: &RepositoryCoverage| {
        let newest = coverage.newest_time.map(|time| out.format_short_time(PgTime::from_timestamp(time)));
        [
            coverage.repository.clone(),
            newest.unwrap_or_else(|| "NOTHING".to_owned()),
            coverage.newest_offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string()),
            format_number(coverage.backups.len() as u64),
            number(coverage.lacking.stretches),
            number(coverage.lacking.backups.len() as u64),
        ]
    };
    let rows: Vec<_> = overview.repositories.iter().filter(|one| one.unreachable.is_none()).map(row).collect();
    let headings = ["repository", "restores up to", ">offset", ">snapshots", ">lacking stretches", ">and snapshots"];
    print_table(headings, &rows, out)?;
    for remark in &overview.unseen {
        for (nth, line) in wrap_text(remark, text_width().saturating_sub(4)).iter().enumerate() {
            out.print_line(format!("  {}{}", if nth == 0 { "" } else { "  " }, out.style(TextTone::Bad, line)))?;
        }
    }
    Ok(())
}

/// What is wrong with single snapshots, a line each.
fn print_snapshot_notes(overview: &InstanceInventory, out: &TerminalOutput) -> anyhow::Result<()> {
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
    Ok(())
}

/// Beginning and end to the second, such that both are restorable as they are shown. `None` if the window is too
/// short for that.
fn whole_seconds(window: &RestorableWindow) -> Option<(Timestamp, Timestamp)> {
    let (from, to) = (window.from_time, window.to_time);
    let up = from.as_second().saturating_add(i64::from(from.subsec_nanosecond() > 0));
    let seconds = Timestamp::from_second(up).ok().zip(Timestamp::from_second(to.as_second()).ok());
    seconds.filter(|(from, to)| from <= to)
}

/// Nothing where there are no rows.
fn print_table<const N: usize>(headings: [&str; N], rows: &[[String; N]], out: &TerminalOutput) -> anyhow::Result<()> {
    if rows.is_empty() { Ok(()) } else { out.print_table(headings, rows) }
}
