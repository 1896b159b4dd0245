//! The one way in for WAL.
//!
//! A segment is digested and sealed at the same time, then put into every repository that can be reached. Nothing is
//! acknowledged before the required ones have it (I1). The others are filled later.
//!
//! The first copy of a name wins. A later one must be the same, or it is refused and an alarm: a roll-back to an older
//! snapshot, a clone, or two servers that both think they are the primary (I3). Same means: equal bytes, or equal up to
//! the record that switched to the next segment, after which two servers may leave different padding.
//!
//! Damaged WAL is kept as it came and marked, never refused: it may be all that is left (I10).

use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use futures_util::future::join_all;

use super::wal_file_error::WalFileError;
use super::{Archive, ArchiveError, ArchiveIdentity};
use crate::base::blocking::{WorkerLostError, run_blocking};
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::retry::ErrorClass;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentSize, SystemId, WalFileName};
use crate::postgres::wal::digest::{self, DigestError, SegmentDigest, SegmentState};
use crate::postgres::wal::page::WalPageHeader;
use crate::vault::VaultRepository;
use crate::vault::repository::PutOutcome;
use crate::vault::repository::key::ObjectKey;
use crate::vault::seal::{
    self, CompressionLevel, ObjectEncryption, OpenError, SealSpec, SealedKind, SealedObject, Trailer,
};
use crate::vault::{self, object_binding};

/// What came of putting a file into the archive. Either way it is now durable in every required repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IngestOutcome {
    /// It was new to at least one repository.
    Created,
    /// Every repository that could be asked had it.
    Identical,
}

/// What was put, and what is to be said about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ingested {
    /// Whether it was new.
    pub outcome: IngestOutcome,
    /// Bytes it has in a repository.
    pub stored_bytes: u64,
    /// The repositories that do not have it yet, each with the reason.
    pub lacking: Vec<LackingRepository>,
    /// What a human must hear about, though it was archived.
    pub alarm: Option<IngestAlarm>,
    /// The digest, if it was made: not of a segment that was there already, nor of other files.
    pub digest: Option<Arc<SegmentDigest>>,
}

/// A repository that does not have what others have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LackingRepository {
    /// Its name in the configuration.
    pub name: String,
    /// Why it was not stored there.
    pub why: String,
}

/// Something about archived WAL that a human must hear about.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IngestAlarm {
    /// Damaged WAL: a restore cannot go beyond it.
    #[error(
        "the WAL is damaged at {at}: {why}; it was archived as it is and marked, a restore cannot go past it, so take \
            a new backup now"
    )]
    Broken {
        /// Where.
        at: Lsn,
        /// How.
        why: String,
    },
    /// WAL of a version that cannot be looked into.
    #[error(
        "the WAL is of a PostgreSQL that this walkeep does not know (page magic {magic:04X}); it was archived \
            unchecked and cannot be searched, so use a newer walkeep"
    )]
    Opaque {
        /// The page magic.
        magic: u16,
    },
}

/// Why a file was not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IngestError {
    /// Another content is archived under this name.
    #[error(
        "{name} is in repository {place} with a different content, which stays; this one is not archived. \
         Another server writes to this archive, or this one was set back to an older state"
    )]
    ContentDiffers {
        /// The file.
        name: String,
        /// The repository's name in the configuration.
        place: String,
    },
    /// WAL of another cluster.
    #[error(
        "{name} belongs to the cluster with system identifier {found}, and this archive to {expected}; give each \
            cluster its own archive"
    )]
    WrongSystem {
        /// The file.
        name: String,
        /// The one it names.
        found: SystemId,
        /// The archive's.
        expected: SystemId,
    },
    /// WAL of another segment size than the cluster's.
    #[error(
        "{name} has {found} bytes, and this archive's segments have {expected}; after a change of the segment size \
            begin a new archive"
    )]
    WrongSize {
        /// The file.
        name: String,
        /// Its bytes.
        found: u64,
        /// The archive's segment size.
        expected: u64,
    },
    /// Bytes that are not the segment their name says.
    #[error(transparent)]
    NotTheSegment(#[from] DigestError),
    /// No segment size.
    #[error("{name} has {found} bytes, which is no segment size; was it still being written?")]
    NotWhole {
        /// The file.
        name: String,
        /// Its bytes.
        found: u64,
    },
    /// The file cannot be read as a whole.
    #[error(transparent)]
    File(#[from] WalFileError),
    /// The archive could not take it.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl HasKind for IngestError {
    fn kind(&self) -> ErrorKind {
        match self {
            IngestError::ContentDiffers { .. } => ErrorKind::Conflict,
            IngestError::NotTheSegment(_) => ErrorKind::Integrity,
            IngestError::Archive(error) => error.kind(),
            IngestError::WrongSystem { .. }
            | IngestError::WrongSize { .. }
            | IngestError::NotWhole { .. }
            | IngestError::File(_) => ErrorKind::Failed,
        }
    }
}

impl From<WorkerLostError> for IngestError {
    fn from(lost: WorkerLostError) -> IngestError {
        vault::VaultError::from(lost).into()
    }
}

impl From<vault::VaultError> for IngestError {
    fn from(error: vault::VaultError) -> IngestError {
        IngestError::Archive(error.into())
    }
}

impl IngestError {
    /// What the caller can do about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.kind().class()
    }

    /// Whether a repository is in the way that may be back later, or that a user can put right.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, IngestError::Archive(ArchiveError::Vault(error)) if error.may_pass())
    }
}

/// What the repositories that can be reached have of a segment, and which could not be asked.
pub(super) struct StoredCopies {
    pub(super) stored: Vec<StoredSegment>,
    lacking: Vec<LackingRepository>,
}

/// What a place has of a segment.
pub(super) struct StoredSegment {
    pub(super) trailer: Box<Trailer>,
    /// Its outline.
    digest: SegmentDigest,
    /// Bytes of its object.
    len: u64,
}

/// A segment, digested and sealed, ready to be put.
#[derive(Clone, Debug)]
pub struct PreparedSegment {
    name: SegmentName,
    key: ObjectKey,
    sealed: SealedObject,
    digest: Arc<SegmentDigest>,
}

impl PreparedSegment {
    /// The segment's name.
    #[must_use]
    pub const fn name(&self) -> SegmentName {
        self.name
    }

    /// Its digest.
    #[must_use]
    pub const fn digest(&self) -> &Arc<SegmentDigest> {
        &self.digest
    }

    /// Its key.
    pub(crate) const fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Bytes it will have in a repository.
    #[must_use]
    pub const fn stored_bytes(&self) -> u64 {
        self.sealed.len
    }

    /// The segment's bytes again.
    pub(super) fn open(&self, protection: &ObjectEncryption, threads: usize) -> Result<Bytes, OpenError> {
        let binding = object_binding(SealedKind::Wal, &self.key);
        Ok(seal::open_object(&self.sealed.to_bytes(), &binding, protection, threads)?.plain)
    }

    fn identity(&self) -> ArchiveIdentity {
        ArchiveIdentity { system_id: self.digest.system_id, segment_size: self.digest.segment_size }
    }
}

/// Digests and seals a segment: nothing but CPU work, on `threads` threads and one more for the digest. For a pipeline
/// stage.
///
/// # Errors
/// The bytes are not that segment, or cannot be sealed.
pub fn prepare_segment(
    archive: &Archive,
    name: SegmentName,
    bytes: &[u8],
    level: CompressionLevel,
    threads: usize,
) -> Result<PreparedSegment, IngestError> {
    prepare_segment_with_note(archive, NotedSegment { name, bytes, note: &[] }, level, threads)
}

/// A segment, and a note of how it was received.
#[derive(Clone, Copy, Debug)]
pub struct NotedSegment<'b> {
    /// Its name.
    pub name: SegmentName,
    /// All its bytes.
    pub bytes: &'b [u8],
    /// The note ([`super::clock_notes`]); empty for none.
    pub note: &'b [u8],
}

/// The same, with a note of how the segment came ([`super::clock_notes`]).
///
/// # Errors
/// As [`prepare_segment`].
pub fn prepare_segment_with_note(
    archive: &Archive,
    NotedSegment { name, bytes, note }: NotedSegment<'_>,
    level: CompressionLevel,
    threads: usize,
) -> Result<PreparedSegment, IngestError> {
    let size = segment_size_in_header(&name.to_string(), bytes)?;
    let key = archive.layout.segment(name);
    let binding = object_binding(SealedKind::Wal, &key);
    let spec = SealSpec { level, threads, ..SealSpec::new(&binding) };
    let mut digested = None;
    let sealed = thread::scope(|scope| {
        let scan = scope.spawn(|| digest::scan_segment(bytes, name, size));
        seal::seal_with(&[bytes], &spec, archive.vault.protection(), |content| {
            let digest = scan.join().map(|scanned| scanned.map(|scanned| scanned.with_hash_of_all(content)));
            let digest = digested.insert(digest);
            let digest = digest.as_ref().ok().and_then(|digest| digest.as_ref().ok());
            digest.map(|digest| digest::with_note(digest.to_bytes(), note)).unwrap_or_default()
        })
    });
    match digested {
        Some(Ok(Ok(digest))) => Ok(PreparedSegment {
            name,
            key,
            sealed: sealed.map_err(vault::VaultError::from)?,
            digest: Arc::new(digest),
        }),
        Some(Ok(Err(error))) => Err(error.into()),
        Some(Err(_panic)) => Err(vault::VaultError::WorkerLost.into()),
        None => Err(sealed.err().map_or(vault::VaultError::WorkerLost, vault::VaultError::from).into()),
    }
}

impl Archive {
    /// Archives a file of `pg_wal` under the name PostgreSQL gives it.
    ///
    /// # Errors
    /// Why it was not taken. If it may have been archived in some places and not in others, the same call later settles
    /// it.
    pub async fn put_wal_file(self: &Arc<Self>, name: &WalFileName, bytes: Bytes) -> Result<Ingested, IngestError> {
        match name {
            WalFileName::Segment(segment) => self.put_segment(*segment, bytes).await,
            other => self.put_file(other, bytes).await,
        }
    }

    /// Archives a whole segment. Looks first whether it is there already, as `archive_command` often asks twice.
    ///
    /// # Errors
    /// As [`Archive::put_wal_file`].
    pub async fn put_segment(self: &Arc<Self>, name: SegmentName, bytes: Bytes) -> Result<Ingested, IngestError> {
        match self.stored_copies(name).await? {
            Some(copies) if copies.stored.iter().all(|stored| has_same_bytes(stored, &bytes)) => {
                Ok(self.confirm_identical(name, copies).await?)
            }
            _ => self.put_new_segment(name, &[], bytes).await,
        }
    }

    /// Archives a whole segment that is not known to be there already.
    pub(super) async fn put_new_segment(
        self: &Arc<Self>,
        name: SegmentName,
        note: &[u8],
        bytes: Bytes,
    ) -> Result<Ingested, IngestError> {
        self.check_header(&name.to_string(), &bytes).await?;
        let (archive, level, threads, note) =
            (Arc::clone(self), self.vault.level(), self.vault.threads(), note.to_vec());
        let prepare = move || {
            prepare_segment_with_note(&archive, NotedSegment { name, bytes: &bytes, note: &note }, level, threads)
        };
        let prepared = run_blocking(prepare).await??;
        self.commit_segment(prepared).await
    }

    /// Puts a prepared segment into every repository that can be reached. When this returns it is durable in all that
    /// are required.
    ///
    /// # Errors
    /// As [`Archive::put_wal_file`].
    pub async fn commit_segment(&self, prepared: PreparedSegment) -> Result<Ingested, IngestError> {
        self.check_prepared(&prepared).await?;
        let puts = join_all(self.vault.places.iter().map(|place| self.commit_segment_to(place, &prepared))).await;
        let (outcome, lacking) = self.combined_outcome(puts)?;
        let alarm = alarm_of_digest(&prepared.digest);
        let stored_bytes = prepared.stored_bytes();
        Ok(Ingested { outcome, stored_bytes, lacking, alarm, digest: Some(prepared.digest) })
    }

    /// Refuses a prepared segment of another cluster.
    ///
    /// # Errors
    /// It is one, or no repository could be asked.
    pub(crate) async fn check_prepared(&self, prepared: &PreparedSegment) -> Result<(), IngestError> {
        let proposed = prepared.identity();
        check_identity(&prepared.name.to_string(), proposed, self.identity_or_create(proposed).await?)
    }

    /// Puts a prepared segment into one repository, by its number in the configuration.
    ///
    /// # Errors
    /// As [`Archive::put_wal_file`].
    pub(crate) async fn commit_segment_in(
        &self,
        place: usize,
        prepared: &PreparedSegment,
    ) -> Result<IngestOutcome, IngestError> {
        let place = self.vault.places.get(place).ok_or(vault::VaultError::NoRepository)?;
        self.commit_segment_to(place, prepared).await
    }

    async fn commit_segment_to(
        &self,
        place: &VaultRepository,
        prepared: &PreparedSegment,
    ) -> Result<IngestOutcome, IngestError> {
        if place.put_when_open(&prepared.key, &prepared.sealed, &self.vault.keys).await? == PutOutcome::Created {
            return Ok(IngestOutcome::Created);
        }
        let gone = || place.content_error(&prepared.key, "it is gone again");
        let stored = self.read_stored_segment(place, &prepared.key).await?.ok_or_else(gone)?;
        let content = *stored.trailer.content() == prepared.sealed.content;
        let same = content || has_same_wal(&stored.digest, &prepared.digest);
        if same { Ok(IngestOutcome::Identical) } else { Err(conflict_error(prepared.name, place)) }
    }

    /// What the repositories that can be reached have of a segment; `None` if any of them has nothing, or if they are
    /// not enough.
    pub(super) async fn stored_copies(&self, name: SegmentName) -> Result<Option<StoredCopies>, ArchiveError> {
        let key = self.layout.segment(name);
        let found = join_all(self.vault.places.iter().map(|place| async {
            place.reopened(&self.vault.keys).await?;
            self.read_stored_segment(place, &key).await
        }))
        .await;
        let (mut stored, mut lacking) = (Vec::new(), Vec::new());
        for (place, found) in self.vault.places.iter().zip(found) {
            match found {
                Ok(Some(found)) => stored.push(found),
                Ok(None) => return Ok(None),
                Err(ArchiveError::Vault(error)) if error.may_pass() => lacking.push(lacking_repository(place, &error)),
                Err(error) => return Err(error),
            }
        }
        Ok(self.is_enough(&lacking).then_some(StoredCopies { stored, lacking }))
    }

    /// Whether everything that is required has it, if only these lack it.
    fn is_enough(&self, lacking: &[LackingRepository]) -> bool {
        self.required.are_met(self.vault.repository_names(), |name| lacking.iter().all(|other| other.name != name))
    }

    /// The answer for a segment that every repository has which can be reached, durable.
    pub(super) async fn confirm_identical(
        &self,
        name: SegmentName,
        copies: StoredCopies,
    ) -> Result<Ingested, ArchiveError> {
        let StoredCopies { stored, lacking } = copies;
        let key = self.layout.segment(name);
        for place in self.vault.places.iter().filter(|place| lacking.iter().all(|other| other.name != place.name)) {
            // It may have been put a moment ago by another process that has not synced its folder yet.
            place.make_durable(&key).await?;
        }
        let stored_bytes = stored.iter().map(|stored| stored.len).max().unwrap_or(0);
        let alarm = stored.iter().find_map(|stored| alarm_of_digest(&stored.digest));
        Ok(Ingested { outcome: IngestOutcome::Identical, stored_bytes, lacking, alarm, digest: None })
    }

    /// The outcome over all repositories: the required ones have it, or the first reason why one has not. A conflict
    /// goes before a network that may come back.
    fn combined_outcome(
        &self,
        puts: Vec<Result<IngestOutcome, IngestError>>,
    ) -> Result<(IngestOutcome, Vec<LackingRepository>), IngestError> {
        let (mut outcome, mut lacking, mut passing) = (IngestOutcome::Identical, Vec::new(), None);
        for (place, put) in self.vault.places.iter().zip(puts) {
            match put {
                Ok(IngestOutcome::Created) => outcome = IngestOutcome::Created,
                Ok(IngestOutcome::Identical) => {}
                Err(error) if error.may_pass() => {
                    lacking.push(lacking_repository(place, &error));
                    passing = passing.or(Some(error));
                }
                Err(error) => return Err(error),
            }
        }
        match passing {
            Some(error) if !self.is_enough(&lacking) => Err(error),
            _ => Ok((outcome, lacking)),
        }
    }

    async fn read_stored_segment(
        &self,
        place: &VaultRepository,
        key: &ObjectKey,
    ) -> Result<Option<StoredSegment>, ArchiveError> {
        let Some((trailer, len)) = place.trailer(SealedKind::Wal, key, &self.vault).await? else { return Ok(None) };
        let digest = SegmentDigest::outline(trailer.metadata()).map_err(|e| place.content_error(key, e))?;
        Ok(Some(StoredSegment { trailer, digest, len }))
    }

    /// Refuses another cluster's WAL before any work is done. What the header does not tell is left to the digest.
    async fn check_header(&self, name: &str, bytes: &[u8]) -> Result<(), IngestError> {
        let segment_size = segment_size_in_header(name, bytes)?;
        let Some(identity) = self.known_identity().await? else { return Ok(()) };
        let Some(header) = WalPageHeader::parse(bytes).and_then(|header| header.long) else { return Ok(()) };
        check_identity(name, ArchiveIdentity { system_id: header.system_id, segment_size }, identity)
    }

    /// Archives any other file: a history, a partial segment, a backup's label, or what only its sender understands.
    ///
    /// # Errors
    /// As [`Archive::put_wal_file`]. A history is never replaced.
    pub async fn put_file(&self, name: &WalFileName, bytes: Bytes) -> Result<Ingested, IngestError> {
        if let WalFileName::Partial(_) = name {
            self.check_header(&name.to_string(), &bytes).await?;
        }
        let key = self.layout.file(name);
        let (binding, protection) = (object_binding(SealedKind::WalFile, &key), Arc::clone(self.vault.protection()));
        let (level, threads) = (self.vault.level(), self.vault.threads());
        let sealed = run_blocking(move || {
            let spec = SealSpec { level, threads, ..SealSpec::new(&binding) };
            seal::seal_object(&[&bytes], &spec, &protection)
        });
        let sealed = sealed.await?.map_err(vault::VaultError::from)?;
        let puts = join_all(self.vault.places.iter().map(|place| self.put_file_to(place, name, &key, &sealed))).await;
        let (outcome, lacking) = self.combined_outcome(puts)?;
        Ok(Ingested { outcome, stored_bytes: sealed.len, lacking, alarm: None, digest: None })
    }

    async fn put_file_to(
        &self,
        place: &VaultRepository,
        name: &WalFileName,
        key: &ObjectKey,
        sealed: &SealedObject,
    ) -> Result<IngestOutcome, IngestError> {
        if place.put_when_open(key, sealed, &self.vault.keys).await? == PutOutcome::Created {
            return Ok(IngestOutcome::Created);
        }
        let gone = || place.content_error(key, "it is gone again");
        let (trailer, _) = place.trailer(SealedKind::WalFile, key, &self.vault).await?.ok_or_else(gone)?;
        if *trailer.content() == sealed.content {
            Ok(IngestOutcome::Identical)
        } else {
            Err(conflict_error(name, place))
        }
    }
}

fn lacking_repository(place: &VaultRepository, error: &dyn std::fmt::Display) -> LackingRepository {
    LackingRepository { name: place.name.clone(), why: error.to_string() }
}

fn conflict_error(name: impl ToString, place: &VaultRepository) -> IngestError {
    IngestError::ContentDiffers { name: name.to_string(), place: place.name.clone() }
}

fn segment_size_in_header(name: &str, bytes: &[u8]) -> Result<SegmentSize, IngestError> {
    let found = bytes.len() as u64;
    SegmentSize::new(found).map_err(|_size| IngestError::NotWhole { name: name.to_owned(), found })
}

fn check_identity(name: &str, found: ArchiveIdentity, expected: ArchiveIdentity) -> Result<(), IngestError> {
    let name = || name.to_owned();
    if found.system_id != expected.system_id {
        let (found, expected) = (found.system_id, expected.system_id);
        return Err(IngestError::WrongSystem { name: name(), found, expected });
    }
    if found.segment_size != expected.segment_size {
        let (found, expected) = (found.segment_size.get(), expected.segment_size.get());
        return Err(IngestError::WrongSize { name: name(), found, expected });
    }
    Ok(())
}

/// Whether two copies of one segment say the same, by their digests: equal up to where both end.
fn has_same_wal(stored: &SegmentDigest, given: &SegmentDigest) -> bool {
    let checked = stored.state == SegmentState::Checked && given.state == SegmentState::Checked;
    checked && stored.valid_until == given.valid_until && stored.content == given.content
}

/// Whether `bytes` are what is stored, without making their digest; `false` also where it would take one to tell.
fn has_same_bytes(stored: &StoredSegment, bytes: &[u8]) -> bool {
    let StoredSegment { trailer, digest: stored, .. } = stored;
    if trailer.plain_len() != bytes.len() as u64 {
        return false;
    }
    if *blake3::hash(bytes).as_bytes() == *trailer.content() {
        return true;
    }
    let until = usize::try_from(stored.valid_until.bytes_since(stored.start())).unwrap_or(usize::MAX);
    let Some(meaningful) = bytes.get(..until).filter(|_| stored.switched && stored.state == SegmentState::Checked)
    else {
        return false;
    };
    *blake3::hash(meaningful).as_bytes() == stored.content
}

/// What a human must hear about a segment with this digest.
pub(crate) fn alarm_of_digest(digest: &SegmentDigest) -> Option<IngestAlarm> {
    match &digest.state {
        SegmentState::Checked => None,
        SegmentState::Opaque => Some(IngestAlarm::Opaque { magic: digest.page_magic }),
        SegmentState::Broken { at, why } => Some(IngestAlarm::Broken { at: *at, why: why.clone() }),
    }
}
