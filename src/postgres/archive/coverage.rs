//! What each repository has of a cluster by itself, beside what all of them have together.
//!
//! Any repository may be the only one left after a disaster. So windows and backups of each are worked out as if it
//! were the only one: from the index, without the segments that a listing of the repository does not show. Nothing is
//! read of segments again.
//!
//! The index may know segments that only an unreachable repository has. What all repositories have together is
//! therefore what the reachable ones list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::inventory::{self, ArchiveInventory, MissingWal, RecoveryWindow};
use super::layout::ClusterObject;
use super::reindex::ReindexError;
use super::spool::Spool;
use super::{Archive, ArchiveError};
use crate::base::blocking::run_blocking;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::index::key_value_store::ScanOrder;
use crate::postgres::index::{self, SegmentsByTimeline, WalIndex};
use crate::vault::UnreachableRepositories;
use crate::vault::repository::key::ObjectKey;

/// What is archived of a cluster. Its JSON form is what `list --json` prints of a cluster.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct ArchiveCoverage {
    /// What all reachable repositories have together.
    #[serde(flatten)]
    pub together: ArchiveInventory,
    /// What each repository has by itself, where there are several.
    pub repositories: Vec<RepositoryCoverage>,
}

/// What one repository has of a cluster.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize)]
pub struct RepositoryCoverage {
    /// The repository's name in the configuration.
    pub repository: String,
    /// Why it could not be looked at. All else is empty then, and means nothing.
    pub unreachable: Option<String>,
    /// The end of the WAL in it, on the newest timeline that it has WAL of.
    pub newest_lsn: Option<Lsn>,
    /// The newest commit or abort that it alone restores to.
    pub newest_time: Option<PgTime>,
    /// The backups that it alone restores.
    pub backups: Vec<String>,
    /// The stretches that it alone restores to.
    pub windows: Vec<RecoveryWindow>,
    /// WAL that is missing in it between segments that it has.
    pub gaps: Vec<MissingWal>,
    /// What it does not have and another repository has.
    pub lacking: RepositoryLack,
}

/// What a repository does not have and another one has.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct RepositoryLack {
    /// How many segments.
    pub segments: u64,
    /// The first of them.
    pub first_segment: Option<String>,
    /// The last of them.
    pub last_segment: Option<String>,
    /// Since when another repository has one of them.
    pub since: Option<Timestamp>,
    /// Backups, oldest first.
    pub backups: Vec<String>,
}

impl RepositoryLack {
    /// Whether it has all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments == 0 && self.backups.is_empty()
    }
}

/// How much of the WAL is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CoverageScope {
    /// All of it: one listing of all names in each repository.
    All,
    /// From the start of the newest backup on. What precedes it counts as the same in each repository.
    SinceNewestBackup,
}

/// What all reachable repositories have together, and each of them, where there are several.
///
/// # Errors
/// What the index reports, or no repository can be reached.
pub async fn gather_coverage(
    archive: &Arc<Archive>,
    index: &Arc<WalIndex>,
    spool: Option<Spool>,
    scope: CoverageScope,
) -> Result<ArchiveCoverage, ReindexError> {
    if archive.vault().repository_names().nth(1).is_none() {
        let together = inventory::gather_inventory(archive, index, spool).await?;
        return Ok(ArchiveCoverage { together, repositories: Vec::new() });
    }
    let size = archive.identity().await?.map_or(SegmentSize::DEFAULT, |identity| identity.segment_size);
    let from = match scope {
        CoverageScope::All => None,
        CoverageScope::SinceNewestBackup => newest_backup_start(archive).await?,
    };
    let mut repositories = Vec::new();
    let mut listed = Vec::new();
    for (name, view) in archive.single_views() {
        match list_repository(&view, from.as_ref()).await {
            Ok(names) => listed.push((name, view, names)),
            Err(error) => repositories.push(unreachable_repository(name, &error)),
        }
    }
    if listed.is_empty() {
        // The error of the first one.
        archive.vault().list(&archive.layout().backups(), None).await?;
    }
    let reached: BTreeSet<String> = listed.iter().map(|(name, _, _)| name.clone()).collect();
    let reachable = Arc::new(archive.view(|name| reached.contains(name)));
    let union = RepositoryNames::union(listed.iter().map(|(_, _, names)| names));
    let gone = unlisted(archive, index, &union, from.clone()).await?;
    let together = inventory::gather_inventory_without(&reachable, index, spool, gone).await?;
    for (name, view, names) in listed {
        let gone = unlisted(archive, index, &names, from.clone()).await?;
        match inventory::gather_inventory_without(&view, index, None, gone).await {
            Ok(alone) => {
                repositories.push(RepositoryCoverage {
                    newest_lsn: names.newest_lsn(size),
                    lacking: names.lacking(&union, from.is_some()),
                    ..coverage_of(name, alone)
                });
            }
            Err(error) => repositories.push(unreachable_repository(name, &error)),
        }
    }
    let order: Vec<&str> = archive.vault().repository_names().collect();
    repositories.sort_by_key(|coverage| order.iter().position(|name| *name == coverage.repository));
    Ok(ArchiveCoverage { together, repositories })
}

/// The archive as the repositories have it that can be reached now, and the segments that the index knows and none of
/// these lists.
///
/// # Errors
/// What the index reports, or no repository can be reached.
pub async fn reachable_archive(
    archive: &Arc<Archive>,
    index: &Arc<WalIndex>,
) -> Result<(Arc<Archive>, SegmentsByTimeline), ReindexError> {
    let unreachable: BTreeSet<&str> = archive.vault().unreachable().map(|(name, _)| name).collect();
    if !unreachable.is_empty() && unreachable.len() == archive.vault().repository_names().count() {
        return Ok((Arc::clone(archive), SegmentsByTimeline::new()));
    }
    let reachable = match unreachable.is_empty() {
        true => Arc::clone(archive),
        false => Arc::new(archive.view(|name| !unreachable.contains(name))),
    };
    let names = list_repository(&reachable, None).await?;
    let mut gone = unlisted(&reachable, index, &names, None).await?;
    keep_archived_since(&reachable, &mut gone).await?;
    Ok((reachable, gone))
}

/// Takes out the newest segments if they are archived: a receiver may have stored them, and noted them in the index,
/// after the listing.
async fn keep_archived_since(archive: &Archive, gone: &mut SegmentsByTimeline) -> Result<(), ArchiveError> {
    let Some(identity) = archive.identity().await? else { return Ok(()) };
    for (timeline, segments) in gone.iter_mut() {
        while let Some(newest) = segments.last() {
            let Some(name) = SegmentName::new(*timeline, *newest, identity.segment_size) else { break };
            if archive.digest(name).await?.is_none() {
                break;
            }
            segments.pop();
        }
    }
    gone.retain(|_, segments| !segments.is_empty());
    Ok(())
}

fn unreachable_repository(name: String, error: &impl std::fmt::Display) -> RepositoryCoverage {
    let mut unreachable = UnreachableRepositories::default();
    unreachable.insert_error(&name, error);
    let why = unreachable.iter().next().map(|(_, why)| why.to_owned());
    RepositoryCoverage { repository: name, unreachable: why, ..RepositoryCoverage::default() }
}

fn coverage_of(repository: String, alone: ArchiveInventory) -> RepositoryCoverage {
    let restorable = alone.backups.into_iter().filter(|backup| backup.restorable);
    RepositoryCoverage {
        repository,
        newest_time: alone.windows.iter().filter_map(|window| window.to_time).max(),
        backups: restorable.map(|backup| backup.label).collect(),
        windows: alone.windows,
        gaps: alone.gaps,
        ..RepositoryCoverage::default()
    }
}

/// The names that a repository has, or several together.
#[derive(Default)]
struct RepositoryNames {
    /// Segments, and when they were stored.
    segments: BTreeMap<(TimelineId, ObjectKey), (SegmentName, Timestamp)>,
    backups: BTreeSet<String>,
    expired: BTreeSet<String>,
}

impl RepositoryNames {
    /// The names that any of these has, with the earliest time of each.
    fn union<'a>(all: impl Iterator<Item = &'a RepositoryNames>) -> RepositoryNames {
        let mut union = RepositoryNames::default();
        for names in all {
            for (key, (name, modified)) in &names.segments {
                let known = union.segments.entry(key.clone()).or_insert((*name, *modified));
                known.1 = known.1.min(*modified);
            }
            union.backups.extend(names.backups.iter().cloned());
        }
        union
    }

    fn newest_lsn(&self, size: SegmentSize) -> Option<Lsn> {
        let (name, _) = self.segments.values().next_back()?;
        Some(name.number(size)?.end(size))
    }

    /// What these names lack of all. What sorts before their own first was removed by retention, except that
    /// `to_the_start` every segment counts.
    fn lacking(&self, all: &RepositoryNames, to_the_start: bool) -> RepositoryLack {
        let first = self.segments.keys().next().filter(|_| !to_the_start);
        let mut lack = RepositoryLack::default();
        for (key, (name, modified)) in &all.segments {
            if self.segments.contains_key(key) || first.is_some_and(|first| key < first) {
                continue;
            }
            lack.segments = lack.segments.saturating_add(1);
            lack.first_segment.get_or_insert_with(|| name.to_string());
            lack.last_segment = Some(name.to_string());
            lack.since = Some(lack.since.map_or(*modified, |since| since.min(*modified)));
        }
        let first = self.backups.first();
        let is_lacking = |label: &&String| {
            !self.backups.contains(*label) && !self.expired.contains(*label) && first.is_none_or(|first| *label > first)
        };
        lack.backups = all.backups.iter().filter(is_lacking).cloned().collect();
        lack
    }
}

/// Where the newest backup of all repositories begins, as the key of the segment before.
async fn newest_backup_start(archive: &Archive) -> Result<Option<ObjectKey>, ArchiveError> {
    let backups = inventory::backup_summaries(archive).await?;
    let Some(newest) = backups.last() else { return Ok(None) };
    let size = newest.segment_size;
    let before = size.segment_of(newest.start_lsn).previous();
    let name = before.and_then(|number| SegmentName::new(newest.timeline, number, size));
    Ok(name.map(|name| archive.layout().segment(name)))
}

/// What the repositories of this archive list of segments after `from`, and of backups.
async fn list_repository(archive: &Archive, from: Option<&ObjectKey>) -> Result<RepositoryNames, ArchiveError> {
    let (layout, vault) = (archive.layout(), archive.vault());
    let mut names = RepositoryNames::default();
    for object in vault.list(&layout.wal(), from).await?.objects {
        if let Some(ClusterObject::Segment(name)) = layout.object_of_key(&object.key) {
            names.segments.insert((name.timeline(), object.key), (name, object.modified));
        }
    }
    let label = |key: &ObjectKey| key.file_name().to_owned();
    names.backups =
        vault.list(&layout.backups(), None).await?.objects.iter().map(|object| label(&object.key)).collect();
    names.expired =
        vault.list(&layout.expired(), None).await?.objects.iter().map(|object| label(&object.key)).collect();
    Ok(names)
}

/// Segments after `from` that the index knows and that are not among these names.
async fn unlisted(
    archive: &Archive,
    index: &Arc<WalIndex>,
    names: &RepositoryNames,
    from: Option<ObjectKey>,
) -> Result<SegmentsByTimeline, ReindexError> {
    let (cluster, layout, index) = (archive.cluster().to_string(), archive.layout().clone(), Arc::clone(index));
    let listed: BTreeSet<SegmentName> = names.segments.values().map(|(name, _)| *name).collect();
    let found = run_blocking(move || {
        let view = index.view(&cluster)?;
        let Some(size) = view.segment_size() else { return Ok(SegmentsByTimeline::new()) };
        let mut gone = SegmentsByTimeline::new();
        for timeline in view.timelines() {
            let known = view.summaries(*timeline, SegmentNo::new(0), SegmentNo::new(u64::MAX), ScanOrder::Forward);
            for found in known {
                let (place, _) = found?;
                let Some(name) = SegmentName::new(*timeline, place.segment, size) else { continue };
                let is_compared = from.as_ref().is_none_or(|from| layout.segment(name) > *from);
                if is_compared && !listed.contains(&name) {
                    gone.entry(*timeline).or_default().push(place.segment);
                }
            }
        }
        Ok::<_, index::IndexError>(gone)
    });
    Ok(found.await??)
}
