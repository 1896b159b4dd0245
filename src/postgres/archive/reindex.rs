//! The index from the repository: all of it, or what is new since the last time.
//!
//! Listing says which segments there are, and each one's digest is in its object's trailer, so nothing is decoded and
//! little is read. What is known already is not read again. A segment whose trailer cannot be read is reported and left
//! out; the rest goes in.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;

use super::lookup::SegmentSource;
use super::unfinished::UnfinishedSegment;
use super::{Archive, ArchiveError};
use crate::base::blocking::{WorkerLostError, run_blocking};
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::retry::{Backoff, ErrorClass, RetryPolicy};
use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::index::key_value_store::ScanOrder;
use crate::postgres::index::{self, IndexEntry, SegmentId, WalIndex};
use crate::postgres::wal::digest::SegmentDigest;
use crate::vault;

/// For how long to wait for another process that is just making the index: until its first two keys are there it looks
/// like none, or a damaged one.
const INDEX_CREATION_WAIT: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(20),
    longest: Duration::from_millis(200),
    total: Some(Duration::from_secs(5)),
};

/// Trailers read at the same time: enough to keep a store far away busy, at some 100 KiB each.
const TRAILERS_IN_FLIGHT: usize = 32;
/// Digests that go into the index together. A busy segment's is half a megabyte in memory.
const DIGESTS_PER_BATCH: usize = 16;

/// Why the index could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum ReindexError {
    /// The index's own trouble.
    #[error(transparent)]
    Index(#[from] index::IndexError),
    /// The repository's.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl HasKind for ReindexError {
    fn kind(&self) -> ErrorKind {
        match self {
            ReindexError::Index(error) => error.kind(),
            ReindexError::Archive(error) => error.kind(),
        }
    }
}

impl From<WorkerLostError> for ReindexError {
    fn from(lost: WorkerLostError) -> ReindexError {
        vault::VaultError::from(lost).into()
    }
}

impl From<vault::VaultError> for ReindexError {
    fn from(error: vault::VaultError) -> ReindexError {
        ReindexError::Archive(error.into())
    }
}

/// How far back a catch-up looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReindexScope {
    /// From the first hole in the index on: what a service or a command does as it starts.
    New,
    /// Everything: also segments that were archived before those that the index begins with; and what is gone from the
    /// repository is forgotten.
    All,
}

/// What a catch-up did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReindexReport {
    /// Segments that the repository listed.
    pub listed: u64,
    /// Segments that were new to the index.
    pub added: u64,
    /// Segments of the index that the repository has no longer.
    pub forgotten: u64,
    /// Segments whose digest could not be read, with what was in the way.
    pub unreadable: Vec<(SegmentName, String)>,
    /// Repositories that could not be asked: the index may lack what only they have.
    pub unasked: Vec<(String, String)>,
}

/// The identity that an index is bound to: the repositories it is made from.
#[must_use]
pub fn repository_ids(archive: &Archive) -> Vec<String> {
    archive.vault().repositories().map(|(_, repository)| repository.id().to_string()).collect()
}

/// Opens the index in `dir` for a command, caught up: as the writer, if no other process writes it; else beside that
/// one, and then what that one has not taken in yet is kept in memory. An index that is damaged or of another format is
/// made anew. Never fails because somebody else writes.
///
/// # Errors
/// What index or repository say.
pub async fn open_index(archive: &Arc<Archive>, dir: &Path) -> Result<(Arc<WalIndex>, ReindexReport), ReindexError> {
    let identity = repository_ids(archive);
    let clock = archive.vault().clock();
    let mut backoff = Backoff::new(INDEX_CREATION_WAIT, clock.elapsed(), u64::from(std::process::id()));
    let index = loop {
        let (path, identity) = (dir.to_owned(), identity.clone());
        let (reading, opened) = run_blocking(move || writer_or_reader(&path, &identity)).await?;
        match opened {
            Err(error) if reading && (error.calls_for_rebuild() || error.class() == ErrorClass::Transient) => {
                let Some(pause) = backoff.next_pause(clock.elapsed()) else { return Err(error.into()) };
                clock.sleep(pause).await;
            }
            opened => break Arc::new(opened?),
        }
    };
    let report = catch_up_index(archive, &index, ReindexScope::New).await?;
    Ok((index, report))
}

/// [`open_index`] for a command that must answer whatever is wrong with the index: if it is one of other repositories,
/// or cannot be read or written, the command makes one for itself from the archive. That takes the longer, the more WAL
/// there is.
///
/// # Errors
/// The repositories cannot be read, or there is no room for an index.
pub async fn open_index_or_scratch(
    archive: &Arc<Archive>,
    dir: &Path,
) -> Result<(Arc<WalIndex>, ReindexReport), ReindexError> {
    let error = match open_index(archive, dir).await {
        Err(ReindexError::Index(error)) => error,
        opened => return opened,
    };
    tracing::warn!(%error, "the index is of no use here; this command reads the archive instead");
    let (identity, folder) = (repository_ids(archive), dir.parent().unwrap_or(dir).to_owned());
    let index = Arc::new(run_blocking(move || WalIndex::scratch(&folder, &identity)).await??);
    let report = catch_up_index(archive, &index, ReindexScope::All).await?;
    Ok((index, report))
}

/// The index, and whether it was to be read beside another process that writes it.
fn writer_or_reader(path: &Path, identity: &[String]) -> (bool, Result<WalIndex, index::IndexError>) {
    match WalIndex::open_writer(path, identity) {
        Err(index::IndexError::Locked(_)) => (true, WalIndex::open_reader(path, identity)),
        Err(error) if error.calls_for_rebuild() => {
            tracing::warn!(%error, "the index is made anew");
            (false, WalIndex::recreate(path, identity))
        }
        opened => (false, opened),
    }
}

/// Throws the index in `dir` away and makes it anew from the repositories.
///
/// # Errors
/// [`index::IndexError::Locked`] where a service writes it; else what index or repository say.
pub async fn rebuild_index(
    archives: &[Arc<Archive>],
    dir: PathBuf,
) -> Result<(Arc<WalIndex>, ReindexReport), ReindexError> {
    let identity: Vec<String> = archives.iter().flat_map(|archive| repository_ids(archive)).collect();
    let index = Arc::new(run_blocking(move || WalIndex::recreate(&dir, &identity)).await??);
    let mut total = ReindexReport::default();
    for archive in archives {
        total.merge(catch_up_index(archive, &index, ReindexScope::All).await?);
    }
    let flushed = Arc::clone(&index);
    run_blocking(move || flushed.flush()).await??;
    Ok((index, total))
}

/// Brings what is new in the archive into the index. Can be interrupted anywhere and begun again.
///
/// # Errors
/// What index or repository say.
pub async fn catch_up_index(
    archive: &Arc<Archive>,
    index: &Arc<WalIndex>,
    scope: ReindexScope,
) -> Result<ReindexReport, ReindexError> {
    let mut report = ReindexReport::default();
    let Some(identity) = archive.identity().await? else { return Ok(report) };
    for timeline in archive.timelines().await? {
        report.merge(catch_up_timeline(archive, index, scope, (timeline, identity.segment_size)).await?);
    }
    report.forgotten = report.forgotten.saturating_add(forget_expired(archive, index, identity.segment_size).await?);
    report.unasked.sort_unstable();
    report.unasked.dedup();
    Ok(report)
}

/// Forgets what lies before the first segment of each timeline that is still there: retention has taken it away, maybe
/// by another process. A repository that cannot be asked may have it still, so then nothing is forgotten.
async fn forget_expired(archive: &Arc<Archive>, index: &Arc<WalIndex>, size: SegmentSize) -> Result<u64, ReindexError> {
    let cluster = archive.cluster().to_string();
    let (reading, name) = (Arc::clone(index), cluster.clone());
    let known = run_blocking(move || Ok::<_, index::IndexError>(reading.view(&name)?.timelines().to_vec())).await??;
    let mut forgotten = 0_u64;
    for timeline in known {
        let (reading, name) = (Arc::clone(index), cluster.clone());
        let oldest = run_blocking(move || {
            let view = reading.view(&name)?;
            let oldest =
                view.summaries(timeline, SegmentNo::new(0), SegmentNo::new(u64::MAX), ScanOrder::Forward).next();
            oldest.transpose().map(|found| found.map(|(place, _)| place.segment))
        });
        // To list where the archive begins takes the longer, the more of it there is.
        let oldest = oldest.await??.and_then(|number| SegmentName::new(timeline, number, size));
        if let Some(oldest) = oldest
            && archive.has_segment(oldest).await
        {
            continue;
        }
        let first = match archive.first_segment(timeline).await {
            Ok(first) => first.and_then(|name| name.number(size)),
            Err(_unasked) => continue,
        };
        let (writing, name) = (Arc::clone(index), cluster.clone());
        let gone = run_blocking(move || {
            let view = writing.view(&name)?;
            let end = first.unwrap_or(SegmentNo::new(u64::MAX));
            let found = view.summaries(timeline, SegmentNo::new(0), end, ScanOrder::Forward);
            let gone = found.map(|found| Ok(found?.0.segment)).collect::<Result<Vec<_>, index::IndexError>>()?;
            drop(view);
            if !gone.is_empty() {
                writing.forget(&name, timeline, &gone)?;
            }
            Ok::<_, index::IndexError>(gone.len() as u64)
        });
        forgotten = forgotten.saturating_add(gone.await??);
    }
    Ok(forgotten)
}

/// A timeline, and the size of the segments on it.
type SizedTimeline = (TimelineId, SegmentSize);

async fn catch_up_timeline(
    archive: &Arc<Archive>,
    index: &Arc<WalIndex>,
    scope: ReindexScope,
    on: SizedTimeline,
) -> Result<ReindexReport, ReindexError> {
    let (timeline, size) = on;
    let cluster = archive.cluster().to_string();
    let (reading, name) = (Arc::clone(index), cluster.clone());
    let mark = run_blocking(move || reading.view(&name)?.timeline_mark(timeline))
        .await??
        .filter(|_| scope == ReindexScope::New);
    let listing = archive.list_segments(timeline, mark.and_then(|mark| SegmentName::new(timeline, mark, size))).await?;
    let mut report = ReindexReport {
        listed: listing.found.len() as u64,
        unasked: listing.unasked.clone(),
        ..ReindexReport::default()
    };
    let listed: Vec<(SegmentNo, SegmentName, u64)> =
        listing.found.iter().filter_map(|(name, object)| Some((name.number(size)?, *name, object.len))).collect();
    let first = mark.or(listed.first().map(|(number, _, _)| *number));

    let (reading, name) = (Arc::clone(index), cluster.clone());
    let forget = scope == ReindexScope::All && listing.unasked.is_empty();
    let (new, gone) = run_blocking(move || index_difference(&reading, &name, timeline, listed, forget)).await??;
    report.forgotten = gone.len() as u64;
    if !gone.is_empty() {
        let (writing, name) = (Arc::clone(index), cluster.clone());
        run_blocking(move || writing.forget(&name, timeline, &gone)).await??;
    }
    ingest_digests(archive, index, new, &mut report).await?;
    if let Some(first) = first {
        let writing = Arc::clone(index);
        run_blocking(move || match writing.view(&cluster)?.contains(SegmentId { timeline, segment: first })? {
            true => writing.set_mark(&cluster, timeline, first),
            // It could not be read: the next catch-up tries again.
            false => Ok(()),
        })
        .await??;
    }
    Ok(report)
}

/// Segments to read, with the sizes of their objects, and segments to forget.
type IndexDifference = (Vec<(SegmentName, u64)>, Vec<SegmentNo>);

/// What of `listed` the index lacks, and if `forget`, what of the index is not listed.
fn index_difference(
    index: &WalIndex,
    cluster: &str,
    timeline: TimelineId,
    listed: Vec<(SegmentNo, SegmentName, u64)>,
    forget: bool,
) -> Result<IndexDifference, index::IndexError> {
    let view = index.view(cluster)?;
    let Some(from) =
        listed.first().map(|(number, _, _)| *number).filter(|_| !forget).or(forget.then_some(SegmentNo::new(0)))
    else {
        return Ok((Vec::new(), Vec::new()));
    };
    let mut known = HashSet::new();
    for found in view.summaries(timeline, from, SegmentNo::new(u64::MAX), ScanOrder::Forward) {
        known.insert(found?.0.segment);
    }
    let mut new = Vec::new();
    for (number, name, len) in listed {
        if !known.remove(&number) {
            new.push((name, len));
        }
    }
    Ok((new, if forget { known.into_iter().collect() } else { Vec::new() }))
}

/// Reads the digests of `new` and takes them in, a few at a time, so that memory stays bounded whatever there is to do.
async fn ingest_digests(
    archive: &Arc<Archive>,
    index: &Arc<WalIndex>,
    new: Vec<(SegmentName, u64)>,
    report: &mut ReindexReport,
) -> Result<(), ReindexError> {
    let reads = stream::iter(new).map(|(name, len)| {
        let archive = Arc::clone(archive);
        async move { (name, len, archive.digest(name).await) }
    });
    let mut batches = reads.buffer_unordered(TRAILERS_IN_FLIGHT).chunks(DIGESTS_PER_BATCH);
    while let Some(batch) = batches.next().await {
        let mut digests = Vec::with_capacity(batch.len());
        for (name, len, digest) in batch {
            match digest {
                Ok(Some(digest)) => digests.push((digest, len)),
                Ok(None) => {}
                Err(error) if error.is_integrity() => report.unreadable.push((name, error.to_string())),
                Err(error) => return Err(error.into()),
            }
        }
        report.added = report.added.saturating_add(digests.len() as u64);
        let (index, cluster) = (Arc::clone(index), archive.cluster().to_string());
        let ingested = run_blocking(move || {
            let entries = digests.iter().map(|(digest, stored)| IndexEntry { digest, stored: *stored });
            index.ingest(&cluster, entries)
        });
        ingested.await??;
    }
    Ok(())
}

impl ReindexReport {
    fn merge(&mut self, other: ReindexReport) {
        self.listed = self.listed.saturating_add(other.listed);
        self.added = self.added.saturating_add(other.added);
        self.forgotten = self.forgotten.saturating_add(other.forgotten);
        self.unreadable.extend(other.unreadable);
        self.unasked.extend(other.unasked);
    }
}

/// Digests and segments out of the archive, the last few digests kept. For use where blocking is allowed, within a
/// runtime.
#[derive(Debug)]
pub struct ArchiveSegments {
    archive: Arc<Archive>,
    runtime: tokio::runtime::Handle,
    size: SegmentSize,
    unfinished: Vec<UnfinishedSegment>,
    /// The most recently used last.
    cached: std::sync::Mutex<Vec<(SegmentId, Arc<SegmentDigest>)>>,
}

/// Digests that are kept: a busy one is half a megabyte, and a plan asks for the same few again and again.
const CACHED_DIGESTS: usize = 16;

impl ArchiveSegments {
    /// The segments of `archive`, which are of this size, fetched on `runtime`.
    #[must_use]
    pub fn new(archive: Arc<Archive>, runtime: tokio::runtime::Handle, size: SegmentSize) -> ArchiveSegments {
        ArchiveSegments { archive, runtime, size, unfinished: Vec::new(), cached: std::sync::Mutex::new(Vec::new()) }
    }

    /// The same, with segments that still grow.
    #[must_use]
    pub fn with_unfinished(self, growing: Vec<UnfinishedSegment>) -> ArchiveSegments {
        ArchiveSegments { unfinished: growing, ..self }
    }

    fn unfinished(&self, place: SegmentId) -> Option<&UnfinishedSegment> {
        self.unfinished.iter().find(|growing| growing.segment_id() == place)
    }

    fn segment_name(&self, place: SegmentId) -> Result<SegmentName, ArchiveError> {
        let name = SegmentName::new(place.timeline, place.segment, self.size);
        name.ok_or_else(|| ArchiveError::SegmentGone { name: format!("segment number {}", place.segment.get()) })
    }
}

impl SegmentSource for ArchiveSegments {
    type Error = ArchiveError;

    fn digest(&self, place: SegmentId) -> Result<Arc<SegmentDigest>, ArchiveError> {
        if let Some(growing) = self.unfinished(place) {
            return Ok(Arc::new(growing.digest.clone()));
        }
        let mut kept = self.cached.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|(other, _)| *other == place) {
            let found = kept.remove(at);
            kept.push(found.clone());
            return Ok(found.1);
        }
        let name = self.segment_name(place)?;
        let digest = self.runtime.block_on(self.archive.digest(name))?;
        let digest = Arc::new(digest.ok_or_else(|| ArchiveError::SegmentGone { name: name.to_string() })?);
        if kept.len() >= CACHED_DIGESTS {
            kept.remove(0);
        }
        kept.push((place, Arc::clone(&digest)));
        Ok(digest)
    }

    fn segment(&self, place: SegmentId) -> Result<Bytes, ArchiveError> {
        if let Some(growing) = self.unfinished(place) {
            return Ok(growing.bytes.clone());
        }
        let name = self.segment_name(place)?;
        let segment = self.runtime.block_on(self.archive.segment(name))?;
        segment.ok_or_else(|| ArchiveError::SegmentGone { name: name.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{ArchiveSegments, ReindexReport, ReindexScope, catch_up_index, open_index, rebuild_index};
    use crate::postgres::archive::Archive;
    use crate::postgres::archive::lookup::SegmentSource as _;
    use crate::postgres::archive::tests::{create, segment};
    use crate::postgres::format::segment::{SegmentNo, SegmentSize};
    use crate::postgres::format::timeline::TimelineId;
    use crate::postgres::index::{self, SegmentId, WalIndex};

    async fn put(archive: &Arc<Archive>, numbers: &[u64]) {
        for &number in numbers {
            let (name, bytes) = segment(7, number, b"a", 9);
            archive.put_segment(name, bytes).await.unwrap();
        }
    }

    fn counts(report: &ReindexReport) -> (u64, u64, u64) {
        (report.listed, report.added, report.forgotten)
    }

    fn known(index: &WalIndex) -> Vec<u64> {
        let view = index.view("main").unwrap();
        let all = view.summaries(
            TimelineId::FIRST,
            SegmentNo::new(0),
            SegmentNo::new(99),
            index::key_value_store::ScanOrder::Forward,
        );
        all.map(|found| found.unwrap().0.segment.get()).collect()
    }

    #[tokio::test]
    async fn what_is_new_comes_in_and_holes_are_looked_at_again() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let archive = create(&[&dir], None).await;
        put(&archive, &[3, 4, 6]).await;
        let (index, report) = open_index(&archive, state.path()).await.unwrap();
        assert_eq!(counts(&report), (3, 3, 0));
        put(&archive, &[5, 7]).await;
        let report = catch_up_index(&archive, &index, ReindexScope::New).await.unwrap();
        assert_eq!(counts(&report), (3, 2, 0), "3 and 4 are not listed again");
        assert_eq!(counts(&catch_up_index(&archive, &index, ReindexScope::New).await.unwrap()), (0, 0, 0));
        put(&archive, &[2]).await;
        assert_eq!(
            counts(&catch_up_index(&archive, &index, ReindexScope::New).await.unwrap()),
            (0, 0, 0),
            "older than all"
        );
        assert_eq!(counts(&catch_up_index(&archive, &index, ReindexScope::All).await.unwrap()), (6, 1, 0));
        assert_eq!(known(&index), [2, 3, 4, 5, 6, 7]);
        let name = segment(7, 4, b"a", 9).0;
        archive.vault().delete(&archive.layout().segment(name)).await.unwrap();
        assert_eq!(counts(&catch_up_index(&archive, &index, ReindexScope::All).await.unwrap()), (5, 0, 1));
        assert_eq!(known(&index), [2, 3, 5, 6, 7]);
    }

    #[tokio::test]
    async fn a_rebuilt_index_is_the_same_and_a_damaged_trailer_is_named() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let archive = create(&[&dir], None).await;
        put(&archive, &[3, 4, 5]).await;
        let (index, _) = open_index(&archive, state.path()).await.unwrap();
        let busy = rebuild_index(&[Arc::clone(&archive)], state.path().to_owned()).await.unwrap_err();
        assert!(matches!(busy, super::ReindexError::Index(index::IndexError::Locked(_))), "{busy}");
        let (beside, report) = open_index(&archive, state.path()).await.unwrap();
        assert!(!beside.is_writer() && counts(&report) == (0, 0, 0));
        assert_eq!(known(&beside), [3, 4, 5]);
        // The writer has not heard of it yet, and a reader's answer is right all the same.
        put(&archive, &[6]).await;
        let (later, report) = open_index(&archive, state.path()).await.unwrap();
        assert_eq!((later.is_writer(), counts(&report)), (false, (1, 1, 0)));
        assert_eq!((known(&later), known(&index)), (vec![3, 4, 5, 6], vec![3, 4, 5]));
        later.refresh().unwrap();
        assert_eq!(known(&later), [3, 4, 5]);
        drop((index, beside, later));

        let name = segment(7, 4, b"a", 9).0;
        let path = dir.path().join("repository").join(archive.layout().segment(name).as_str());
        let mut bytes = std::fs::read(&path).unwrap();
        let end = bytes.len() - 40;
        bytes[end] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (index, report) = rebuild_index(&[Arc::clone(&archive)], state.path().to_owned()).await.unwrap();
        assert_eq!(known(&index), [3, 5, 6]);
        assert_eq!(report.unreadable.iter().map(|(name, _)| *name).collect::<Vec<_>>(), [name]);
    }

    #[tokio::test]
    async fn the_shelf_gives_what_is_archived() {
        let dir = tempfile::tempdir().unwrap();
        let archive = create(&[&dir], None).await;
        put(&archive, &[3]).await;
        let shelf = ArchiveSegments::new(
            Arc::clone(&archive),
            tokio::runtime::Handle::current(),
            SegmentSize::new(1 << 20).unwrap(),
        );
        let place = |number| SegmentId { timeline: TimelineId::FIRST, segment: SegmentNo::new(number) };
        let asked = tokio::task::spawn_blocking(move || {
            let first = shelf.digest(place(3)).unwrap();
            assert!(Arc::ptr_eq(&first, &shelf.digest(place(3)).unwrap()), "it is kept");
            assert_eq!(shelf.segment(place(3)).unwrap(), segment(7, 3, b"a", 9).1);
            let gone = shelf.digest(place(4)).unwrap_err();
            assert!(gone.to_string().contains("index rebuild"), "{gone}");
        });
        asked.await.unwrap();
    }
}
