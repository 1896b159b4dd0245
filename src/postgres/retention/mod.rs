//! Retention: takes away what no moment of the last days needs, in each repository by itself.
//!
//! [`policy`] decides. Carrying it out goes in an order in which every step can be the last: a manifest is copied under
//! `expired/` and then removed, so that its backup is gone at once; then WAL goes, oldest first; and packs that no
//! manifest names go when their time is up. Packs that an expired manifest names, and the WAL that it made restorable,
//! stay for the grace, so that a restore under way finds them. Then the copy under `expired/` goes too.
//!
//! Backups under way have marks ([`crate::vault::running`]): what was there when the first of them began stays. What
//! decides about packs is listed after the manifests went. Nothing is removed while the store's clock and this
//! machine's disagree, because everything is decided by age.
//!
//! Histories, records of gaps, the cluster's identity, pins and keys always stay.

pub mod policy;
pub mod single;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use crate::base::blocking::run_blocking;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::postgres::archive::chunks::PackId;
use crate::postgres::archive::coverage::{self, ArchiveCoverage, CoverageScope};
use crate::postgres::archive::layout::ClusterObject;
use crate::postgres::archive::manifest::{BackupSummary, Manifest};
use crate::postgres::archive::reindex::{self, ReindexError, ReindexScope};
use crate::postgres::archive::{self, Archive};
use crate::postgres::format::segment::{SegmentName, SegmentSize, WalFileName};
use crate::postgres::format::timeline::{TimelineHistory, TimelineId};
use crate::postgres::index::WalIndex;
use crate::vault;
use crate::vault::repository::key::ObjectKeyError;
use crate::vault::repository::{self, ObjectInfo, Repository};
use crate::vault::seal::{self, ObjectBinding, SealError, SealSpec, SealedKind};

use crate::vault::retention::{
    self, CleanupReport, KeepReason, ObjectTotals, RetentionError, RetentionOptions, before_window,
};
use crate::vault::running::RunningBackups;
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
    /// There is no backup of this label.
    #[error("there is no backup {label:?}; walkeep list shows which there are")]
    UnknownBackup {
        /// What was asked for.
        label: String,
    },
    /// A backup that is to be removed is pinned.
    #[error("backup {label} is kept; walkeep backup unkeep {label} ends that")]
    Pinned {
        /// The backup.
        label: String,
    },
    /// A backup that is to be removed is the last one that can be restored.
    #[error("backup {label} is the only one that can be restored; take another one first, or add --force")]
    OnlyBackup {
        /// The backup.
        label: String,
    },
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
            CleanupError::UnknownBackup { .. } => ErrorKind::NotFound,
            CleanupError::Pinned { .. } | CleanupError::OnlyBackup { .. } => ErrorKind::Usage,
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
    let coverage = coverage::gather_coverage(archive, index, None, CoverageScope::All).await?;
    let Some(size) = coverage.together.segment_size else { return Ok(report) };
    for (name, repository) in archive.vault().repositories() {
        let Some((since, young)) = report.repository_window(archive.vault(), wish, name) else { continue };
        let sweep = RepositorySweep {
            archive,
            name,
            repository: &repository,
            size,
            since,
            young,
            wish,
            progress,
            restorable: restorable_backups(&coverage, name),
        };
        report.repositories.push(sweep.run().await?);
    }
    let removed = report.repositories.iter().any(|cleaned| cleaned.wal.objects > 0);
    if removed && !wish.dry_run && index.is_writer() {
        reindex::catch_up_index(archive, index, ReindexScope::All).await?;
    }
    Ok(report)
}

/// The backups that this repository restores by itself: what it keeps must not depend on the WAL of another one.
fn restorable_backups(coverage: &ArchiveCoverage, name: &str) -> BTreeSet<String> {
    match coverage.repositories.iter().find(|alone| alone.repository == name) {
        Some(alone) => alone.backups.iter().cloned().collect(),
        None if coverage.repositories.is_empty() => {
            let restorable = coverage.together.backups.iter().filter(|backup| backup.restorable);
            restorable.map(|backup| backup.label.clone()).collect()
        }
        None => BTreeSet::new(),
    }
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
    wish: &'a RetentionOptions,
    progress: &'a (dyn Fn(u64) + Sync),
    restorable: BTreeSet<String>,
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
        let now = self.store_time().await?;
        let running = self.list_running(now).await?;
        let mut readable = true;
        let bases = self.list_backups(&mut cleaned.notes, &mut readable).await?;
        let pinned = self.list_pins().await?;
        let wal = self.list_wal().await?;
        let verdict = self.decide(&bases, &wal, &pinned, &running).await?;
        cleaned.backups = bases
            .iter()
            .map(|(base, _)| RetainedBackup {
                label: base.label.clone(),
                finished_at: base.finished_at,
                kept: verdict.keep.get(&base.label).copied(),
            })
            .collect();
        for (base, object) in bases.iter().filter(|(base, _)| verdict.expire.contains(&base.label)) {
            self.expire(base, object).await?;
        }
        if !readable {
            cleaned
                .notes
                .push("a manifest cannot be read, so neither WAL nor packs are removed; run walkeep verify".to_owned());
            wal.values().flatten().for_each(|(_, object)| cleaned.wal_kept.add_object(object));
            return Ok(cleaned);
        }
        let left = self.look_again(&bases, now).await?;
        for name in left.running.live.keys() {
            cleaned.notes.push(format!("backup {name} is under way; what it may need stays"));
        }
        match left.manifests.iter().find(|(_, is_new)| *is_new) {
            Some((object, _)) => {
                let label = object.key.file_name();
                cleaned.notes.push(format!("backup {label} appeared meanwhile, so no WAL is removed; run it again"));
                wal.values().flatten().for_each(|(_, object)| cleaned.wal_kept.add_object(object));
            }
            None => self.sweep_wal(&verdict, &wal, &mut cleaned).await?,
        }
        match self.named_packs(&left, &verdict).await? {
            Some(named) => self.sweep_packs(&named, left.packs, &mut cleaned).await?,
            None => {
                cleaned.notes.push("a manifest cannot be read, so no pack is removed; run walkeep verify".to_owned())
            }
        }
        Ok(cleaned)
    }

    /// The store's time; in a dry run, which writes nothing, this machine's.
    async fn store_time(&self) -> Result<Timestamp, CleanupError> {
        let vault = self.archive.vault();
        if self.wish.dry_run {
            return Ok(vault.clock().now());
        }
        let probe = self.archive.layout().probe(&format!("{:032x}", rand::random::<u128>()))?;
        Ok(retention::store_time(vault, (self.name, self.repository), &probe, self.wish).await?)
    }

    async fn list_running(&self, now: Timestamp) -> Result<RunningBackups, CleanupError> {
        let listed = RunningBackups::list(self.repository, &self.archive.layout().running(), now).await;
        listed.map_err(|error| self.repository_error(error))
    }

    async fn list_pins(&self) -> Result<BTreeSet<String>, CleanupError> {
        let pins = self.list(&self.archive.layout().pins()).await?;
        Ok(pins.iter().map(|object| object.key.file_name().to_owned()).collect())
    }

    /// Lists again what decides about packs, now that manifests are gone: first the packs, then who is under way, then
    /// the manifests. A backup whose packs are listed either has its mark still, or its manifest is there. One whose
    /// mark is created later finds no manifest that went, and so does not use packs that only those name.
    async fn look_again(
        &self,
        bases: &[(RetentionBackup, ObjectInfo)],
        now: Timestamp,
    ) -> Result<SecondLook, CleanupError> {
        let packs = self.list(&self.archive.layout().packs()).await?;
        let running = self.list_running(now).await?;
        for object in &running.dead {
            self.remove(object).await?;
        }
        let is_new = |object: &ObjectInfo| !bases.iter().any(|(_, known)| known.key == object.key);
        let manifests = self.list(&self.archive.layout().backups()).await?;
        let manifests =
            manifests.into_iter().map(|object| (is_new(&object), object)).map(|(new, object)| (object, new));
        let expired = self.list(&self.archive.layout().expired()).await?;
        let young = running.protected_since().map_or(self.young, |begun| self.young.min(begun));
        Ok(SecondLook { packs, running, manifests: manifests.collect(), expired, young })
    }

    fn repository_error(&self, source: repository::RepositoryError) -> CleanupError {
        RetentionError::in_repository(self.name, source).into()
    }

    async fn list(&self, prefix: &repository::key::KeyPrefix) -> Result<Vec<ObjectInfo>, CleanupError> {
        self.repository.list(prefix).await.map_err(|error| self.repository_error(error))
    }

    async fn remove(&self, object: &ObjectInfo) -> Result<(), CleanupError> {
        if !self.wish.dry_run {
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
        RetentionBackup {
            label: summary.label.clone(),
            timeline: summary.timeline,
            start: summary.start_lsn,
            stop: summary.stop_lsn,
            finished_at: summary.finished_at,
            restorable: self.restorable.contains(&summary.label),
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
        pinned: &BTreeSet<String>,
        running: &RunningBackups,
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
        let leaving = self.leaving_backups().await?;
        Ok(policy::decide(RetentionInput {
            bases: &bases,
            histories: &histories,
            alive: &alive,
            size: self.size,
            since: self.since,
            pinned,
            minimum: self.wish.minimum.get(self.name).copied().unwrap_or(0),
            leaving: &leaving,
            grace: !self.wish.grace.is_zero(),
            wal_since: running.protected_since().map_or(Timestamp::MAX, before_window),
        }))
    }

    /// The backups that were taken away less than the grace ago. One that cannot be read has no WAL to keep.
    async fn leaving_backups(&self) -> Result<Vec<RetentionBackup>, CleanupError> {
        let mut leaving = Vec::new();
        let expired = self.list(&self.archive.layout().expired()).await?;
        for object in expired.into_iter().filter(|object| object.modified >= self.young) {
            match self.archive.vault().get_trailer(SealedKind::Manifest, &object.key).await {
                Ok(Some(trailer)) => {
                    let summary = BackupSummary::from_bytes(trailer.metadata()).ok();
                    leaving.extend(summary.map(|summary| self.retention_backup(&summary)));
                }
                Ok(None) => {}
                Err(error) if error.is_integrity() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(leaving)
    }

    /// The packs that backups name, and those that expired manifests name which are young. `None` if one cannot be
    /// read.
    async fn named_packs(
        &self,
        left: &SecondLook,
        verdict: &RetentionDecision,
    ) -> Result<Option<NamedPacks>, CleanupError> {
        let mut named = NamedPacks { young: left.young, ..NamedPacks::default() };
        for (object, _) in &left.manifests {
            let Some(packs) = self.packs_in_manifest(object).await else { return Ok(None) };
            // Of a dry run, which leaves them.
            let goes = verdict.expire.iter().any(|label| label == object.key.file_name());
            if goes { named.waiting.extend(packs) } else { named.kept.extend(packs) }
        }
        for object in &left.expired {
            let Some(packs) = self.packs_in_manifest(object).await else { return Ok(None) };
            let went_now = verdict.expire.iter().any(|label| label == object.key.file_name());
            if went_now || object.modified >= left.young {
                named.waiting.extend(packs);
            } else {
                named.obsolete.push(object.clone());
            }
        }
        Ok(Some(named))
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

    /// Takes a backup away, unless it was pinned since the decision was made.
    async fn expire(&self, base: &RetentionBackup, object: &ObjectInfo) -> Result<(), CleanupError> {
        if self.wish.dry_run {
            return Ok(());
        }
        let pin = self.archive.layout().pin(&base.label)?;
        if self.repository.head(&pin).await.map_err(|error| self.repository_error(error))?.is_some() {
            return Ok(());
        }
        tracing::info!(repository = self.name, backup = base.label, "removing a backup whose time is up");
        expire_backup(self.archive, (self.name, self.repository), &base.label).await?;
        (self.progress)(object.len);
        Ok(())
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
        named: &NamedPacks,
        packs: Vec<ObjectInfo>,
        cleaned: &mut ClusterCleanup,
    ) -> Result<(), CleanupError> {
        for object in packs {
            let Some(ClusterObject::Pack(id)) = self.archive.layout().object_of_key(&object.key) else { continue };
            let Some(id) = PackId::parse(&id) else { continue };
            if named.kept.contains(&id) {
                continue;
            }
            if named.waiting.contains(&id) || object.modified >= named.young {
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

/// Copies the manifest of a backup under `expired/`, then removes it: the backup is gone, and what it used stays for
/// the grace.
async fn expire_backup(
    archive: &Archive,
    (name, repository): (&str, &Repository),
    label: &str,
) -> Result<(), CleanupError> {
    let failed = |source| CleanupError::from(RetentionError::in_repository(name, source));
    let (manifest, expired) = (archive.layout().backup(label)?, archive.layout().expired_manifest(label)?);
    let vault = archive.vault();
    if let Some(opened) = vault.get_object(SealedKind::Manifest, &manifest).await? {
        let binding = ObjectBinding::new(SealedKind::Manifest, expired.as_str());
        let (level, threads) = (vault.level(), vault.threads());
        let spec = SealSpec { level, metadata: &opened.metadata, threads, ..SealSpec::new(&binding) };
        let sealed = seal::seal_object(&[&opened.plain], &spec, vault.protection())?.parts;
        repository.put_new(&expired, sealed).await.map_err(failed)?;
    }
    // Its names first: no restore needs them, and without the manifest no cleanup would find them.
    repository.delete(&archive.layout().names(label)?).await.map_err(failed)?;
    repository.delete(&manifest).await.map_err(failed)
}

/// What a repository has after manifests were taken away.
struct SecondLook {
    packs: Vec<ObjectInfo>,
    running: RunningBackups,
    /// The manifests, and whether each has appeared since the first look.
    manifests: Vec<(ObjectInfo, bool)>,
    expired: Vec<ObjectInfo>,
    /// What is younger than this may belong to a backup under way.
    young: Timestamp,
}

/// Which packs are named.
#[derive(Default)]
struct NamedPacks {
    /// By the backups that stay.
    kept: BTreeSet<PackId>,
    /// By expired manifests whose time is not up.
    waiting: BTreeSet<PackId>,
    /// Expired manifests whose time is up.
    obsolete: Vec<ObjectInfo>,
    /// What is younger than this stays.
    young: Timestamp,
}
