//! What each repository restores of an instance by itself, beside what all of them restore together.
//!
//! Any repository may be the only one left after a disaster. So snapshots and windows of each are worked out as if it
//! were the only one. The metadata of a stretch is read once, if its object has the same length in each repository.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::gaps::Gap;
use super::history::{KnownStretches, remove_foreign_snapshots, unrecorded_intervals};
use super::instance::Archive;
use super::layout::InstanceObject;
use super::snapshot::SnapshotManifest;
use super::stream::{ListedStretch, StreamStretch, StretchName};
use super::unseen_sources::{UnseenErrors, UnseenSources};
use crate::redis::format::replication_id::ReplicationId;
use crate::vault::repository::key::ObjectKey;
use crate::vault::seal::SealedKind;
use crate::vault::shipper::SeedScope;
use crate::vault::{UnreachableRepositories, VaultError};

/// How much is worked out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CoverageScope {
    /// Every moment that can be restored.
    All,
    /// Moments after the newest snapshot.
    SinceNewestSnapshot,
}

/// What is archived of an instance.
#[derive(Clone, PartialEq, Debug)]
pub struct InstanceCoverage {
    /// What all reachable repositories, and this machine's spool, have together.
    pub together: InstanceContents,
    /// What each repository has by itself, where there are several.
    pub repositories: Vec<RepositoryCoverage>,
    /// What could not be looked at.
    pub unseen: UnseenSources,
    /// Whether anything of the stream is known.
    pub streamed: bool,
    /// The bytes of the stretches' objects.
    pub stream_stored_bytes: u64,
}

/// What some repositories have together.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct InstanceContents {
    /// The snapshots, oldest first.
    pub snapshots: Vec<SnapshotManifest>,
    /// Those of them that cannot be restored, by label, each with what it lacks.
    pub lacking_parts: BTreeMap<String, String>,
    /// Recorded breaks.
    pub gaps: Vec<Gap>,
    /// The moments that can be restored.
    pub windows: Vec<RestorableWindow>,
    /// What is missing between what is archived, and was not noticed when it happened.
    pub holes: Vec<String>,
}

/// Every moment between is restorable.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct RestorableWindow {
    /// The first moment.
    pub from_time: Timestamp,
    /// The last moment.
    pub to_time: Timestamp,
    /// The offset of the first moment.
    pub from_offset: Option<u64>,
    /// The offset of the last moment.
    pub to_offset: Option<u64>,
    /// The history of the last moment.
    pub replid: Option<String>,
}

/// What one repository has of an instance.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct RepositoryCoverage {
    /// The repository's name in the configuration.
    pub repository: String,
    /// Why it could not be looked at. All else is empty then, and means nothing.
    pub unreachable: Option<String>,
    /// The newest moment that it alone restores to.
    pub newest_time: Option<Timestamp>,
    /// The offset of that moment.
    pub newest_offset: Option<u64>,
    /// The snapshots that it alone restores.
    pub backups: Vec<String>,
    /// The moments that it alone restores to.
    pub windows: Vec<RestorableWindow>,
    /// What is missing in it between what it has.
    pub holes: Vec<String>,
    /// What it does not have and another repository has.
    pub lacking: RepositoryLack,
}

/// What a repository does not have and another one has.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct RepositoryLack {
    /// How many stretches of the stream.
    pub stretches: u64,
    /// Since when another repository has one of them.
    pub since: Option<Timestamp>,
    /// Snapshots, oldest first.
    pub backups: Vec<String>,
}

impl RepositoryLack {
    /// Whether it has all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stretches == 0 && self.backups.is_empty()
    }
}

impl Archive {
    /// What all reachable repositories have together, and each of them, where there are several.
    ///
    /// # Errors
    /// No repository can be reached, or something in all of them does not open.
    pub async fn coverage(&self, scope: CoverageScope) -> Result<InstanceCoverage, VaultError> {
        let mut unseen = UnseenErrors::of_vault(self.vault());
        let spooled = self.list_spooled_stretches().await?;
        unseen.merge(spooled.unseen_errors());
        let mut listings = Vec::new();
        for (name, view) in self.reachable().single_views() {
            match view.list_stored_stretches(&mut UnreachableRepositories::default()).await {
                Ok(listed) => listings.push(RepositoryListing { name, view, listed }),
                Err(error) => unseen.unreachable.insert_error(&name, &error),
            }
        }
        let union = union_of(&listings);
        let stream_stored_bytes = union.iter().map(|listed| listed.stored_bytes).sum();
        let known = spooled.with_listed(&union);
        let streamed = known.histories().next().is_some();
        let reachable = self.reachable();
        let together = reachable.contents(&known, scope).await?;
        let mut repositories = Vec::new();
        if self.vault().repository_names().nth(1).is_some() {
            let stored = union.iter().map(|listed| (listed.name, listed.stored_at)).collect();
            for listing in listings {
                match reachable.repository_coverage(&listing, &known, &stored, scope).await {
                    Ok(coverage) => repositories.push(coverage),
                    Err(error) => unseen.unreachable.insert_error(&listing.name, &error),
                }
            }
            repositories.extend(unseen.unreachable.iter().map(|(repository, why)| RepositoryCoverage {
                repository: repository.to_owned(),
                unreachable: Some(why.to_owned()),
                ..RepositoryCoverage::default()
            }));
        }
        let order: Vec<&str> = self.vault().repository_names().collect();
        repositories.sort_by_key(|coverage| order.iter().position(|name| *name == coverage.repository));
        let unseen = unseen.to_sources();
        Ok(InstanceCoverage { together, repositories, unseen, streamed, stream_stored_bytes })
    }

    /// What one repository has by itself.
    async fn repository_coverage(
        &self,
        listing: &RepositoryListing,
        known: &KnownStretches,
        all: &BTreeMap<StretchName, Timestamp>,
        scope: CoverageScope,
    ) -> Result<RepositoryCoverage, VaultError> {
        let alone = listing.view.contents(&known.of_repository(&listing.listed), scope).await?;
        let newest = alone.windows.iter().max_by_key(|window| window.to_time);
        let whole = alone.snapshots.iter().map(|snapshot| &snapshot.label);
        let whole = whole.filter(|label| !alone.lacking_parts.contains_key(*label));
        Ok(RepositoryCoverage {
            repository: listing.name.clone(),
            unreachable: None,
            newest_time: newest.map(|newest| newest.to_time),
            newest_offset: newest.and_then(|newest| newest.to_offset),
            backups: whole.cloned().collect(),
            lacking: self.repository_lack(listing, all).await?,
            windows: alone.windows,
            holes: alone.holes,
        })
    }

    async fn repository_lack(
        &self,
        listing: &RepositoryListing,
        all: &BTreeMap<StretchName, Timestamp>,
    ) -> Result<RepositoryLack, VaultError> {
        let own: BTreeSet<StretchName> = listing.listed.iter().map(|listed| listed.name).collect();
        let labels = self.list_snapshot_labels().await?;
        // Where all names are the same, nothing is lacking.
        if own.iter().eq(all.keys()) && listing.view.list_snapshot_labels().await? == labels {
            return Ok(RepositoryLack::default());
        }
        let lacking = self.lacking(&listing.name, SeedScope::default()).await?;
        let of_kind = |kind| lacking.items.iter().filter(move |item| item.kind == kind).map(|item| &item.key);
        let name = |key: &ObjectKey| match self.layout().parse_key(key)? {
            InstanceObject::Commands(id, first) => Some(StretchName { replid: id.parse().ok()?, first }),
            _ => None,
        };
        let stretches: Vec<StretchName> = of_kind(SealedKind::Commands).filter_map(name).collect();
        let since = stretches.iter().filter_map(|name| all.get(name)).min().copied();
        let backups = of_kind(SealedKind::Snapshot).map(|key| key.file_name().to_owned()).collect();
        Ok(RepositoryLack { stretches: stretches.len() as u64, since, backups })
    }

    /// What the repositories of this archive have together.
    async fn contents(&self, known: &KnownStretches, scope: CoverageScope) -> Result<InstanceContents, VaultError> {
        let (all, gaps) = (self.read_snapshots().await?, self.gaps().await?);
        let lacking_parts = self.find_missing_parts(&all).await?;
        let mut snapshots = all.clone();
        // What a restore to a moment goes by.
        remove_foreign_snapshots(&mut snapshots);
        snapshots.retain(|snapshot| !lacking_parts.contains_key(&snapshot.label));
        snapshots.sort_by_key(|snapshot| snapshot.at);
        let first = match scope {
            CoverageScope::All => 0,
            CoverageScope::SinceNewestSnapshot => snapshots.len().saturating_sub(1),
        };
        let mut windows: Vec<RestorableWindow> = Vec::new();
        let (mut ways, mut holes) = (Vec::<(Timestamp, Vec<StreamStretch>)>::new(), Vec::new());
        for snapshot in snapshots.iter().skip(first) {
            let is_on_last_way = ways.last().is_some_and(|(end, way)| {
                let on = |stretch: &StreamStretch| {
                    let offsets = stretch.first..=stretch.last;
                    Some(stretch.replid) == snapshot.replid && snapshot.offset.is_some_and(|at| offsets.contains(&at))
                };
                snapshot.at <= *end && way.iter().any(on)
            });
            if !is_on_last_way {
                let (way, hole) = self.stretches_and_hole_after(snapshot, known).await?;
                holes.extend(hole.filter(|hole| !hole.is_explained(&snapshots, &gaps)).map(|hole| hole.to_string()));
                windows.extend(restorable_windows(snapshot, &way));
                ways.push((windows.last().map_or(snapshot.at, |window| window.to_time), way));
            }
        }
        Ok(InstanceContents { snapshots: all, lacking_parts, gaps, windows, holes })
    }
}

/// A repository, and the stretches that it lists.
struct RepositoryListing {
    name: String,
    view: Archive,
    listed: Vec<ListedStretch>,
}

/// The stretches that any of these has, each as the first one lists it.
fn union_of(listings: &[RepositoryListing]) -> Vec<ListedStretch> {
    let mut union: BTreeMap<StretchName, ListedStretch> = BTreeMap::new();
    for listed in listings.iter().flat_map(|listing| &listing.listed) {
        union.entry(listed.name).or_insert(*listed);
    }
    union.into_values().collect()
}

/// The moments to which a snapshot and the stream behind it lead: one window, or several where nobody received for a
/// while.
fn restorable_windows(snapshot: &SnapshotManifest, way: &[StreamStretch]) -> Vec<RestorableWindow> {
    let end = way.iter().map(|stretch| stretch.ended_at).max().unwrap_or(snapshot.at).max(snapshot.at);
    let mut windows = Vec::new();
    let mut from = (snapshot.at, snapshot.offset);
    let mut close = |from: (Timestamp, Option<u64>), to_time, to: (Option<ReplicationId>, Option<u64>)| {
        // Of nothing but the snapshot's own moment, which is among the backups.
        if from.0 < to_time || way.is_empty() {
            let ((from_time, from_offset), (replid, to_offset)) = (from, to);
            let replid = replid.map(|id| id.to_string());
            windows.push(RestorableWindow { from_time, to_time, from_offset, to_offset, replid });
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
