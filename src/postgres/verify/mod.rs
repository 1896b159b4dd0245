//! Reads back and authenticates everything, in every repository: what `walkeep verify` does.
//!
//! Each object is fetched and opened, which checks every tag and checksum. A segment's records are read again and its
//! digest compared with the one in its trailer; each chunk of each backup is compared with its name, and each file's
//! hash is computed from its chunks. From the digests that proved right an index is made in memory, one for each
//! repository, and by it the log is checked for holes and every backup for the log that it needs.
//!
//! Each repository is judged by itself, because each may be the only one left. What another repository has in its place
//! does not count. Repositories are then compared by name ([`lacking`]). One that cannot be reached is reported, and
//! the others are verified.
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
mod lacking;

use std::collections::BTreeSet;
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
use crate::vault::UnreachableRepositories;
use crate::vault::repository::key::ObjectKey;
use crate::vault::repository::{self, Repository};
use crate::vault::verify::{DamagedObject, VerifyOptions, VerifyProgress, sort_unopened};

pub use lacking::{LackingKind, LackingObjects};

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
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize)]
pub struct VerifyReport {
    /// What each repository holds.
    pub repositories: Vec<VerifyCounts>,
    /// Repositories that could not be verified.
    pub unreachable: UnreachableRepositories,
    /// What is damaged, by repository and object.
    pub damage: Vec<DamagedObject>,
    /// What a repository does not have and another has.
    pub lacking: Vec<LackingObjects>,
    /// WAL that is missing or damaged, by repository.
    pub gaps: Vec<RepositoryGap>,
    /// Gaps that were recorded when they came about, and after which the same repository has a restorable backup.
    pub bridged: Vec<RepositoryGap>,
    /// Backups that cannot become consistent from their repository, because WAL is missing in it.
    pub stranded: Vec<StrandedBackup>,
}

/// WAL that is missing or damaged in one repository.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct RepositoryGap {
    /// The repository's name in the configuration.
    pub repository: String,
    /// What is missing.
    #[serde(flatten)]
    pub wal: MissingWal,
}

/// A backup that cannot be restored from a repository that has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub struct StrandedBackup {
    /// The repository's name in the configuration.
    pub repository: String,
    /// The backup.
    pub label: String,
    /// What of it is missing or damaged since it was taken; otherwise WAL that it needs is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defects: Option<String>,
}

impl VerifyReport {
    /// Whether everything that was looked at exists and is right, as far as it was ever received. Bridged gaps are
    /// known, and nothing can be done about them.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.count_findings() == 0
    }

    /// Whether everything was looked at.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unreachable.is_empty()
    }

    /// The findings that make the archive not whole.
    #[must_use]
    pub fn count_findings(&self) -> usize {
        self.damage.len() + self.lacking.len() + self.gaps.len() + self.stranded.len()
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

impl ClusterVerifyError {
    /// Whether a repository does not answer, so that only the others can be verified.
    fn is_unreachable(&self) -> bool {
        match self {
            ClusterVerifyError::Objects(error) => error.is_unreachable(),
            ClusterVerifyError::Archive(archive::ArchiveError::Vault(error)) => error.may_pass(),
            ClusterVerifyError::Archive(_) | ClusterVerifyError::Index(_) => false,
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

impl RepositoryContents {
    /// Whether the repository has this backup, whole or damaged.
    fn knows_backup(&self, label: &str) -> bool {
        let is_damaged = |damage: &DamagedObject| damage.object.ends_with(&format!("/{label}"));
        self.summaries.iter().any(|summary| summary.label == label) || self.damage.iter().any(is_damaged)
    }
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
/// [`ClusterVerifyError`] if no repository answers. Damage is not an error but in the report, and so is a repository
/// that does not answer while another does.
pub async fn verify_cluster(
    archive: &Arc<Archive>,
    options: &VerifyOptions,
    progress: &VerifyProgress,
) -> Result<VerifyReport, ClusterVerifyError> {
    let identity = match archive.identity().await {
        // Each repository is asked again below, and the report says what is wrong with it.
        Err(error) if error.is_integrity() || error.may_pass() => None,
        answer => answer?,
    };
    let (unreachable, damage) = sort_unopened(archive.vault());
    let mut report = VerifyReport { unreachable, damage, ..VerifyReport::default() };
    let memory = Arc::new(Semaphore::new(MEMORY_BUDGET_MIB as usize));
    let mut is_known = options.backup.is_none();
    let mut failed = None;
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
        match subject.verify_repository(options).await {
            Ok(()) => {
                let found = subject.found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
                is_known |= options.backup.as_ref().is_some_and(|label| found.knows_backup(label));
                VerifyTotals::of_repository(found, archive)?.add_to(&mut report, archive, identity, options)?;
            }
            Err(error) if error.is_unreachable() => {
                report.unreachable.insert_error(name, &error);
                failed = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    if let (true, Some(error)) = (report.repositories.is_empty(), failed) {
        return Err(error);
    }
    if let Some(label) = options.backup.as_ref().filter(|_| !is_known) {
        // An unreachable repository may have it.
        report.unreachable.ensure_empty()?;
        return Err(vault::verify::VerifyError::UnknownBackup { label: label.clone() }.into());
    }
    let verified: BTreeSet<String> = report.repositories.iter().map(|counts| counts.repository.clone()).collect();
    let compared = lacking::find_lacking(archive, options, &verified).await?;
    report.lacking = compared.lacking;
    report.damage.extend(compared.damage);
    report.unreachable.merge(&compared.unreachable);
    report.damage.sort();
    Ok(report)
}

/// What one repository holds.
struct VerifyTotals {
    counts: VerifyCounts,
    damage: Vec<DamagedObject>,
    log: InMemoryIndex,
    histories: Vec<TimelineHistory>,
    gaps: Vec<archive::gap::Gap>,
    summaries: Vec<archive::manifest::BackupSummary>,
}

impl VerifyTotals {
    fn of_repository(found: RepositoryContents, archive: &Archive) -> Result<VerifyTotals, ClusterVerifyError> {
        let cluster = archive.cluster().to_string();
        let mut log = InMemoryIndex::default();
        for (digest, stored) in &found.digests {
            log.ingest(&cluster, IndexEntry { digest, stored: *stored })?;
        }
        let RepositoryContents { counts, damage, histories, gaps, summaries, .. } = found;
        Ok(VerifyTotals { counts, damage, log, histories, gaps, summaries })
    }

    /// Judges the repository as if it were the only one.
    fn add_to(
        self,
        report: &mut VerifyReport,
        archive: &Archive,
        identity: Option<ArchiveIdentity>,
        options: &VerifyOptions,
    ) -> Result<(), ClusterVerifyError> {
        let cluster = archive.cluster().to_string();
        let (backups, histories, gaps) = (&self.summaries, &self.histories, &self.gaps);
        let contents = InventoryInput {
            cluster: &cluster,
            identity,
            backups,
            histories,
            gaps,
            latest_time_in_cut_segment: &inventory::no_time_in_cut_segment,
        };
        let overview: ArchiveInventory = inventory::build_inventory(&self.log.view(&cluster)?, contents)?;
        let repository = &self.counts.repository;
        let stranded = overview.backups.iter().filter(|backup| !backup.restorable);
        report.stranded.extend(stranded.map(|backup| StrandedBackup {
            repository: repository.clone(),
            label: backup.label.clone(),
            defects: backup.defects.clone(),
        }));
        let gaps = if options.backup.is_some() { Vec::new() } else { overview.gaps };
        for wal in gaps {
            let is_bridged = is_bridged(&wal, &overview.backups);
            let gap = RepositoryGap { repository: repository.clone(), wal };
            if is_bridged { report.bridged.push(gap) } else { report.gaps.push(gap) }
        }
        report.damage.extend(self.damage);
        report.repositories.push(self.counts);
        Ok(())
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
