//! Retention: takes away what no moment of the last days needs, in each repository by itself.
//!
//! [`policy`] decides. Carrying it out goes in an order in which every step can be the last: a manifest is copied under
//! `expired/` and then removed, so that its backup is gone at once; then log goes, oldest first; and packs that no
//! manifest names go when their time is up. A backup under way may count on packs of a manifest that is removed
//! meanwhile: those that an expired manifest names stay for as long as the longest backup may take ([`GRACE`]), and so
//! does every pack that is younger than that. Then the copy under `expired/` goes too.
//!
//! Histories, records of gaps, the cluster's identity and keys always stay.

pub mod policy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use crate::base::blocking::run_blocking;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::postgres::archive::chunks::PackId;
use crate::postgres::archive::inventory::{self, ArchiveInventory};
use crate::postgres::archive::layout::ClusterObject;
use crate::postgres::archive::manifest::{BackupSummary, Manifest};
use crate::postgres::archive::reindex::{self, ReindexError, ReindexScope};
use crate::postgres::archive::{self, Archive};
use crate::postgres::format::segment::{SegmentName, SegmentSize, WalFileName};
use crate::postgres::format::timeline::{TimelineHistory, TimelineId};
use crate::postgres::index::WalIndex;
use crate::vault;
use crate::vault::repository::key::{ObjectKey, ObjectKeyError};
use crate::vault::repository::{self, ObjectInfo, Repository};
use crate::vault::seal::{self, ObjectBinding, SealError, SealSpec, SealedKind};

use crate::vault::retention::{CleanupReport, KeepReason, ObjectTotals, RetentionError, RetentionOptions};
use policy::{RetentionBackup, RetentionDecision, RetentionInput};

/// Why a cleanup did not come to its end. What it had done by then does no harm; run again, it goes on.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The objects of a repository could not be listed or removed.
    #[error(transparent)]
    Objects(#[from] RetentionError),
    /// The archive could not be read.
    #[error(transparent)]
    Archive(#[from] archive::ArchiveError),
    /// The index could not be read, or brought up to date.
    #[error(transparent)]
    Index(#[from] ReindexError),
    /// A manifest could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A label that cannot stand in a key.
    #[error(transparent)]
    Key(#[from] ObjectKeyError),
    /// A worker thread panicked, or the program is ending.
    #[error("the work was interrupted")]
    WorkerLost,
}

impl HasKind for CleanupError {
    fn kind(&self) -> ErrorKind {
        match self {
            CleanupError::Objects(error) => error.kind(),
            CleanupError::Archive(error) => error.kind(),
            CleanupError::Index(error) => error.kind(),
            CleanupError::Seal(_) | CleanupError::Key(_) | CleanupError::WorkerLost => ErrorKind::Failed,
        }
    }
}

impl From<vault::VaultError> for CleanupError {
    fn from(error: vault::VaultError) -> CleanupError {
        CleanupError::Archive(error.into())
    }
}

/// A backup that stays or goes.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct RetainedBackup {
    /// Its name.
    pub label: String,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Why it stays; none if it goes.
    pub kept: Option<KeepReason>,
}

/// What was done to one repository, or would be.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct ClusterCleanup {
    /// Its name in the configuration.
    pub repository: String,
    /// Where its window begins.
    pub since: Timestamp,
    /// Its backups, oldest first.
    pub backups: Vec<RetainedBackup>,
    /// Segments and files about them that go.
    pub wal: ObjectTotals,
    /// Segments and files about them that stay.
    pub wal_kept: ObjectTotals,
    /// Packs that go now.
    pub packs: ObjectTotals,
    /// Packs that no manifest names, and whose time is not up.
    pub packs_waiting: ObjectTotals,
    /// What stood in the way of more.
    pub notes: Vec<String>,
}

/// Carries retention out. `progress` is told each object that is removed.
///
/// # Errors
/// [`CleanupError`].
pub async fn clean_up(
    archive: &Arc<Archive>,
    index: &Arc<WalIndex>,
    wish: &RetentionOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<CleanupReport<ClusterCleanup>, CleanupError> {
    let mut report = CleanupReport::new(archive.vault(), wish);
    let overview = inventory::gather_inventory(archive, index, None).await?;
    let Some(size) = overview.segment_size else { return Ok(report) };
    for (name, repository) in archive.vault().repositories() {
        let Some((since, young)) = report.repository_window(archive.vault(), wish, name) else { continue };
        let sweep = RepositorySweep {
            archive,
            name,
            repository: &repository,
            size,
            since,
            young,
            dry_run: wish.dry_run,
            progress,
            overview: &overview,
        };
        report.repositories.push(sweep.run().await?);
    }
    let removed = report.repositories.iter().any(|cleaned| cleaned.wal.objects > 0);
    if removed && !wish.dry_run && index.is_writer() {
        reindex::catch_up_index(archive, index, ReindexScope::All).await?;
    }
    Ok(report)
}

/// One repository being cleaned.
struct RepositorySweep<'a> {
    archive: &'a Arc<Archive>,
    name: &'a str,
    repository: &'a Repository,
    size: SegmentSize,
    since: Timestamp,
    /// What is younger than this may belong to a backup under way.
    young: Timestamp,
    dry_run: bool,
    progress: &'a (dyn Fn(u64) + Sync),
    overview: &'a ArchiveInventory,
}

/// What a repository has of one timeline.
type WalByTimeline = BTreeMap<TimelineId, Vec<(SegmentName, ObjectInfo)>>;

impl RepositorySweep<'_> {
    async fn run(&self) -> Result<ClusterCleanup, CleanupError> {
        let mut cleaned = ClusterCleanup {
            repository: self.name.to_owned(),
            since: self.since,
            backups: Vec::new(),
            wal: ObjectTotals::default(),
            wal_kept: ObjectTotals::default(),
            packs: ObjectTotals::default(),
            packs_waiting: ObjectTotals::default(),
            notes: Vec::new(),
        };
        let mut readable = true;
        let bases = self.list_backups(&mut cleaned.notes, &mut readable).await?;
        let wal = self.list_wal().await?;
        let verdict = self.decide(&bases, &wal).await?;
        cleaned.backups = bases
            .iter()
            .map(|(base, _)| RetainedBackup {
                label: base.label.clone(),
                finished_at: base.finished_at,
                kept: verdict.keep.get(&base.label).copied(),
            })
            .collect();
        // The manifests of what goes are read while they are there; the packs they name are swept only after another
        // [`GRACE`].
        let packs = self.list(&self.archive.layout().packs()).await?;
        let mut named = if readable { self.named_packs(&bases).await } else { None };
        for (base, object) in bases.iter().filter(|(base, _)| verdict.expire.contains(&base.label)) {
            self.expire(base, object).await?;
        }
        self.sweep_wal(&verdict, &wal, &mut cleaned).await?;
        match (&mut named, readable) {
            (Some(named), true) => self.sweep_packs(named, packs, &mut cleaned).await?,
            _ => cleaned
                .notes
                .push("a manifest cannot be read, so no pack is removed; walkeep verify says more".to_owned()),
        }
        Ok(cleaned)
    }

    fn repository_error(&self, source: repository::RepositoryError) -> CleanupError {
        RetentionError::in_repository(self.name, source).into()
    }

    async fn list(&self, prefix: &repository::key::KeyPrefix) -> Result<Vec<ObjectInfo>, CleanupError> {
        self.repository.list(prefix).await.map_err(|error| self.repository_error(error))
    }

    async fn remove(&self, object: &ObjectInfo) -> Result<(), CleanupError> {
        if !self.dry_run {
            self.repository.delete(&object.key).await.map_err(|error| self.repository_error(error))?;
            (self.progress)(object.len);
        }
        Ok(())
    }

    /// The backups of this repository with their manifests.
    async fn list_backups(
        &self,
        notes: &mut Vec<String>,
        readable: &mut bool,
    ) -> Result<Vec<(RetentionBackup, ObjectInfo)>, CleanupError> {
        let mut found = Vec::new();
        for object in self.list(&self.archive.layout().backups()).await? {
            let Some(ClusterObject::Backup(label)) = self.archive.layout().object_of_key(&object.key) else { continue };
            let summary = match self.archive.vault().get_trailer(SealedKind::Manifest, &object.key).await {
                Ok(Some(trailer)) => BackupSummary::from_bytes(trailer.metadata()).map_err(|error| error.to_string()),
                Ok(None) => continue,
                Err(error) if error.is_integrity() => Err(error.to_string()),
                Err(error) => return Err(error.into()),
            };
            match summary {
                Ok(summary) => found.push((self.retention_backup(&summary), object)),
                Err(why) => {
                    *readable = false;
                    notes.push(format!("backup {label} cannot be read and is left alone: {why}"));
                }
            }
        }
        Ok(found)
    }

    fn retention_backup(&self, summary: &BackupSummary) -> RetentionBackup {
        let restorable = self.overview.backups.iter().any(|backup| backup.label == summary.label && backup.restorable);
        RetentionBackup {
            label: summary.label.clone(),
            timeline: summary.timeline,
            start: summary.start_lsn,
            stop: summary.stop_lsn,
            finished_at: summary.finished_at,
            restorable,
        }
    }

    async fn list_wal(&self) -> Result<WalByTimeline, CleanupError> {
        let mut found: WalByTimeline = BTreeMap::new();
        let mut listed = self.list(&self.archive.layout().wal()).await?;
        listed.append(&mut self.list(&self.archive.layout().pieces()).await?);
        for object in listed {
            let segment = match self.archive.layout().object_of_key(&object.key) {
                Some(ClusterObject::Segment(name)) => name,
                Some(ClusterObject::File(
                    WalFileName::Partial(name)
                    | WalFileName::BackupLabel { segment: name, .. }
                    | WalFileName::Tail { segment: name, .. },
                )) => name,
                Some(ClusterObject::Piece { timeline, start, .. }) => {
                    match SegmentName::new(timeline, self.size.segment_of(start), self.size) {
                        Some(segment) => segment,
                        None => continue,
                    }
                }
                // What is not understood stays.
                _ => continue,
            };
            found.entry(segment.timeline()).or_default().push((segment, object));
        }
        Ok(found)
    }

    async fn decide(
        &self,
        bases: &[(RetentionBackup, ObjectInfo)],
        wal: &WalByTimeline,
    ) -> Result<RetentionDecision, CleanupError> {
        let mut histories: Vec<TimelineHistory> = Vec::new();
        for timeline in self.archive.timelines().await? {
            match self.archive.history(timeline).await {
                Ok(history) => histories.extend(history),
                Err(error) if error.is_integrity() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let newest = |objects: &Vec<(SegmentName, ObjectInfo)>| objects.iter().map(|(_, object)| object.modified).max();
        let alive: BTreeMap<TimelineId, Timestamp> =
            wal.iter().filter_map(|(timeline, objects)| Some((*timeline, newest(objects)?))).collect();
        let bases: Vec<RetentionBackup> = bases.iter().map(|(base, _)| base.clone()).collect();
        Ok(policy::decide(RetentionInput {
            bases: &bases,
            histories: &histories,
            alive: &alive,
            size: self.size,
            since: self.since,
        }))
    }

    /// The packs that backups name, and those that expired manifests name which are young. `None` if one cannot be
    /// read.
    async fn named_packs(&self, bases: &[(RetentionBackup, ObjectInfo)]) -> Option<NamedPacks> {
        let mut named = NamedPacks::default();
        for (base, object) in bases {
            named.packs_by_backup.insert(base.label.clone(), self.packs_in_manifest(object).await?);
        }
        for object in self.list(&self.archive.layout().expired()).await.ok()? {
            let packs = self.packs_in_manifest(&object).await?;
            if object.modified >= self.young {
                named.waiting.extend(packs);
            } else {
                named.obsolete.push(object);
            }
        }
        Some(named)
    }

    async fn packs_in_manifest(&self, object: &ObjectInfo) -> Option<BTreeSet<PackId>> {
        let opened = self.archive.vault().get_object(SealedKind::Manifest, &object.key).await;
        let read = match opened {
            Ok(Some(opened)) => run_blocking(move || {
                let summary = BackupSummary::from_bytes(&opened.metadata).ok()?;
                Some(Manifest::from_bytes(summary, &opened.plain).ok()?.packs.into_iter().collect())
            })
            .await
            .ok()
            .flatten(),
            Ok(None) => Some(BTreeSet::new()),
            Err(_) => None,
        };
        if read.is_none() {
            tracing::warn!(manifest = %object.key, "this manifest cannot be read");
        }
        read
    }

    /// Copies a manifest under `expired/`, then removes it.
    async fn expire(&self, base: &RetentionBackup, object: &ObjectInfo) -> Result<(), CleanupError> {
        if self.dry_run {
            return Ok(());
        }
        let key = self.archive.layout().expired_manifest(&base.label)?;
        if let Some(opened) = self.archive.vault().get_object(SealedKind::Manifest, &object.key).await? {
            let sealed = self.seal_expired(&key, opened.plain, &opened.metadata)?;
            self.repository.put_new(&key, sealed).await.map_err(|error| self.repository_error(error))?;
        }
        tracing::info!(repository = self.name, backup = base.label, "removing a backup whose time is up");
        // Its names first: no restore needs them, and with the manifest gone nobody would come back for them.
        let names = self.archive.layout().names(&base.label)?;
        self.repository.delete(&names).await.map_err(|error| self.repository_error(error))?;
        self.remove(object).await
    }

    fn seal_expired(&self, key: &ObjectKey, plain: Bytes, metadata: &[u8]) -> Result<Vec<Bytes>, CleanupError> {
        let binding = ObjectBinding::new(SealedKind::Manifest, key.as_str());
        let spec = SealSpec {
            level: self.archive.vault().level(),
            metadata,
            threads: self.archive.vault().threads(),
            ..SealSpec::new(&binding)
        };
        Ok(seal::seal_object(&[&plain], &spec, self.archive.vault().protection())?.parts)
    }

    /// Oldest first, so that what is left is always the log's newer part.
    async fn sweep_wal(
        &self,
        verdict: &RetentionDecision,
        wal: &WalByTimeline,
        cleaned: &mut ClusterCleanup,
    ) -> Result<(), CleanupError> {
        for (timeline, objects) in wal {
            let mut objects: Vec<&(SegmentName, ObjectInfo)> = objects.iter().collect();
            objects.sort_by_key(|(name, _)| name.number(self.size));
            for (name, object) in objects {
                let goes =
                    name.number(self.size).is_some_and(|number| verdict.may_remove(*timeline, number, object.modified));
                if goes {
                    self.remove(object).await?;
                    cleaned.wal.add_object(object);
                } else {
                    cleaned.wal_kept.add_object(object);
                }
            }
        }
        Ok(())
    }

    async fn sweep_packs(
        &self,
        named: &mut NamedPacks,
        packs: Vec<ObjectInfo>,
        cleaned: &mut ClusterCleanup,
    ) -> Result<(), CleanupError> {
        let stays =
            |label: &String| cleaned.backups.iter().any(|backup| backup.label == *label && backup.kept.is_some());
        let (kept, expired): (Vec<_>, Vec<_>) = named.packs_by_backup.iter().partition(|(label, _)| stays(label));
        let kept: BTreeSet<PackId> = kept.into_iter().flat_map(|(_, packs)| packs.iter().copied()).collect();
        named.waiting.extend(expired.into_iter().flat_map(|(_, packs)| packs.iter().copied()));
        for object in packs {
            let Some(ClusterObject::Pack(id)) = self.archive.layout().object_of_key(&object.key) else { continue };
            let Some(id) = PackId::parse(&id) else { continue };
            if kept.contains(&id) {
                continue;
            }
            if named.waiting.contains(&id) || object.modified >= self.young {
                cleaned.packs_waiting.add_object(&object);
            } else {
                self.remove(&object).await?;
                cleaned.packs.add_object(&object);
            }
        }
        // Only now: as long as its copy is there, a manifest's packs are looked for.
        for object in &named.obsolete {
            self.remove(object).await?;
        }
        Ok(())
    }
}

/// Which packs are named.
#[derive(Default)]
struct NamedPacks {
    /// By the backups that are there.
    packs_by_backup: BTreeMap<String, BTreeSet<PackId>>,
    /// By expired manifests whose time is not up.
    waiting: BTreeSet<PackId>,
    /// Expired manifests whose time is up.
    obsolete: Vec<ObjectInfo>,
}
