//! Reads back and authenticates everything, in every repository: what `walkeep verify` does.
//!
//! Each object is fetched and opened, which checks every tag and checksum. A segment's records are read again and its
//! digest compared with the one in its trailer; each chunk of each backup is compared with its name, and each file's
//! hash is computed from its chunks. From the digests that proved right an index is made in memory, and by it the log
//! is checked for holes and every backup for the log that it needs.
//!
//! The archive lives on meanwhile: a segment that the next one overtook is waited for, and what retention takes away is
//! not missed.
//!
//! Nothing is changed, and the index in the state directory is not asked. Objects in flight take [`MEMORY_BUDGET_MIB`]
//! of memory at the most, a segment some 150 bytes, and a chunk some 100 while backups are checked.

#[cfg(test)]
mod tests;
mod concurrent_changes;
mod objects;
mod backups;

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::base::blocking::WorkerLostError;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::postgres::archive::inventory::{self, ArchiveInventory, InventoryInput, MissingWal};
use crate::postgres::archive::{self, Archive, ArchiveIdentity};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::SegmentSize;
use crate::postgres::format::timeline::{TimelineHistory, TimelineId};
use crate::postgres::index::{self, InMemoryIndex, IndexEntry};
use crate::postgres::wal::digest::SegmentDigest;
use crate::vault;
use crate::vault::repository::key::ObjectKey;
use crate::vault::repository::{self, Repository};
use crate::vault::verify::{DamagedObject, VerifyOptions, VerifyProgress};

/// Mebibytes that objects in flight may take, stored and opened together.
pub const MEMORY_BUDGET_MIB: u32 = 256;

/// What one repository holds.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct VerifyCounts {
    /// The repository's name in the configuration.
    pub repository: String,
    /// Segments that are right.
    pub segments: u64,
    /// Other files of `pg_wal`, records of gaps and the cluster's identity that are right.
    pub files: u64,
    /// Backups whose manifest, packs and files are right.
    pub backups: u64,
    /// Packs that are right.
    pub packs: u64,
    /// Chunks whose content has their name.
    pub chunks: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// What a verification found.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct VerifyReport {
    /// What each repository holds.
    pub repositories: Vec<VerifyCounts>,
    /// What is damaged, by repository and object.
    pub damage: Vec<DamagedObject>,
    /// Log that is missing or damaged.
    pub gaps: Vec<MissingWal>,
    /// Gaps that were recorded when they came about, and behind which there is a backup that does without.
    pub bridged: Vec<MissingWal>,
    /// Backups that cannot become consistent, because log is missing.
    pub stranded: Vec<String>,
}

impl VerifyReport {
    /// Whether everything is there and right, as far as it was ever received. Bridged gaps are known, and nothing can
    /// be done about them.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damage.is_empty() && self.gaps.is_empty() && self.stranded.is_empty()
    }
}

/// Why a verification could not be made; damage is no such reason.
#[derive(Debug, thiserror::Error)]
pub enum ClusterVerifyError {
    /// Objects could not be read, or no repository has the backup.
    #[error(transparent)]
    Objects(#[from] vault::verify::VerifyError),
    /// The archive could not be read.
    #[error(transparent)]
    Archive(#[from] archive::ArchiveError),
    /// The segments that are right don't belong together.
    #[error(transparent)]
    Index(#[from] index::IndexError),
}

impl HasKind for ClusterVerifyError {
    fn kind(&self) -> ErrorKind {
        match self {
            ClusterVerifyError::Objects(error) => error.kind(),
            ClusterVerifyError::Archive(error) => error.kind(),
            ClusterVerifyError::Index(error) => error.kind(),
        }
    }
}

impl From<WorkerLostError> for ClusterVerifyError {
    fn from(lost: WorkerLostError) -> ClusterVerifyError {
        vault::VaultError::from(lost).into()
    }
}

impl From<vault::VaultError> for ClusterVerifyError {
    fn from(error: vault::VaultError) -> ClusterVerifyError {
        ClusterVerifyError::Archive(error.into())
    }
}

/// One repository under verification.
struct RepositoryVerifier<'a> {
    archive: &'a Arc<Archive>,
    name: String,
    repository: Repository,
    /// The size of the cluster's segments, if its identity can be read.
    size: Option<SegmentSize>,
    memory: Arc<Semaphore>,
    progress: &'a VerifyProgress,
    found: std::sync::Mutex<RepositoryContents>,
}

/// What came to light in one repository.
#[derive(Default)]
struct RepositoryContents {
    counts: VerifyCounts,
    damage: Vec<DamagedObject>,
    digests: Vec<(SegmentDigest, u64)>,
    histories: Vec<TimelineHistory>,
    gaps: Vec<archive::gap::Gap>,
    summaries: Vec<archive::manifest::BackupSummary>,
    /// Objects that were listed, and not there when they were asked for.
    gone: Vec<ObjectKey>,
}

/// The log that a single backup needs.
#[derive(Clone, Copy, Debug)]
struct BackupWal {
    timeline: TimelineId,
    size: SegmentSize,
    from: Lsn,
    to: Lsn,
}

/// Verifies one cluster's archive.
///
/// # Errors
/// [`ClusterVerifyError`] where a repository doesn't answer. Damage is not an error but in the report.
pub async fn verify_cluster(
    archive: &Arc<Archive>,
    options: &VerifyOptions,
    progress: &VerifyProgress,
) -> Result<VerifyReport, ClusterVerifyError> {
    if let Some((_, why)) = archive.vault().unreachable().next() {
        return Err(why.into());
    }
    let identity = match archive.identity().await {
        Err(error) if error.is_integrity() => None,
        answer => answer?,
    };
    let memory = Arc::new(Semaphore::new(MEMORY_BUDGET_MIB as usize));
    let mut sum = VerifyTotals::default();
    for (name, repository) in archive.vault().repositories() {
        let subject = RepositoryVerifier {
            archive,
            name: name.to_owned(),
            repository: repository.clone(),
            size: identity.map(|identity| identity.segment_size),
            memory: Arc::clone(&memory),
            progress,
            found: std::sync::Mutex::default(),
        };
        subject.record(|found| found.counts.repository = name.to_owned());
        subject.verify_repository(options).await?;
        sum.add_repository(subject.found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner), archive)?;
    }
    if let Some(label) = options.backup.as_ref().filter(|label| !sum.summaries.iter().any(|s| s.label == **label)) {
        let damaged = sum.damage.iter().any(|damage| damage.object.ends_with(&format!("/{label}")));
        if !damaged {
            return Err(vault::verify::VerifyError::UnknownBackup { label: label.clone() }.into());
        }
    }
    sum.into_report(&archive.cluster().to_string(), identity, options)
}

/// What all repositories together hold.
#[derive(Default)]
struct VerifyTotals {
    counts: Vec<VerifyCounts>,
    damage: Vec<DamagedObject>,
    log: InMemoryIndex,
    histories: Vec<TimelineHistory>,
    gaps: Vec<archive::gap::Gap>,
    summaries: Vec<archive::manifest::BackupSummary>,
}

impl VerifyTotals {
    fn add_repository(&mut self, mut found: RepositoryContents, archive: &Archive) -> Result<(), ClusterVerifyError> {
        let cluster = archive.cluster().to_string();
        for (digest, stored) in &found.digests {
            self.log.ingest(&cluster, IndexEntry { digest, stored: *stored })?;
        }
        found.histories.retain(|new| !self.histories.iter().any(|old| old.timeline == new.timeline));
        found.summaries.retain(|new| !self.summaries.iter().any(|old| old.label == new.label));
        found.gaps.retain(|new| !self.gaps.contains(new));
        self.histories.extend(found.histories);
        self.summaries.extend(found.summaries);
        self.gaps.extend(found.gaps);
        self.damage.extend(found.damage);
        self.counts.push(found.counts);
        Ok(())
    }

    fn into_report(
        mut self,
        cluster: &str,
        identity: Option<ArchiveIdentity>,
        options: &VerifyOptions,
    ) -> Result<VerifyReport, ClusterVerifyError> {
        let (backups, histories, gaps) = (&self.summaries, &self.histories, &self.gaps);
        let contents = InventoryInput {
            cluster,
            identity,
            backups,
            histories,
            gaps,
            latest_time_in_cut_segment: &inventory::no_time_in_cut_segment,
        };
        let overview: ArchiveInventory = inventory::build_inventory(&self.log.view(cluster)?, contents)?;
        let stranded =
            overview.backups.iter().filter(|backup| !backup.restorable).map(|backup| backup.label.clone()).collect();
        self.damage.sort();
        let gaps = if options.backup.is_some() { Vec::new() } else { overview.gaps };
        let (bridged, gaps) = gaps.into_iter().partition(|gap| is_bridged(gap, &overview.backups));
        Ok(VerifyReport { repositories: self.counts, damage: self.damage, gaps, bridged, stranded })
    }
}

/// Whether a gap was recorded when it came about and a backup from behind it can be restored. One that nobody recorded
/// is a loss in the repository, whatever comes after it.
fn is_bridged(gap: &MissingWal, backups: &[inventory::InventoryBackup]) -> bool {
    gap.noticed_at.is_some() && backups.iter().any(|backup| backup.restorable && backup.start_lsn >= gap.to_lsn)
}

impl RepositoryVerifier<'_> {
    /// Changes what was found.
    fn record(&self, change: impl FnOnce(&mut RepositoryContents)) {
        change(&mut self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    fn record_damage(&self, object: &str, what: impl ToString) {
        let damage = DamagedObject { repository: self.name.clone(), object: object.to_owned(), what: what.to_string() };
        // Whoever asked for it shows the report.
        tracing::debug!(repository = damage.repository, object = damage.object, what = damage.what, "damaged");
        self.record(|found| found.damage.push(damage));
    }

    fn repository_error(&self, source: repository::RepositoryError) -> ClusterVerifyError {
        vault::verify::VerifyError::Repository { name: self.name.clone(), source: Arc::new(source) }.into()
    }

    /// Verifies this repository.
    async fn verify_repository(&self, options: &VerifyOptions) -> Result<(), ClusterVerifyError> {
        let layout = self.archive.layout();
        match &options.backup {
            None => {
                let listed = self.repository.list(&layout.all()).await.map_err(|e| self.repository_error(e))?;
                let late = self.list_late_segments(&listed).await?;
                self.verify_objects(listed.into_iter().chain(late).collect(), None).await?;
            }
            Some(label) => {
                let Ok(key) = layout.backup(label) else { return Ok(()) };
                let Some(object) = self.repository.head(&key).await.map_err(|e| self.repository_error(e))? else {
                    return Ok(());
                };
                self.verify_objects(vec![object], None).await?;
                let backup = |found: &RepositoryContents| {
                    found.summaries.iter().find(|summary| summary.label == *label).cloned()
                };
                let found = backup(&self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
                let Some(summary) = found else { return Ok(()) };
                let needed = BackupWal {
                    timeline: summary.timeline,
                    size: summary.segment_size,
                    from: summary.start_lsn,
                    to: summary.stop_lsn,
                };
                let mut listed = self
                    .repository
                    .list(&layout.timeline(needed.timeline))
                    .await
                    .map_err(|e| self.repository_error(e))?;
                listed.extend(self.repository.list(&layout.histories()).await.map_err(|e| self.repository_error(e))?);
                self.verify_objects(listed, Some(needed)).await?;
            }
        }
        self.settle_removed_objects().await
    }
}
