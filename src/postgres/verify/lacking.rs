//! What a repository lacks of what the others have.
//!
//! A segment may be in one repository and on its way to the next: it is waited for, as one that the next segment
//! overtook.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use jiff::SignedDuration;

use crate::postgres::archive::layout::{ClusterObject, Layout};
use crate::postgres::archive::{Archive, ArchiveError};
use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::vault::UnreachableRepositories;
use crate::vault::repository::key::ObjectKey;
use crate::vault::seal::SealedKind;
use crate::vault::shipper::SeedScope;
use crate::vault::shipper::ShipItem;
use crate::vault::verify::{DamagedObject, VerifyOptions};

/// A segment is stored at the same time as its neighbours and may come after the next one. A hole before a segment that
/// is younger than this may be one that is on its way.
pub(super) const YOUNG_SEGMENT_AGE: SignedDuration = SignedDuration::from_mins(1);
/// How long it is waited for.
pub(super) const LATE_SEGMENT_WAIT: Duration = Duration::from_secs(20);
/// How often it is looked for.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// The most segments that are looked for before one that is there: no receiver stores as many at the same time.
pub(super) const MAX_LATE_SEGMENTS: u64 = 64;

/// What kind of object a repository lacks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LackingKind {
    /// What the cluster is.
    Identity,
    /// Segments one after the other on one timeline.
    Segments,
    /// Another file of `pg_wal`: a history, an end of a timeline, a backup label.
    File,
    /// The record of a gap.
    Gap,
    /// A backup's manifest.
    Backup,
    /// Packs of the backups that are lacking too.
    Packs,
}

/// Objects that a repository does not have and another has.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct LackingObjects {
    /// The repository's name in the configuration.
    pub repository: String,
    /// What kind of object it is.
    pub kind: LackingKind,
    /// The first of them.
    pub first: ObjectKey,
    /// The last of them; the first, if it is only one.
    pub last: ObjectKey,
    /// How many.
    pub objects: u64,
}

impl fmt::Display for LackingObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.first.file_name(), self.last.file_name());
        match self.kind {
            LackingKind::Identity => write!(f, "{first}"),
            LackingKind::File => write!(f, "file {first}"),
            LackingKind::Gap => write!(f, "the record of a gap, {first}"),
            LackingKind::Backup => write!(f, "backup {first}"),
            LackingKind::Segments if first == last => write!(f, "segment {first}"),
            LackingKind::Segments => write!(f, "{} segments, {first} to {last}", self.objects),
            LackingKind::Packs if first == last => write!(f, "pack {first}"),
            LackingKind::Packs => write!(f, "{} packs, {first} to {last}", self.objects),
        }
    }
}

/// What a comparison of the repositories found.
#[derive(Default)]
pub(super) struct LackingReport {
    pub(super) lacking: Vec<LackingObjects>,
    pub(super) damage: Vec<DamagedObject>,
    pub(super) unreachable: UnreachableRepositories,
}

/// Compares each of these repositories, which were verified, with the other ones; of a backup, whether it lacks that
/// one.
pub(super) async fn find_lacking(
    archive: &Archive,
    options: &VerifyOptions,
    names: &BTreeSet<String>,
) -> Result<LackingReport, ArchiveError> {
    let mut report = LackingReport::default();
    if names.len() < 2 {
        return Ok(report);
    }
    let archive = archive.view(|name| names.contains(name));
    let layout = archive.layout();
    // Only to name ranges: one that cannot be read is in the report.
    let size = archive.identity().await.ok().flatten().map(|identity| identity.segment_size);
    for name in names {
        let mut items = match settled_lacking(&archive, name).await {
            Ok(items) => items,
            Err(error) if error.may_pass() => {
                report.unreachable.insert_error(name, &error);
                continue;
            }
            Err(error) if error.is_integrity() => {
                let (repository, object) = (name.clone(), layout.all().as_str().to_owned());
                let what = format!("it cannot be compared with the other repositories: {error}");
                report.damage.push(DamagedObject { repository, object, what });
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some(label) = &options.backup {
            items.retain(|item| item.kind == SealedKind::Manifest && item.key.file_name() == label);
        }
        report.lacking.extend(ranges(layout, name, items, size.unwrap_or(SegmentSize::DEFAULT)));
    }
    Ok(report)
}

/// What the repository lacks, once what was on its way has had time to arrive.
async fn settled_lacking(archive: &Archive, name: &str) -> Result<Vec<ShipItem>, ArchiveError> {
    let clock = archive.vault().clock();
    let began = clock.elapsed();
    loop {
        let items = archive.lacking(name, None, SeedScope::default()).await?.items;
        let waited = clock.elapsed().saturating_sub(began) >= LATE_SEGMENT_WAIT;
        if waited || !is_any_young(archive, name, &items).await {
            return Ok(items);
        }
        clock.sleep(POLL_INTERVAL).await;
    }
}

/// Whether another repository got one of the last lacking segments just now.
async fn is_any_young(archive: &Archive, name: &str, items: &[ShipItem]) -> bool {
    let now = archive.vault().clock().now();
    let segments = items.iter().rev().filter(|item| item.kind == SealedKind::Wal);
    for item in segments.take(usize::try_from(MAX_LATE_SEGMENTS).unwrap_or(usize::MAX)) {
        for (_, repository) in archive.vault().repositories().filter(|(other, _)| *other != name) {
            if let Ok(Some(object)) = repository.head(&item.key).await
                && now.duration_since(object.modified) < YOUNG_SEGMENT_AGE
            {
                return true;
            }
        }
    }
    false
}

/// Joins what is lacking to ranges: segments that follow each other, and packs, which have no order of their own.
fn ranges(layout: &Layout, repository: &str, items: Vec<ShipItem>, size: SegmentSize) -> Vec<LackingObjects> {
    let mut found: Vec<LackingObjects> = Vec::new();
    for item in items {
        let Some(kind) = kind_of(item.kind) else { continue };
        let follows = |last: &LackingObjects| match kind {
            LackingKind::Segments => next_segment(layout, &last.last, size).as_ref() == Some(&item.key),
            LackingKind::Packs => true,
            LackingKind::Identity | LackingKind::File | LackingKind::Gap | LackingKind::Backup => false,
        };
        match found.iter_mut().rev().find(|last| last.kind == kind).filter(|last| follows(last)) {
            Some(last) => {
                last.last = item.key;
                last.objects = last.objects.saturating_add(1);
            }
            None => found.push(LackingObjects {
                repository: repository.to_owned(),
                kind,
                first: item.key.clone(),
                last: item.key,
                objects: 1,
            }),
        }
    }
    found
}

/// `None` for what is of no use by itself.
fn kind_of(kind: SealedKind) -> Option<LackingKind> {
    match kind {
        SealedKind::Cluster => Some(LackingKind::Identity),
        SealedKind::Wal => Some(LackingKind::Segments),
        SealedKind::WalFile | SealedKind::Fork => Some(LackingKind::File),
        SealedKind::Gap => Some(LackingKind::Gap),
        SealedKind::Manifest => Some(LackingKind::Backup),
        SealedKind::Pack => Some(LackingKind::Packs),
        SealedKind::Probe
        | SealedKind::RdbPart
        | SealedKind::Snapshot
        | SealedKind::Commands
        | SealedKind::Instance
        | SealedKind::Names
        | SealedKind::Piece => None,
    }
}

fn next_segment(layout: &Layout, key: &ObjectKey, size: SegmentSize) -> Option<ObjectKey> {
    let Some(ClusterObject::Segment(name)) = layout.object_of_key(key) else { return None };
    let next = SegmentNo::new(name.number(size)?.get().saturating_add(1));
    Some(layout.segment(SegmentName::new(name.timeline(), next, size)?))
}
